"""Planning on a double integrator, whose optimal commands are known, and the control loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sim2real.adapters import Chain
from sim2real.control import Run, closed_loop
from sim2real.errors import NonFiniteError
from sim2real.estimation import DerivativeFilter, Estimate
from sim2real.planning import MPPI, Damping, Policy, Upright, upright_reward
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin
from sim2real.world_model import EnsembleConfig, EnsembleDynamics

Array = NDArray[np.float64]
DT = 0.1
LIMIT = np.array([2.0])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def integrator(history: int = 2, gains: tuple[float, ...] = (1.0, 1.0)) -> EnsembleDynamics:
    """v' = v + gain * DT * u, exactly: a network without hidden layers, its weights set by hand."""
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, history, len(gains), hidden=()))
    with torch.no_grad():
        for member, gain in enumerate(gains):
            model.dynamics.weights[0][member].zero_()
            model.dynamics.weights[0][member, -1, 0] = gain * DT
    return model


@dataclass(frozen=True)
class Quadratic:
    """Squared position and velocity, and a little effort."""

    effort: float = 0.05

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        return states.square().sum(-1) + self.effort * commands.square().sum(-1)


def optimal(start: Array, steps: int, effort: float = 0.05) -> Array:
    """Commands (steps,) that minimise the mean `Quadratic` without a limit, in closed form."""
    free, response = np.zeros((steps, 2)), np.zeros((steps, 2, steps))
    for k in range(steps):
        free[k] = [start[0] + (k + 1) * DT * start[1], start[1]]
        for j in range(k + 1):  # a push at step j
            response[k, :, j] = [DT**2 * (k - j + 0.5), DT]
    flat = response.reshape(2 * steps, steps)
    return np.asarray(np.linalg.solve(flat.T @ flat + effort * np.eye(steps), -flat.T @ free.ravel()))


def estimate(states: ArrayLike, history: int = 2) -> Estimate:
    rows = np.atleast_2d(np.asarray(states, float))
    return Estimate(rows, np.zeros((len(rows), history, 1)))


def test_plans_are_near_the_optimum() -> None:
    starts = np.array([[0.6, 0.0], [-0.4, 0.3], [0.1, -0.5], [0.0, 0.0]])
    settings: dict[str, Any] = {"horizon": 0.6, "candidates": 400, "iterations": 25, "noise": 0.25, "correlation": 0.5}
    found = np.mean(
        [MPPI(integrator(), Quadratic(), LIMIT, **settings, seed=s).act(estimate(starts), 0.0) for s in range(4)], 0
    )
    expected = np.array([optimal(x, 6)[0] for x in starts])
    assert np.abs(expected).max() < LIMIT[0]  # the limit plays no part
    assert np.abs(expected[:3]).min() > 0.2
    np.testing.assert_allclose(found[:, 0], expected, atol=0.12)


def test_the_rest_of_a_plan_is_carried_over() -> None:
    settings: dict[str, Any] = {"horizon": 0.6, "candidates": 400, "iterations": 25, "noise": 0.25, "correlation": 0.5}
    plans = []
    for seed in range(4):
        policy = MPPI(integrator(), Quadratic(), LIMIT, **settings, seed=seed)
        plan = [policy.act(estimate([0.6, 0.0]), 0.0)[0, 0]]
        policy.noise = 0.0  # from now on the plan is all there is
        plans.append(plan + [policy.act(estimate([0.6, 0.0]), k * DT)[0, 0] for k in range(1, 6)])
    np.testing.assert_allclose(np.mean(plans, 0), optimal(np.array([0.6, 0.0]), 6), atol=0.25)


def test_commands_never_leave_the_limit() -> None:
    policy = MPPI(integrator(), Quadratic(effort=0.0), LIMIT, horizon=1.0, candidates=60, noise=3.0, iterations=3)
    far = np.array([[9.0, 0.0], [-9.0, 0.0], [0.5, 0.0]])
    for k in range(6):
        sent = policy.act(estimate(far), k * DT)
        assert sent.shape == (3, 1)
        assert (np.abs(sent) <= LIMIT).all()
    assert sent[0, 0] < -1.7  # far away, the best is nearly all there is
    assert sent[1, 0] > 1.7


def test_the_plan_is_carried_over_and_forgotten() -> None:
    policy = MPPI(integrator(), Quadratic(), LIMIT, horizon=1.0, candidates=100, seed=3)
    first = policy.act(estimate([1.0, 0.0]), 0.0)
    again = policy.act(estimate([1.0, 0.0]), DT)
    assert not np.array_equal(first, again)
    policy.reset()
    assert policy.act(estimate([1.0, 0.0]), 0.0).tobytes() == first.tobytes()
    other = MPPI(integrator(), Quadratic(), LIMIT, horizon=1.0, candidates=100, seed=4)
    assert not np.array_equal(other.act(estimate([1.0, 0.0]), 0.0), first)


def test_a_batch_plans_as_its_rows_would_alone() -> None:
    settings: dict[str, Any] = {"horizon": 0.6, "candidates": 40, "iterations": 2}
    batch = MPPI(integrator(), Quadratic(), LIMIT, **settings, seed=100).act(
        estimate(np.repeat([[0.6, 0.0], [-0.2, 0.0]], 60, 0)), 0.0
    )[:, 0]
    for state, rows in (([0.6, 0.0], batch[:60]), ([-0.2, 0.0], batch[60:])):
        planners = [MPPI(integrator(), Quadratic(), LIMIT, **settings, seed=s) for s in range(60)]
        alone = np.array([p.act(estimate(state), 0.0)[0, 0] for p in planners])
        error = np.hypot(alone.std(), rows.std()) / np.sqrt(60)
        assert abs(alone.mean() - rows.mean()) < 3.5 * error
        assert 0.6 < alone.std() / rows.std() < 1.6


def test_a_plant_does_not_see_its_neighbours() -> None:
    class Cliff(Quadratic):
        def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
            return torch.where(states[..., 0] > 5.0, torch.nan, super().__call__(states, commands))

    def beside(neighbour: list[float], state: list[float]) -> float:
        policy = MPPI(integrator(), Cliff(), LIMIT, horizon=1.0, candidates=100, temperature=1.0, seed=1)
        return float(policy.act(estimate([state, neighbour]), 0.0)[0, 0])

    # the second state is at the cliff, so that some of its candidates have no finite cost
    tame, edge = [0.6, 0.0], [4.9, 0.05]
    assert beside([0.3, 0.0], tame) == pytest.approx(beside(edge, tame), abs=1e-6)
    assert beside([0.3, 0.0], edge) == pytest.approx(beside([4.0, 0.0], edge), abs=1e-6)


def test_every_member_judges_its_share() -> None:
    # the members' gains cancel: no command is better than another, whichever member is asked first
    settings: dict[str, Any] = {"horizon": 0.6, "candidates": 400, "iterations": 10}
    torn, sure = (
        MPPI(integrator(gains=gains), Quadratic(effort=0.5), LIMIT, **settings) for gains in ((1.0, -1.0), (1.0, 1.0))
    )
    assert torn.candidates == sure.candidates == 400
    assert MPPI(integrator(), Quadratic(), LIMIT, candidates=401).candidates == 402
    assert sure.act(estimate([0.5, 0.4]), 0.0)[0, 0] < -0.5
    assert abs(torn.act(estimate([0.5, 0.4]), 0.0)[0, 0]) < 0.25


def test_commands_in_flight_are_planned_with() -> None:
    # a model in which the command of one step ago acts: what is in flight is already braking
    model = integrator()
    with torch.no_grad():
        model.dynamics.weights[0].zero_()[:, -2, 0] = DT
    settings: dict[str, Any] = {"horizon": 0.6, "candidates": 400, "iterations": 10}
    pushed, idle = (
        MPPI(model, Quadratic(), LIMIT, **settings).act(Estimate(np.array([[0.4, 0.0]]), np.full((1, 2, 1), u)), 0.0)
        for u in (-2.0, 0.0)
    )
    assert pushed[0, 0] > idle[0, 0] + 0.1


def test_a_broken_model_is_an_error() -> None:
    model = integrator()
    with torch.no_grad():
        model.dynamics.biases[0][...] = torch.nan
    with pytest.raises(NonFiniteError, match="no candidate plan of a plant has a finite cost"):
        MPPI(model, Quadratic(), LIMIT, candidates=10).act(estimate([1.0, 0.0]), 0.0)


def test_damping_brakes_within_the_limit() -> None:
    policy: Policy = Damping(0.5, np.array([1.0, 0.2]))
    state = np.array([[9.0, 9.0, 1.0, -1.0], [0.0, 0.0, -8.0, 0.1]])
    np.testing.assert_allclose(policy.act(Estimate(state, np.zeros((2, 0, 2))), 0.0), [[-0.5, 0.2], [1.0, -0.05]])


def test_upright_costs_what_it_says() -> None:
    cost = Upright(velocity=0.02, effort=0.002)
    state = torch.tensor([[torch.pi, 0.0], [-torch.pi, 0.0], [0.0, 0.0], [torch.pi, 3.0], [torch.pi / 2, 3.0]])
    command = torch.tensor([[0.0], [0.0], [0.0], [2.0], [0.0]])
    expected = [0.0, 0.0, 2.0, 0.02 * 9 + 0.002 * 4, 1 + 0.02 * np.exp(-4) * 9]
    np.testing.assert_allclose(cost(state, command), expected, atol=1e-6)
    second = Upright(joint=1, target=0.0)(torch.tensor([[1.0, torch.pi, 0.0, 0.0]]), torch.zeros(1, 1))
    assert float(second) == pytest.approx(2.0)
    np.testing.assert_allclose(
        upright_reward(torch.tensor([[torch.pi], [0.0], [torch.pi / 2]])), [1, 0, 0.5], atol=1e-6
    )


# the loop

RAIL = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/>
      <joint name="rail" type="slide" axis="1 0 0"/>
    </body>
  </worldbody>
  <actuator><motor name="drive" joint="rail"/></actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def rail(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    path = tmp_path_factory.mktemp("robot") / "rail.xml"
    path.write_text(RAIL)
    return Twin(Plant(RobotModel(path), timestep=0.01, threads=1), perception=Chain())


def run(twin: Twin, policy: Policy, seconds: float = 1.0, n: int = 2, limit: float = 2.0) -> Run:
    starts = np.zeros((n, 2))
    starts[:, 0] = np.linspace(0.5, -0.3, n)
    return closed_loop(
        twin,
        policy,
        DerivativeFilter(span=0.1),
        starts,
        seconds=seconds,
        period=DT,
        limit=np.array([limit]),
        history=3,
    )


class Says:
    """A policy that returns what it is told to, and remembers what it was shown."""

    def __init__(self, *commands: float) -> None:
        self.commands, self.seen = commands, list[Estimate]()

    def reset(self) -> None:
        self.seen = []

    def act(self, estimate: Estimate, t: float) -> Array:
        self.seen.append(estimate)
        return np.full((len(estimate.state), 1), self.commands[min(round(t / DT), len(self.commands) - 1)])


def test_models_that_look_back_are_shown_the_readings_before_the_present_one() -> None:
    policy = Says(1.0, -1.0, 0.5)
    twin, start = Twin(Plant(RobotModel("pendulum"), timestep=0.01), period=0.05), np.array([[0.5, 0.0], [-0.3, 0.0]])
    shared: dict[str, Any] = {"seconds": 0.6, "period": DT, "limit": LIMIT, "history": 3}
    found = closed_loop(twin, policy, DerivativeFilter(span=0.1), start, lookback=2, **shared)
    assert [e.positions.shape for e in policy.seen if e.positions is not None] == [(2, 2, 1)] * 6
    read = found.states[:, :, :1]
    np.testing.assert_allclose(policy.seen[0].positions, read[:, [0, 0]])
    np.testing.assert_allclose(policy.seen[1].positions, read[:, [0, 0]])
    np.testing.assert_allclose(policy.seen[4].positions, read[:, 2:4])


def test_the_hard_limit_holds_whatever_the_policy_says(rail: Twin) -> None:
    policy = Says(50.0, -50.0, 0.5)
    found = run(rail, policy, seconds=0.5)
    np.testing.assert_array_equal(found.commands[0, :, 0], [2.0, -2.0, 0.5, 0.5, 0.5])
    assert found.states.shape == (2, 6, 2)
    assert found.time.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert found.milliseconds.shape == (5,)
    # what was sent is what moved the cart: 1 kg
    np.testing.assert_allclose(np.diff(found.states[0, :, 1]), DT * found.commands[0, :, 0], atol=1e-12)
    # and what the next estimate says was sent, oldest first
    assert [e.commands[0, :, 0].tolist() for e in policy.seen[:4]] == [
        [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 2.0, -2.0], [2.0, -2.0, 0.5],
    ]  # fmt: skip
    # the first estimate is at rest where the robot is
    np.testing.assert_allclose(policy.seen[0].state, [[0.5, 0.0], [-0.3, 0.0]], atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_command_that_is_not_finite_stops_the_loop(rail: Twin, bad: float) -> None:
    with pytest.raises(NonFiniteError, match=r"not finite at 0\.20 s"):
        run(rail, Says(0.0, 0.1, bad))


def test_the_planner_stops_the_cart_and_one_seed_gives_the_same_bytes(rail: Twin) -> None:
    def once(seed: int) -> Run:
        policy = MPPI(integrator(history=3), Quadratic(), LIMIT, horizon=1.0, candidates=80, seed=seed, iterations=2)
        return run(rail, policy, seconds=4.0)

    found, same, other = once(0), once(0), once(1)
    assert found.states.tobytes() == same.states.tobytes()
    assert found.commands.tobytes() == same.commands.tobytes()
    assert found.commands.tobytes() != other.commands.tobytes()
    assert np.abs(found.states[:, -10:, 0]).max() < 0.15
    idle = run(rail, Says(0.0), seconds=4.0)
    assert np.abs(idle.states[:, -10:, 0]).min() > 0.25
