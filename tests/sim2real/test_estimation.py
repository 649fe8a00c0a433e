"""State estimation: exact on parabolas, blind to the future, and right about a simulated pendulum."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim2real.adapters import Chain, Friction, Latency
from sim2real.episodes import Channels, Episode
from sim2real.estimation import DerivativeFilter, ModelObserver, Observation, causal_velocity, centred_state
from sim2real.plant import Plant
from sim2real.randomization import RobotModel

Array = NDArray[np.float64]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
DELAY = "execution.latency.delay"


def stamps(n: int, seed: int, low: float = 0.002, high: float = 0.01) -> Array:
    return 3.0 + np.cumsum(np.random.default_rng(seed).uniform(low, high, n))


# Polynomials


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 59), st.floats(0.01, 0.2))
def test_a_parabola_gives_its_slope_exactly(seed: int, i: int, span: float) -> None:
    t = stamps(60, seed)
    a, b, c = np.random.default_rng(seed).normal(size=(3, 2))
    q = a + b * t[:, None] + c * t[:, None] ** 2
    np.testing.assert_allclose(causal_velocity(t, q, i, span), b + 2 * c * t[i], rtol=1e-6, atol=1e-6)


def test_too_few_samples_give_what_they_can() -> None:
    t, q = 0.1 * np.arange(3), np.array([[1.0], [1.2], [1.6]])
    assert causal_velocity(t, q, 0, 0.5).tolist() == [0.0]
    assert causal_velocity(t, q, 1, 0.5) == pytest.approx([2.0])
    assert causal_velocity(t, q, 2, 0.5) == pytest.approx([5.0])
    assert causal_velocity(t, q, 2, 0.5, order=1) == pytest.approx([3.0])


def test_the_span_is_what_counts() -> None:
    # a bend a while ago: a span that ends after it does not see it
    t = 0.01 * np.arange(41)
    q = np.where(t < 0.2, 0.0, 3 * (t - 0.2))[:, None]
    assert causal_velocity(t, q, 40, 0.15) == pytest.approx([3.0])
    assert abs(causal_velocity(t, q, 40, 0.35)[0] - 3.0) > 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 58), st.floats(0.01, 0.2), st.integers(1, 3))
def test_the_velocity_does_not_know_the_future(seed: int, i: int, span: float, order: int) -> None:
    t, rng = stamps(60, seed), np.random.default_rng(seed)
    q = rng.normal(size=(60, 2))
    expected = causal_velocity(t, q, i, span, order)
    t[i + 1 :] += rng.uniform(0, 1)
    q[i + 1 :] = rng.normal(size=q[i + 1 :].shape)
    np.testing.assert_array_equal(causal_velocity(t, q, i, span, order), expected)


@pytest.mark.data
@pytest.mark.skipif(not (SHARED / "score.py").is_file(), reason=f"the recorded robots are not there: {SHARED}")
def test_the_velocity_is_that_of_the_reference_scorer() -> None:
    spec = importlib.util.spec_from_file_location("reference_score", SHARED / "score.py")
    assert spec is not None
    assert spec.loader is not None
    score: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    for seed in range(3):
        t, rng = stamps(80, seed), np.random.default_rng(seed)
        q = rng.normal(size=(80, 2))
        for i in (0, 1, 4, 5, 40, 79):
            for span in (0.02, 0.05, 0.2):
                for order in (1, 2):
                    ours, theirs = causal_velocity(t, q, i, span, order), score.causal_velocity(t, q, i, span, order)
                    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.005, 0.01, 0.02]))
def test_the_centred_state_of_a_parabola_is_exact(seed: int, period: float) -> None:
    t = stamps(60, seed) - 3.0
    a, b, c = np.random.default_rng(seed).normal(size=(3, 2))
    clock, states = centred_state(t, a + b * t[:, None] + c * t[:, None] ** 2, period)
    np.testing.assert_allclose(np.diff(clock), period)
    assert clock[0] == t[0]
    assert t[-1] - period < clock[-1] <= t[-1] + 1e-5
    at = clock[:, None]
    np.testing.assert_allclose(states, np.concatenate([a + b * at + c * at**2, b + 2 * c * at], 1), atol=1e-6)


# Filters that take reading after reading


def test_the_derivative_filter_is_the_causal_polynomial() -> None:
    t, rng = stamps(80, 0, 0.001, 0.03), np.random.default_rng(0)
    q = rng.normal(size=(80, 3, 2))
    derivative = DerivativeFilter(span=0.05)
    derivative.reset(q[0])
    for i in range(1, 80):
        state = derivative.update(t[i] - t[i - 1], q[i], np.zeros((3, 1)))
        expected = causal_velocity(t, q.reshape(80, -1), i, 0.05).reshape(3, 2)
        np.testing.assert_array_equal(state[:, :2], q[i])
        np.testing.assert_allclose(state[:, 2:], expected, rtol=1e-6, atol=1e-6)


def simulated(plant: Plant, values: dict[str, float], commands: Array, start: tuple[float, ...]) -> Array:
    """States (K + 1, X) of one plant, the start among them."""
    running = plant.start(1, {k: np.array([v]) for k, v in values.items()})
    running.reset(np.array([start]))
    return np.concatenate([[start], running.step(commands[None])[0]])


@pytest.fixture(scope="module")
def model() -> RobotModel:
    return RobotModel("pendulum")


def push(steps: int, period: int = 400) -> Array:
    """A square wave of torque, one command a substep."""
    return np.where(np.arange(steps) // period % 2 == 0, 1.5, -1.5)[:, None]


ENCODER = 2 * np.pi / 4096


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_an_observer_with_the_model_finds_the_state_and_beats_a_filter(model: RobotModel, delay: float) -> None:
    plant = Plant(model, Chain([Latency(delay=delay), Friction(coulomb=0.05)]))
    commands, every = push(2000), 5
    truth = simulated(plant, {}, commands, (1.0, 2.0))
    reading = ENCODER * np.round(truth / ENCODER)
    observer, derivative = ModelObserver(plant.start(1)), DerivativeFilter()
    errors: dict[str, list[Array]] = {"observer": [], "filter": []}
    for name, estimator in (("observer", observer), ("filter", derivative)):
        estimator.reset(reading[:1, :1])
        for k in range(every, 2001, every):
            state = estimator.update(0.001 * every, reading[k : k + 1, :1], commands[k - every : k - every + 1])
            errors[name].append(state[0] - truth[k])
    settled = {name: np.array(e)[100:] for name, e in errors.items()}
    rms = {name: np.sqrt((e**2).mean(0)) for name, e in settled.items()}
    assert rms["observer"][0] < ENCODER
    assert rms["observer"][1] < 0.05
    assert rms["observer"][1] < 0.5 * rms["filter"][1]


def test_an_observer_without_a_delay_in_its_model_is_worse(model: RobotModel) -> None:
    delayed, prompt = (Plant(model, Chain([Latency(delay=d)])) for d in (0.05, 0.0))
    commands, rms = push(2000), []
    truth = simulated(delayed, {}, commands, (1.0, 0.0))
    for plant in (delayed, prompt):
        observer, errors = ModelObserver(plant.start(1)), []
        observer.reset(truth[:1, :1])
        for k in range(10, 2001, 10):
            state = observer.update(0.01, truth[k : k + 1, :1], commands[k - 10 : k - 9])
            errors.append(state[0, 1] - truth[k, 1])
        rms.append(np.sqrt(np.mean(np.square(errors[50:]))))
    assert rms[0] < 0.2 * rms[1]


@pytest.mark.parametrize("elapsed", [0.0125, 0.0004, 0.00333])
def test_an_observer_keeps_time_between_substeps(model: RobotModel, elapsed: float) -> None:
    # a perfect model, readings without noise that fall between substeps: nothing is left to correct
    plant = Plant(model)
    substeps = np.zeros((2000, 1))
    truth = simulated(plant, {}, substeps, (1.0, 0.0))
    observer, clock = ModelObserver(plant.start(1)), 0.001 * np.arange(2001)
    observer.reset(truth[:1, :1])
    for k in range(1, int(1.9 / elapsed)):
        now = k * elapsed
        reading = np.array([[np.interp(now, clock, truth[:, 0])]])
        state = observer.update(elapsed, reading, np.zeros((1, 1)))
    assert state[0, 0] == pytest.approx(np.interp(now, clock, truth[:, 0]), abs=2e-5)
    assert state[0, 1] == pytest.approx(np.interp(now, clock, truth[:, 1]), abs=5e-3)


@pytest.mark.parametrize("build", [lambda p: DerivativeFilter(), lambda p: ModelObserver(p.start(2))])
def test_an_estimate_does_not_change_with_what_comes_later(model: RobotModel, build: Callable[[Plant], Any]) -> None:
    rng = np.random.default_rng(0)
    readings, commands = np.cumsum(rng.normal(size=(40, 2, 1)), 0) * 0.01, rng.normal(size=(40, 2, 1))

    def run(later: float) -> list[Array]:
        estimator, states = build(Plant(model)), []
        estimator.reset(readings[0])
        for k in range(1, 40):
            reading = readings[k] + (later if k > 20 else 0.0)
            states.append(estimator.update(0.01, reading, commands[k] + (later if k > 20 else 0.0)))
        return states

    one, other = run(0.0), run(1.0)
    np.testing.assert_array_equal(one[:20], other[:20])
    assert not np.array_equal(one[20], other[20])


@pytest.mark.parametrize("build", [lambda p: DerivativeFilter(), lambda p: ModelObserver(p.start(1))])
def test_the_caller_may_use_his_buffer_again_and_an_estimator_starts_anew(
    model: RobotModel, build: Callable[[Plant], Any]
) -> None:
    estimator, runs = build(Plant(model)), []
    for shared in (False, True):
        buffer = np.array([[0.2]])
        estimator.reset(buffer if shared else buffer.copy())
        states = []
        for k in range(1, 20):
            buffer[:] = 0.2 + 0.01 * k
            states.append(estimator.update(0.01, buffer if shared else buffer.copy(), np.zeros((1, 1))))
        runs.append(np.array(states))
    np.testing.assert_array_equal(*runs)
    assert runs[0][-1, 0, 1] > 0.2


# Recordings


def recording(
    plant: Plant,
    values: dict[str, float],
    *,
    seconds: float = 4.0,
    seed: int = 0,
    source: str = "commanded",
    encoder: float = ENCODER,
    period: tuple[float, float] = (0.003, 0.008),
) -> tuple[Episode, Array]:
    """A recording with irregular stamps of a pendulum that is pushed about, and the true states at the stamps."""
    rng = np.random.default_rng(seed)
    t = np.concatenate([[0.0], np.cumsum(rng.uniform(*period, int(seconds / np.mean(period))))])
    t = 0.001 * np.round(t / 0.001) if period[0] > 0.002 else t
    commanded = t[:-1]
    actions = 1.5 * np.sign(np.sin(2 * np.pi * 1.3 * commanded))[:, None]
    clock = 0.001 * np.arange(int(t[-1] / 0.001) + 2)
    held = actions[np.maximum(np.searchsorted(commanded, clock + 1e-9, side="right") - 1, 0)]
    path = simulated(plant, values, held, (0.5, 0.0))
    truth = np.stack([np.interp(t, 0.001 * np.arange(len(path)), path[:, x]) for x in range(2)], 1)
    positions = encoder * np.round(truth[:, :1] / encoder)
    channels = Channels(observations=(("hinge", "rad"),), actions=(("motor", "N·m"),))
    episode = Episode("simulated", 100 + t, positions, 100 + commanded, actions, source, channels)
    return episode, truth


def estimate(plant: Plant, values: dict[str, float], episode: Episode, starts: Array, **more: float) -> Array:
    return Observation(**more).states(plant, values, [episode], [starts], ["hinge"])


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.15])
def test_the_state_at_a_start_is_close_to_the_truth(model: RobotModel, delay: float) -> None:
    plant, values = Plant(model, Chain([Latency()])), {DELAY: delay, "dynamics.payload.mass": 0.7}
    episode, truth = recording(plant, values)
    starts = np.arange(60, len(episode), 23)
    states = estimate(plant, values, episode, starts)
    assert states.shape == (len(starts), 2)
    error = states - truth[starts]
    derivative = [causal_velocity(episode.observed_at, episode.observations, i, 0.05)[0] for i in starts]
    by_derivative = np.sqrt(((derivative - truth[starts, 1]) ** 2).mean())
    assert np.abs(error[:, 0]).max() < 2 * ENCODER
    assert np.sqrt((error[:, 1] ** 2).mean()) < min(0.03, by_derivative)
    # more history, and what the first guess of its start was wrong about is forgotten
    error = estimate(plant, values, episode, starts, span=0.3) - truth[starts]
    assert np.abs(error[:, 0]).max() < ENCODER
    assert np.sqrt((error[:, 1] ** 2).mean()) < 0.3 * by_derivative


def test_with_nothing_in_the_way_the_state_is_exact(model: RobotModel) -> None:
    plant = Plant(model, Chain([Latency()]))
    episode, truth = recording(plant, {DELAY: 0.02}, encoder=1e-12)
    starts = np.arange(200, len(episode), 7)
    np.testing.assert_allclose(
        estimate(plant, {DELAY: 0.02}, episode, starts, span=0.8), truth[starts], rtol=0, atol=1e-5
    )


def test_samples_between_substeps_are_used_where_they_lie(model: RobotModel) -> None:
    plant = Plant(model, Chain([Latency()]))
    episode, truth = recording(plant, {}, period=(0.0015, 0.0069), encoder=1e-9)
    starts = np.arange(100, len(episode), 17)
    error = estimate(plant, {}, episode, starts, span=0.4) - truth[starts]
    # half a substep at 4 rad/s would be 2e-3; commands that switch between substeps leave 1e-2 rad/s
    assert np.abs(error[:, 0]).max() < 3e-4
    assert np.sqrt((error[:, 1] ** 2).mean()) < 0.01


@pytest.mark.parametrize("delay", [0.0, 0.01])
@pytest.mark.parametrize("start", [0, 1, 3, 50, 120])
def test_the_state_at_a_start_does_not_know_the_future(model: RobotModel, start: int, delay: float) -> None:
    plant, values = Plant(model, Chain([Latency()])), {DELAY: delay}
    episode, _ = recording(plant, values, seconds=1.0)
    later_ones = np.array([start, 150])  # another start makes the windows longer
    expected = estimate(plant, values, episode, later_ones)[0]
    observations, actions = episode.observations.copy(), episode.actions.copy()
    observations[start + 1 :] += 0.3
    actions[start:] -= 3.0
    times = episode.observed_at.copy()
    times[start + 1 :] += 0.0003
    changed = Episode("changed", times, observations, episode.commanded_at, actions, "commanded", episode.channels)
    np.testing.assert_allclose(estimate(plant, values, changed, later_ones)[0], expected, rtol=0, atol=1e-12)


def test_measured_efforts_go_past_the_chain_and_rows_keep_their_order(model: RobotModel) -> None:
    plant, values = Plant(model, Chain([Latency()])), {DELAY: 0.05}
    commanded, first = recording(plant, values, seconds=1.5, seed=1)
    measured, second = recording(plant.without_chain(), {}, seconds=1.5, seed=2, source="measured")
    starts = [np.array([100, 150]), np.array([90]), np.array([], int), np.array([200, 110])]
    episodes, truths = [measured, commanded, commanded, measured], [second, first, first, second]
    states = Observation().states(plant, values, episodes, starts, ["hinge"])
    expected = np.concatenate([truth[s] for truth, s in zip(truths, starts, strict=True)])
    np.testing.assert_allclose(states[:, 0], expected[:, 0], atol=2 * ENCODER)
    np.testing.assert_allclose(states[:, 1], expected[:, 1], atol=0.1)


def test_the_first_sample_is_all_there_is_at_the_first_start(model: RobotModel) -> None:
    plant = Plant(model)
    episode, _ = recording(plant, {}, seconds=0.5)
    states = estimate(plant, {}, episode, np.array([0]))
    assert states.tolist() == [[episode.observations[0, 0], 0.0]]
