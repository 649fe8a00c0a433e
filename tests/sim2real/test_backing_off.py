"""Backing off: the rate of false alarms, what each doubt knows, and what is sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim2real.backing_off import BackOff, Calm, Doubts, _Trust, collected, looked_ahead
from sim2real.control import closed_loop
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.planning import MPPI, Damping, Objective, OfSimulator, OfStates, Quadratic
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin
from sim2real.world_model import EnsembleConfig, EnsembleDynamics
from sim2real.world_model.scores import detection

DT, LIMIT = 0.1, np.array([2.0])
COST = Quadratic((0.0,), position=(1.0,), velocity=(0.3,), effort=0.05)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def integrator(gains: tuple[float, ...] = (0.95, 1.05)) -> EnsembleDynamics:
    """v' = v + gain * DT * u: members whose gains differ by a little."""
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, 1, len(gains), hidden=()))
    with torch.no_grad():
        for member, gain in enumerate(gains):
            model.dynamics.weights[0][member].zero_()
            model.dynamics.weights[0][member, -1, 0] = gain * DT
    return model


def run(policy: BackOff, gain: float, steps: int = 60, n: int = 20, seed: int = 0) -> np.ndarray:
    """Drive n integrators of some gain, with noisy readings; return how far from the goal each was on average."""
    rng = np.random.default_rng(seed)
    state = np.concatenate([rng.uniform(-1, 1, (n, 1)), np.zeros((n, 1))], 1)
    policy.reset()
    away, u = [], np.zeros((n, 1))
    for k in range(steps):
        read = state + rng.normal(size=state.shape) * [0.002, 0.01]
        u = policy.act(Estimate(read, u[:, None]), k * DT)
        v = state[:, 1:] + gain * DT * u
        state = np.concatenate([state[:, :1] + 0.5 * DT * (state[:, 1:] + v), v], 1)
        away.append(np.abs(state[:, 0]))
    return np.mean(away, 0)


def policy(calm: Calm | None = None, model: EnsembleDynamics | None = None) -> BackOff:
    planner = MPPI(model or integrator(), COST, LIMIT, horizon=0.8, candidates=60)
    return BackOff(planner, Damping(1.0, LIMIT), calm)


@pytest.fixture(scope="module")
def calm() -> Calm:
    torch.set_num_threads(1)
    made = []
    for seed in range(2):
        made.append(policy())
        run(made[-1], 1.0, seed=seed)
    return Calm.of(collected(made), 0.02)


def test_alarms_are_as_rare_as_was_asked_for_and_nothing_is_lost_to_them(calm: Calm) -> None:
    guarded, free = policy(calm), policy()
    kept, lost = run(guarded, 1.0, seed=7), run(free, 1.0, seed=7)
    alarms = calm.alarm(collected([guarded])) > 1
    assert alarms.mean() < 0.06
    assert kept.mean() < 1.1 * lost.mean()


def test_a_robot_that_has_changed_sets_it_off(calm: Calm) -> None:
    as_it_was, changed = policy(), policy()
    run(as_it_was, 1.0, seed=8)
    run(changed, 2.5, seed=8)
    # at rest nobody can tell: what counts is the worst of a run
    before, after = (calm.alarm(np.array(p.doubts)).max(0) for p in (as_it_was, changed))
    assert detection(np.concatenate([before, after]), np.repeat([0.0, 1.0], [len(before), len(after)]), 0.5) > 0.85
    guarded = policy(calm)
    run(guarded, 2.5, seed=8)
    assert (np.array(guarded.shares) < 1.0).any(0).mean() > 0.5


def test_disagreement_grows_with_what_members_differ_in_and_surprise_does_not() -> None:
    rows = []
    for gains in ((0.95, 1.05), (0.5, 1.5)):
        doubts = Doubts(integrator(gains), 0.2)
        estimate = Estimate(np.array([[0.0, 0.0]]), np.zeros((1, 1, 1)))
        rows.append(doubts.seen(estimate, np.ones((1, 2, 1)))[0])
    assert rows[1][0] == pytest.approx(10 * rows[0][0], rel=1e-4)
    assert rows[0][1] == rows[1][1] == 0.0
    # a push of one for two steps from rest leads to 0.02 m: where it is not, that is the surprise
    for k in range(3):
        found = doubts.seen(
            Estimate(np.array([[0.05, 0.0]]) if k == 2 else estimate.state, np.ones((1, 1, 1))), np.ones((1, 2, 1))
        )
    assert found[0, 1] == pytest.approx(0.05 / 4, abs=1e-6)  # 0.02 and 0.03 in the last two of four periods


def test_more_surprise_sends_less_of_the_plan_and_waits_before_it_sends_more() -> None:
    one = policy(Calm(np.ones(2), 1.0))
    assert one.calm is not None
    surprise = [0.5, 1.6, 1.25, 3.0, *[0.1] * 11]
    shares = [float(one._share(np.array([[0.0, s]]), one.calm)[0]) for s in surprise]
    np.testing.assert_allclose(shares, [1.0, 0.8, 0.8, 0.0, *[0.0] * 9, 1.0, 1.0])


def test_disagreement_shortens_the_horizon_and_takes_nothing_of_the_plan() -> None:
    one = policy(Calm(np.ones(2), 1.0))
    assert one.calm is not None
    for disagreement, sight in ((0.5, 1.0), (1.25, 2 / 3), (9.0, 1 / 3)):
        assert one._share(np.array([[disagreement, 0.1]]), one.calm) == 1.0
        assert one._sight.left is not None
        np.testing.assert_allclose(looked_ahead(one._sight.left), [sight])


def test_before_it_sends_less_it_looks_less_far_ahead() -> None:
    trust = _Trust(0.7, 10)
    looked = [looked_ahead(trust.after(np.array([alarm]))) for alarm in (0.5, 1.25, 1.5, 3.0)]
    np.testing.assert_allclose(np.concatenate(looked), [1.0, 2 / 3, 1 / 3, 1 / 3])
    # what lies beyond does not count: at the end of six steps the goal is near, in the first two it costs to go there
    judged = Objective(OfStates(integrator()), COST)
    outlook = judged.foresight.look(Estimate(np.zeros((2, 2)), np.zeros((2, 1, 1))))
    plans = torch.ones(2, 2, 6, 1)
    near, far = judged(outlook, plans, ahead=torch.tensor([2, 6])).unbind(-1)
    torch.testing.assert_close(far, judged(outlook, plans)[:, 1])
    torch.testing.assert_close(near, judged(outlook, plans[:, :, :2])[:, 0])
    worth = Objective(OfStates(integrator()), COST, value=lambda x: 100.0 * x[..., 0])
    end = worth.foresight.look(Estimate(np.zeros((2, 2)), np.zeros((2, 1, 1)))).follow(plans[:, None])[:, 0, 0, 1, 0]
    more = worth(outlook, plans, ahead=torch.tensor([2, 6]))[:, 0] - near
    torch.testing.assert_close(more, 100.0 * end / 2)
    doubting = policy(Calm(np.full(2, 1e-9), 1e-9))
    for _ in range(2):
        doubting.act(Estimate(np.array([[0.3, 0.8]]), np.zeros((1, 1, 1))), 0.0)
    assert doubting.planner.ahead is not None
    assert doubting.planner.ahead.tolist() == [3]  # of eight


def test_the_fallback_is_all_there_is_where_nothing_can_be_believed() -> None:
    sure = policy(Calm(np.full(2, 1e-9), 1e-9))
    estimate = Estimate(np.array([[0.3, 0.8]]), np.zeros((1, 1, 1)))
    # it stays where it is, at speed: that surprises from the third period on
    sent = [sure.act(estimate, 0.1 * k) for k in range(3)]
    np.testing.assert_allclose(sent[-1], Damping(1.0, LIMIT).act(estimate, 0.0))


def test_the_threshold_is_that_of_split_conformal_calibration() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        doubts = rng.exponential(size=(400, 1)) * 3.0
        rates.append(float((Calm.of(doubts, 0.05).alarm(rng.exponential(size=(200, 1)) * 3.0) > 1).mean()))
    assert 0.04 < np.mean(rates) <= 0.051
    with pytest.raises(ModelError, match="need 200 periods"):
        Calm.of(np.ones((100, 1)), 0.01)
    with pytest.raises(ModelError, match="never above zero in calm runs"):
        Calm.of(np.ones((400, 2)) * [1.0, 0.0], 0.05)
    too_short = policy()
    run(too_short, 1.0, steps=2)
    with pytest.raises(ModelError, match="longer than the 2 periods"):
        collected([too_short])
    again = Calm.from_json(Calm(np.array([1.0, 2.0]), 3.0).to_json())
    assert again.threshold == 3.0


def test_it_needs_a_model_whose_members_can_be_asked() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.01, threads=1)
    planner = MPPI(OfSimulator(plant, {}, 0.02), Quadratic((0.0,), (1.0,)), LIMIT)
    with pytest.raises(ModelError, match="found OfSimulator"):
        BackOff(planner, Damping(1.0, LIMIT))


def test_it_goes_where_a_policy_goes() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.01, threads=1)
    model = EnsembleDynamics(EnsembleConfig((True,), 1, 0.02, history=2, members=2, hidden=(8,), lookback=3))
    one = BackOff(MPPI(model, Quadratic((0.0,), (1.0,)), LIMIT, horizon=0.2, candidates=10), Damping(0.1, LIMIT))
    assert model.encoder is not None
    done = closed_loop(
        Twin(plant, period=0.02), one, model.encoder.estimator(), np.zeros((2, 2)), seconds=0.4, period=0.02,
        limit=LIMIT, history=2, lookback=3,
    )  # fmt: skip
    assert np.array(one.doubts).shape == (20, 2, 2)
    assert np.isfinite(done.commands).all()
