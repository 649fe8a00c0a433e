"""Plants that are functions: stepped, written, refused, imported, sent to other processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Friction, Latency
from sim2real.errors import NonFiniteError, ParameterError, RobotError
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, RobotModel, Simulator, load_function

PARAMETERS = {
    "dynamics.link.inertia": FunctionParameter(0.2, "kg·m²", low=1e-6),
    "dynamics.link.weight": FunctionParameter(3.0, "N·m"),
}


def swing(x: Any, u: Any, p: Any, dt: float) -> Any:
    q, v = x[:, :1], x[:, 1:]
    v = v + dt * (u - p["link.weight"] * np.sin(q)) / p["link.inertia"]
    return np.concatenate([q + dt * v, v], 1)


def swing_in_torch(x: Any, u: Any, p: Any, dt: float) -> Any:
    import torch

    q, v = x[:, :1], x[:, 1:]
    v = v + dt * (u - p["link.weight"] * torch.sin(q)) / p["link.inertia"]
    return torch.cat([q + dt * v, v], 1)


def model(function: Any = swing, **arguments: Any) -> FunctionModel:
    return FunctionModel(function, PARAMETERS, ("hinge",), ("motor",), **arguments)


MJCF = """<mujoco><worldbody><body>
  <inertial pos="0 0 -0.5" mass="{mass}" diaginertia="{own} {own} {own}"/><joint name="hinge" axis="0 -1 0"/>
  <geom size="0.01" mass="0"/></body></worldbody>
  <actuator><motor name="motor" joint="hinge"/></actuator></mujoco>"""


@pytest.mark.parametrize("function", [swing, swing_in_torch])
def test_a_function_moves_as_the_robot_file_of_the_same_plant(function: Any, tmp_path: Path) -> None:
    mass = 3.0 / 9.81 / 0.5
    file = tmp_path / "swing.xml"
    file.write_text(MJCF.format(mass=mass, own=0.2 - mass * 0.25))
    commands = np.random.default_rng(0).normal(size=(3, 200, 1))
    start = np.array([[0.1, 0.0], [2.0, -1.0], [3.0, 4.0]])
    moved = []
    for robot in (model(function, torch=function is swing_in_torch), RobotModel(file)):
        running = Plant(robot, Chain([Latency(delay=0.0123)]), timestep=0.001).start(3)
        running.reset(start)
        moved.append(running.step(commands))
        assert isinstance(running.simulator, Simulator)
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-9)


def test_parameters_are_written_read_and_restored() -> None:
    simulator = model().simulate(3, 0.01)
    simulator.write({"dynamics.link.weight": np.array([1.0, 2.0, 3.0])})
    simulator.write({"dynamics.link.weight": np.full(3, 9.0)}, np.array([False, True, False]))
    np.testing.assert_array_equal(simulator.read()["dynamics.link.weight"], [1.0, 9.0, 3.0])
    alone = [model().simulate(1, 0.01) for _ in range(3)]
    u = np.ones((3, 5, 1))
    together = simulator.step(u)
    for k, (one, weight) in enumerate(zip(alone, (1.0, 9.0, 3.0), strict=True)):
        one.write({"dynamics.link.weight": np.array([weight])})
        np.testing.assert_array_equal(one.step(u[:1])[0], together[k])
    simulator.restore(np.array([True, False, False]))
    np.testing.assert_array_equal(simulator.read()["dynamics.link.weight"], [3.0, 9.0, 3.0])


def test_what_cannot_be_is_refused() -> None:
    simulator = model().simulate(2, 0.01)
    with pytest.raises(ParameterError, match="must lie between 1e-06 and inf"):
        simulator.write({"dynamics.link.inertia": np.array([1.0, 0.0])})
    with pytest.raises(ParameterError, match=r"did you mean dynamics\.link\.weight"):
        simulator.write({"dynamics.link.wieght": np.ones(2)})
    with pytest.raises(ParameterError, match=r"named dynamics\.<entity>\.<field>"):
        FunctionModel(swing, {"weight": FunctionParameter(1.0)}, ("hinge",), ("motor",))
    with pytest.raises(ParameterError, match="expected 1 joint_units, found 2"):
        model(joint_units=("rad", "m"))
    simulator.write({"dynamics.link.weight": np.array([1.0, 1e308]), "dynamics.link.inertia": np.array([1.0, 1e-6])})
    simulator.set_state(np.ones((2, 2)))
    with pytest.raises(NonFiniteError, match=r"plant 1 left the finite numbers; .*weight=1e\+308"):
        simulator.step(np.ones((2, 50, 1)))
    with pytest.raises(ParameterError, match="put the stage that asks"):
        Plant(model(), Chain([Friction(coulomb=1.0)])).start(1).step(np.ones((1, 1, 1)))


def test_functions_are_imported_and_sent_to_other_processes(tmp_path: Path) -> None:
    file = tmp_path / "robots.py"
    file.write_text(
        "from sim2real.randomization import FunctionModel, FunctionParameter\n"
        "def step(x, u, p, dt):\n    return x + dt * p['cart.pull'] * u\n"
        "cart = FunctionModel(step, {'dynamics.cart.pull': FunctionParameter(2.0)}, ('x',), ('u',))\n"
    )
    cart = load_function(f"{file}:cart")
    again = pickle.loads(pickle.dumps(cart))
    assert again.simulate(1, 0.5).step(np.ones((1, 1, 1))).tolist() == [[[1.0, 1.0]]]
    assert pickle.loads(pickle.dumps(model())).nominal == model().nominal
    for source, why in (
        (f"{file}:carts", "has no 'carts'; it has FunctionModel, .*cart"),
        (f"{tmp_path}/none.py:cart", "there is no file"),
        ("no.such.module:cart", "cannot be imported"),
    ):
        with pytest.raises(RobotError, match=why):
            load_function(source)
