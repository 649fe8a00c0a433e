"""Every field of a MuJoCo model that has a name: what is written is in force, and changes what it should change."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mujoco.batch import Batch
from numpy.typing import NDArray

from sim2real.errors import ParameterError, RobotError
from sim2real.randomization import MujocoSimulator, ParameterSet, ParameterStore, RobotModel
from sim2real.randomization.addressing import BoundParameters
from sim2real.randomization.mujoco_address import row_of, view_of
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_parameters import BatchModels, LiveModel, MujocoParameters

Array = NDArray[np.float64]
Plants = tuple[MujocoParameters, Callable[[], list[Any]]]
STEPS = 5

RICH = """
<mujoco>
  <compiler angle="radian"/>
  <size memory="1M"/>
  <option timestep="0.002" gravity="0.3 -0.2 -9.81" wind="1.5 -1.2 0.8" density="60" viscosity="0.5" cone="elliptic"
          tolerance="1e-15"/>
  <visual><quality shadowsize="256" offsamples="0"/></visual>
  <statistic extent="10" center="0 0 1"/>
  <asset>
    <material name="paint" rgba="0.9 0.2 0.1 0.8"/>
    <mesh name="wedge" vertex="0 0 0 0.03 0 0 0 0.03 0 0 0 0.03"/>
  </asset>
  <default>
    <geom condim="6" friction="0.5 0.02 0.01" solref="0.03 0.9" solimp="0.8 0.9 0.02 0.4 3"/>
    <default class="bare"><geom contype="0" conaffinity="0" mass="0" material="paint"/></default>
  </default>
  <worldbody>
    <light name="lamp" pos="0.5 1 4" dir="0.1 0.2 -1" diffuse="0.4 0.3 0.2"/>
    <light name="sun" type="directional" dir="0.3 0.1 -1" diffuse="0.2 0.3 0.4"/>
    <camera name="eye" pos="0 -4 2" euler="1.45 0.1 0.1" fovy="50"/>
    <camera name="chaser" pos="3 0.5 3" mode="targetbody" target="drone" fovy="40"/>
    <geom name="floor" type="plane" size="9 9 1" rgba="0.3 0.4 0.2 0.9"/>
    <geom name="step" type="box" size="0.4 0.4 0.1" pos="3 0 0.1" contype="2" conaffinity="2" condim="3" mass="0"/>
    <body name="post" pos="-1 0 1" simple="false">
      <inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>
      <geom name="post" type="box" size="0.1 0.1 0.1" class="bare"/>
    </body>
    <body name="drone" pos="0 2 3">
      <joint name="float" type="free" damping="0.2" frictionloss="0.1" armature="0.05" stiffness="3"/>
      <inertial pos="0.02 0.03 -0.04" mass="0.6" diaginertia="0.012 0.015 0.02"/>
      <geom name="hull" type="box" size="0.2 0.1 0.05" class="bare"/>
    </body>
    <body name="pan" pos="0 0 2">
      <joint name="gimbal" type="ball" range="0 0.5" damping="0.1" frictionloss="0.02" armature="0.01" stiffness="2"/>
      <inertial pos="0.05 0.02 -0.1" quat="0.9 0.1 0.2 0.3" mass="1.1" diaginertia="0.02 0.025 0.03"/>
      <geom name="pan" type="capsule" size="0.05 0.1" class="bare"/>
      <body name="arm" pos="0 0 -0.3" simple="false">
        <joint name="elbow" pos="0.01 0 0.02" axis="0 1 0.3" range="-0.4 0.6" ref="0.15" springref="0.2"
               stiffness="4" damping="0.2" frictionloss="0.03" armature="0.02"/>
        <inertial pos="0.1 -0.02 0.05" mass="0.5" diaginertia="0.004 0.005 0.006"/>
        <site name="tip" pos="0.1 0.2 0.3"/>
        <geom name="shell" type="ellipsoid" size="0.03 0.04 0.05" pos="0.1 0 0" class="bare"/>
        <body name="rod" pos="0.2 0 -0.2">
          <joint name="plunger" type="slide" axis="1 0 0.5" range="-0.05 0.08" ref="0.02" springref="0.03"
                 stiffness="40" damping="1.5" frictionloss="0.2" armature="0.1"/>
          <inertial pos="0.03 0.01 -0.02" mass="0.3" diaginertia="0.002 0.003 0.004"/>
          <geom name="wedge" type="mesh" mesh="wedge" class="bare"/>
          <body name="sleeve" pos="0 0 -0.1"/>
        </body>
        <body name="rotor" pos="-0.1 0.1 0" simple="false">
          <joint name="spin" axis="0 0 1"/>
          <inertial pos="0 0 0" mass="0.2" diaginertia="0.001 0.0012 0.0015"/>
        </body>
      </body>
    </body>
    <body name="marble" pos="-2 0 0.095">
      <freejoint/>
      <inertial pos="0 0 0" mass="0.8" diaginertia="0.004 0.004 0.004"/>
      <geom size="0.1"/>
    </body>
    <body name="stone" pos="-3 1 0.096" simple="false">
      <freejoint name="stone"/>
      <inertial pos="0 0 0" mass="0.7" diaginertia="0.003 0.0032 0.0034"/>
      <geom name="stone" size="0.1" class="bare"/>
    </body>
    <body name="brick" pos="3 0 0.296">
      <freejoint name="brick"/>
      <inertial pos="0.01 0.02 0" mass="0.9" diaginertia="0.005 0.006 0.007"/>
      <geom name="brick" type="box" size="0.15 0.12 0.1" contype="2" conaffinity="2" condim="3"/>
      <geom name="heel" pos="-0.6 0 -0.262" size="0.05" class="bare"/>
    </body>
  </worldbody>
  <contact>
    <pair name="grip" geom1="floor" geom2="stone" condim="6" friction="0.3 0.4 0.02 0.012 0.015" solref="-900 -25"
          solimp="0.8 0.9 0.02 0.4 3"/>
    <pair name="graze" geom1="floor" geom2="heel" condim="3" friction="0.3 0.4 0.02 0.012 0.015"
          solref="0.03 0.9" solimp="0.8 0.9 0.02 0.4 3"/>
  </contact>
  <tendon>
    <fixed name="elbow" range="-0.15 0.2" stiffness="30" damping="0.8" frictionloss="0.15" springlength="0.04">
      <joint joint="elbow" coef="0.4"/><joint joint="plunger" coef="-3"/>
    </fixed>
    <fixed name="slack" springlength="0.01"><joint joint="spin" coef="0.3"/><joint joint="plunger" coef="0.5"/></fixed>
  </tendon>
  <actuator>
    <position name="servo" joint="elbow" kp="6" kv="0.4" gear="1.5" forcerange="-1 1.2"/>
    <velocity name="drive" joint="spin" kv="0.05" gear="0.8" forcerange="-0.04 0.05"/>
    <motor name="push" joint="plunger" gear="6"/>
    <general name="reel" tendon="elbow" gainprm="2" biastype="affine" biasprm="0.1 -0.5 -0.2" gear="1.2"
             forcerange="-2 2.5"/>
  </actuator>
</mujoco>
"""

MODEL = mujoco.MjModel.from_xml_string(RICH)
FIELDS = MujocoFields(MODEL, "rich")
NAMES = tuple(FIELDS.addresses)
NOMINAL = dict(FIELDS.nominal)
DATA = mujoco.MjData(MODEL)
STATE = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL)


def field_of(name: str) -> str:
    """`dynamics.floor.friction[0]` -> `friction`."""
    return re.sub(r"\[\d\]$", "", name.split(".")[2])


def factor(name: str) -> float:
    """A factor that leaves the nominal value within what makes sense."""
    few = {"active": 0.0, "inertia": 1.2, "scale": 1.2, "size": 1.2}  # the triangle inequality holds, nothing collides
    if field_of(name) in few:
        return few[field_of(name)]
    return 2.0 if 2.0 * NOMINAL[name] <= FIELDS.addresses[name].high else 0.5


def changed(name: str) -> float:
    """A value that differs from the nominal one and may be written alone."""
    return NOMINAL[name] * factor(name) if NOMINAL[name] else {"com": 0.02}.get(field_of(name), 0.1)


def live_store(model: Any = MODEL) -> tuple[MujocoParameters, Any]:
    """A store over one live model, and the model."""
    live = copy.copy(model)
    return MujocoParameters(FIELDS if model is MODEL else MujocoFields(model, "some"), LiveModel(live)), live


def batch_store(n: int, model: Any = MODEL) -> tuple[MujocoParameters, Batch]:
    """A store over the models of a batch, and the batch."""
    batch = Batch(model, n, nthread=1)
    fields = FIELDS if model is MODEL else MujocoFields(model, "some")
    return MujocoParameters(fields, BatchModels(batch)), batch


@pytest.fixture(params=["live", "batch"])
def plants(request: pytest.FixtureRequest) -> Plants:
    """A store over one live model, or over three plants of a batch, and what returns the models."""
    if request.param == "live":
        store, model = live_store()
        return store, lambda: [model]
    store, batch = batch_store(3)
    return store, lambda: [batch.get_model(i) for i in range(3)]


@cache
def starts() -> tuple[Array, Array, Array]:
    """States and commands from which every field matters: within the stops, and at all their ends."""
    qpos, ctrl = np.tile(MODEL.qpos0, (5, 1)), np.empty((5, MODEL.nu))
    qvel = 0.5 * np.random.default_rng(0).normal(size=(5, MODEL.nv))
    for i, (tilt, elbow, plunger, command) in enumerate(
        (
            (0.2, 0.1, 0.03, 0.2),
            (0.6, 0.7, 0.12, 8.0),
            (-0.6, -0.5, -0.07, -8.0),
            (0.6, 0.5, -0.04, 0.0),
            (-0.6, -0.3, 0.06, 0.0),
        )
    ):
        axis = np.array([0.6, 0.8 * np.sin(1.0), 0.8 * np.cos(1.0)])
        qpos[i, MODEL.joint("gimbal").qposadr[0] :][:4] = np.cos(tilt / 2), *(np.sin(tilt / 2) * axis)
        qpos[i, MODEL.joint("elbow").qposadr[0]], qpos[i, MODEL.joint("plunger").qposadr[0]] = elbow, plunger
        ctrl[i] = command
    for body in ("marble", "stone", "brick"):  # they slide, and the balls roll and twist
        dof = MODEL.body(body).dofadr[0]
        qvel[:, dof : dof + 6] = (
            (0.8, -0.6, 0.0, 0.5, 0.7, 0.4) if body == "brick" else (0.8, -0.6, 0.0, 3.0, -2.0, 4.0)
        )
    return qpos, qvel, ctrl


def trajectory(model: Any) -> Array:
    """Positions and velocities (5, STEPS, ...) from each of the starts, by `mj_step`."""
    out, data = np.empty((5, STEPS, model.nq + model.nv)), DATA
    for i, (qpos, qvel, ctrl) in enumerate(zip(*starts(), strict=True)):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
        for k in range(STEPS):
            mujoco.mj_step(model, data)
            out[i, k, : model.nq], out[i, k, model.nq :] = data.qpos, data.qvel
    return out


def batch_trajectory(batch: Batch) -> Array:
    """The same from a batch, whose plants start at the first, second, third, first, ... of the starts."""
    qpos, qvel, ctrl = (np.resize(x, (batch.nsim, x.shape[1])) for x in starts())
    batch.bind("qpos")[:], batch.bind("qvel")[:] = qpos, qvel
    control = np.repeat(ctrl[:, None], STEPS, 1)
    return np.asarray(batch.rollout(STEPS, control, record=(STATE,))[STATE])


def picture(model: Any) -> Array:
    """What the renderer is given to draw: cameras, lights and colours."""
    data, scene, out = mujoco.MjData(model), mujoco.MjvScene(model, 100), []
    mujoco.mj_forward(model, data)
    for i in range(model.ncam):
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, i
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, int(mujoco.mjtCatBit.mjCAT_ALL), scene)
        eye = scene.camera[0]
        out += [*eye.pos, *eye.forward, *eye.up, eye.frustum_bottom, eye.frustum_top, eye.frustum_width]
        lights = [x for light in scene.lights[: scene.nlight] for x in (*light.pos, *light.dir, *light.diffuse)]
        out += [*lights, *np.zeros(9 * (model.nlight + 1 - scene.nlight))]
        # the order of the geoms is that of the model
        out += [x for geom in scene.geoms[: scene.ngeom] for x in (*geom.rgba, *geom.size, *geom.pos)]
    return np.array(out)


@cache
def nominal_trajectory() -> Array:
    return trajectory(MODEL)


@cache
def nominal_picture() -> Array:
    return picture(MODEL)


STRUCTURE = re.compile(r"_.*|.*(adr|num|nnz|(?<!flu)id|type|colind|group)")
ARRAYS = [
    k for k in dir(MODEL) if not STRUCTURE.fullmatch(k) and isinstance(x := getattr(MODEL, k), np.ndarray) and x.size
]
FLAGS = [k for k in dir(MODEL) if k.startswith(("flg_", "ngravcomp"))]
OPTIONS = [k for k in dir(MODEL.opt) if k[0] != "_" and isinstance(getattr(MODEL.opt, k), np.ndarray | int | float)]


def numbers(model: Any) -> Array:
    """Every number of a model and of its options, but for addresses, counts and types."""
    parts = [getattr(model, k).ravel() for k in ARRAYS] + [[getattr(model, k)] for k in FLAGS]
    return np.concatenate(parts + [np.ravel(getattr(model.opt, k)) for k in OPTIONS], dtype=float)


OWNERS = np.repeat(
    [*ARRAYS, *FLAGS, *OPTIONS],
    [np.size(getattr(MODEL, k)) for k in (*ARRAYS, *FLAGS)] + [np.size(getattr(MODEL.opt, k)) for k in OPTIONS],
)
NOMINAL_NUMBERS = numbers(MODEL)


def different(a: Array, b: Array = NOMINAL_NUMBERS, rtol: float = 0.0, atol: float = 0.0) -> set[str]:
    """Names of the fields in which the numbers of two models differ."""
    return set(OWNERS[~np.isclose(a, b, rtol=rtol, atol=atol) if rtol else a != b].tolist())


def test_the_model_has_every_family_and_every_reason_to_be_silent() -> None:
    found = {f"{name.split('.')[0]}.{field_of(name)}" for name in NAMES}
    dynamics = """mass inertia second_moment com scale damping frictionloss armature stiffness range reference
        spring_reference gear kp kv gain force_range friction size solref solimp gravity gravity_x gravity_y wind
        density viscosity"""
    perception = "active position direction diffuse rotation fovy rgba"
    assert found == {f"dynamics.{k}" for k in dynamics.split()} | {f"perception.{k}" for k in perception.split()}
    # a name that two entities share is given to the first, and what has no name has a number
    for name, field in {
        "dynamics.elbow.damping": "dof_damping",
        "dynamics.elbow_tendon.damping": "tendon_damping",
        "dynamics.joint5.damping": "dof_damping",
        "dynamics.geom7.friction[2]": "geom_friction",
        "perception.geom7.rgba[3]": "geom_rgba",
    }.items():
        assert FIELDS.address(name).place.field == field
    assert set(FIELDS.silent.values()) == {
        "the body is fixed to the world",
        "the body has no mass",
        "its geom wedge is not a sphere, capsule, ellipsoid, cylinder or box",
        "it has no extent",
        'MuJoCo compiled the body as simple; set simple="false" on it in the robot file',
        "the joint has no stops",
        "the joint has no spring",
        "the tendon has no stops",
        "its force is not limited",
        "the geom takes no part in contacts",
        "its contacts have condim 3, which needs 4",
        "its contacts have condim 3, which needs 6",
        "the pair has condim 3",
        "it points at a body",
        "of a ball joint the engine reads the upper end only",
    }
    assert not FIELDS.silent.keys() & FIELDS.addresses.keys()


def test_it_is_a_store_with_nominal_values_and_units() -> None:
    for store in (live_store()[0], batch_store(1)[0]):
        assert isinstance(store, ParameterStore)
        assert store.units().keys() == store.affects().keys() == store.nominal().keys() == store.read().keys()
        assert all(store.affects().values())
    expected = {
        "dynamics.drone.mass": (0.6, "kg"),
        "dynamics.drone.second_moment[0]": (0.0115, "kg·m²"),
        "dynamics.pan.com[2]": (-0.1, "m"),
        "dynamics.elbow.stiffness": (4.0, "N·m/rad"),
        "dynamics.plunger.stiffness": (40.0, "N/m"),
        "dynamics.elbow_tendon.stiffness": (30.0, "N/m"),
        "dynamics.plunger.reference": (0.02, "m"),
        "dynamics.servo.kp": (6.0, "N·m/rad"),
        "dynamics.servo.kv": (0.4, "N·m·s/rad"),
        "dynamics.drive.kv": (0.05, "N·m·s/rad"),
        "dynamics.reel.gain": (2.0, ""),
        "dynamics.grip.friction[3]": (0.012, "m"),
        "dynamics.geom7.solref[0]": (0.03, "s"),
        "dynamics.grip.solref[0]": (-900.0, "1/s²"),
        "dynamics.world.gravity": (9.81, "m/s²"),
        "dynamics.world.viscosity": (0.5, "Pa·s"),
        "perception.eye.fovy": (50.0, "deg"),
        "perception.eye.rotation[1]": (0.0, "rad"),
        "perception.lamp.active": (1.0, ""),
    }
    for name, (value, unit) in expected.items():
        assert NOMINAL[name] == pytest.approx(value, rel=1e-12), name
        assert FIELDS.addresses[name].unit == unit, name


@cache
def written(name: str) -> tuple[MujocoParameters, Any, Array]:
    """The store of a live model into which another value was written, the model, and its numbers."""
    store, model = live_store()
    store.write({name: np.array([changed(name)])})
    return store, model, numbers(model)


@cache
def moved(name: str) -> Array:
    return trajectory(written(name)[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_write_is_in_force_and_changes_what_it_should(name: str) -> None:
    (live, model, found), (plants, batch) = written(name), batch_store(6)
    mask = np.arange(6) < 5
    plants.write({name: np.where(mask, changed(name), -1e9)}, mask)
    (in_force,) = live.read()[name]
    assert in_force == pytest.approx(changed(name), rel=1e-6, abs=1e-12)
    np.testing.assert_array_equal(plants.read()[name], np.where(mask, in_force, NOMINAL[name]))
    change = 0.0
    if name.startswith("dynamics"):
        moved_batch = batch_trajectory(batch)
        np.testing.assert_allclose(moved_batch[mask], moved(name), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(moved_batch[5], nominal_trajectory()[0])
        change = float(np.abs(moved(name) - nominal_trajectory()).max())
    if name.startswith("perception") or field_of(name) in (
        "size",
        "scale",
    ):  # of what touches nothing, and is only seen
        seen = picture(model)
        change = max(change, float(np.abs(seen - nominal_picture()).max()))
        np.testing.assert_array_equal(picture(batch.get_model(0)), seen)
        np.testing.assert_array_equal(picture(batch.get_model(5)), nominal_picture())
    assert change > 1e-5
    assert different(numbers(batch.get_model(0)), found) == set()
    assert different(numbers(batch.get_model(5))) == set()


@pytest.mark.parametrize("name", [n for n in NAMES if NOMINAL[n]])
def test_scaling_three_times_is_scaling_once(name: str) -> None:
    once = written(name)[2]
    scale = ParameterSet.parse({name: f"*{factor(name)}"})
    (live, model), (plants, batch) = live_store(), batch_store(1)
    for store in (live, plants):
        for _ in range(3):
            bound = BoundParameters(scale, store)
            store.write(bound.values(np.full((1, bound.dimension), 0.5)))
        assert store.read()[name] == pytest.approx(factor(name) * NOMINAL[name], rel=1e-6)
        assert store.nominal()[name] == NOMINAL[name]
    for three_times in (model, batch.get_model(0)):
        assert different(numbers(three_times), once, rtol=1e-12) == set()
    assert different(once) != set()


def recompiled(name: str, value: float) -> Any:
    """The model with a value written into its specification, as its author would, and compiled anew."""
    spec = mujoco.MjSpec.from_string(RICH)
    entity, field = name.split(".")[1], field_of(name)
    k = int(name[-2]) if name.endswith("]") else 0
    number = re.fullmatch(r"(joint|geom)(\d+)", entity)

    def find(kind: str) -> Any:
        if number:
            return getattr(spec, f"{number[1]}s")[int(number[2])]
        return getattr(spec, kind)(entity.removesuffix(f"_{kind}"))

    def pd(gain: float | None, stiff: float | None, damp: float | None) -> None:
        actuator = find("actuator")
        for parameters, i, new in (
            (actuator.gainprm, 0, gain),
            (actuator.biasprm, 1, stiff),
            (actuator.biasprm, 2, damp),
        ):
            if new is not None:
                parameters[i] = new

    if entity == "world":
        axis = {"gravity": 2, "gravity_x": 0, "gravity_y": 1}
        if field in axis:
            spec.option.gravity[axis[field]] = -value if field == "gravity" else value
        elif field == "wind":
            spec.option.wind[k] = value
        else:
            setattr(spec.option, field, value)
    elif field == "mass":
        body = find("body")
        body.inertia, body.mass = body.inertia * (value / body.mass), value
    elif field == "second_moment":
        inertia = find("body").inertia
        others = [i for i in range(3) if i != k]
        inertia[others] += value - (inertia[others].sum() - inertia[k]) / 2
    elif field == "scale":
        body = find("body")
        body.ipos, body.inertia = body.ipos * value, body.inertia * value**2
        for part in (*body.geoms, *body.joints, *body.sites, *body.bodies):
            part.pos = part.pos * value
        for geom in body.geoms:
            geom.size = geom.size * value
    elif field in ("inertia", "com"):
        getattr(find("body"), {"com": "ipos"}.get(field, field))[k] = value
    elif field in ("damping", "frictionloss", "armature", "stiffness", "range"):
        part = find("tendon" if entity in ("elbow_tendon", "slack") else "joint")
        if field in ("frictionloss", "armature"):
            setattr(part, field, value)
        else:
            getattr(part, field)[k] = value
    elif field in ("reference", "spring_reference"):
        setattr(find("joint"), {"reference": "ref"}.get(field, "springref"), value)
    elif field in ("gear", "force_range"):
        getattr(find("actuator"), {"gear": "gear"}.get(field, "forcerange"))[k] = value
    elif field == "gain":
        pd(value, None, None)
    elif field == "kp":
        pd(value, -value, None)
    elif field == "kv":
        pd(value if entity == "drive" else None, None, -value)
    elif field in ("friction", "solref", "solimp", "size"):
        getattr(find("pair" if entity in ("grip", "graze") else "geom"), field)[k] = value
    elif field == "rgba":
        find("material" if entity == "paint" else "geom").rgba[k] = value
    elif entity in ("eye", "chaser"):
        camera = find("camera")
        if field == "fovy":
            camera.fovy = value
        elif field == "position":
            camera.pos[k] = value
        else:
            turn, out = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(turn, np.eye(3)[k], value)
            mujoco.mju_mulQuat(out, MODEL.camera(entity).quat, turn)
            camera.alt.type, camera.quat = mujoco.mjtOrientation.mjORIENTATION_QUAT, out
    elif field == "active":
        find("light").active = bool(value)
    else:
        light = find("light")
        light.dir = MODEL.light(entity).dir
        {"position": light.pos, "direction": light.dir, "diffuse": light.diffuse}[field][k] = value
    return spec.compile()


def test_the_specification_compiles_to_the_nominal_model() -> None:
    assert different(numbers(recompiled("dynamics.drone.mass", 0.6))) == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_write_is_what_compiling_the_edited_file_gives(name: str) -> None:
    _, model, found = written(name)
    expected = recompiled(name, changed(name))
    # the compiler normalizes directions, which the engine does whenever it looks at one
    by_design = {"light_dir", "light_dir0"} if field_of(name) == "direction" else set()
    assert different(found, numbers(expected), rtol=1e-9, atol=1e-12) <= by_design
    if name.startswith("dynamics"):
        np.testing.assert_allclose(moved(name), trajectory(expected), rtol=0, atol=1e-10)
    else:
        np.testing.assert_allclose(picture(model), picture(expected), rtol=0, atol=1e-6)


def test_a_silent_field_says_why_and_stays(plants: Plants) -> None:
    store, models = plants
    for name, why in FIELDS.silent.items():
        reason = f"^{re.escape(f'rich: {name} would change nothing: {why}')}$"
        with pytest.raises(RobotError, match=reason):
            store.write({"dynamics.drone.mass": np.ones(store.n), name: np.ones(store.n)})
        with pytest.raises(RobotError, match=reason):
            FIELDS.address(name)
        assert all(different(numbers(model)) == set() for model in models())
    assert not FIELDS.silent.keys() & (store.nominal().keys() | store.read().keys() | store.units().keys())
    assert store.silent() == FIELDS.silent


OTHERWISE = re.compile(r".*\.(sleeve\..*|marble\.com.*|scale)|dynamics\.(post|pan|shell|wedge|heel)\.(friction|sol).*")
IGNORED = [name for name in FIELDS.silent if not OTHERWISE.fullmatch(name)]  # one of many alike
RAW = {
    "mass": ("body", "mass"),
    "inertia": ("body", "inertia"),
    "second_moment": ("body", "inertia"),
    "com": ("body", "ipos"),
    "range": ("joint", "range"),
    "spring_reference": ("joint", "qpos_spring"),
    "force_range": ("actuator", "forcerange"),
    "friction": ("geom", "friction"),
    "solref": ("geom", "solref"),
    "solimp": ("geom", "solimp"),
    "rotation": ("camera", "quat"),
}


@pytest.mark.parametrize("name", IGNORED)
def test_the_engine_does_not_look_at_a_silent_field(name: str) -> None:
    model, entity = copy.copy(MODEL), name.split(".")[1]
    kind, attribute = RAW[field_of(name)]
    kind = {"slack": "tendon", "graze": "pair"}.get(entity, kind)
    part = getattr(model, kind)(5 if entity == "joint5" else entity)
    row = model.tendon_range[part.id] if kind == "tendon" else getattr(part, attribute)
    row[int(name[-2]) if name.endswith("]") else 0] += 0.4
    mujoco.mj_setConst(model, mujoco.MjData(model))
    assert different(numbers(model)) != set()
    np.testing.assert_array_equal(trajectory(model), nominal_trajectory())
    np.testing.assert_array_equal(picture(model), nominal_picture())


def test_mujoco_itself_refuses_to_move_the_centre_of_a_simple_body() -> None:
    model = copy.copy(MODEL)
    model.body("marble").ipos[0] = 0.01
    with pytest.raises(mujoco.FatalError, match="simple='false'"):
        mujoco.mj_setConst(model, mujoco.MjData(model))


REFUSED: list[tuple[dict[str, float], str]] = [
    ({"dynamics.rod.mass": -0.1}, r"dynamics.rod.mass: cannot be negative, found -0.1 kg"),
    ({"dynamics.rod.mass": np.nan}, "dynamics.rod.mass: every value must be finite, found nan"),
    ({"dynamics.rod.mass": np.inf}, "must be finite"),
    ({"dynamics.rod.mas": 1.0}, "did you mean dynamics.rod.mass"),
    ({"dynamics.rod.inertia[2]": 0.0051}, "no body has the principal moments .* the largest exceeds"),
    ({"dynamics.rod.inertia[0]": 0.0}, r"must lie between 1e-12 and inf, found 0 kg·m²"),
    ({"dynamics.rod.second_moment[1]": -1e-4}, "cannot be negative"),
    ({"dynamics.arm.scale": 0.0}, "must lie between 0.001 and inf"),
    ({"dynamics.elbow.range[0]": 0.7}, "the lower end must lie below the upper one"),
    ({"dynamics.elbow.range[1]": -0.4}, "the lower end must lie below the upper one"),
    ({"dynamics.elbow_tendon.range[0]": 0.3}, "the lower end must lie below the upper one"),
    ({"dynamics.servo.force_range[1]": -2.0}, "the lower end must lie below the upper one"),
    ({"dynamics.spin.damping": -0.1}, r"cannot be negative, found -0.1 N·m·s/rad"),
    ({"dynamics.servo.kp": -1.0}, "cannot be negative"),
    ({"dynamics.floor.friction[2]": -1e-3}, "cannot be negative"),
    ({"dynamics.floor.solimp[0]": 1.1}, "must lie between 0.0001 and 0.9999"),
    ({"dynamics.floor.solref[0]": -100.0}, "cannot be negative|must lie between"),
    ({"dynamics.grip.solref[1]": 0.5}, "must lie between -inf and 0"),
    ({"perception.lamp.active": 0.5}, "perception.lamp.active: wrote .*, but 1 is in force"),
    ({"perception.lamp.diffuse[1]": 1.5}, "must lie between 0 and 1"),
    ({f"perception.lamp.direction[{k}]": 0.0 for k in range(3)}, "a light needs a direction"),
    ({f"perception.eye.rotation[{k}]": 3.0 for k in range(3)}, r"rotation\[0\]: wrote .*, but .* is in force"),
    ({"perception.eye.fovy": 180.0}, "must lie between 1 and 179"),
    ({"perception.paint.rgba[3]": -0.5}, "cannot be negative"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_a_refused_write_changes_nothing(plants: Plants, values: dict[str, float], message: str) -> None:
    store, models = plants
    good = {"drone.mass": 0.9, "drone.scale": 1.3, "world.gravity": 5.0}
    good = {f"dynamics.{name}": value for name, value in good.items()} | {"perception.eye.rotation[2]": 0.3}
    store.write({name: np.full(store.n, value) for name, value in good.items()})
    before, in_force = [numbers(model) for model in models()], store.read()
    last = np.arange(store.n) == store.n - 1
    bad = {name: np.where(last, value, NOMINAL.get(name, 1.0)) for name, value in values.items()}
    with pytest.raises(ParameterError, match=message):
        store.write({name: np.full(store.n, 0.7) for name in ("dynamics.arm.mass", "dynamics.drone.scale")} | bad)
    assert [different(*pair) for pair in zip(before, map(numbers, models()), strict=True)] == [set()] * store.n
    after = store.read()
    assert after.keys() == in_force.keys()
    np.testing.assert_array_equal([*after.values()], [*in_force.values()])
    store.restore()
    assert all(different(numbers(model)) == set() for model in models())


@pytest.mark.parametrize("value", [0.7, np.ones(2), np.ones((1, 1)), np.ones(0)])
def test_a_value_of_another_shape_is_refused(plants: Plants, value: Any) -> None:
    store, models = plants
    with pytest.raises(ParameterError, match=rf"expected a value for each of {store.n} plants, found shape"):
        store.write({"dynamics.arm.mass": np.full(store.n, 0.7), "dynamics.rod.mass": value})
    assert all(different(numbers(model)) == set() for model in models())


@pytest.fixture(scope="module")
def still() -> Any:
    """The model in a vacuum."""
    text = RICH.replace('density="60" viscosity="0.5"', "").replace('wind="1.5 -1.2 0.8"', "")
    return mujoco.MjModel.from_xml_string(text)


@pytest.mark.parametrize("medium", ["density", "viscosity"])
def test_wind_needs_a_medium(still: Any, medium: str) -> None:
    store, live = live_store(still)
    wind, air = ({f"dynamics.world.{k}": np.array([v])} for k, v in (("wind[0]", 2.0), (medium, 1.2)))
    with pytest.raises(ParameterError, match="neither density nor viscosity"):
        store.write(wind)
    assert different(numbers(live), numbers(still)) == set()
    store.write(air)
    calm = trajectory(live)
    store.write(wind)
    assert store.read()["dynamics.world.wind[0]"].tolist() == [2.0]
    assert np.abs(trajectory(live) - calm).max() > 1e-6
    store.restore()
    with pytest.raises(ParameterError, match="neither density nor viscosity"):
        store.write(wind)


def test_only_the_plants_with_wind_need_a_medium(still: Any) -> None:
    store, batch = batch_store(2, still)
    wind, air = {"dynamics.world.wind[1]": np.array([0.0, 2.0])}, {"dynamics.world.density": np.array([0.0, 1.2])}
    store.write(wind | air)
    assert [batch.get_model(i).opt.wind[1] for i in range(2)] == [0.0, 2.0]
    assert [batch.get_model(i).opt.density for i in range(2)] == [0.0, 1.2]
    before = [numbers(batch.get_model(i)) for i in range(2)]
    with pytest.raises(ParameterError, match="neither density nor viscosity"):
        store.write({"dynamics.world.wind[2]": np.array([1.0, 0.0])})
    assert [different(numbers(batch.get_model(i)), before[i]) for i in range(2)] == [set(), set()]


def everything(n: int) -> dict[str, Array]:
    """Other values for all names, inertias first: what is written after them no longer scales them."""
    names = sorted(NAMES, key=lambda name: field_of(name) not in ("inertia", "second_moment"))
    return {name: np.full(n, changed(name)) for name in names}


def test_restore_puts_everything_back(plants: Plants) -> None:
    store, models = plants
    for name, value in everything(store.n).items():
        store.write({name: value})
    touched = {place.field.removeprefix("opt.") for address in FIELDS.addresses.values() for place in address.places}
    assert touched <= different(numbers(models()[0]))
    store.restore()
    assert all(different(numbers(model)) == set() for model in models())
    assert {name: value.tolist() for name, value in store.read().items()} == {n: [NOMINAL[n]] * store.n for n in NAMES}
    np.testing.assert_array_equal(trajectory(models()[0]), nominal_trajectory())
    np.testing.assert_array_equal(picture(models()[0]), nominal_picture())


def test_a_mask_restores_some_plants_and_leaves_the_others() -> None:
    store, batch = batch_store(3)
    for name, value in everything(3).items():
        store.write({name: value}, np.array([True, True, False]))
    before, in_force = numbers(batch.get_model(0)), store.read()
    assert different(before, numbers(batch.get_model(1))) == set()
    assert different(numbers(batch.get_model(2))) == set()
    store.restore(np.array([False, True, True]))
    assert different(numbers(batch.get_model(0)), before) == set()
    for plant in (1, 2):
        assert different(numbers(batch.get_model(plant))) == set()
    for name, value in store.read().items():
        np.testing.assert_array_equal(value, [in_force[name][0], NOMINAL[name], NOMINAL[name]])


def test_each_plant_of_a_mask_gets_its_own_value() -> None:
    body = "drone.mass drone.scale drone.second_moment[1] marble.inertia[0] rotor.com[2] elbow.damping servo.kp"
    names = [f"dynamics.{name}" for name in (*body.split(), "world.gravity", "world.density", "floor.friction[1]")]
    names += ["perception.eye.rotation[0]", "perception.lamp.diffuse[2]"]
    mask, factors = np.array([True, False, True, True]), np.array([0.95, -9.0, 0.9, 0.85])
    for name in names:
        values = NOMINAL[name] * factors if NOMINAL[name] else factors
        store, batch = batch_store(4)
        store.write({name: values}, mask)
        assert store.read()[name] == pytest.approx(np.where(mask, values, NOMINAL[name]), rel=1e-6)
        assert different(numbers(batch.get_model(1))) == set()
        for plant in np.flatnonzero(mask):
            live, model = live_store()
            live.write({name: values[plant : plant + 1]})
            assert different(numbers(batch.get_model(plant)), numbers(model)) == set()


def test_all_at_once_is_one_by_one() -> None:
    # of what is made of the same numbers (com and scale, for instance) only one may be written
    values = {
        k: v for k, v in everything(1).items() if field_of(k) not in ("second_moment", "scale", "size", "inertia")
    }
    (once, first), (single, second) = batch_store(1), batch_store(1)
    once.write(values)
    for name, value in values.items():
        single.write({name: value})
    assert different(numbers(first.get_model(0)), numbers(second.get_model(0)), rtol=1e-13, atol=1e-15) == set()


BODY = "dynamics.drone"


def test_the_inertia_follows_mass_and_scale_until_it_is_written_itself(plants: Plants) -> None:
    store, models = plants
    nominal = np.array([0.012, 0.015, 0.02])

    def write(mask: Any = None, **values: float) -> None:
        names = {"inertia": "inertia[0]", "spread": "second_moment[0]"}
        store.write({f"{BODY}.{names.get(k, k)}": np.full(store.n, v) for k, v in values.items()}, mask)

    def inertia() -> Array:
        return np.array([model.body("drone").inertia for model in models()])

    write(mass=1.2)
    np.testing.assert_allclose(inertia(), [2 * nominal] * store.n, rtol=1e-12)
    write(scale=1.5)
    np.testing.assert_allclose(inertia(), [2 * 2.25 * nominal] * store.n, rtol=1e-12)
    write(mass=0.3)
    np.testing.assert_allclose(inertia(), [0.5 * 2.25 * nominal] * store.n, rtol=1e-12)
    with pytest.raises(ParameterError, match="no body has"):
        write(inertia=5.0)
    write(mass=0.6, scale=1.0)
    np.testing.assert_allclose(inertia(), [nominal] * store.n, rtol=1e-12)
    for own, left in (({"inertia": 0.014}, [0.014, 0.015, 0.02]), ({"spread": 0.0135}, [0.012, 0.017, 0.022])):
        last = np.arange(store.n) == store.n - 1
        write(last, **own)
        write(mass=1.2)
        write(scale=1.5)
        np.testing.assert_allclose(inertia()[-1], left, rtol=1e-12)
        np.testing.assert_allclose(inertia()[:-1], np.tile(2 * 2.25 * nominal, (store.n - 1, 1)), rtol=1e-12)
        store.restore(last)
        np.testing.assert_array_equal(inertia()[-1], nominal)
        write(mass=1.2, scale=1.0)
        np.testing.assert_allclose(inertia(), [2 * nominal] * store.n, rtol=1e-12)
        store.restore()
    write(mass=1.2, inertia=0.014)  # at once is as one after the other
    np.testing.assert_allclose(inertia(), [[0.014, 0.03, 0.04]] * store.n, rtol=1e-12)


SMALL = mujoco.MjModel.from_xml_string(
    """<mujoco><size memory="1M"/><worldbody><camera name="eye" euler="0.3 -0.5 1.2"/><body name="rock"><freejoint/>
    <inertial pos="0 0 0.1" mass="1" diaginertia="0.1 0.11 0.12"/></body></worldbody></mujoco>"""
)
ROCK, ROCK_MODEL = live_store(SMALL)
EYE = [f"perception.eye.rotation[{k}]" for k in range(3)]
positive = st.floats(1e-6, 10.0)
part = st.floats(-1.0, 1.0)


@settings(deadline=None, max_examples=50)
@given(st.tuples(positive, positive, positive))
def test_any_second_moments_make_an_inertia_that_a_body_can_have(spread: tuple[float, float, float]) -> None:
    names = [f"dynamics.rock.second_moment[{k}]" for k in range(3)]
    ROCK.write({name: np.array([value]) for name, value in zip(names, spread, strict=True)})
    a, b, c = spread
    np.testing.assert_allclose(ROCK_MODEL.body("rock").inertia, [b + c, a + c, a + b], rtol=0, atol=1e-13)
    moments = np.sort(ROCK_MODEL.body("rock").inertia)
    assert moments[2] <= moments[:2].sum() * (1 + 1e-12)
    np.testing.assert_allclose([ROCK.read()[name][0] for name in names], spread, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(part, part, part), min_size=1, max_size=4))
def test_second_moments_of_many_plants_are_those_of_each(spreads: list[tuple[float, float, float]]) -> None:
    values, row = np.abs(spreads), np.ones(3)
    moments = row_of("second_moment", values, row)
    assert moments.shape == values.shape
    np.testing.assert_allclose(view_of("second_moment", moments, row), values, rtol=0, atol=1e-12)
    for one, moment in zip(values, moments, strict=True):
        np.testing.assert_array_equal(row_of("second_moment", one, row), moment)


@settings(deadline=None, max_examples=50)
@given(st.tuples(part, part, part), st.floats(0.0, 3.0))
def test_a_rotation_vector_is_read_back_and_turns_as_far_as_it_is_long(
    direction: tuple[float, float, float], angle: float
) -> None:
    length = np.linalg.norm(direction)
    vector = np.array(direction) * angle / length if length > 1e-3 else np.zeros(3)
    ROCK.restore()
    ROCK.write({name: np.array([value]) for name, value in zip(EYE, vector, strict=True)})
    np.testing.assert_allclose([ROCK.read()[name][0] for name in EYE], vector, rtol=0, atol=1e-9)
    turn, expected = np.zeros(4), np.zeros(4)
    axis = vector / np.linalg.norm(vector) if np.linalg.norm(vector) else np.eye(3)[0]
    mujoco.mju_axisAngle2Quat(turn, axis, np.linalg.norm(vector))
    mujoco.mju_mulQuat(expected, SMALL.camera("eye").quat, turn)
    assert abs(ROCK_MODEL.camera("eye").quat @ expected) == pytest.approx(1.0, abs=1e-12)


RENDER = """
import sys
import mujoco, numpy as np

def look(path):
    model = mujoco.MjModel.from_binary_path(path)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 60, 80) as renderer:
        renderer.update_scene(data, camera="eye")
        return renderer.render().astype(int)

nominal = look(sys.argv[1])
print("ready", *(np.abs(look(path) - nominal).sum() for path in sys.argv[1:]))
"""


def test_pixels_change_too(tmp_path: Path) -> None:
    light = "lamp.active lamp.position[0] lamp.direction[1] lamp.diffuse[0] sun.direction[0] sun.diffuse[2]"
    other = "eye.position[1] eye.rotation[2] eye.fovy paint.rgba[1] floor.rgba[0]"
    names = f"{light} {other}".split()
    models = [MODEL, copy.copy(MODEL), *(written(f"perception.{name}")[1] for name in names)]
    files = [str(tmp_path / f"{i}.mjb") for i in range(len(models))]
    for file, model in zip(files, models, strict=True):
        mujoco.mj_saveModel(model, file)
    command = [sys.executable, "-c", RENDER, *files]
    environment = {"MUJOCO_GL": "egl", **os.environ}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if not result.stdout.startswith("ready"):
        pytest.skip(f"no renderer here: {' '.join(result.stderr.strip().splitlines()[-1:])}")
    itself, again, *changes = map(int, result.stdout.split()[1:])
    assert (itself, again) == (0, 0)
    assert {name: change for name, change in zip(names, changes, strict=True) if change < 100} == {}


CONTACT = """<mujoco>{option}<worldbody><geom name="floor" type="plane" size="1 1 1" {floor}/>
    <body name="a" pos="0 0 0.099"><freejoint/><geom name="ball" size="0.1" {ball}/>
        <body name="b"><joint name="hinge" axis="0 1 0"/><geom name="bar" size="0.1" pos="0.15 0 0.05" {bar}/>
        </body></body>
    <body name="c" pos="0 0.198 0.099"><freejoint/><geom name="other" size="0.1" contype="2" conaffinity="2"/></body>
    <body name="d" pos="0 0.396 0.099"><freejoint/><geom name="last" size="0.1" contype="2" conaffinity="2"/></body>
    </worldbody>{contact}</mujoco>"""
VIEW = """<mujoco><asset><material name="paint" rgba="1 0 0 1"/></asset><worldbody>
    <light name="lamp" pos="0 0 1" {light}/><camera name="eye" pos="1 0 2" {camera}/>
    <body name="box" pos="0.2 0.3 0.4"><joint/><geom name="box" size="0.1" {box}/></body></worldbody></mujoco>"""
BALL = """<mujoco><worldbody><body><joint name="j" type="ball" range="0 0.01"/><geom size="0.1" pos="0 0 0.2"/></body>
    </worldbody></mujoco>"""
GRIPPER = """<mujoco>{option}<worldbody><geom type="plane" size="1 1 1"/><body name="hand" pos="0 0 0.1"><freejoint/>
    <geom size="0.1"/></body></worldbody>
    <actuator><adhesion name="glue" body="hand" ctrlrange="0 1" gain="30"/></actuator></mujoco>"""


def filled(text: str, **values: str) -> str:
    return text.format(**{k: values.get(k, "") for k in re.findall(r"{(\w+)}", text)})


def seen_and_moved(model: Any) -> Array:
    """The picture, and a motion from a random state under a constant command."""
    data, out = mujoco.MjData(model), []
    data.qvel[:], data.ctrl[:] = 0.3 * np.random.default_rng(0).normal(size=model.nv), 0.7
    for _ in range(20):
        mujoco.mj_step(model, data)
        out += [*data.qpos, *data.qvel]
    return np.array([*picture(model), *out])


HIGH, BALANCED = "priority='1'", "solimp='.5 .9 .05 .5 1' solref='.004 1'"
FLAG = "<option><flag {}='{}'/></option>"
AIMED, FOCAL = 'mode="targetbody" target="box"', 'sensorsize=".01 .01" focal=".01 .01" resolution="10 10"'


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (filled(CONTACT), "dynamics.ball.friction[0]", 3.0),
        (filled(CONTACT), "dynamics.last.solref[0]", 0.1),
        (filled(CONTACT, floor=HIGH), "dynamics.floor.friction[0]", 3.0),
        (filled(CONTACT, floor=BALANCED, ball=BALANCED), "dynamics.ball.solimp[4]", 2.0),
        (filled(VIEW), "perception.box.rgba[2]", 0.3),
        (filled(VIEW, box='material="paint"'), "perception.paint.rgba[2]", 0.3),
        (filled(VIEW, box='material="paint" rgba="0 1 0 1"'), "perception.box.rgba[2]", 0.3),
        (filled(VIEW), "perception.lamp.direction[0]", 0.6),
        (filled(VIEW, light='mode="track"'), "perception.lamp.direction[0]", 0.6),
        (filled(VIEW), "perception.eye.fovy", 60.0),
        (filled(VIEW, camera='mode="track"'), "perception.eye.rotation[0]", 0.3),
        (BALL, "dynamics.j.range[1]", 0.02),
        (filled(GRIPPER), "dynamics.glue.gain", 60.0),
        (RICH, "dynamics.post.scale", 1.5),
        (filled(VIEW, camera='projection="orthographic" fovy="0.5"'), "perception.eye.fovy", 0.6),
    ],
)
def test_a_small_model_has_what_the_engine_looks_at(text: str, name: str, value: float) -> None:
    store, live = live_store(mujoco.MjModel.from_xml_string(text))
    before = seen_and_moved(live)
    store.write({name: np.array([value])})
    assert np.abs(seen_and_moved(live) - before).max() > 1e-6


RAW |= {"direction": ("light", "dir"), "fovy": ("camera", "fovy"), "rgba": ("material", "rgba")}
RAW |= {"gear": ("actuator", "gear"), "stiffness": ("joint", "stiffness"), "damping": ("joint", "damping")}
RAW |= {"frictionloss": ("joint", "frictionloss"), "gain": ("actuator", "gainprm")}


def disabled(flag: str, text: str = CONTACT) -> str:
    return filled(text, option=FLAG.format(flag, "disable"))


@pytest.mark.parametrize(
    ("text", "name", "value", "why"),
    [
        (filled(CONTACT, floor=HIGH), "dynamics.ball.friction[0]", 3.0, "all that it touches has a higher priority"),
        (filled(CONTACT, floor=HIGH), "dynamics.ball.solref[0]", 0.1, "all that it touches has a higher priority"),
        (
            filled(CONTACT, floor=HIGH, ball="condim='6'"),
            "dynamics.floor.friction[2]",
            0.3,
            "its contacts have condim 3, which needs 6",
        ),
        (filled(CONTACT, floor="solmix='0'"), "dynamics.floor.solref[0]", 0.1, "its weight (solmix) is 0"),
        (
            filled(CONTACT, bar="contype='4' conaffinity='4'", ball="contype='5' conaffinity='5'"),
            "dynamics.bar.solref[0]",
            0.1,
            "the geom takes no part in contacts",
        ),
        (
            filled(CONTACT, contact="<contact><exclude body1='c' body2='d'/></contact>"),
            "dynamics.last.solref[0]",
            0.1,
            "the geom takes no part in contacts",
        ),
        (
            filled(CONTACT, contact="<contact><pair geom1='other' geom2='last'/></contact>"),
            "dynamics.last.solref[0]",
            0.1,
            "the geom takes no part in contacts",
        ),
        (disabled("contact"), "dynamics.ball.solref[0]", 0.1, "the model disables contact (option/flag)"),
        (disabled("constraint"), "dynamics.ball.friction[0]", 2.0, "the model disables constraint (option/flag)"),
        (disabled("gravity"), "dynamics.world.gravity", 3.0, "the model disables gravity (option/flag)"),
        (disabled("spring"), "dynamics.hinge.stiffness", 3.0, "the model disables spring (option/flag)"),
        (disabled("damper"), "dynamics.hinge.damping", 3.0, "the model disables damper (option/flag)"),
        (disabled("frictionloss"), "dynamics.hinge.frictionloss", 3.0, "the model disables frictionloss (option/flag)"),
        (disabled("actuation", GRIPPER), "dynamics.glue.gain", 60.0, "the model disables actuation (option/flag)"),
        (
            filled(CONTACT, option=FLAG.format("override", "enable")),
            "dynamics.ball.solref[0]",
            0.1,
            "the options of the model override what geoms say (option/flag override)",
        ),
        (filled(VIEW, light=AIMED), "perception.lamp.direction[0]", 0.6, "it points at a body"),
        (filled(VIEW, camera=FOCAL), "perception.eye.fovy", 60.0, "the camera has a focal length"),
        (filled(VIEW), "perception.paint.rgba[2]", 0.3, "nothing shows the material"),
        (
            filled(VIEW, box='material="paint" rgba="0 1 0 1"'),
            "perception.paint.rgba[2]",
            0.3,
            "nothing shows the material",
        ),
        (BALL, "dynamics.j.range[0]", -0.5, "of a ball joint the engine reads the upper end only"),
        (filled(GRIPPER), "dynamics.glue.gear", 2.0, "adhesion has no gear"),
    ],
)
def test_a_small_model_is_silent_about_what_the_engine_ignores(text: str, name: str, value: float, why: str) -> None:
    model = mujoco.MjModel.from_xml_string(text)
    store, live = live_store(model)
    assert store.silent()[name] == why
    if name == "dynamics.world.gravity":
        live.opt.gravity[2] = -value
    else:
        kind, attribute = RAW[field_of(name)]
        row = getattr(getattr(live, kind)(name.split(".")[1]), attribute)
        row[int(name[-2]) if name.endswith("]") else 0] = value
    np.testing.assert_array_equal(seen_and_moved(live), seen_and_moved(model))


@pytest.mark.parametrize(("name", "value"), [("solimp[4]", 0.5), ("solimp[0]", 0.99999), ("solref[0]", 0.003)])
def test_what_the_engine_would_clip_is_refused(name: str, value: float) -> None:
    store, _ = live_store(mujoco.MjModel.from_xml_string(filled(CONTACT, floor=BALANCED, ball=BALANCED)))
    with pytest.raises(ParameterError, match="must lie between"):
        store.write({f"dynamics.ball.{name}": np.array([value])})


def random_contacts(rng: Any) -> str:
    """Geoms that overlap, of bodies that are fixed, free, hinged and welded, with random rules of contact."""

    def geom(name: str, rest: str) -> str:
        masks = f'contype="{rng.integers(4)}" conaffinity="{rng.integers(4)}"'
        rules = (
            f'priority="{rng.choice([0, 0, 1])}" solmix="{rng.choice([0, 1, 1])}" condim="{rng.choice([1, 3, 4, 6])}"'
        )
        return f'<geom name="{name}" {masks} {rules} {rest}/>'

    ball = 'size="0.1" pos="{} {} 0"'
    exclude = '<exclude body1="free" body2="other"/>' if rng.random() < 0.3 else ""
    pair = '<pair geom1="free" geom2="floor"/>' if rng.random() < 0.3 else ""
    return f"""<mujoco><option><flag filterparent="{rng.choice(["enable", "disable"])}"/></option><worldbody>
        {geom("floor", 'type="plane" size="1 1 1"')}
        <body name="post" pos="0 0 0.05">{geom("post", ball.format(0, 0.01))}</body>
        <body name="free" pos="0 0 0.05"><freejoint/>{geom("free", ball.format(0.01, 0))}
            <body name="welded">{geom("welded", ball.format(0.02, 0.02))}</body>
            <body name="hinged"><joint/>{geom("hinged", ball.format(0, 0.03))}</body></body>
        <body name="other" pos="0 0 0.05"><freejoint/>{geom("other", ball.format(0.04, 0.01))}</body>
        </worldbody><contact>{exclude}{pair}</contact></mujoco>"""


def contacts(model: Any) -> Array:
    """What the contacts of a model are made with: their solref, solimp, and as much of their friction as they use."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    used = np.array([{1: 0, 3: 2, 4: 3, 6: 5}[int(d)] for d in data.contact.dim], int)
    friction = data.contact.friction * (np.arange(5) < used[:, None])
    return np.concatenate([friction, data.contact.solref, data.contact.solimp], 1)


def test_contact_fields_have_a_name_exactly_where_contacts_use_them() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(16):
        text = random_contacts(rng)
        model = mujoco.MjModel.from_xml_string(text)
        fields, before = MujocoFields(model, "random"), contacts(model)
        for geom in (model.geom(i) for i in range(model.ngeom)):
            for field, values in {"friction": (5.0, 5.0, 5.0), "solref": (0.5, 3.0), "solimp": (0.3, 0.4)}.items():
                for k, value in enumerate(values):
                    row = getattr(geom, field)
                    nominal, row[k] = float(row[k]), value
                    after = contacts(model)
                    row[k] = nominal
                    name = f"dynamics.{geom.name}.{field}[{k}]"
                    found.append(name in fields.addresses)
                    assert found[-1] == bool((after != before).any()), f"{name}: {fields.silent.get(name)} in {text}"
    assert 0.2 < np.mean(found) < 0.8


def test_a_model_may_have_actuators_with_several_inputs() -> None:
    motors = '<pid name="servo" joint="elbow" kp="3" ki="1" kv="0.2"/><position name="servo"'
    model = mujoco.MjModel.from_xml_string(RICH.replace('<position name="servo"', motors.replace("servo", "pid", 1)))
    assert NOMINAL.keys() - MujocoFields(model, "some").addresses.keys() == set()


@pytest.mark.parametrize("medium", ["density", "viscosity"])
def test_a_live_model_takes_the_wind_together_with_the_medium(medium: str) -> None:
    store, live = live_store()
    values = {f"dynamics.world.{medium}": 5.0, "dynamics.world.wind[0]": 3.0}
    store.write({name: np.array([value]) for name, value in values.items()})
    assert (getattr(live.opt, medium), live.opt.wind[0]) == (5.0, 3.0)


@pytest.mark.parametrize("name", ["mass", "scale", "inertia[0]", "second_moment[0]"])
def test_what_follows_is_read_as_it_is(plants: Plants, name: str) -> None:
    store, models = plants
    store.write({f"{BODY}.{name}": np.full(store.n, NOMINAL[f"{BODY}.{name}"] * 1.1)})
    inertia, found = models()[0].body("drone").inertia, store.read()
    assert [found[f"{BODY}.inertia[{k}]"][0] for k in range(3)] == pytest.approx(inertia, rel=1e-12)
    spread = [found[f"{BODY}.second_moment[{k}]"][0] for k in range(3)]
    assert spread == pytest.approx(inertia.sum() / 2 - inertia, rel=1e-12)


def test_a_centre_of_mass_does_not_change_the_scale() -> None:
    store, live = live_store()
    for name, value in (("scale", 1.5), ("com[0]", 0.05), ("mass", 0.6)):
        store.write({f"{BODY}.{name}": np.array([value])})
    assert store.read()[f"{BODY}.scale"].tolist() == [1.5]
    np.testing.assert_allclose(live.body("drone").inertia, 2.25 * np.array([0.012, 0.015, 0.02]), rtol=1e-12)


@pytest.mark.parametrize("names", [("scale", "com[0]"), ("com[0]", "scale")])
def test_scale_and_centre_of_mass_are_written_together(names: tuple[str, str]) -> None:
    values = {"scale": 1.5, "com[0]": 0.05}
    store, live = live_store()
    store.write({f"{BODY}.{name}": np.array([values[name]]) for name in names})
    np.testing.assert_allclose(live.body("drone").ipos, [0.05, 1.5 * 0.03, 1.5 * -0.04], rtol=1e-12)
    store.write({f"{BODY}.scale": np.array([2.0])})
    np.testing.assert_allclose(live.body("drone").ipos, [0.05, 2 * 0.03, 2 * -0.04], rtol=1e-12)
    store.restore()
    store.write({f"{BODY}.scale": np.array([2.0])})
    np.testing.assert_allclose(live.body("drone").ipos, 2 * np.array([0.02, 0.03, -0.04]), rtol=1e-12)


def test_a_camera_turns_from_anywhere_to_anywhere() -> None:
    store, _ = live_store()
    for vector in ((0.0, 0.0, 2.9), (2.9, 0.0, 0.0)):
        store.write({name: np.array([value]) for name, value in zip(EYE, vector, strict=True)})
        assert [store.read()[name][0] for name in EYE] == pytest.approx(vector, abs=1e-9)


@pytest.mark.parametrize("values", [{"mass": 0.0}, {"second_moment[0]": 0.0, "second_moment[1]": 0.0}])
def test_a_moving_body_needs_mass_and_inertia(values: dict[str, float]) -> None:
    with pytest.raises(ParameterError):
        live_store()[0].write({f"{BODY}.{name}": np.array([value]) for name, value in values.items()})


@pytest.mark.parametrize(("name", "value"), [("dynamics.elbow.range[0]", 0.7), ("perception.lamp.active", 0.5)])
def test_a_refusal_shows_the_value_that_is_refused(name: str, value: float) -> None:
    with pytest.raises(ParameterError, match=str(value)):
        batch_store(2)[0].write({name: np.array([NOMINAL[name], value])})


def test_an_option_that_somebody_else_sets_is_read_as_it_is_and_left_alone() -> None:
    store, live = live_store()
    store.write({"dynamics.world.density": np.array([5.0])})
    assert store.read()["dynamics.world.density"].tolist() == [5.0]
    live.opt.density = 7.0
    assert store.read()["dynamics.world.density"].tolist() == [7.0]
    store.write({"dynamics.drone.mass": np.array([0.7])})
    assert live.opt.density == 7.0


def test_a_model_in_which_nothing_moves_can_be_scaled() -> None:
    text = '<mujoco><worldbody><body name="table"><geom name="top" size="0.1"/></body></worldbody></mujoco>'
    store, live = live_store(mujoco.MjModel.from_xml_string(text))
    store.write({"dynamics.table.scale": np.array([2.0])})
    assert live.geom("top").size[0] == 0.2


def test_the_shortest_time_constant_is_two_timesteps_of_the_simulator(tmp_path: Path) -> None:
    file = tmp_path / "drop.xml"
    file.write_text(
        """<mujoco><option timestep="0.01"/><worldbody><geom type="plane" size="1 1 1"/><body pos="0 0 0.09">
        <joint type="slide" axis="0 0 1"/><geom name="ball" size="0.1"/></body></worldbody></mujoco>""",
        encoding="utf-8",
    )
    simulator = MujocoSimulator(RobotModel(file), 1, timestep=0.001)
    simulator.write({"dynamics.ball.solref[0]": np.array([0.005])})
    with pytest.raises(ParameterError, match=r"must lie between 0\.002"):
        simulator.write({"dynamics.ball.solref[0]": np.array([0.0015])})


def test_restore_leaves_what_was_not_written() -> None:
    store, live = live_store()
    live.body("post").pos[0] = 2.0
    store.write({"dynamics.arm.scale": np.array([1.5])})
    store.restore()
    assert live.body("post").pos[0] == 2.0
    np.testing.assert_array_equal(live.body("rod").pos, MODEL.body("rod").pos)
