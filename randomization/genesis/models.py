"""Where Genesis keeps what the table of MuJoCo's parameters names, so that the same rules write both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import RobotError
from sim2real.randomization.genesis.scene import Rows, Scene
from sim2real.randomization.mujoco_address import Address
from sim2real.randomization.mujoco_fields import MujocoFields, model_field
from sim2real.randomization.mujoco_table import Table
from sim2real.randomization.parameters import Array

# Fields of MuJoCo's model that Genesis has for each plant.
FIELDS = (
    "body_mass", "body_inertia", "body_ipos", "dof_damping", "dof_frictionloss", "dof_armature", "jnt_stiffness",
    "jnt_range", "actuator_gear", "actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "opt.gravity",
    "geom_friction",
)  # fmt: skip
# Slides and hinges, by MuJoCo's numbers.
_PLAIN = (2, 3)
# What single precision makes of a number, relative to it.
SINGLE = 3e-7


class GenesisFields(MujocoFields):
    """The table of a model's parameters on Genesis: those of MuJoCo that Genesis has for each plant."""

    def _table_of(self, model: Any) -> Table:
        table = super()._table_of(model)
        for name, address in list(table.addresses.items()):
            why = _missing(model, address)
            if why:
                del table.addresses[name]
                table.silent[name] = why
        return table


def _missing(model: Any, address: Address) -> str:
    """Say why Genesis does not have a parameter, or "" where it has."""
    import mujoco

    place = address.place
    if any(p.field not in FIELDS for p in address.places):
        return "Genesis does not have it for each plant; on MuJoCo it works"
    if place.field in ("jnt_stiffness", "jnt_range") and int(model.jnt_type[place.index[0]]) not in _PLAIN:
        return "Genesis has it at hinges and slides alone"
    if place.field == "geom_friction":
        if place.index[1] > 0:
            return "Genesis has the sliding friction of each plant alone"
        body = model.geom_bodyid[place.index[0]]
        mine = (model.geom_bodyid == body) & ((model.geom_contype != 0) | (model.geom_conaffinity != 0))
        if (model.geom_type[mine] == int(mujoco.mjtGeom.mjGEOM_MESH)).any():
            return "Genesis may split the meshes of its body into several geoms"
        if model.geom_friction[place.index[0], 0] <= 0:
            return "Genesis scales friction, and this is zero"
    return ""


class GenesisModels:
    """The `ModelArrays` of a scene: what is edited is pushed to Genesis at the commit, and read from there again.

    Args:
        scene: of n plants.
        fields: the table, with the nominal values.

    Raises:
        RobotError: Genesis has read the robot otherwise than MuJoCo.
    """

    def __init__(self, scene: Scene, fields: GenesisFields) -> None:
        self._scene = scene
        m = scene.model
        self._nominal = {field: np.array(model_field(m, field), float) for field in FIELDS}
        self._values = {f: np.broadcast_to(v, (scene.n, *v.shape)).copy() for f, v in self._nominal.items()}
        self._edited: set[str] = set()
        self._turned, self._friction = self._principal_axes(), self._nominal_friction()
        self._homes = self._all_homes()
        used = {place.field for address in fields.addresses.values() for place in address.places}
        self._used = used | {"body_inertia"}
        self._restore()
        self._check(fields)

    @property
    def n(self) -> int:
        return self._scene.n

    @property
    def timestep(self) -> float:
        return self._scene.timestep

    def values(self, field: str) -> NDArray[np.generic]:
        if field in self._values:
            return self._values[field]
        shared = np.asarray(model_field(self._scene.model, field))
        return np.broadcast_to(shared, (self.n, *shared.shape))

    def edit(self, field: str) -> NDArray[np.generic]:
        self._edited.add(field)
        return self._values[field]

    def commit(self, rows: NDArray[np.bool_], constants: bool) -> None:
        """Push what was edited in `rows`, and take over what Genesis says is in force; it derives constants itself."""
        plants = np.flatnonzero(rows)
        for field in sorted(self._edited):
            push, pull = self._homes[field]
            push(plants, self._values[field][plants])
            self._take_over(field, pull())
        self._edited.clear()

    def _restore(self) -> None:
        everything = np.arange(self.n)
        for field in sorted(self._used):
            self._homes[field][0](everything, self._values[field])

    def _take_over(self, field: str, there: Array) -> None:
        """Keep what was written where Genesis has it to single precision, and elsewhere what Genesis has."""
        mine = self._values[field]
        scale = np.abs(mine).max(-1, keepdims=True) if field in ("body_inertia", "body_ipos") else np.abs(mine)
        same = (np.abs(mine - there) <= SINGLE * scale + 1e-12) | (mine == there) | np.isnan(there)
        self._values[field] = np.where(same, mine, there)

    def _check(self, fields: GenesisFields) -> None:
        for field in sorted(self._used):
            there = self._homes[field][1]()
            nominal = np.broadcast_to(self._nominal[field], there.shape)
            for name, address in fields.addresses.items():
                for place in (p for p in address.places if p.field == field):
                    one, other = nominal[(0, *place.index)], there[(0, *place.index)]
                    if not np.allclose(one, other, rtol=1e-5, atol=1e-9):
                        raise RobotError(f"{name}: Genesis reads {other} from the robot file, MuJoCo {one}")

    def _principal_axes(self) -> Array:
        """Return (B, 3, 3) the axes in which Genesis' inertia of each body is MuJoCo's diagonal one."""
        found = self._scene.solver.get_links_inertia()[0].cpu().numpy().astype(float)[self._scene.links]
        out = np.tile(np.eye(3), (len(found), 1, 1))
        for k, (inertia, moments) in enumerate(zip(found, self._nominal["body_inertia"], strict=True)):
            if not np.allclose(inertia, np.diag(moments), atol=1e-6 * max(moments.max(), 1e-12)):
                _, axes = np.linalg.eigh(inertia)
                out[k] = axes[:, np.argsort(np.argsort(moments))]
        return out

    def _nominal_friction(self) -> Array:
        """Return (G,) the sliding friction that Genesis has read, one where a geom is not matched."""
        out = np.ones(self._scene.model.ngeom)
        known = self._scene.solver.get_geoms_friction().cpu().numpy() if self._scene.geoms else np.zeros(0)
        for mine, there in self._scene.geoms.items():
            out[mine] = known[there]
        return out

    def _all_homes(self) -> dict[str, tuple[Callable[[Rows, Array], None], Callable[[], Array]]]:
        """For each field how rows (k, ...) are pushed to Genesis, and how all (n, ...) are read from there."""
        s, m, e = self._scene, self._scene.model, self._scene.entity
        moving = np.flatnonzero((m.body_weldid != 0) & (m.body_mass > 0))
        links, own = s.links[moving].tolist(), self._turned[moving]
        plain = np.isin(m.jnt_type, _PLAIN)
        springs, limited = np.flatnonzero(plain), np.flatnonzero(plain & (m.jnt_limited != 0))
        spring_dofs = s.dofs[m.jnt_dofadr[springs]].tolist()
        limit_dofs = s.dofs[m.jnt_dofadr[limited]].tolist()
        dofs, geoms = s.dofs.tolist(), list(s.geoms)

        def host(tensor: Any) -> Array:
            return np.asarray(tensor.cpu().numpy(), float)

        def columns(field: str, chosen: NDArray[np.int_], found: Callable[[], Array]) -> Callable[[], Array]:
            def pull() -> Array:
                out = np.broadcast_to(self._nominal[field], (s.n, *self._nominal[field].shape)).copy()
                if len(chosen):
                    out[:, chosen] = found()
                return out

            return pull

        def of_dofs(name: str) -> tuple[Callable[[Rows, Array], None], Callable[[], Array]]:
            write, read = getattr(e, f"set_dofs_{name}"), getattr(e, f"get_dofs_{name}")
            return (
                lambda rows, value: write(s.tensor(value), dofs, envs_idx=s.indices(rows)),
                lambda: host(read(dofs)),
            )

        def push_links(write: Callable[..., None]) -> Callable[[Rows, Array], None]:
            def push(rows: Rows, value: Array) -> None:
                if links:
                    write(s.tensor(value[:, moving]), links, envs_idx=s.indices(rows))

            return push

        def push_inertia(rows: Rows, value: Array) -> None:
            if links:
                turned = np.einsum("bij,kbj,blj->kbil", own, value[:, moving], own)
                e.set_links_inertia(s.tensor(turned), links, envs_idx=s.indices(rows))

        def pull_inertia() -> Array:
            return np.asarray(np.einsum("bij,kbil,blj->kbj", own, host(e.get_links_inertia(links)), own))

        def push_springs(rows: Rows, value: Array) -> None:
            if len(springs):
                e.set_dofs_stiffness(s.tensor(value[:, springs]), spring_dofs, envs_idx=s.indices(rows))

        def push_limits(rows: Rows, value: Array) -> None:
            if len(limited):
                low, high = s.tensor(value[:, limited, 0]), s.tensor(value[:, limited, 1])
                e.set_dofs_limit(low, high, limit_dofs, envs_idx=s.indices(rows))

        def pull_limits() -> Array:
            low, high = e.get_dofs_limit(limit_dofs)
            return np.stack([host(low), host(high)], -1)

        def push_gravity(rows: Rows, value: Array) -> None:
            s.solver.set_gravity(s.tensor(value), envs_idx=s.indices(rows))

        def push_friction(rows: Rows, value: Array) -> None:
            if geoms:
                ratio = value[:, geoms, 0] / self._friction[geoms]
                s.solver.set_geoms_friction_ratio(s.tensor(ratio), list(s.geoms.values()), s.indices(rows))

        def pull_friction() -> Array:
            out = np.broadcast_to(self._nominal["geom_friction"], (s.n, m.ngeom, 3)).copy()
            if geoms:
                there = host(s.solver.get_geoms_friction_ratio(list(s.geoms.values())))
                out[:, geoms, 0] = there * self._friction[geoms]
            return out

        def ours(tensor: Any, parts: int | None) -> tuple[Callable[[Rows, Array], None], Callable[[], Array]]:
            """Of the actuators, which this package computes: `parts` numbers of the row, or the first one."""

            def push(rows: Rows, value: Array) -> None:
                tensor[s.indices(rows).long()] = s.tensor(value[..., 0] if parts is None else value[..., :parts])
                s.drive(rows)

            def pull(field: str) -> Array:
                nominal = self._nominal[field]
                out = np.broadcast_to(nominal, (s.n, *nominal.shape)).copy()
                out[..., slice(1) if parts is None else slice(parts)] = host(
                    tensor[..., None] if parts is None else tensor
                )
                return out

            return push, pull  # type: ignore[return-value]

        def named(field: str, tensor: Any, parts: int | None) -> Any:
            push, pull = ours(tensor, parts)
            return push, lambda: pull(field)  # type: ignore[call-arg]

        def push_range(rows: Rows, value: Array) -> None:
            endless = np.where(m.actuator_forcelimited[:, None] != 0, value, [-np.inf, np.inf])
            s.force_range[s.indices(rows).long()] = s.tensor(endless)
            s.drive(rows)

        def pull_range() -> Array:
            there = host(s.force_range)
            return np.where(np.isfinite(there), there, self._nominal["actuator_forcerange"])

        return {
            "body_mass": (
                push_links(e.set_links_mass),
                columns("body_mass", moving, lambda: host(e.get_links_mass(links))),
            ),
            "body_inertia": (push_inertia, columns("body_inertia", moving, pull_inertia)),
            "body_ipos": (
                push_links(e.set_links_COM),
                columns("body_ipos", moving, lambda: host(e.get_links_COM(links))),
            ),
            "dof_damping": of_dofs("damping"),
            "dof_frictionloss": of_dofs("frictionloss"),
            "dof_armature": of_dofs("armature"),
            "jnt_stiffness": (
                push_springs,
                columns("jnt_stiffness", springs, lambda: host(e.get_dofs_stiffness(spring_dofs))),
            ),
            "jnt_range": (push_limits, columns("jnt_range", limited, pull_limits)),
            "actuator_gear": named("actuator_gear", s.gear, None),
            "actuator_gainprm": named("actuator_gainprm", s.gain, None),
            "actuator_biasprm": named("actuator_biasprm", s.bias, 3),
            "actuator_forcerange": (push_range, pull_range),
            "opt.gravity": (push_gravity, lambda: host(s.solver.get_gravity())),
            "geom_friction": (push_friction, pull_friction),
        }
