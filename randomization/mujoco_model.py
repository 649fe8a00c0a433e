"""Robot models for MuJoCo, and the names under which their fields are parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim2real.errors import RobotError, did_you_mean
from sim2real.randomization import robots
from sim2real.randomization.parameters import Array

if TYPE_CHECKING:
    import mujoco

Expand = Callable[[str], Any]


@dataclass(frozen=True)
class Address:
    """Where a parameter lives: an element of a per-plant array of model fields.

    Attributes:
        field: field of `MjModel` ("opt.gravity" for an option).
        index: index into the field for one plant.
        unit: SI unit.
        follower: a field whose row follows in proportion (the inertia follows the mass), or "".
        sign: factor between the parameter and the stored number.
    """

    field: str
    index: tuple[int, ...]
    unit: str
    follower: str = ""
    sign: float = 1.0


class RobotModel:
    """A compiled MuJoCo model and the table of its dynamics parameters.

    Names are `dynamics.<entity>.<field>`:

    | entity | fields |
    |---|---|
    | body | `mass` [kg] (its inertia follows), `com[0]`..`com[2]` [m] |
    | joint | `damping`, `stiffness`, `frictionloss`, `armature` |
    | actuator | `gear` |
    | `world` | `gravity` [m/s²], downwards |

    Raises:
        RobotError: the file does not exist or does not parse, or a joint is neither a hinge nor a slide.
    """

    def __init__(self, source: str | Path) -> None:
        import mujoco

        self.name = str(source)
        path = Path(source)
        if not path.suffix:
            path = robots.path(str(source))
        elif not path.is_file():
            raise RobotError(f"robot file {path} does not exist; packaged robots: {', '.join(robots.ROBOTS)}")
        try:
            self.mj: mujoco.MjModel = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise RobotError(f"robot file {path} does not parse as MJCF or URDF: {reason}") from None
        slide_or_hinge = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
        if not np.isin(self.mj.jnt_type, [int(j) for j in slide_or_hinge]).all() or self.mj.njnt == 0:
            raise RobotError(f"robot file {path}: identification needs hinge and slide joints only, and at least one")

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(self.mj.joint(i).name or f"joint{i}" for i in range(self.mj.njnt))

    @property
    def actuator_names(self) -> tuple[str, ...]:
        return tuple(self.mj.actuator(i).name or f"actuator{i}" for i in range(self.mj.nu))

    @cached_property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each joint turns freely, so that its angle matters only modulo 2 pi."""
        import mujoco

        hinge = self.mj.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)
        return tuple(bool(x) for x in hinge & (self.mj.jnt_limited == 0))

    @cached_property
    def addresses(self) -> dict[str, Address]:
        """Every parameter: name -> where it lives."""
        import mujoco

        m, out = self.mj, {}
        for i in range(1, m.nbody):
            body = m.body(i).name or f"body{i}"
            out[f"dynamics.{body}.mass"] = Address("body_mass", (i,), "kg", follower="body_inertia")
            for k in range(3):
                out[f"dynamics.{body}.com[{k}]"] = Address("body_ipos", (i, k), "m")
        for i, joint in enumerate(self.joint_names):
            dof = int(m.jnt_dofadr[i])
            hinge = m.jnt_type[i] == int(mujoco.mjtJoint.mjJNT_HINGE)
            units = (
                ("N·m·s/rad", "N·m/rad", "N·m", "kg·m²") if hinge else ("N·s/m", "N/m", "N", "kg")
            )  # damping, stiffness, frictionloss, armature
            out[f"dynamics.{joint}.damping"] = Address("dof_damping", (dof,), units[0])
            out[f"dynamics.{joint}.stiffness"] = Address("jnt_stiffness", (i,), units[1])
            out[f"dynamics.{joint}.frictionloss"] = Address("dof_frictionloss", (dof,), units[2])
            out[f"dynamics.{joint}.armature"] = Address("dof_armature", (dof,), units[3])
        for i, actuator in enumerate(self.actuator_names):
            out[f"dynamics.{actuator}.gear"] = Address("actuator_gear", (i, 0), "")
        out["dynamics.world.gravity"] = Address("opt.gravity", (2,), "m/s²", sign=-1.0)
        return out

    @cached_property
    def nominal(self) -> dict[str, float]:
        """Every parameter's value in the file: name -> number."""
        return {name: a.sign * float(self.nominal_row(a.field)[a.index]) for name, a in self.addresses.items()}

    def address(self, name: str) -> Address:
        """Return where a parameter lives.

        Raises:
            RobotError: there is no such parameter; the nearest names are listed.
        """
        if name not in self.addresses:
            raise RobotError(f"{self.name} has no parameter {name!r}{did_you_mean(name, self.addresses)}")
        return self.addresses[name]

    def nominal_row(self, field: str) -> Array:
        """Return a field's array in the file."""
        value = self.mj.opt.gravity if field == "opt.gravity" else getattr(self.mj, field)
        return np.array(value, float)
