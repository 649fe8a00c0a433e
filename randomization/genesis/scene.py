"""A scene of Genesis with n plants of one robot, in MuJoCo's order of joints and bodies; lent to one owner."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError, RobotError, require
from sim2real.randomization.genesis.robot import INTEGRATORS, described, disabled, refuse_what_differs
from sim2real.randomization.mujoco_table import joint_name
from sim2real.randomization.parameters import Array

if TYPE_CHECKING:
    import mujoco
    import torch

Rows = NDArray[np.intp]


def started() -> Any:
    """Return the module `genesis`, started: on a GPU where torch finds one, otherwise on the CPU; single precision.

    Nothing is seeded. A Genesis that was started already is taken as it is.

    Raises:
        MissingExtraError: Genesis is not installed.
    """
    import torch

    gs = require("genesis", "genesis")
    if not gs._initialized:
        _FREE.clear()  # of an engine that was stopped
        backend = gs.gpu if torch.cuda.is_available() else gs.cpu
        gs.init(backend=backend, precision="32", logging_level="error")
        # Genesis lets this thread round the smallest numbers to zero, which is none of everybody else's business
        torch.set_flush_denormal(False)
    return gs


class Scene:
    """n plants of one robot in Genesis.

    Args:
        spec: the robot.
        xml: the same, as `described` gives it.
        n: number of plants.
        timestep: length of a substep [s].

    Attributes:
        model: the robot, compiled by MuJoCo, whose order of joints, bodies and actuators holds here, too.
        entity, solver: Genesis' own.
        fresh: whether nobody has written into it yet.
        gear, gain, bias, force_range: (n, U), (n, U), (n, U, 3), (n, U, 2) of the actuators, tensors; see `drive`.

    Raises:
        RobotError: Genesis cannot read the robot, or computes something of it otherwise than MuJoCo.
    """

    def __init__(self, spec: mujoco.MjSpec, xml: str, n: int, timestep: float) -> None:
        import torch

        gs = started()
        self.n, self.timestep, self.model = n, timestep, spec.copy().compile()
        refuse_what_differs(self.model)
        gravity = (0.0, 0.0, 0.0) if disabled(self.model, "GRAVITY") else tuple(self.model.opt.gravity)
        self._scene = gs.Scene(
            sim_options=gs.options.SimOptions(dt=timestep, gravity=gravity),
            rigid_options=gs.options.RigidOptions(
                dt=timestep,
                gravity=gravity,
                integrator=getattr(gs.integrator, INTEGRATORS[int(self.model.opt.integrator)]),
                enable_mujoco_compatibility=True,
                friction_cone=gs.friction_cone.elliptic if self.model.opt.cone else gs.friction_cone.pyramidal,
                impratio=float(self.model.opt.impratio),
                enable_collision=not disabled(self.model, "CONTACT"),
                enable_neutral_collision=True,
                enable_joint_limit=not disabled(self.model, "LIMIT"),
                constraint_timeconst=0.02,  # where the file says nothing, as in MuJoCo
                batch_links_info=True,
                batch_joints_info=True,
                batch_dofs_info=True,
            ),
            show_viewer=False,
        )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "robot.xml"
            file.write_text(xml)
            try:
                self.entity = self._scene.add_entity(gs.morphs.MJCF(file=str(file), visualization=False, align=False))
                self._scene.build(n_envs=n)
            except gs.GenesisException as error:
                raise RobotError(f"Genesis does not take the robot: {error}") from error
        self.solver = self._scene.sim.rigid_solver
        joints = {joint.name: joint for joint in self.entity.joints}
        names = [joint_name(self.model, k) for k in range(self.model.njnt)]
        bodies = [self.model.body(k).name or f"body{k}" for k in range(self.model.nbody)]
        links = {link.name: link.idx_local for link in self.entity.links}
        missing = [name for name in (*names, *bodies[1:]) if name not in joints and name not in links]
        if missing:
            raise RobotError(f"Genesis merges or drops {', '.join(missing)}, which MuJoCo keeps")
        self.dofs = np.array([d for name in names for d in joints[name].dofs_idx_local], int)
        self.qs = np.array([q for name in names for q in joints[name].qs_idx_local], int)
        self.links = np.array([links.get(name, 0) for name in bodies], int)
        self.geoms = self._matched_geoms()
        self._back_dofs, self._back_qs = np.argsort(self.dofs), np.argsort(self.qs)
        self._dof_order = None if (self.dofs == np.arange(len(self.dofs))).all() else torch.as_tensor(self.dofs)
        self._q_order = None if (self.qs == np.arange(len(self.qs))).all() else torch.as_tensor(self.qs)
        self.device, self.dtype = gs.device, gs.tc_float
        m = self.model
        self._driven = self.dofs[m.jnt_dofadr[m.actuator_trnid[:, 0]]].tolist()
        endless = np.where(m.actuator_forcelimited[:, None] != 0, m.actuator_forcerange, [-np.inf, np.inf])
        self.gear, self.gain = self._each(m.actuator_gear[:, 0]), self._each(m.actuator_gainprm[:, 0])
        self.bias, self.force_range = self._each(m.actuator_biasprm[:, :3]), self._each(endless)
        limited = m.actuator_ctrllimited[:, None] != 0
        self._control_range = self.tensor(np.where(limited, m.actuator_ctrlrange, [-np.inf, np.inf]))
        self._servos = bool(m.actuator_biasprm[:, :3].any())
        at = m.actuator_trnid[:, 0]
        own = np.where(m.jnt_actfrclimited[at, None] != 0, m.jnt_actfrcrange[at], [-np.inf, np.inf])
        # of motors without limits nothing is left to Genesis
        self.left_to_engine = self._servos or bool(np.isfinite(endless).any() or np.isfinite(own).any())
        self._at_joint, self._zero = self.tensor(own), self.tensor(m.qpos0[m.jnt_qposadr[at]])
        self.fresh = True
        self.drive()

    def _each(self, value: Array) -> torch.Tensor:
        import torch

        one = torch.as_tensor(np.asarray(value), dtype=self.dtype, device=self.device)
        return one.expand(self.n, *one.shape).clone()

    def tensor(self, value: Any) -> torch.Tensor:
        """Return an array as a tensor of the scene's device and precision."""
        import torch

        return torch.as_tensor(value, dtype=self.dtype, device=self.device)

    def _matched_geoms(self) -> dict[int, int]:
        """Return where Genesis keeps the geoms that take part in contacts: MuJoCo's number -> the number there."""
        import mujoco

        found: dict[int, int] = {}
        m, mesh = self.model, int(mujoco.mjtGeom.mjGEOM_MESH)
        touching = (m.geom_contype != 0) | (m.geom_conaffinity != 0)
        for body, link in enumerate(self.links):
            mine = np.flatnonzero(touching & (m.geom_bodyid == body))
            there = [geom.idx for geom in self.entity.links[link].geoms]
            if len(mine) == len(there) and (m.geom_type[mine] != mesh).all():
                found |= dict(zip(mine.tolist(), there, strict=True))
        return found

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions (n, Q) and velocities (n, V) [SI units]."""
        q, v = self.entity.get_qpos(), self.entity.get_dofs_velocity()
        return (
            q if self._q_order is None else q[:, self._q_order],
            v if self._dof_order is None else v[:, self._dof_order],
        )

    def set_state(self, positions: Any, velocities: Any, rows: Rows | None = None) -> None:
        """Put plants, all or `rows`, into states (k, Q) and (k, V); what the engine remembers is forgotten."""
        where = None if rows is None else self.indices(rows)
        q, v = self.tensor(positions), self.tensor(velocities)
        if self._q_order is not None:
            q = q[:, self._back_qs]
        if self._dof_order is not None:
            v = v[:, self._back_dofs]
        # Genesis takes all kinematics for up to date after those of some plants were: leave them to the next step
        self.entity.set_qpos(q, envs_idx=where, zero_velocity=False, skip_forward=True)
        self.entity.set_dofs_velocity(v, envs_idx=where, skip_forward=True)

    def indices(self, rows: Rows) -> torch.Tensor:
        """Return plants by number, as Genesis takes them."""
        import torch

        gs = started()
        return torch.as_tensor(np.asarray(rows), dtype=gs.tc_int, device=self.device)

    def within_range(self, control: torch.Tensor) -> torch.Tensor:
        """Return controls (n, U) within the ranges of the robot file."""
        import torch

        return torch.maximum(torch.minimum(control, self._control_range[:, 1]), self._control_range[:, 0])

    def wrench(self, body: int, wrenches: Array) -> None:
        """Let forces and torques (n, 6) act on a body, at its centre of mass, for the next substep [N, N·m]."""
        frame = started().link_ref_frame.link_COM
        self.solver.apply_links_external_wrench(
            self.tensor(wrenches[:, None, :3]),
            self.tensor(wrenches[:, None, 3:]),
            [int(self.links[body])],
            ref=frame,
        )

    def step(self, control: torch.Tensor) -> None:
        """Take one substep with the controls (n, U) of the actuators."""
        if self._servos:
            self.entity.control_dofs_position(control, self._driven)
        else:
            self.entity.control_dofs_force(self.gain * self.gear * control, self._driven)
        try:
            self._scene.step(update_visualizer=False, refresh_visualizer=False)
        except started().GenesisException as error:
            # too many contacts for what it has room for, for instance; plants that are lost are told by `lost`
            if "nan" not in str(error) and "not finite" not in str(error):
                raise RobotError(f"Genesis stopped: {error}") from error

    def lost(self) -> NDArray[np.bool_]:
        """Return which plants (n,) Genesis has stopped, for they left the finite numbers; `set_state` revives them."""
        return np.asarray(self.solver.get_error_envs_mask().cpu().numpy(), bool).reshape(self.n)

    def forces(self) -> torch.Tensor:
        """Return the forces of the actuators (n, U) in the last substep, before their gears [N·m or N]."""
        from genesis.utils.misc import qd_to_torch

        applied: torch.Tensor = qd_to_torch(self.solver.dyn_state.dofs.qf_applied, transpose=True)
        return applied[:, self._driven] / self.gear

    def drive(self, plants: torch.Tensor | None = None) -> None:
        """Let Genesis have what the actuators of plants, all or these, are like now.

        Raises:
            ParameterError: Genesis has something else afterwards.
        """
        import torch

        where = slice(None) if plants is None else plants.long()
        gear = self.gear[where]
        bias = gear[..., None] * self.bias[where]
        # Genesis measures from the pose in the file
        bias[..., 0] += gear * bias[..., 1] * self._zero
        # of a gear of zero there is no force to be limited
        limits = [gear * self.force_range[where][..., k] for k in (0, 1)]
        ends = [torch.nan_to_num(limit, nan=0.0, posinf=np.inf, neginf=-np.inf) for limit in limits]
        low = torch.maximum(torch.minimum(*ends), self._at_joint[:, 0])
        high = torch.minimum(torch.maximum(*ends), self._at_joint[:, 1])
        at = {"dofs_idx_local": self._driven, "envs_idx": plants}
        wanted = [gear * self.gain[where], bias[..., 0], gear * bias[..., 1], gear * bias[..., 2], low, high]
        self.entity.set_dofs_act_gain(wanted[0], **at)
        self.entity.set_dofs_act_bias(*wanted[1:4], **at)
        self.entity.set_dofs_force_range(low, high, **at)
        there = [self.entity.get_dofs_act_gain(**at), *self.entity.get_dofs_act_bias(**at)]
        there += self.entity.get_dofs_force_range(**at)
        for what, mine, found in zip(
            ("gain", "bias", "kp", "kv", "force range", "force range"), wanted, there, strict=True
        ):
            if not torch.allclose(mine, found, rtol=1e-5):
                raise ParameterError(f"wrote a {what} of the actuators into Genesis that did not take effect")

    def resistance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each joint resists an effort with, and the effort that the present state asks for: (n, V) each.

        The inverse of the diagonal of the inverse joint space inertia; and what gravity, springs and motion ask for.
        """
        import torch
        from genesis.utils.misc import qd_to_torch

        # what a step computes first, without the step: a step leaves that of the state before it
        self.solver.update_forward_pos()
        self.entity.set_dofs_velocity(self.entity.get_dofs_velocity())
        self.solver._func_forward_dynamics()
        there, inertia = self.solver.dyn_state.dofs, self.entity.get_mass_mat().double()
        bias: torch.Tensor = qd_to_torch(there.qf_bias, transpose=True) - qd_to_torch(there.qf_passive, transpose=True)
        effective = 1.0 / torch.diagonal(torch.linalg.inv(inertia), dim1=1, dim2=2)
        return effective[:, self.dofs], bias[:, self.dofs]

    def inertias(self) -> torch.Tensor | None:
        """Return the inertias of Genesis' links (n, L, 3, 3), to be written into, or None where they are not shared."""
        from genesis.utils.misc import qd_to_torch

        if not started().use_zerocopy:
            return None
        shared: torch.Tensor = qd_to_torch(self.solver.dyn_info.links.inertial_i, transpose=True, copy=False)
        return shared

    def body_poses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions (n, B, 3) [m] and orientations (n, B, 4, w first) of the bodies."""
        self.solver.update_forward_pos()
        return (
            self.entity.get_links_pos(relative=False)[:, self.links],
            self.entity.get_links_quat(relative=False)[:, self.links],
        )


# Scenes that nobody uses, the latest last, and how many of them are kept.
_FREE: list[tuple[tuple[str, float, int], Scene]] = []
_KEPT = 4


class Lease:
    """A scene that nobody else uses for as long as somebody holds this."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene


def borrow(spec: mujoco.MjSpec, n: int, timestep: float) -> Lease:
    """Return a scene that was built before and is free, or a new one.

    Raises:
        ParameterError: n is not a number of plants.
        RobotError: see `Scene`.
    """
    if not isinstance(n, int) or n < 1:
        raise ParameterError(f"expected one plant or more, found {n!r}")
    xml = described(spec)
    key = hashlib.sha256(xml.encode()).hexdigest(), timestep, n
    at = next((k for k, (other, _) in enumerate(_FREE) if other == key), None)
    lease = Lease(Scene(spec, xml, n, timestep) if at is None else _FREE.pop(at)[1])
    weakref.finalize(lease, _give_back, key, lease.scene)
    return lease


def _give_back(key: tuple[str, float, int], scene: Scene) -> None:
    scene.fresh = False
    _FREE.append((key, scene))
    del _FREE[:-_KEPT]
