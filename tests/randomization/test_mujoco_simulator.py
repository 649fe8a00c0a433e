"""The MuJoCo simulator against `mj_step` on models edited by hand, and what it refuses."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from sim2real.errors import NonFiniteError, ParameterError, RobotError
from sim2real.randomization import MujocoSimulator, ParameterSet, ParameterStore, RobotModel, Simulator, robots

Array = NDArray[np.float64]
ROBOTS = ("pendulum", "double_pendulum", "furuta", "cartpole")
MASS = "dynamics.payload.mass"


@pytest.fixture(scope="module")
def models() -> dict[str, RobotModel]:
    return {name: RobotModel(name) for name in ROBOTS}


@pytest.fixture
def pendulum(models: dict[str, RobotModel]) -> RobotModel:
    return models["pendulum"]


def mechanical(model: RobotModel) -> list[str]:
    """The parameters that `by_hand` knows; `test_mujoco_fields.py` has them all."""
    known = re.compile(r"dynamics\..*\.(mass|com\[\d\]|damping|stiffness|frictionloss|armature|gear|gravity)")
    return [name for name in model.addresses if known.fullmatch(name)]


def by_hand(model: RobotModel, values: dict[str, float]) -> Any:
    """A model with the values written as a MuJoCo user would, name by name."""
    m = copy.copy(model.mj)
    for name, value in values.items():
        _, entity, field = name.split(".", 2)
        if field == "mass":
            body = m.body(entity)
            body.inertia[:] *= value / body.mass[0]
            body.mass[0] = value
        elif field.startswith("com"):
            m.body(entity).ipos[int(field[4])] = value
        elif field == "gear":
            m.actuator(entity).gear[0] = value
        elif field == "gravity":
            m.opt.gravity[2] = -value
        elif entity == "elbow_rotor":
            getattr(m, f"tendon_{field}")[m.tendon(entity).id] = value
        elif field == "stiffness":
            m.jnt_stiffness[m.joint(entity).id] = value
        else:
            getattr(m, f"dof_{field}")[m.joint(entity).dofadr[0]] = value
    mujoco.mj_setConst(m, mujoco.MjData(m))
    return m


def simulate(m: Any, state: Array, efforts: Array) -> Array:
    d = mujoco.MjData(m)
    d.qpos[:], d.qvel[:] = np.split(state, 2)
    out = []
    for effort in efforts:
        d.ctrl[:] = effort
        mujoco.mj_step(m, d)
        out.append(np.concatenate([d.qpos, d.qvel]))
    return np.array(out)


def random_values(model: RobotModel, names: list[str], n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    nominal = model.nominal
    return {k: nominal[k] * rng.uniform(0.5, 2, n) + (nominal[k] == 0) * rng.uniform(0, 0.05, n) for k in names}


def test_it_is_a_simulator_and_a_store(pendulum: RobotModel) -> None:
    simulator = MujocoSimulator(pendulum, 3, timestep=0.002)
    assert isinstance(simulator, Simulator)
    assert isinstance(simulator, ParameterStore)
    assert (simulator.n, simulator.timestep, simulator.degrees_of_freedom) == (3, 0.002, 1)
    assert simulator.units().keys() == simulator.nominal().keys() == simulator.read().keys()
    assert simulator.units()[MASS] == "kg"
    assert simulator.nominal()[MASS] == 0.546
    assert simulator.nominal()["dynamics.world.gravity"] == 9.81


@pytest.mark.parametrize("robot", ROBOTS)
def test_plants_with_their_own_parameters_are_models_edited_by_hand(models: dict[str, RobotModel], robot: str) -> None:
    model, n, steps = models[robot], 3, 100
    values = random_values(model, mechanical(model), n)
    simulator = MujocoSimulator(model, n)
    simulator.write(values)
    rng = np.random.default_rng(1)
    states = rng.normal(size=(n, 2 * simulator.degrees_of_freedom))
    efforts = 0.05 * rng.normal(size=(n, steps, model.mj.nu))
    simulator.set_state(states)
    np.testing.assert_array_equal(simulator.state(), states)
    got = simulator.step(efforts)
    assert got.shape == (n, steps, 2 * simulator.degrees_of_freedom)
    for i in range(n):
        edited = by_hand(model, {k: float(v[i]) for k, v in values.items()})
        np.testing.assert_allclose(got[i], simulate(edited, states[i], efforts[i]), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(simulator.state(), got[:, -1])


def test_the_inertia_follows_the_mass_and_the_constants_follow_both(pendulum: RobotModel) -> None:
    simulator = MujocoSimulator(pendulum, 2)
    masses = np.array([0.1, 2.0])
    simulator.write({MASS: masses})
    # rotor, rod about its own centre and about the hinge, and a solid ball on its end that scales with its mass
    own = 0.0022 + 0.0027 + 0.13 * 0.24**2
    ball = masses / 0.546 * (0.546 * 0.5**2 + 1.365e-4)
    np.testing.assert_allclose(simulator.effective_inertia()[:, 0], own + ball, rtol=1e-12)
    derived = simulator._batch.expanded("dof_invweight0")
    for i, mass in enumerate(masses):
        np.testing.assert_allclose(derived[i], by_hand(pendulum, {MASS: mass}).dof_invweight0, rtol=1e-12)


def test_each_value_is_read_back(models: dict[str, RobotModel]) -> None:
    for model in models.values():
        simulator = MujocoSimulator(model, 2)
        for name, value in simulator.read().items():
            assert value.tolist() == [model.nominal[name]] * 2
        values = random_values(model, mechanical(model), 2)
        simulator.write(values)
        in_force = simulator.read()
        for name, value in values.items():
            np.testing.assert_array_equal(in_force[name], value)


def test_writing_twice_is_writing_once(pendulum: RobotModel) -> None:
    once, twice = MujocoSimulator(pendulum, 2), MujocoSimulator(pendulum, 2)
    double = ParameterSet.parse({MASS: "*2"}).against(once.nominal()).sample(np.random.default_rng(0), 2)
    once.write(double)
    for _ in range(3):
        twice.write(ParameterSet.parse({MASS: "*2"}).against(twice.nominal()).sample(np.random.default_rng(0), 2))
    assert twice.read()[MASS].tolist() == [1.092, 1.092]
    np.testing.assert_array_equal(once.effective_inertia(), twice.effective_inertia())
    twice.write({MASS: np.full(2, 0.546)})
    np.testing.assert_array_equal(twice.effective_inertia(), MujocoSimulator(pendulum, 2).effective_inertia())


def test_a_mask_leaves_the_others_alone(pendulum: RobotModel) -> None:
    simulator, mask = MujocoSimulator(pendulum, 3), np.array([False, True, False])
    untouched = simulator.effective_inertia()
    simulator.write({MASS: np.array([5.0, 1.0, -5.0])}, mask)
    assert simulator.read()[MASS].tolist() == [0.546, 1.0, 0.546]
    inertia = simulator.effective_inertia()
    np.testing.assert_array_equal(inertia[[0, 2]], untouched[[0, 2]])
    assert inertia[1] > untouched[1]
    simulator.set_state(np.arange(6.0).reshape(3, 2), mask)
    assert simulator.state().tolist() == [[0, 0], [2, 3], [0, 0]]
    simulator.write({MASS: np.array([5.0, 5.0, 5.0])}, np.zeros(3, bool))
    np.testing.assert_array_equal(simulator.effective_inertia(), inertia)


@pytest.mark.parametrize("robot", ["pendulum", "double_pendulum", "furuta"])
def test_inertia_and_bias_are_mujocos(models: dict[str, RobotModel], robot: str) -> None:
    model, n = models[robot], 3
    simulator, rng = MujocoSimulator(model, n), np.random.default_rng(0)
    values = random_values(model, [k for k in mechanical(model) if not k.endswith(".frictionloss")], n)
    states = rng.normal(size=(n, 2 * simulator.degrees_of_freedom))
    simulator.write(values)
    simulator.set_state(states)
    inertia, bias = simulator.effective_inertia(), simulator.bias_effort()
    for i in range(n):
        m = by_hand(model, {k: float(v[i]) for k, v in values.items()})
        d = mujoco.MjData(m)
        d.qpos[:], d.qvel[:] = np.split(states[i], 2)
        mujoco.mj_forward(m, d)
        # the acceleration of a joint by an effort on it alone
        for j in range(m.nv):
            answer = np.zeros((1, m.nv))
            mujoco.mj_solveM(m, d, answer, np.eye(m.nv)[j : j + 1])
            assert inertia[i, j] == pytest.approx(1 / answer[0, j], rel=1e-9)
        # what holds the plant's acceleration at zero: inverse dynamics, passive forces included
        d.qacc[:] = 0.0
        mujoco.mj_inverse(m, d)
        loss = d.qfrc_inverse + d.qfrc_constraint
        np.testing.assert_allclose(bias[i], loss, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(simulator.state(), states)


def test_neither_threads_nor_blocks_change_the_bytes(models: dict[str, RobotModel]) -> None:
    model, n = models["double_pendulum"], 16
    rng = np.random.default_rng(0)
    values = random_values(model, mechanical(model), n)
    states, efforts = rng.normal(size=(n, 4)), rng.normal(size=(n, 60, 2))
    results = []
    for threads, block in ((1, 60), (2, 60), (3, 20), (1, 1)):
        simulator = MujocoSimulator(model, n, threads=threads)
        simulator.write(values)
        simulator.set_state(states)
        blocks = [simulator.step(efforts[:, k : k + block]) for k in range(0, 60, block)]
        results.append(np.concatenate(blocks, 1).tobytes())
        # and what ran before leaves no trace
        simulator.set_state(states)
        assert simulator.step(efforts).tobytes() == results[-1]
    assert len(set(results)) == 1


def test_the_file_decides_neither_timestep_nor_integrator(tmp_path: Path) -> None:
    text = robots.path("pendulum").read_text(encoding="utf-8")
    other = tmp_path / "other.xml"
    other.write_text(text.replace('timestep="0.001"', 'timestep="0.01"').replace('"Euler"', '"RK4"'), encoding="utf-8")
    results = []
    for source in ("pendulum", other):
        model = RobotModel(source)
        before = model.mj.opt.timestep, model.mj.opt.integrator
        simulator = MujocoSimulator(model, 1, timestep=0.002)
        assert (model.mj.opt.timestep, model.mj.opt.integrator) == before
        simulator.set_state(np.array([[1.0, 0.0]]))
        results.append(simulator.step(np.ones((1, 50, 1))))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({MASS: np.array([0.5, -0.1])}, r"dynamics.payload.mass: cannot be negative, found -0.1 kg"),
        ({"dynamics.hinge.damping": np.array([-1.0, 0.0])}, "cannot be negative"),
        ({"dynamics.hinge.frictionloss": np.array([-1.0, 0.0])}, "cannot be negative"),
        ({"dynamics.hinge.armature": np.array([-1.0, 0.0])}, "cannot be negative"),
        ({MASS: np.array([0.5, np.inf])}, "must be finite"),
        ({MASS: np.ones(3)}, r"expected a value for each of 2 plants, found shape \(3,\)"),
        ({MASS: 0.5}, r"found shape \(\)"),
        ({"dynamics.payload.mas": np.ones(2)}, "did you mean dynamics.payload.mass"),
    ],
)
def test_a_bad_write_is_refused_and_writes_nothing(
    pendulum: RobotModel, values: dict[str, Array], message: str
) -> None:
    simulator = MujocoSimulator(pendulum, 2)
    with pytest.raises(ParameterError, match=message):
        simulator.write({"dynamics.link.mass": np.full(2, 0.3), **values})
    for name, value in simulator.read().items():
        assert value.tolist() == [pendulum.nominal[name]] * 2
    np.testing.assert_array_equal(simulator.effective_inertia(), MujocoSimulator(pendulum, 2).effective_inertia())


def test_lists_may_be_written(pendulum: RobotModel) -> None:
    simulator = MujocoSimulator(pendulum, 2)
    simulator.write({MASS: [0.5, 1]})
    assert simulator.read()[MASS].tolist() == [0.5, 1.0]


def test_what_is_written_and_read_is_nobody_elses(pendulum: RobotModel) -> None:
    simulator, value = MujocoSimulator(pendulum, 2), np.array([0.5, 1.0])
    simulator.write({MASS: value})
    value[:] = 7.0
    simulator.read()[MASS][:] = 7.0
    first = simulator.step(np.ones((2, 3, 1)))
    kept = first.copy()
    simulator.step(np.ones((2, 3, 1)))
    assert simulator.read()[MASS].tolist() == [0.5, 1.0]
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e12])
def test_what_is_not_finite_is_an_error_not_a_plant_at_rest(
    pendulum: RobotModel, bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    simulator = MujocoSimulator(pendulum, 2)
    simulator.write({MASS: np.array([0.5, 0.6])})
    efforts = np.zeros((2, 10, 1))
    expected = simulator.step(efforts)
    efforts[1, 4] = bad
    with pytest.raises(NonFiniteError, match=r"plant 1 .*dynamics.payload.mass=0.6"):
        simulator.step(efforts)
    simulator.set_state(np.array([[0.1, 0.0], [0.1, bad]]))
    with pytest.raises(NonFiniteError, match="plant 1"):
        simulator.step(np.zeros((2, 10, 1)))
    # and the plant can be used again
    simulator.set_state(np.zeros((2, 2)))
    np.testing.assert_array_equal(simulator.step(np.zeros((2, 10, 1))), expected)
    assert not list(tmp_path.iterdir())


def test_a_plant_that_diverges_is_an_error_not_a_plant_at_rest(
    pendulum: RobotModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log of its warning
    simulator = MujocoSimulator(pendulum, 3)
    efforts = np.zeros((3, 10, 1))
    expected = simulator.step(efforts)
    efforts[2, 4] = 9e9
    with pytest.raises(NonFiniteError, match="plant 2 left the finite numbers"):
        simulator.step(efforts)
    simulator.set_state(np.zeros((3, 2)))
    np.testing.assert_array_equal(simulator.step(np.zeros((3, 10, 1))), expected)


def test_an_unknown_name_lists_the_nearest(pendulum: RobotModel) -> None:
    with pytest.raises(
        RobotError, match=r"pendulum has no parameter 'dynamics.hing.damping'; did you mean dynamics.hinge"
    ):
        pendulum.fields.address("dynamics.hing.damping")
    with pytest.raises(RobotError, match="did you mean pendulum"):
        RobotModel("pendulun")


FREE = '<mujoco><worldbody><body name="ball"><freejoint/><geom size="0.1"/></body></worldbody></mujoco>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<mujoco><worldbody>", "does not parse as MJCF or URDF"),
        ("<mujoco><nonsense/></mujoco>", "does not parse as MJCF or URDF"),
        ("", "does not parse as MJCF or URDF"),
        (FREE, "hinge and slide joints only"),
        (FREE.replace("<freejoint/>", '<joint type="ball"/>'), "hinge and slide joints only"),
        (FREE.replace("<freejoint/>", ""), "at least one"),
    ],
)
def test_a_bad_robot_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "robot.xml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RobotError, match=message) as error:
        RobotModel(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_robot_file_lists_the_packaged_ones(tmp_path: Path) -> None:
    with pytest.raises(RobotError, match="does not exist; packaged robots: cartpole"):
        RobotModel(tmp_path / "none.xml")


URDF = """<robot name="arm">
  <link name="base"/>
  <link name="beam"><inertial><origin xyz="0 0 -0.3"/><mass value="0.4"/>
    <inertia ixx="0.01" iyy="0.01" izz="0.001" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="turn" type="continuous"><parent link="base"/><child link="beam"/><axis xyz="0 1 0"/>
    <dynamics damping="0.03" friction="0.02"/></joint>
</robot>"""


def test_a_urdf_is_a_robot_too(tmp_path: Path) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(URDF, encoding="utf-8")
    model = RobotModel(file)
    assert model.joint_names == ("turn",)
    assert model.wraps == (True,)
    nominal = {k: model.nominal[f"dynamics.{k}"] for k in ("beam.mass", "beam.com[2]", "turn.damping")}
    assert nominal == {"beam.mass": 0.4, "beam.com[2]": -0.3, "turn.damping": 0.03}
    assert model.nominal["dynamics.turn.frictionloss"] == 0.02


def test_units_tell_hinges_from_slides(models: dict[str, RobotModel]) -> None:
    units = {k: a.unit for k, a in models["cartpole"].addresses.items()}
    assert (units["dynamics.hinge.damping"], units["dynamics.slider.damping"]) == ("N·m·s/rad", "N·s/m")
    assert (units["dynamics.hinge.armature"], units["dynamics.slider.armature"]) == ("kg·m²", "kg")
    assert models["cartpole"].wraps == (False, True)
    assert models["cartpole"].joint_names == ("slider", "hinge")
    assert models["cartpole"].actuator_names == ("motor",)
