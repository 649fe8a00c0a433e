"""All planners on a double integrator, whose optimal plan is known; what they ask, and what members' doubts weigh."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sim2real.adapters import Chain, Latency
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.planning import (
    ICEM,
    MPPI,
    Damping,
    GradientShooting,
    Objective,
    OfSimulator,
    OfStates,
    Planner,
    Policy,
    PredictiveSampling,
    Quadratic,
    Sum,
    foresight,
)
from sim2real.planning.planner import coloured
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter, RobotModel
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, TransitionConfig, TransitionEnsemble

DT = 0.1
LIMIT = np.array([2.0])
COST = Quadratic((0.0,), position=(1.0,), velocity=(1.0,), effort=0.05)
START = np.array([[0.6, 0.0], [-0.4, 0.3]])
# what each needs to find the optimum of six steps
THOROUGH: dict[type[Planner], dict[str, Any]] = {
    MPPI: {"candidates": 400, "iterations": 25, "noise": 0.25, "correlation": 0.5},
    ICEM: {"candidates": 200, "iterations": 12, "colour": 0.5},
    PredictiveSampling: {"candidates": 200, "iterations": 40, "noise": 0.1},
    GradientShooting: {"candidates": 4, "iterations": 150, "rate": 0.03},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def integrator(gains: tuple[float, ...] = (1.0, 1.0)) -> EnsembleDynamics:
    """v' = v + gain * DT * u, exactly: a network without hidden layers, its weights set by hand."""
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, 2, len(gains), hidden=()))
    with torch.no_grad():
        for member, gain in enumerate(gains):
            model.dynamics.weights[0][member].zero_()
            model.dynamics.weights[0][member, -1, 0] = gain * DT
    return model.requires_grad_(False)


def same_of_observations() -> TransitionEnsemble:
    """The integrator as a model of two observations, position and velocity; one of three members is no elite."""
    model = TransitionEnsemble(TransitionConfig(2, 1, DT, members=3, elites=2, hidden=()))
    with torch.no_grad():
        weights = model.network.weights[0]
        weights.zero_()
        weights[:, 1, 0], weights[:, 2, 0], weights[:, 2, 1] = DT, 0.5 * DT**2, DT
        weights[1, 2, 1] = -50.0
        model.network.biases[0].zero_()
        model.elites.copy_(torch.tensor([0, 2]))
    return model


def same_of_a_simulator(delay: float = 0.0) -> OfSimulator:
    """The integrator as a simulator: v first, then the mean velocity of the step."""

    def step(x: Any, u: Any, p: Any, dt: float) -> Any:
        v = x[:, 1:] + dt * u / p["cart.mass"]
        return np.concatenate([x[:, :1] + 0.5 * dt * (x[:, 1:] + v), v], 1)

    model = FunctionModel(
        step, {"dynamics.cart.mass": FunctionParameter(1.0, "kg", 1e-3)},
        joint_names=("cart",), actuator_names=("push",),
        joint_units=("m",), effort_units=("N",), name="cart",
    )  # fmt: skip
    plant = Plant(model, Chain([Latency(delay=delay, longest=0.2)]), timestep=DT, threads=1)
    return OfSimulator(plant, {"dynamics.cart.mass": np.ones(2)}, DT)


def optimal(start: np.ndarray, steps: int = 6, effort: float = 0.05) -> np.ndarray:
    """Commands (steps,) that minimise the mean cost without a limit, in closed form."""
    free, response = np.zeros((steps, 2)), np.zeros((steps, 2, steps))
    for k in range(steps):
        free[k] = [start[0] + (k + 1) * DT * start[1], start[1]]
        for j in range(k + 1):
            response[k, :, j] = [DT**2 * (k - j + 0.5), DT]
    flat = response.reshape(2 * steps, steps)
    return np.asarray(np.linalg.solve(flat.T @ flat + effort * np.eye(steps), -flat.T @ free.ravel()))


def estimate(states: np.ndarray = START) -> Estimate:
    return Estimate(states, np.zeros((len(states), 2, 1)))


@pytest.mark.parametrize("kind", list(THOROUGH))
@pytest.mark.parametrize("make", [integrator, same_of_observations, same_of_a_simulator])
def test_every_planner_finds_the_optimum_on_every_model(kind: type[Planner], make: Any) -> None:
    model = make()
    if kind is GradientShooting and isinstance(model, OfSimulator):
        with pytest.raises(ModelError, match="differentiable"):
            GradientShooting(model, COST, LIMIT)
        return
    settings = {"horizon": 0.6, **THOROUGH[kind]}
    planners = [kind(model, COST, LIMIT, seed=seed, **settings) for seed in range(3)]
    found = np.mean([p.act(estimate(), 0.0) for p in planners], 0)
    np.testing.assert_allclose(found[:, 0], [optimal(x)[0] for x in START], atol=0.12)
    policy: Policy = planners[0]
    again = policy.act(estimate(), DT)
    policy.reset()
    first = policy.act(estimate(), 0.0)
    assert not np.array_equal(first, again)
    assert first.tobytes() == kind(model, COST, LIMIT, seed=0, **settings).act(estimate(), 0.0).tobytes()


@pytest.mark.parametrize("kind", list(THOROUGH))
def test_another_number_of_plants_begins_anew(kind: type[Planner]) -> None:
    policy = kind(integrator(), COST, LIMIT, horizon=0.6, candidates=20)
    for n in (3, 1, 2):
        assert policy.act(estimate(np.zeros((n, 2))), 0.0).shape == (n, 1)


def test_gradients_step_alike_on_every_actuator_and_keep_the_best_plan() -> None:
    costs: list[float] = []

    class Watched(GradientShooting):
        def improve(self, plan: Tensor, judge: Any, iteration: int) -> Tensor:
            found = super().improve(plan, judge, iteration)
            costs.append(float(judge(found[None]).sum()))
            return found

    model = EnsembleDynamics(EnsembleConfig((False, False), 2, DT, 1, 2, hidden=()))
    with torch.no_grad():
        model.dynamics.weights[0].zero_()
        model.dynamics.weights[0][:, -2, 0] = 0.01 * DT
        model.dynamics.weights[0][:, -1, 1] = DT
    goal = Quadratic((1.0, 1.0), (1.0, 1.0))
    policy = Watched(model.requires_grad_(False), goal, np.array([100.0, 1.0]), horizon=1.0, iterations=25)
    sent = policy.act(Estimate(np.zeros((1, 4)), np.zeros((1, 1, 2))), 0.0)[0]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.9 * costs[0]
    np.testing.assert_allclose(sent / [100.0, 1.0], 1.0, atol=0.15)


@pytest.mark.parametrize("kind", list(THOROUGH))
def test_commands_never_leave_the_limit(kind: type[Planner]) -> None:
    policy = kind(integrator(), Quadratic((0.0,), (1.0,)), LIMIT, horizon=1.0, candidates=40, iterations=8, noise=2.0)
    for k in range(5):
        sent = policy.act(estimate(np.array([[9.0, 0.0], [-9.0, 0.0]])), k * DT)
        assert (np.abs(sent) <= LIMIT).all()
    assert sent[0, 0] < -1.5
    assert sent[1, 0] > 1.5


def test_a_simulator_follows_plans_behind_its_delay_and_commands_in_flight() -> None:
    late = same_of_a_simulator(delay=2 * DT)
    flying = Estimate(np.zeros((1, 2)), np.array([[[1.0], [-3.0]]]))
    plans = torch.full((2, 1, 1, 3, 1), 5.0)
    speeds = late.look(flying).follow(plans)[0, 0, 0, :, 1]
    np.testing.assert_allclose(speeds, DT * np.cumsum([1.0, -3.0, 5.0]), atol=1e-6)


def test_a_simulator_gives_each_draw_its_own_rows() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.01, threads=1)
    of = OfSimulator(plant, {"dynamics.payload.mass": np.array([0.3, 1.5])}, 0.02)
    plans = torch.full((2, 3, 2, 10, 1), 1.0)
    found = of.look(Estimate(np.zeros((2, 2)), np.zeros((2, 1, 1)))).follow(plans)
    assert found.shape == (2, 3, 2, 10, 2)
    assert torch.allclose(found[:, :1, :1].expand_as(found), found)
    assert found[0, 0, 0, -1, 0] > 2 * found[1, 0, 0, -1, 0] > 0
    with pytest.raises(ModelError, match="not whole steps"):
        OfSimulator(plant, {}, 0.015)
    with pytest.raises(ModelError, match="as many draws"):
        OfSimulator(plant, {"dynamics.payload.mass": np.ones(2), "dynamics.hinge.damping": np.ones(3)}, 0.02)


def test_risk_weighs_what_members_say() -> None:
    of = foresight(integrator((0.0, 1.0, 2.0, 3.0)))
    outlook = of.look(estimate(np.zeros((1, 2))))
    pushes = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 1, 1)

    def speed(states: Tensor, commands: Tensor) -> Tensor:
        return states[..., 1]

    found = {
        risk: Objective(of, speed, risk=risk, tail=0.5)(outlook, pushes)[:, 0] for risk in ("mean", "worst", "cvar")
    }  # type: ignore[arg-type]
    np.testing.assert_allclose(found["mean"], [0.0, DT * 1.5], atol=1e-7)
    np.testing.assert_allclose(found["worst"], [0.0, DT * 3.0], atol=1e-7)
    np.testing.assert_allclose(found["cvar"], [0.0, DT * 2.5], atol=1e-7)
    turns = Objective(of, speed)
    assert turns.rounded(5) == 8
    np.testing.assert_allclose(
        turns(outlook, torch.ones(8, 1, 1, 1))[:, 0], DT * np.repeat([0.0, 1.0, 2.0, 3.0], 2), atol=1e-7
    )


def test_a_value_is_paid_at_the_end() -> None:
    of = OfStates(integrator())
    plans = torch.zeros(2, 1, 4, 1)
    free = Objective(of, Quadratic((0.0,), (0.0,)), value=lambda x: 8.0 + 0.0 * x[..., 0])
    np.testing.assert_allclose(free(of.look(estimate(START[:1])), plans), np.full((2, 1), 2.0))
    # a step ahead alone, only the value knows that the goal is far
    near = MPPI(of, Quadratic((0.0,), (0.0,)), LIMIT, horizon=DT, value=lambda x: (x[..., 0] - 5) ** 2)
    assert near.act(estimate(), 0.0).min() > 1.0


def test_costs_add_up_and_want_a_goal_for_each_joint() -> None:
    states, sent = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[2.0]])
    one = Quadratic((0.0, 1.0), position=(1.0, 10.0), velocity=(0.5, 0.0), effort=0.25)
    assert float(one(states, sent)) == 1 + 10 + 0.5 * 9 + 1
    assert float(Sum((one, one))(states, sent)) == 2 * float(one(states, sent))
    with pytest.raises(ModelError, match="2 goals, 1 weights"):
        Quadratic((0.0, 1.0), (1.0,))
    with pytest.raises(ModelError, match="of 1 joints, the model has 2"):
        Quadratic((0.0,), (1.0,))(states, sent)


def test_a_deadline_ends_the_search_and_overruns_are_counted() -> None:
    def slow(states: Tensor, commands: Tensor) -> Tensor:
        time.sleep(0.02)
        return states[..., 0] ** 2

    settings: dict[str, Any] = {"horizon": 0.5, "candidates": 10, "iterations": 100}
    policy = ICEM(integrator(), slow, LIMIT, deadline=150.0, **settings)
    policy.act(estimate(), 0.0)
    assert 1 <= policy.done < 9
    hopeless = ICEM(integrator(), slow, LIMIT, deadline=1.0, **settings)
    for k in range(3):
        hopeless.act(estimate(), k * DT)
    assert (hopeless.done, hopeless.overruns) == (1, 3)


@pytest.mark.parametrize("steps", [9, 10])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_coloured_noise_has_unit_variance_and_its_colour(exponent: float, steps: int) -> None:
    noise = coloured((40_000, steps), exponent, torch.Generator().manual_seed(0))
    assert float(noise.var()) == pytest.approx(1.0, abs=0.03)
    power = torch.fft.rfft(noise).abs().square().mean(0)
    assert float(torch.log(power[1] / power[4]) / np.log(4)) == pytest.approx(exponent, abs=0.06)


@pytest.mark.parametrize("wrong", [{"horizon": 0.0}, {"candidates": 0}, {"iterations": 0}, {"risk": "wrong"}])
def test_settings_that_make_no_plan_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        MPPI(integrator(), COST, LIMIT, **wrong)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="found Damping"):
        MPPI(Damping(1.0, LIMIT), COST, LIMIT)  # type: ignore[arg-type]
