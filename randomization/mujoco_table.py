"""What can be randomized in a MuJoCo model: bodies, joints, tendons, actuators, contacts, the world, what is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim2real.randomization.mujoco_address import Address, Place

Entry = tuple[str, str, str, str, Address | str]


@dataclass
class Table:
    """Collects addresses; two entities of different kinds under one name are told apart by their kind."""

    addresses: dict[str, Address] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Table:
        """Return the table of a compiled model."""
        table = cls()
        for make in (_bodies, _joints, _tendons, _actuators, _contacts, _world, _visuals):
            for entry in make(model):
                table.add(*entry)
        return table

    def add(self, gap: str, kind: str, entity: str, name: str, address: Address | str) -> None:
        full = f"{gap}.{entity}.{name}"
        if full in self.addresses or full in self.silent:
            full = f"{gap}.{entity}_{kind}.{name}"
        if isinstance(address, Address):
            self.addresses[full] = address
        else:
            self.silent[full] = address


def _vector(
    gap: str,
    kind: str,
    entity: str,
    name: str,
    where: str,
    index: int,
    units: tuple[str, ...],
    affects: str,
    **limits: Any,
) -> Iterator[Entry]:
    for k, unit in enumerate(units):
        yield gap, kind, entity, f"{name}[{k}]", Address((Place(where, (index, k)),), unit, affects, **limits)


def _disabled(m: Any, flag: str) -> str:
    """Say that a flag of the model turns something off, or "" where it does not."""
    import mujoco

    bit = getattr(mujoco.mjtDisableBit, f"mjDSBL_{flag.upper()}")
    return f"the model disables {flag.lower()} (option/flag)" if int(m.opt.disableflags) & int(bit) else ""


def _bodies(m: Any) -> Iterator[Entry]:
    for i in range(1, m.nbody):
        body = m.body(i).name or f"body{i}"
        why = ""
        if m.body_weldid[i] == 0:
            why = "the body is fixed to the world"
        elif m.body_mass[i] <= 0:
            why = "the body has no mass"
        entry = ("dynamics", "body", body)
        yield *entry, "mass", why or Address((Place("body_mass", (i,)),), "kg", "inertia, weight", low=1e-12, leads=i)
        for k in range(3):
            inertia = Address((Place("body_inertia", (i, k)),), "kg·m²", "principal moment of inertia", low=1e-12)
            yield *entry, f"inertia[{k}]", why or inertia
        for k in range(3):
            spread = Address(
                (Place("body_inertia", (i,)),),
                "kg·m²",
                "spread of mass along a principal axis",
                low=0.0,
                view="second_moment",
                component=k,
            )
            yield *entry, f"second_moment[{k}]", why or spread
        simple = 'MuJoCo compiled the body as simple; set simple="false" on it in the robot file'
        for k in range(3):
            com = Address((Place("body_ipos", (i, k)),), "m", "centre of mass in the frame of the body")
            yield *entry, f"com[{k}]", why or (simple if m.body_simple[i] else com)
        places, shapeless = _lengths(m, i)
        scale = Address(
            places,
            "",
            "all lengths of the link; its inertia follows, its mass stays",
            low=1e-3,
            leads=i,
            power=2,
            soft=True,
        )
        yield *entry, "scale", shapeless or scale


# Types of geoms whose extent is in `geom_size`, and how many numbers of it they use.
_EXTENTS = {"mjGEOM_SPHERE": 1, "mjGEOM_CAPSULE": 2, "mjGEOM_ELLIPSOID": 3, "mjGEOM_CYLINDER": 2, "mjGEOM_BOX": 3}


def _extent(m: Any, geom: int) -> int:
    """How many numbers of `geom_size` shape a geom: none for planes, meshes and height fields."""
    import mujoco

    return _EXTENTS.get(mujoco.mjtGeom(int(m.geom_type[geom])).name, 0)


def _lengths(m: Any, body: int) -> tuple[tuple[Place, ...], str]:
    """Where the lengths of a body are stored, and why they cannot be changed, or ""."""
    places = []
    if m.body_mass[body] > 0:
        places = [Place("body_ipos", (body, k), float(m.body_ipos[body, k])) for k in range(3)]
    for g in np.flatnonzero(m.geom_bodyid == body).tolist():
        if not _extent(m, g):
            return (), f"its geom {m.geom(g).name or g} is not a sphere, capsule, ellipsoid, cylinder or box"
        places += [Place("geom_size", (g, k), float(m.geom_size[g, k])) for k in range(_extent(m, g))]
        places += [Place("geom_pos", (g, k), float(m.geom_pos[g, k])) for k in range(3)]
    for j in np.flatnonzero(m.jnt_bodyid == body):
        places += [Place("jnt_pos", (int(j), k), float(m.jnt_pos[j, k])) for k in range(3)]
    for s in np.flatnonzero(m.site_bodyid == body):
        places += [Place("site_pos", (int(s), k), float(m.site_pos[s, k])) for k in range(3)]
    for child in np.flatnonzero(m.body_parentid == body):
        places += [Place("body_pos", (int(child), k), float(m.body_pos[child, k])) for k in range(3)]
    places = [p for p in places if p.factor]
    return tuple(places), "" if places else "it has no extent"


def joint_name(m: Any, i: int) -> str:
    """Return the name of a joint, or one from its number."""
    return str(m.joint(i).name or f"joint{i}")


def _joints(m: Any) -> Iterator[Entry]:
    import mujoco

    width = {int(mujoco.mjtJoint.mjJNT_FREE): 6, int(mujoco.mjtJoint.mjJNT_BALL): 3}
    slide = int(mujoco.mjtJoint.mjJNT_SLIDE)
    for i in range(m.njnt):
        entry = ("dynamics", "joint", joint_name(m, i))
        kind, dof = int(m.jnt_type[i]), int(m.jnt_dofadr[i])
        dofs = range(dof, dof + width.get(kind, 1))
        linear = kind == slide
        damping, stiffness, loss, armature, length = (
            ("N·s/m", "N/m", "N", "kg", "m") if linear else ("N·m·s/rad", "N·m/rad", "N·m", "kg·m²", "rad")
        )
        dry = _disabled(m, "frictionloss") or _disabled(m, "constraint")
        for name, where, unit, affects, off in (
            ("damping", "dof_damping", damping, "viscous friction", _disabled(m, "damper")),
            ("frictionloss", "dof_frictionloss", loss, "dry friction", dry),
            ("armature", "dof_armature", armature, "inertia of the rotor, seen from the joint", ""),
        ):
            places = tuple(Place(where, (d,)) for d in dofs)
            yield *entry, name, off or Address(places, unit, affects, low=0.0)
        spring = Address((Place("jnt_stiffness", (i,)),), stiffness, "spring in the joint", low=0.0)
        yield *entry, "stiffness", _disabled(m, "spring") or spring
        stops = _disabled(m, "limit") or _disabled(m, "constraint")
        stops = stops or ("" if m.jnt_limited[i] else "the joint has no stops")
        for k in range(2):
            ball = "of a ball joint the engine reads the upper end only" if kind in width and k == 0 else ""
            limit = Address((Place("jnt_range", (i, k)),), length, "stop of the joint")
            yield *entry, f"range[{k}]", stops or ball or limit
        if kind in width:
            continue
        q = int(m.jnt_qposadr[i])
        yield *entry, "reference", Address((Place("qpos0", (q,)),), length, "reading in the pose of the robot file")
        rest = Address((Place("qpos_spring", (q,)),), length, "where the spring of the joint rests")
        loose = _disabled(m, "spring") or ("" if m.jnt_stiffness[i] > 0 else "the joint has no spring")
        yield *entry, "spring_reference", loose or rest


def _tendons(m: Any) -> Iterator[Entry]:
    for i in range(m.ntendon):
        entry = ("dynamics", "tendon", m.tendon(i).name or f"tendon{i}")
        dry = _disabled(m, "frictionloss") or _disabled(m, "constraint")
        for name, unit, affects, off in (
            ("stiffness", "N/m", "spring of the tendon", _disabled(m, "spring")),
            ("damping", "N·s/m", "viscous friction of the tendon", _disabled(m, "damper")),
            ("armature", "kg", "inertia of what moves with the tendon: a rotor behind a gear", ""),
            ("frictionloss", "N", "dry friction of the tendon", dry),
        ):
            yield *entry, name, off or Address((Place(f"tendon_{name}", (i,)),), unit, affects, low=0.0)
        stops = _disabled(m, "limit") or _disabled(m, "constraint")
        for k in range(2):
            limit = Address((Place("tendon_range", (i, k)),), "m", "stop of the tendon")
            yield *entry, f"range[{k}]", stops or (limit if m.tendon_limited[i] else "the tendon has no stops")


def actuator_name(m: Any, i: int) -> str:
    """Return the name of an actuator, or one from its number."""
    return str(m.actuator(i).name or f"actuator{i}")


def _actuators(m: Any) -> Iterator[Entry]:
    import mujoco

    fixed, affine = int(mujoco.mjtGain.mjGAIN_FIXED), int(mujoco.mjtBias.mjBIAS_AFFINE)
    off = _disabled(m, "actuation")
    for i in range(m.nactuator):  # one may have several inputs: there are at least as many controls
        entry = ("dynamics", "actuator", actuator_name(m, i))
        adheres = "adhesion has no gear" if int(m.actuator_trntype[i]) == int(mujoco.mjtTrn.mjTRN_BODY) else ""
        yield *entry, "gear", off or adheres or Address((Place("actuator_gear", (i, 0)),), "", "from actuator to joint")
        gain, bias = m.actuator_gainprm[i, 0], m.actuator_biasprm[i]
        feedback = int(m.actuator_biastype[i]) == affine
        if int(m.actuator_gaintype[i]) == fixed:
            if feedback and bias[1] == -gain != 0:
                places = (Place("actuator_gainprm", (i, 0)), Place("actuator_biasprm", (i, 1), -1.0))
                kp = Address(places, "N·m/rad", "proportional gain of the position servo", low=0.0)
                damper = (Place("actuator_biasprm", (i, 2), -1.0),)
                yield *entry, "kp", off or kp
                yield *entry, "kv", off or Address(damper, "N·m·s/rad", "damping of the position servo", low=0.0)
            elif feedback and bias[2] == -gain != 0:
                places = (Place("actuator_gainprm", (i, 0)), Place("actuator_biasprm", (i, 2), -1.0))
                yield *entry, "kv", off or Address(places, "N·m·s/rad", "gain of the velocity servo", low=0.0)
            else:
                yield *entry, "gain", off or Address((Place("actuator_gainprm", (i, 0)),), "", "from command to force")
        endless = off or ("" if m.actuator_forcelimited[i] else "its force is not limited")
        for k in range(2):
            limit = Address((Place("actuator_forcerange", (i, k)),), "N·m", "force that the actuator can give")
            yield *entry, f"force_range[{k}]", endless or limit


def _partners(m: Any) -> Any:
    """Which geoms can touch which, with contact parameters of their own: (ngeom, ngeom) of booleans.

    As MuJoCo filters them: by contype and conaffinity, not within a welded body, not with the parent body, not where a
    pair of bodies is excluded or a pair of geoms has parameters of its own.
    """
    import mujoco

    touch = (m.geom_contype[:, None] & m.geom_conaffinity[None, :]) != 0
    touch = touch | touch.T
    weld = m.body_weldid
    mine, above = weld[m.geom_bodyid], weld[m.body_parentid[weld]][m.geom_bodyid]
    touch &= mine[:, None] != mine[None, :]
    if not int(m.opt.disableflags) & int(mujoco.mjtDisableBit.mjDSBL_FILTERPARENT):
        moving = (mine[:, None] != 0) & (mine[None, :] != 0)
        touch &= ~(moving & ((mine[:, None] == above[None, :]) | (mine[None, :] == above[:, None])))
    for signature in m.exclude_signature.tolist():
        first, second = m.geom_bodyid == signature >> 16, m.geom_bodyid == signature & 0xFFFF
        touch &= ~(first[:, None] & second[None, :]) & ~(second[:, None] & first[None, :])
    for one, other in zip(m.pair_geom1.tolist(), m.pair_geom2.tolist(), strict=True):
        touch[one, other] = touch[other, one] = False
    return touch


def _contacts(m: Any) -> Iterator[Entry]:
    import mujoco

    off = _disabled(m, "contact") or _disabled(m, "constraint")
    if int(m.opt.enableflags) & int(mujoco.mjtEnableBit.mjENBL_OVERRIDE):
        off = off or "the options of the model override what geoms say (option/flag override)"
    touch, priority, tiny = _partners(m), m.geom_priority, 1e-15
    for i in range(m.ngeom):
        entry = ("dynamics", "geom", m.geom(i).name or f"geom{i}")
        # of a contact, the geom with the higher priority says all
        heard = touch[i] & (priority <= priority[i])
        why = off or ("" if touch[i].any() else "the geom takes no part in contacts")
        why = why or ("" if heard.any() else "all that it touches has a higher priority")
        even = heard & (priority == priority[i])
        directions = int(max(m.geom_condim[i] if heard.any() else 0, m.geom_condim[even].max(initial=0)))
        for k, (unit, needed, affects) in enumerate(
            (
                ("", 3, "sliding friction; the larger of two geoms counts"),
                ("m", 4, "torsional friction; the larger of two geoms counts"),
                ("m", 6, "rolling friction; the larger of two geoms counts"),
            )
        ):
            few = f"its contacts have condim {directions}, which needs {needed}" if directions < needed else ""
            address = Address((Place("geom_friction", (i, k)),), unit, affects, low=0.0)
            yield *entry, f"friction[{k}]", why or few or address
        weightless = m.geom_solmix[i] < tiny and not (heard & ~even).any() and (m.geom_solmix[even] >= tiny).all()
        soft = why or ("its weight (solmix) is 0" if weightless else "")
        yield from _softness(entry, "geom", i, m.geom_solref[i, 0], soft)
        for k in range(_extent(m, i)):
            size = Address((Place("geom_size", (i, k)),), "m", "extent of the geom; mass and inertia stay", low=1e-6)
            yield *entry, f"size[{k}]", size
    for i in range(m.npair):
        entry = ("dynamics", "pair", m.pair(i).name or f"pair{i}")
        for k, unit in enumerate(("", "", "m", "m", "m")):
            few = f"the pair has condim {m.pair_dim[i]}" if m.pair_dim[i] <= k + 1 else ""
            address = Address((Place("pair_friction", (i, k)),), unit, "friction of this pair of geoms", low=0.0)
            yield *entry, f"friction[{k}]", off or few or address
        yield from _softness(entry, "pair", i, m.pair_solref[i, 0], off)


def _softness(entry: tuple[str, str, str], kind: str, i: int, first: float, why: str) -> Iterator[Entry]:
    """Stiffness and damping of contacts, in the format of MuJoCo that the model uses: its sign tells."""
    ranges = [("s", "time constant of contacts", 1e-6, np.inf), ("", "damping ratio of contacts", 1e-6, np.inf)]
    if first < 0:
        ranges = [("1/s²", "minus the stiffness of contacts", -np.inf, 0.0)]
        ranges += [("1/s", "minus the damping of contacts", -np.inf, 0.0)]
    for k, (unit, affects, low, high) in enumerate(ranges):
        address = Address((Place(f"{kind}_solref", (i, k)),), unit, affects, low=low, high=high)
        yield *entry, f"solref[{k}]", why or address
    # the engine clips to these
    impedance = (("", 1e-4, 0.9999), ("", 1e-4, 0.9999), ("m", 0.0, np.inf), ("", 1e-4, 0.9999), ("", 1.0, np.inf))
    for k, (unit, low, high) in enumerate(impedance):
        address = Address((Place(f"{kind}_solimp", (i, k)),), unit, "impedance of contacts", low=low, high=high)
        yield *entry, f"solimp[{k}]", why or address


def _world(m: Any) -> Iterator[Entry]:
    entry = ("dynamics", "world", "world")
    off = _disabled(m, "gravity")
    yield *entry, "gravity", off or Address((Place("opt.gravity", (2,), -1.0),), "m/s²", "gravity, downwards")
    yield *entry, "gravity_x", off or Address((Place("opt.gravity", (0,)),), "m/s²", "gravity, along x")
    yield *entry, "gravity_y", off or Address((Place("opt.gravity", (1,)),), "m/s²", "gravity, along y")
    for k in range(3):
        wind = Address((Place("opt.wind", (k,)),), "m/s", "velocity of the medium; needs a density or a viscosity")
        yield *entry, f"wind[{k}]", wind
    yield *entry, "density", Address((Place("opt.density", ()),), "kg/m³", "drag by the medium", low=0.0)
    yield *entry, "viscosity", Address((Place("opt.viscosity", ()),), "Pa·s", "drag by the medium", low=0.0)


def _visuals(m: Any) -> Iterator[Entry]:
    import mujoco

    directional = int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    aimed = [int(mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODY), int(mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODYCOM)]
    for i in range(m.nlight):
        entry = ("perception", "light", m.light(i).name or f"light{i}")
        yield (
            *entry,
            "active",
            Address((Place("light_active", (i,)),), "", "whether the light is on", low=0.0, high=1.0),
        )
        if int(m.light_type[i]) != directional:
            yield from _vector(*entry, "position", "light_pos", i, ("m",) * 3, "where the light is")
        for k in range(3):
            direction = Address((Place("light_dir", (i, k)),), "", "where the light points")
            yield *entry, f"direction[{k}]", "it points at a body" if int(m.light_mode[i]) in aimed else direction
        yield from _vector(*entry, "diffuse", "light_diffuse", i, ("",) * 3, "colour of the light", low=0.0, high=1.0)
    for i in range(m.ncam):
        entry = ("perception", "camera", m.camera(i).name or f"camera{i}")
        yield from _vector(*entry, "position", "cam_pos", i, ("m",) * 3, "where the camera is, in its body")
        for k in range(3):
            turn = Address(
                (Place("cam_quat", (i,)),), "rad", "rotation vector of the camera", view="rotation", component=k
            )
            yield *entry, f"rotation[{k}]", "it points at a body" if int(m.cam_mode[i]) in aimed else turn
        fovy = Address((Place("cam_fovy", (i,)),), "deg", "vertical field of view", low=1.0, high=179.0)
        if int(m.cam_projection[i]) == int(mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC):
            fovy = Address((Place("cam_fovy", (i,)),), "m", "height of what the camera sees", low=1e-6)
        yield *entry, "fovy", "the camera has a focal length" if m.cam_sensorsize[i, 1] > 0 else fovy
    # a colour that differs from the default one is drawn over the material
    plain = (np.asarray(m.geom_rgba) == np.array([0.5, 0.5, 0.5, 1.0], m.geom_rgba.dtype)).all(1)
    worn = {*m.geom_matid[plain].tolist(), *m.site_matid.tolist(), *m.tendon_matid.tolist(), *m.flex_matid.tolist()}
    worn |= set(m.skin_matid.tolist())
    for i in range(m.nmat):
        entry = ("perception", "material", m.material(i).name or f"material{i}")
        for k in range(4):
            rgba = Address((Place("mat_rgba", (i, k)),), "", "colour", low=0.0, high=1.0)
            yield *entry, f"rgba[{k}]", rgba if i in worn else "nothing shows the material"
    for i in range(m.ngeom):
        if m.geom_matid[i] < 0 or not plain[i]:
            entry = ("perception", "geom", m.geom(i).name or f"geom{i}")
            yield from _vector(*entry, "rgba", "geom_rgba", i, ("",) * 4, "colour", low=0.0, high=1.0)
