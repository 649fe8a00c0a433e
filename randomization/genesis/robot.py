"""Robots for Genesis: described so that it reads what MuJoCo reads, refused where it would compute something else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import RobotError

if TYPE_CHECKING:
    import mujoco

# By MuJoCo's numbers.
INTEGRATORS = {0: "Euler", 3: "implicitfast"}


def described(spec: mujoco.MjSpec) -> str:
    """Return a robot as MJCF with every body, joint and geom named, so that both engines know them by one name.

    The names are those that the table of parameters gives: `body3`, `joint0`. Meshes are given with full paths.
    """
    spec = spec.copy()
    model = spec.compile()
    for kind, many, things in (
        ("body", model.nbody, spec.bodies),
        ("joint", model.njnt, spec.joints),
        ("geom", model.ngeom, spec.geoms),
    ):
        taken = {one.name for one in things}
        for k, one in enumerate(things[:many]):
            if not one.name and f"{kind}{k}" in taken:
                raise RobotError(f"a {kind} is named {kind}{k}, which stands for number {k}, another one; rename it")
            one.name = one.name or f"{kind}{k}"
    spec.meshdir = str((Path(spec.modelfiledir) / spec.meshdir).resolve())
    spec.texturedir = str((Path(spec.modelfiledir) / spec.texturedir).resolve())
    spec.compile()
    return str(spec.to_xml())


def disabled(model: Any, flag: str) -> bool:
    import mujoco

    return bool(int(model.opt.disableflags) & int(getattr(mujoco.mjtDisableBit, f"mjDSBL_{flag}")))


# Of MuJoCo's model, whose effect Genesis cannot take away.
_FLAGS = ("CONSTRAINT", "EQUALITY", "FRICTIONLOSS", "SPRING", "DAMPER", "CLAMPCTRL", "ACTUATION", "EULERDAMP")


def refuse_what_differs(m: Any) -> None:
    """Raise a RobotError for what Genesis computes otherwise than MuJoCo, or not at all.

    Args:
        m: MuJoCo's model.
    """
    import mujoco

    plain = np.isin(m.jnt_type, [int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)])
    at_joint = m.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT)
    simple = at_joint & plain[np.where(at_joint, m.actuator_trnid[:, 0], 0)] if m.njnt else at_joint
    simple = simple & (m.actuator_gaintype == int(mujoco.mjtGain.mjGAIN_FIXED))
    simple &= m.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_NONE)
    simple &= m.actuator_biastype <= int(mujoco.mjtBias.mjBIAS_AFFINE)
    touching = (m.geom_contype != 0) | (m.geom_conaffinity != 0)
    touching &= not disabled(m, "CONTACT")
    springs = plain & (m.jnt_stiffness > 0)
    rests = springs & ~np.isclose(m.qpos_spring[m.jnt_qposadr], m.qpos0[m.jnt_qposadr])
    off = [flag.lower() for flag in _FLAGS if disabled(m, flag)]
    for kind, wrong, what in (
        ("actuator", ~simple, "on Genesis actuators are motors and servos at hinges and slides, without activation"),
        ("actuator", _repeated(m.actuator_trnid[:, 0]), "two actuators drive one joint"),
        ("", [int(m.opt.integrator) not in INTEGRATORS], "Genesis integrates by Euler or implicitfast"),
        ("", [m.ntendon > 0], "Genesis models no tendons"),
        ("", [m.npair > 0], "Genesis knows no contact pairs"),
        ("", [m.opt.density > 0 or m.opt.viscosity > 0], "Genesis has no medium (density, viscosity)"),
        ("", off, f"Genesis cannot disable {', '.join(off)} (option/flag)"),
        ("body", m.body_gravcomp != 0, "Genesis has no gravcomp"),
        ("joint", rests, "in Genesis a spring rests where the joint is in the file, not at its springref"),
        ("joint", ~plain & (m.jnt_limited != 0), "Genesis limits hinges and slides alone"),
        ("geom", touching & (m.geom_condim != 3), "contacts in Genesis have condim 3"),
        ("geom", touching & (m.geom_solref[:, 0] <= 0), "Genesis takes no negative solref"),
        ("geom", touching & ((m.geom_margin != 0) | (m.geom_gap != 0)), "Genesis has no margin or gap"),
        ("geom", touching & ((m.geom_priority != 0) | (m.geom_solmix != 1)), "Genesis has no priority or solmix"),
    ):
        found = np.flatnonzero(np.asarray(wrong, bool))
        if len(found):
            which = f" ({kind} {found[0]})" if kind else ""
            raise RobotError(f"the robot is not for Genesis: {what}{which}; MuJoCo takes it")


def _repeated(numbers: NDArray[np.int_]) -> NDArray[np.bool_]:
    return np.array([k in numbers[:i] for i, k in enumerate(numbers)], bool)
