"""Costs by value and by name, how close to a goal is, where bodies are, fallbacks, and values fitted to runs."""

from __future__ import annotations

import math
import pickle
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from sim2real.errors import ModelError, RecipeError
from sim2real.estimation import Estimate
from sim2real.planning import (
    MPPI,
    Bounds,
    Damping,
    Effort,
    Hold,
    Kinematics,
    Quadratic,
    Reach,
    Rewarded,
    Sum,
    Track,
    Upright,
    closeness,
    fit_value,
    named_cost,
)
from sim2real.planning.costs import beginning
from sim2real.randomization import RobotModel
from sim2real.world_model import EnsembleConfig, EnsembleDynamics

ONE_JOINT = """<mujoco><worldbody><body><joint name="j" type="hinge" axis="0 1 0"/>
<geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.02"/></body></worldbody><actuator>{}</actuator></mujoco>"""
ROBOTS = ("pendulum", "cartpole", "furuta", "two_link_arm", "double_pendulum")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def states(*rows: list[float]) -> Tensor:
    return torch.tensor([rows])


NOTHING = torch.zeros(1, 2, 1)


def test_a_path_is_followed_in_time_and_closeness_says_how_well() -> None:
    cost = Track([0.0, 1.0], [[0.0], [2.0]], (4.0,), effort=0.5)
    now = cost.beginning(0.25, 0.25)  # the states are those at 0.5 and 0.75 s, where the path is at 1.0 and 1.5
    found = now(states([1.0, 0.0], [1.0, 0.0]), torch.ones(1, 2, 1))
    torch.testing.assert_close(found, torch.tensor([[0.5, 4.0 * 0.25 + 0.5]]))
    along = np.linspace(0.0, 2.0, 11)[1:]
    run = np.stack([along, 0 * along], -1)[None]
    assert closeness(cost, run, 0.1)[0] == pytest.approx(1.0)
    assert closeness(Sum((cost, Effort())), run + 0.5, 0.1)[0] == pytest.approx(math.exp(-1.0))
    # before it begins and after it ends the path stands still
    assert closeness(cost, np.array([[[2.0, 0.0]]]), 5.0)[0] == pytest.approx(1.0)
    with pytest.raises(ModelError, match="increasing times"):
        Track([0.0, 0.0], [[0.0], [1.0]], (1.0,))


def test_a_planner_follows_a_path() -> None:
    """v' = v + DT * u, exactly; the path leads to 0.5 and back."""
    model = EnsembleDynamics(EnsembleConfig((False,), 1, 0.1, 1, 2, hidden=()))
    with torch.no_grad():
        for member in range(2):
            model.dynamics.weights[0][member].zero_()
            model.dynamics.weights[0][member, -1, 0] = 0.1
    cost = Track([0.0, 1.0, 3.0], [[0.0], [0.5], [0.0]], (1.0,))
    policy = MPPI(model, cost, np.array([4.0]), horizon=0.8, candidates=200, iterations=3)
    state, seen = np.zeros((1, 2)), []
    for k in range(30):
        u = policy.act(Estimate(state, np.zeros((1, 1, 1))), 0.1 * k)
        v = state[:, 1] + 0.1 * u[:, 0]
        state = np.stack([state[:, 0] + 0.05 * (state[:, 1] + v), v], 1)
        seen.append(state[0, 0])
    wanted = np.interp(0.1 * np.arange(1, 31), cost.times, cost.path[:, 0])
    assert np.abs(np.array(seen) - wanted).max() < 0.1


def test_bounds_cost_nothing_inside_and_the_square_of_what_is_beyond() -> None:
    cost = Bounds(((-1.0, 1.0), (-math.inf, math.inf)), (2.0, math.inf), weight=3.0, width=0.1)
    inside, beyond = [0.9, 50.0, -1.9, 99.0], [1.2, 0.0, -2.4, 0.0]
    found = cost(states(inside, beyond), torch.zeros(1, 2, 1))
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0 * (2.0**2 + 2.0**2)]]))


def test_costs_are_of_all_joints_and_of_no_others() -> None:
    x, u = torch.zeros(1, 2, 4), torch.zeros(1, 2, 1)
    for cost in (Bounds(((-1.0, 1.0),)), Track([0.0], [[0.0]], (1.0,)).beginning(0, 0.1), Quadratic((0.0,), (1.0,))):
        with pytest.raises(ModelError, match="of 1 joints, the model has 2"):
            cost(x, u)
    with pytest.raises(ModelError, match="ask for `beginning"):
        Track([0.0], [[0.0]], (1.0,))(x[..., :2], u)
    with pytest.raises(ModelError, match="a weight for each of 1 terms, found 2"):
        Sum((Effort(),), (1.0, 2.0))
    assert math.isclose(float(Upright(effort="1e-1")(x, u + 1)[0, 0]), 2.1, rel_tol=1e-6)  # type: ignore[arg-type]
    # a term that has no goal takes none away from the others
    assert closeness(Sum((Upright(1), Sum((Effort(),)))), np.array([[[0, math.pi, 0, 0]]]), 0.1)[0] == 1.0


def test_effort_weighs_commands_and_their_changes() -> None:
    sent = torch.tensor([[[1.0], [3.0], [2.0]]])
    found = Effort(0.5, change=0.1)(torch.zeros(1, 3, 2), sent)
    torch.testing.assert_close(found, torch.tensor([[0.5, 4.5 + 0.4, 2.0 + 0.1]]))


def test_closeness_is_one_there_and_a_product_over_goals() -> None:
    there = np.array([[[0.3, math.pi, 0.0, 0.0]]])
    both = Sum((Upright(1), Quadratic((0.3, 0.0), (4.0, 0.0)), Bounds(((-1.0, 1.0),) * 2)), (1.0, 2.0, 3.0))
    assert closeness(both, there, 0.1)[0] == pytest.approx(1.0)
    away = there + np.array([0.5, math.pi / 2, 0, 0])
    assert closeness(both, away, 0.1)[0] == pytest.approx(0.5 * math.exp(-1.0))
    cost = both(torch.as_tensor(away), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert float(cost) == pytest.approx(1.0 + 2.0 * 4.0 * 0.25 + 3.0 * ((math.pi * 1.5 - 1.0) / 0.1) ** 2, rel=1e-6)
    with pytest.raises(ModelError, match="needs `closeness"):
        closeness(Effort(), there, 0.1)
    with pytest.raises(ModelError, match="Sum has no goal"):
        closeness(Sum((Effort(),)), there, 0.1)


def test_a_reward_is_the_negative_of_its_cost() -> None:
    cost = Rewarded(lambda s, a: s[..., 0] - a[..., 0])
    torch.testing.assert_close(cost(states([2.0, 0.0], [3.0, 0.0]), torch.ones(1, 2, 1)), -torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize("name", ROBOTS)
def test_points_of_bodies_are_where_mujoco_has_them(name: str) -> None:
    robot, rng = RobotModel(name), np.random.default_rng(0)
    body, data, point = robot.mj.body(robot.mj.nbody - 1), mujoco.MjData(robot.mj), (0.1, -0.02, 0.03)
    where = Kinematics(robot, body.name, point)
    q = rng.normal(size=(5, robot.mj.nq))
    expected = []
    for positions in q:
        data.qpos[:] = positions
        mujoco.mj_kinematics(robot.mj, data)
        expected.append(data.xpos[body.id] + data.xmat[body.id].reshape(3, 3) @ point)
    np.testing.assert_allclose(where(torch.as_tensor(q)).numpy(), expected, atol=1e-12)


def test_reaching_has_gradients_towards_the_goal_and_is_there_at_the_goal() -> None:
    where = Kinematics(RobotModel("two_link_arm"), "lower", (0.3, 0.0, 0.045))
    q = torch.tensor([[0.4, 0.9]], dtype=torch.float64)
    goal = tuple(where(q)[0].tolist())
    cost = Reach(where, goal, width=0.1)
    at = torch.cat([q, torch.zeros(1, 2, dtype=torch.float64)], -1)[None]
    assert closeness(cost, at.numpy(), 0.1)[0] == pytest.approx(1.0)
    free = (at + torch.tensor([0.2, -0.1, 0.0, 0.0])).requires_grad_()
    total = cost(free, torch.zeros(1, 1, 2, dtype=torch.float64)).sum()
    (slope,) = torch.autograd.grad(total, free)
    after = cost(free.detach() - 1e-3 * slope / slope.norm(), torch.zeros(1, 1, 2, dtype=torch.float64)).sum()
    assert after < total
    with pytest.raises(ModelError, match="no body 'hand'; available: lower, upper"):
        Kinematics(RobotModel("two_link_arm"), "hand")


def no_cost() -> int:
    return 3


def no_goal() -> Sum:
    return Sum((Effort(),))


def own_cost(gain: float = 1.0) -> Quadratic:
    return Quadratic((0.0,), (gain,))


def test_costs_by_name_are_those_by_value() -> None:
    robot = RobotModel("cartpole")
    found = named_cost(
        [
            {"cost": "upright", "joint": "hinge", "velocity": 0.1},
            {"cost": "quadratic", "goal": {"slider": 0.5}, "velocity": {"hinge": 0.2}, "weight": 3},
            {"cost": "bounds", "position": {"slider": [-2, 2]}, "velocity": {"hinge": 9}},
            {"cost": "track", "times": [0, 1], "path": {"slider": [0, 1]}},
            {"cost": "effort", "effort": 0.2, "change": 0.1},
        ],
        robot,
    )
    inf = math.inf
    by_value = Sum(
        (
            Upright(1, velocity=0.1),
            Quadratic((0.5, 0.0), (1.0, 0.0), (0.0, 0.2)),
            Bounds(((-2.0, 2.0), (-inf, inf)), (inf, 9.0)),
            Track([0.0, 1.0], [[0.0, 0.0], [1.0, 0.0]], (1.0, 0.0)),
            Effort(0.2, 0.1),
        ),
        (1.0, 3.0, 1.0, 1.0, 1.0),
    )
    x, u = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4, 1)
    torch.testing.assert_close(beginning(found, 0.1, 0.2)(x, u), beginning(by_value, 0.1, 0.2)(x, u))
    one = named_cost([{"cost": "reach", "body": "pole", "goal": [0, 0, 1], "point": [0, 0, -1]}], robot)
    torch.testing.assert_close(one(x, u), Reach(Kinematics(robot, "pole", (0, 0, -1)), (0, 0, 1))(x, u))
    mine = named_cost([{"cost": f"{__name__}:own_cost", "gain": 2.0}], RobotModel("pendulum"))
    torch.testing.assert_close(mine(x[..., :2], u), own_cost(2.0)(x[..., :2], u))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{"cost": "uprigth"}], "no cost named 'uprigth'; did you mean upright"),
        ([{"cost": "upright", "joint": "elbow"}], "no joint 'elbow'; available"),
        ([{"cost": "upright", "speed": 1.0}], "upright has no argument 'speed'"),
        ([{"cost": "bounds"}], "no term has a goal"),
        ([{"cost": "quadratic", "goal": 1.0}], "expected a value for each joint by name"),
        ([{"cost": "reach", "body": "pole", "goal": [0, 0]}], "three coordinates"),
        ([{"cost": "reach", "body": "pole", "goal": [0, 0, 1], "width": 0}], "a width above zero"),
        ([{"cost": "upright", "joint": "hinge", "target": "pi"}], "expected a number for target, found 'pi'"),
        ([{"cost": "upright", "weight": math.nan}], "expected a number for weight, found nan"),
        ([{"cost": "quadratic", "goal": {"hinge": None}}], "expected a number for goal, found None"),
        ([{"cost": "quadratic"}], "quadratic needs goal"),
        ([{"cost": "bounds", "position": {"slider": 2}}], "expected numbers for a limit"),
        ([{"cost": "bounds", "position": {"slider": [2, -2]}}], "bounds take"),
        ([{"cost": "bounds", "velocity": {"slider": 0}}], "above zero"),
        ([{"cost": "track", "times": [0, 1], "path": {"slider": [0]}}], "a position of slider at each of 2 times"),
        ([{"cost": "math:pi"}], "math:pi is float, not what makes a cost"),
        ([{"cost": f"{__name__}:no_cost"}], "returns int, which is no cost"),
        ([{"cost": f"{__name__}:no_goal"}], "no term has a goal"),
        ([{"cost": "track", "times": [1, 0], "path": {"slider": [0, 1]}}], "increasing times"),
        ([{"cost": "upright", "weight": "much"}], "expected a number for weight"),
        ([{"cost": "nowhere_at_all:cost"}], "cannot be imported"),
        ({"cost": "upright"}, "expected a list"),
    ],
)
def test_what_is_wrong_with_a_named_cost_is_said(terms: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        named_cost(terms, RobotModel("cartpole"))


def test_holding_brakes_first_and_then_pulls_to_where_it_came_to_rest() -> None:
    hold, limit = Hold(1.0, np.array([4.0]), stiffness=10.0, strength=0.5), 4.0

    def sent(q: float, v: float) -> float:
        return float(hold.act(Estimate(np.array([[q, v]]), np.zeros((1, 1, 1))), 0.0)[0, 0])

    assert sent(0.0, 0.0) == 0.0
    # 0.2 m away the spring pulls with half of the limit, and slips from there on
    assert sent(0.1, 0.0) == pytest.approx(-1.0)
    assert sent(5.0, 0.0) == pytest.approx(-2.0)
    assert sent(5.0, 3.0) == pytest.approx(-limit)
    assert sent(4.9, 0.0) == pytest.approx(-1.0)
    assert math.isnan(sent(math.nan, 0.0))
    assert sent(4.9, 0.0) == pytest.approx(-1.0), "what could not be read moved nothing"
    hold.reset()
    assert sent(7.0, 0.0) == 0.0
    with pytest.raises(ModelError, match="stiffness of 0 or more"):
        Hold(1.0, np.array([4.0]), stiffness=-1.0)


def test_gravity_is_carried_by_the_joints_that_are_driven_alone() -> None:
    robot = RobotModel("double_pendulum")
    limit = np.full(len(robot.driven), 50.0)
    carry = pickle.loads(pickle.dumps(Hold(0.0, limit, 0.0, gravity=robot)))
    q = np.array([[0.7, -0.4], [2.0, 0.3]])
    found = carry.act(Estimate(np.concatenate([q, 0 * q], 1), np.zeros((2, 1, len(limit)))), 0.0)
    data = mujoco.MjData(robot.mj)
    for row, sent in zip(q, found, strict=True):
        data.qpos[:], data.qvel[:] = row, 0.0
        data.ctrl[:] = sent
        mujoco.mj_forward(robot.mj, data)
        np.testing.assert_allclose(data.qacc[robot.driven], 0.0, atol=0.05)
    # behind a gear that turns the other way, and a gain
    gears = '<motor joint="j" gear="-2"/>', '<general joint="j" gainprm="5" gear="1"/>'
    for actuator in gears:
        one = RobotModel("one", mujoco.MjModel.from_xml_string(ONE_JOINT.format(actuator)))
        data, hold = mujoco.MjData(one.mj), Hold(1.0, np.array([50.0]), 5.0, gravity=one)
        hold.act(Estimate(np.array([[0.8, 0.0]]), np.zeros((1, 1, 1))), 0.0)
        data.qpos[:], data.qvel[:] = 0.9, 2.0
        data.ctrl[:] = hold.act(Estimate(np.array([[0.9, 2.0]]), np.zeros((1, 1, 1))), 0.0)[0]
        mujoco.mj_forward(one.mj, data)
        assert float(data.qfrc_actuator[0] - data.qfrc_bias[0]) == pytest.approx(-1.0 * 2.0 - 5.0 * 0.1)
    servo = RobotModel("one", mujoco.MjModel.from_xml_string(ONE_JOINT.format('<position joint="j" kp="5"/>')))
    with pytest.raises(ModelError, match="expected motors of joints"):
        Hold(1.0, np.array([50.0]), 5.0, gravity=servo)
    furuta = RobotModel("furuta")
    upright = Estimate(np.array([[0.3, 1.0, 0.0, 0.0]]), np.zeros((1, 1, 1)))
    assert Hold(0.0, np.array([1.0]), 0.0, gravity=furuta).act(upright, 0.0).shape == (1, 1)


def test_damping_brakes_the_joint_that_a_command_drives() -> None:
    estimate = Estimate(np.array([[0.0, 0.0, 1.0, -2.0]]), np.zeros((1, 1, 1)))
    assert Damping(0.5, np.array([3.0])).act(estimate, 0.0).tolist() == [[-0.5]]
    assert Damping(0.5, np.array([3.0]), np.array([1])).act(estimate, 0.0).tolist() == [[1.0]]


def test_a_fitted_value_is_that_of_a_policy_whose_costs_are_known() -> None:
    """x' = 0.9 x: with a cost of x², what is still to be paid is 0.81 x² / (1 - 0.81 d) for a discount of d a step."""
    rng, dt, forgets = np.random.default_rng(0), 0.1, 2.0
    start = rng.uniform(-2, 2, (200, 1))
    path = start[:, None] * 0.9 ** np.arange(31)[None, :, None]
    x = np.concatenate([path, 0 * path], -1)
    value = fit_value(Quadratic((0.0,), (1.0,)), x, np.zeros((200, 30, 1)), (False,), dt, forgets=forgets)
    at = torch.tensor([[-1.8, 0.0], [-0.5, 0.0], [0.0, 0.0], [1.0, 0.0]])
    truth = 0.81 * at[:, 0].square() / (1 - 0.81 * math.exp(-dt / forgets))
    np.testing.assert_allclose(value(at).numpy(), truth.numpy(), atol=0.15)
    again = fit_value(Quadratic((0.0,), (1.0,)), x, np.zeros((200, 30, 1)), (False,), dt, forgets=forgets)
    torch.testing.assert_close(value(at), again(at))
    turned = fit_value(Upright(), x, np.zeros((200, 30, 1)), (True,), dt, iterations=5)
    torch.testing.assert_close(turned(at), turned(at + torch.tensor([2 * math.pi, 0.0])), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="expected states"):
        fit_value(Upright(), x[:, :-1], np.zeros((200, 30, 1)), (True,), dt)
    assert value(at.double()).dtype == torch.float32
    with pytest.raises(ModelError, match="depends on time"):
        fit_value(Sum((Track([0.0], [[0.0]], (1.0,)),)), x, np.zeros((200, 30, 1)), (True,), dt)
    with pytest.raises(ModelError, match="not finite"):
        fit_value(Upright(), x * np.nan, np.zeros((200, 30, 1)), (True,), dt)
