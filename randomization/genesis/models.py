"""Where Genesis keeps what the table of MuJoCo's parameters names, so that the same rules write both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim2real.errors import RobotError
from sim2real.randomization.genesis.scene import Lease, Rows
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
    """The table of a model's parameters on Genesis: those of MuJoCo that Genesis has for each plant.

    And those that only a picture shows: MuJoCo draws the plants of Genesis, so that each has its own.
    """

    @property
    def drawn(self) -> set[str]:
        """The fields that only a picture shows."""
        return {p.field for name, a in self.addresses.items() if _shows(name) for p in a.places}

    def _table_of(self, model: Any) -> Table:
        table = super()._table_of(model)
        for name, address in list(table.addresses.items()):
            why = "" if _shows(name) else _missing(model, address)
            if why:
                del table.addresses[name]
                table.silent[name] = why
        return table


def _shows(name: str) -> bool:
    return name.startswith("perception.")


def _missing(model: Any, address: Address) -> str:
    """Say why Genesis does not have a parameter, or "" where it has."""
    import mujoco

    place = address.place
    if any(p.field not in FIELDS for p in address.places):
        return "Genesis does not have it for each plant; on MuJoCo it works"
    if place.field in ("jnt_stiffness", "jnt_range") and int(model.jnt_type[place.index[0]]) not in _PLAIN:
        return "Genesis has it at hinges and slides alone"
    if place.field == "jnt_stiffness":
        at = model.jnt_qposadr[place.index[0]]
        if not np.isclose(model.qpos_spring[at], model.qpos0[at]):
            return "in Genesis a spring rests where the joint is in the file, not at its springref"
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


@dataclass(frozen=True)
class _Home:
    """Where Genesis keeps a field of MuJoCo's model.

    Attributes:
        index: of the elements of a plant's row that it has.
        write: takes these elements (k, ...) and the numbers of k plants.
        read: returns them.
    """

    index: tuple[Any, ...]
    write: Callable[[Tensor, Tensor], None]
    read: Callable[[Tensor], Tensor]


class GenesisModels:
    """The `ModelArrays` of a scene: what is edited is pushed to Genesis at the commit, and read from there again.

    Args:
        lease: of a scene of n plants.
        fields: the table, with the nominal values.

    Raises:
        RobotError: Genesis has read the robot otherwise than MuJoCo.
    """

    def __init__(self, lease: Lease, fields: GenesisFields) -> None:
        self._lease, self._scene = lease, lease.scene
        scene = lease.scene
        m = scene.model
        self._drawn = fields.drawn
        self._nominal = {field: np.array(model_field(m, field), float) for field in (*FIELDS, *self._drawn)}
        self._values = {f: np.broadcast_to(v, (scene.n, *v.shape)).copy() for f, v in self._nominal.items()}
        self._edited: set[str] = set()
        self._friction = self._nominal_friction()
        self._moving = np.flatnonzero((m.body_weldid != 0) & (m.body_mass > 0))
        self._links = scene.links[self._moving].tolist()
        self._homes = self._all_homes()
        used = {place.field for address in fields.addresses.values() for place in address.places}
        self._used = (used | {"body_inertia"}) - self._drawn
        if scene.fresh:
            self._check(fields)
        self._push(self._used, np.arange(scene.n))

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
        if field not in self._drawn:
            self._edited.add(field)
        return self._values[field]

    def commit(self, rows: NDArray[np.bool_], constants: bool) -> None:
        """Push what was edited in `rows`, and take over what Genesis says is in force; it derives constants itself."""
        plants = np.flatnonzero(rows)
        self._push(self._edited, plants)
        for field in self._edited:
            # what was written, where Genesis has it to single precision, and elsewhere what Genesis has
            mine, there = self._values[field][plants], self._pull(field, plants)
            scale = np.abs(mine).max(-1, keepdims=True) if field in ("body_inertia", "body_ipos") else np.abs(mine)
            same = (np.abs(mine - there) <= SINGLE * scale + 1e-12) | (mine == there)
            self._values[field][plants] = np.where(same, mine, there)
        self._edited.clear()

    def _push(self, fields: Iterable[str], plants: Rows) -> None:
        where = self._scene.indices(plants)
        inertias = self._scene.inertias()
        if inertias is not None and {"body_mass", "body_inertia"} <= set(fields):
            # what Genesis derives from both it derives anew when masses are set: inertias need no call of their own
            home, fields = self._homes["body_inertia"], set(fields) - {"body_inertia"}
            moments = self._scene.tensor(self._values["body_inertia"][plants][(slice(None), *home.index)])
            inertias[where.long()[:, None], torch.as_tensor(self._links, device=where.device)[None]] = torch.diag_embed(
                moments
            )
        for field in sorted(fields):
            home = self._homes[field]
            chosen = self._values[field][plants][(slice(None), *home.index)]
            if chosen.size:
                home.write(self._scene.tensor(chosen), where)
        if self._scene.left_to_engine and any(field.startswith("actuator") for field in fields):
            self._scene.drive(where)

    def _pull(self, field: str, plants: Rows) -> Array:
        """Return what Genesis has of a field in plants: (k, ...), the nominal values where it has nothing."""
        home, nominal = self._homes[field], self._nominal[field]
        out = np.broadcast_to(nominal, (len(plants), *nominal.shape)).copy()
        if out[(slice(None), *home.index)].size:
            out[(slice(None), *home.index)] = home.read(self._scene.indices(plants)).cpu().numpy()
        return out

    def _check(self, fields: GenesisFields) -> None:
        first = {field: self._pull(field, np.arange(1))[0] for field in self._used}
        for name, address in fields.addresses.items():
            for place in address.places if address.place.field not in self._drawn else ():
                one, other = self._nominal[place.field][place.index], first[place.field][place.index]
                if not np.allclose(one, other, rtol=1e-5, atol=1e-9):
                    raise RobotError(f"{name}: Genesis reads {other} from the robot file, MuJoCo {one}")

    def _nominal_friction(self) -> Array:
        """Return (G,) the sliding friction that Genesis has read, one where a geom is not matched."""
        out = np.ones(self._scene.model.ngeom)
        known = self._scene.solver.get_geoms_friction().cpu().numpy() if self._scene.geoms else np.zeros(0)
        for mine, there in self._scene.geoms.items():
            out[mine] = known[there]
        return out

    def _all_homes(self) -> dict[str, _Home]:
        s, m, e = self._scene, self._scene.model, self._scene.entity
        moving, links = self._moving, self._links
        plain = np.isin(m.jnt_type, _PLAIN)
        springs, limited = np.flatnonzero(plain), np.flatnonzero(plain & (m.jnt_limited != 0))
        spring_dofs = s.dofs[m.jnt_dofadr[springs]].tolist()
        limit_dofs = s.dofs[m.jnt_dofadr[limited]].tolist()
        ending = np.flatnonzero(m.actuator_forcelimited)
        dofs, geoms, there = s.dofs.tolist(), list(s.geoms), list(s.geoms.values())
        friction = s.tensor(self._friction[geoms])
        every = slice(None)

        def of_dofs(name: str) -> _Home:
            write, read = getattr(e, f"set_dofs_{name}"), getattr(e, f"get_dofs_{name}")
            return _Home((every,), lambda v, at: write(v, dofs, envs_idx=at), lambda at: read(dofs, at))

        def of_actuators(tensor: Tensor, *index: Any) -> _Home:
            """Of what the scene has, and drives with; see `Scene.drive`."""

            def write(value: Tensor, at: Tensor) -> None:
                tensor[at.long()] = value

            return _Home((every, *index), write, lambda at: tensor[at.long()])

        def write_range(value: Tensor, at: Tensor) -> None:
            rows = s.force_range[at.long()]
            rows[:, ending] = value
            s.force_range[at.long()] = rows

        return {
            "body_mass": _Home(
                (moving,), lambda v, at: e.set_links_mass(v, links, envs_idx=at), lambda at: e.get_links_mass(links, at)
            ),
            # in the inertial frame, which is that of the principal axes in both engines
            "body_inertia": _Home(
                (moving,),
                lambda v, at: e.set_links_inertia(torch.diag_embed(v), links, envs_idx=at),
                lambda at: torch.diagonal(e.get_links_inertia(links, at), dim1=-2, dim2=-1),
            ),
            "body_ipos": _Home(
                (moving,), lambda v, at: e.set_links_COM(v, links, envs_idx=at), lambda at: e.get_links_COM(links, at)
            ),
            "dof_damping": of_dofs("damping"),
            "dof_frictionloss": of_dofs("frictionloss"),
            "dof_armature": of_dofs("armature"),
            "jnt_stiffness": _Home(
                (springs,),
                lambda v, at: e.set_dofs_stiffness(v, spring_dofs, envs_idx=at),
                lambda at: e.get_dofs_stiffness(spring_dofs, at),
            ),
            "jnt_range": _Home(
                (limited,),
                lambda v, at: e.set_dofs_limit(v[..., 0], v[..., 1], limit_dofs, envs_idx=at),
                lambda at: torch.stack(e.get_dofs_limit(limit_dofs, at), -1),
            ),
            "actuator_gear": of_actuators(s.gear, 0),
            "actuator_gainprm": of_actuators(s.gain, 0),
            "actuator_biasprm": of_actuators(s.bias, slice(3)),
            "actuator_forcerange": _Home((ending,), write_range, lambda at: s.force_range[at.long()][:, ending]),
            "opt.gravity": _Home(
                (every,), lambda v, at: s.solver.set_gravity(v, envs_idx=at), lambda at: s.solver.get_gravity(at)
            ),
            "geom_friction": _Home(
                (geoms, 0),
                lambda v, at: s.solver.set_geoms_friction_ratio(v / friction, there, at),
                lambda at: s.solver.get_geoms_friction_ratio(there, at) * friction,
            ),
        }
