"""Posteriors for others: robot files with values written in, and YAML."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
import yaml

from sim2real.adapters import Chain, Latency
from sim2real.calibration import Posterior
from sim2real.calibration.export import to_mjcf, to_yaml
from sim2real.errors import RobotError
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, ParameterSet, RobotModel, parse_randomizations

VALUES = {
    "dynamics.payload.mass": 0.83,
    "dynamics.hinge.frictionloss": 0.12,
    "dynamics.hinge.damping": 0.031,
    "dynamics.hinge.armature": 0.004,
    "execution.latency.delay": 0.0123,
}


def test_a_robot_file_moves_as_the_identified_plant() -> None:
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.001)
    text = to_mjcf(plant, VALUES)
    assert "execution.latency.delay = 0.0123 s" in text
    model = mujoco.MjModel.from_xml_string(text)
    running = plant.start(
        1, {name: np.array([v]) for name, v in VALUES.items()} | {"execution.latency.delay": np.zeros(1)}
    )
    running.reset(np.array([[1.0, -2.0]]))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = 1.0, -2.0
    model.opt.timestep = 0.001
    path = []
    for _ in range(500):
        mujoco.mj_step(model, data)
        path.append(float(data.qpos[0]))
    np.testing.assert_allclose(running.step(np.zeros((1, 500, 1)))[0, :, 0], path, atol=1e-6)
    assert plant.nominal()["dynamics.payload.mass"] == 0.546, "the robot itself is not changed"


@pytest.mark.parametrize("robot", ["double_pendulum", "furuta", "cartpole", "two_link_arm", "servo_pendulum"])
def test_every_packaged_robot_takes_its_values(robot: str) -> None:
    plant = Plant(RobotModel(robot))
    names = [
        n for n in plant.nominal() if n.endswith((".mass", ".damping", ".armature", ".frictionloss", ".stiffness"))
    ]
    values = {name: 1.1 * plant.nominal()[name] + 1e-4 for name in names}
    mujoco.MjModel.from_xml_string(to_mjcf(plant, values))  # reads every value back itself


def test_a_robot_with_meshes_can_be_put_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    (tmp_path / "parts" / "link.obj").write_text(corners + "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    (tmp_path / "robot.xml").write_text(
        '<mujoco><compiler meshdir="parts"/><asset><mesh name="link" file="link.obj" scale=".1 .1 .1"/></asset>'
        '<worldbody><body name="link"><joint name="hinge" damping="0.1"/><geom type="mesh" mesh="link"/></body>'
        '</worldbody><actuator><motor joint="hinge"/></actuator></mujoco>'
    )
    plant = Plant(RobotModel(tmp_path / "robot.xml"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "robot.xml").write_text(to_mjcf(plant, {"dynamics.hinge.damping": 0.3}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert RobotModel("robot.xml").nominal["dynamics.hinge.damping"] == pytest.approx(0.3)


def test_a_function_has_no_file() -> None:
    cart = FunctionModel(lambda x, u, p, dt: x, {"dynamics.a.b": FunctionParameter(1.0)}, ("x",), ("u",))
    with pytest.raises(RobotError, match="there is no robot file"):
        to_mjcf(Plant(cart), {"dynamics.a.b": 2.0})


def test_yaml_is_a_randomization() -> None:
    names = {"dynamics.payload.mass": "=U(0, 2)", "execution.latency.delay": "=U(0, 0.1)"}
    prior = ParameterSet.parse(names, {"dynamics.payload.mass": "kg", "execution.latency.delay": "s"})
    samples = np.random.default_rng(0).normal([0.8, 0.03], [0.01, 0.001], (200, 2))
    document = yaml.safe_load(to_yaml(Posterior(prior, samples.mean(0), samples, np.ones(1))))
    (randomization,) = parse_randomizations(document["parameters"])
    drawn = randomization.parameters.sample(np.random.default_rng(0), 500)
    assert drawn["dynamics.payload.mass"].mean() == pytest.approx(0.8, abs=0.01)
    assert drawn["execution.latency.delay"].std() == pytest.approx(0.001, rel=0.2)
    low, high = document["interval90"]["dynamics.payload.mass"]
    assert low < document["values"]["dynamics.payload.mass"] < high
    assert document["units"]["execution.latency.delay"] == "s"
