"""Scores against the reference scorer and numerical integration; predictors that must not look ahead."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sim2real.adapters import Chain
from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError
from sim2real.estimation import Observation
from sim2real.evaluation import (
    HORIZONS,
    ConstantVelocity,
    EnsemblePredictor,
    Questions,
    SimulatorPredictor,
    at_times,
    mean_scores,
    persistence,
    score,
    start_covariance,
)
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant
from sim2real.prediction import Prediction
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics

Array = NDArray[np.float64]
DATA = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ["shoulder", "elbow"]


def episode(rng: np.random.Generator, seconds: float = 8.0, jitter: float = 0.3, period: float = 0.005) -> Episode:
    """Two joints on a clock that jitters."""
    many = round(seconds / period)
    t = 3.0 + period * (np.arange(many + 1) + jitter * rng.uniform(-0.5, 0.5, many + 1))
    q = np.stack([np.sin(2 * t), np.cos(3 * t), rng.normal(size=len(t))], 1)
    channels = Channels((("shoulder", "rad"), ("elbow", "rad"), ("noise", "rad")), (("torque", "N·m"),))
    return Episode("synthetic", t, q, t[:-1], np.zeros((many, 1)), "commanded", channels, excluded=((5.0, 5.02),))


def guess(rng: np.random.Generator, questions: Questions, sigma: float = 0.1) -> Prediction:
    """The truth with errors of a known deviation."""
    mean = torch.as_tensor(questions.truth + rng.normal(0, sigma, questions.truth.shape))
    variance = torch.full_like(mean, sigma**2)
    return Prediction(mean, 0.4 * variance, 0.6 * variance, torch.tensor(HORIZONS))


# questions


@pytest.mark.parametrize("jitter", [0.0, 0.9])
def test_questions_are_about_the_nearest_samples(jitter: float) -> None:
    log = episode(np.random.default_rng(0), jitter=jitter)
    q = Questions.of(log, NAMES, stride=7)
    t = log.observed_at
    assert (np.diff(q.starts) % 7 == 0).all()
    assert t[q.starts[0] - 1] < t[0] + 0.1 <= t[q.starts[0]]
    for i, start in enumerate(q.starts):
        # no further than half a sample beyond the end, and free of the excluded stretch
        assert t[start] + 1.0 <= t[-1] + 0.5 * log.period
        assert t[start] + 1.0 <= 5.0 or t[start] - 0.1 >= 5.02
        np.testing.assert_array_equal(q.now[i], log.observations[start, :2])
        for h, horizon in enumerate(HORIZONS):
            nearest = int(np.abs(t - t[start] - horizon).argmin())
            assert q.offsets[i, h] == pytest.approx(t[nearest] - t[start], abs=1e-12)
            np.testing.assert_array_equal(q.truth[i, h], log.observations[nearest, :2])
    sooner = Questions.of(log, NAMES, stride=7, horizons=(0.03, 0.5))
    assert sooner.horizons == (0.03, 0.5)
    assert len(sooner.starts) > len(q.starts)
    rows = np.searchsorted(sooner.starts, q.starts)
    np.testing.assert_array_equal(sooner.truth[rows, 1], q.truth[:, 2])
    every = [s for s in range(q.starts[0], len(t), 7) if t[s] + 1.0 <= t[-1] + 0.5 * log.period]
    assert q.starts.tolist() == [s for s in every if t[s] + 1.0 <= 5.0 or t[s] - 0.1 >= 5.02]


def test_questions_can_start_later_and_need_a_second() -> None:
    log = episode(np.random.default_rng(0))
    later = Questions.of(log, NAMES, after=4.0)
    assert log.observed_at[later.starts[0]] >= log.observed_at[0] + 4.0
    assert set(later.starts) < set(Questions.of(log, NAMES).starts)
    with pytest.raises(LogError, match="no window of 1 s to score"):
        Questions.of(log.slice(0, 0.9), NAMES)


def test_blocks_are_seconds_of_the_recording() -> None:
    log = replace(episode(np.random.default_rng(0), jitter=0.5), excluded=())
    q = Questions.of(log, NAMES)
    since = log.observed_at[q.starts] - log.observed_at[q.starts[0]]
    np.testing.assert_array_equal(q.blocks(), np.floor(since))
    assert q.blocks()[0] == 0


# the reference scorer


@pytest.fixture(scope="module")
def reference() -> Any:
    path = DATA / "score.py"
    if not path.is_file():
        pytest.skip("the reference scorer score.py is not beside this checkout (../shared/data)")
    specification = importlib.util.spec_from_file_location("reference_score", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.data
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_reference(reference: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    log = episode(rng, seconds=rng.uniform(3, 9), jitter=rng.uniform(0, 1), period=rng.choice([0.004, 0.005, 0.0073]))
    q = Questions.of(log, NAMES)
    windows = reference.windows(log.observed_at, skip=log.excluded)
    np.testing.assert_array_equal(q.starts, [w.start for w in windows])
    prediction = guess(rng, q)
    variance = prediction.variance.numpy()
    scorer = reference.Scorer(NAMES)
    for i, w in enumerate(windows):
        mean, spread = np.zeros((len(w.idx), 2)), np.ones((len(w.idx), 2))
        for h, horizon in enumerate(HORIZONS):
            row = w.h[horizon]
            assert log.observed_at[w.idx[row]] - log.observed_at[w.start] == pytest.approx(q.offsets[i, h], abs=1e-12)
            mean[row], spread[row] = prediction.mean[i, h], variance[i, h]
        scorer.add(log.observed_at, log.observations[:, :2], w, mean=mean, var=spread)
    expected, found = scorer.result(), score(prediction, q, NAMES, np.random.default_rng(0))
    assert found["windows"] == len(windows)
    for horizon in HORIZONS:
        ours, theirs = found[f"{horizon:g}"], expected[horizon]
        for mine, yours in (("rmse", "rmse"), ("nrmse", "nrmse"), ("median_error", "median_err")):
            assert list(ours[mine].values()) == pytest.approx(theirs[yours], rel=1e-9)
        for mine in ("nll", "crps"):
            assert ours[mine] == pytest.approx(theirs[mine].mean(), rel=1e-9)
        for level in ("50", "90", "95"):
            assert ours["coverage"][f"{int(level) / 100:g}"] == pytest.approx(theirs[f"cov{level}"].mean(), rel=1e-12)
            assert ours["width"][f"{int(level) / 100:g}"] == pytest.approx(theirs[f"wid{level}"].mean(), rel=1e-9)
    assert found["mean_nrmse"] == pytest.approx(reference.horizon_mean(expected), rel=1e-9)


# scores


def test_scores_of_a_known_error() -> None:
    rng = np.random.default_rng(2)
    q = Questions.of(replace(episode(rng, seconds=60, jitter=0.0), excluded=()), NAMES, stride=3)
    found = score(guess(rng, q), q, NAMES, rng)
    at = found["0.5"]
    assert at["rmse"]["shoulder"] == pytest.approx(0.1, rel=0.03)
    assert at["nll"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 0.01), abs=0.05)  # entropy
    assert at["crps"] == pytest.approx(0.1 / np.sqrt(np.pi), rel=0.03)
    assert at["coverage"] == pytest.approx({"0.5": 0.5, "0.9": 0.9, "0.95": 0.95}, abs=0.02)
    assert at["width"]["0.9"] == pytest.approx(2 * 1.6449 * 0.1, rel=1e-4)
    # independent errors: blocks matter no more than windows do, and the interval is the binomial one
    low, high = found["coverage90_interval"]
    windows = found["windows"] * len(HORIZONS) * len(NAMES)
    assert low - 0.02 < 0.9 < high + 0.02
    assert high - low == pytest.approx(2 * 1.645 * np.sqrt(0.09 / windows), rel=0.4)


def test_the_interval_of_coverage_knows_that_windows_overlap() -> None:
    rng = np.random.default_rng(3)
    q = Questions.of(replace(episode(rng, seconds=60, jitter=0.0), excluded=()), NAMES, stride=20)
    per_block = rng.normal(0, 0.1, int(q.blocks().max()) + 1)  # one error a second, for all that starts in it
    mean = torch.as_tensor(q.truth + per_block[q.blocks()][:, None, None])
    variance = torch.full_like(mean, 0.01)
    found = score(Prediction(mean, variance, 0 * variance, torch.tensor(HORIZONS)), q, NAMES, rng)
    low, high = found["coverage90_interval"]
    assert high - low == pytest.approx(2 * 1.645 * np.sqrt(0.09 / len(per_block)), rel=0.5)


def test_persistence_scores_about_one() -> None:
    rng = np.random.default_rng(4)
    log = episode(rng, seconds=40)
    q = Questions.of(log, ["noise"], stride=5)
    found = score(persistence(q), q, ["noise"], rng)
    assert found["mean_nrmse"] == pytest.approx(1.0, abs=0.05)
    assert mean_scores([found | {"windows": 3}, {"windows": 1, "mean_nrmse": 0.0}], "mean_nrmse") == pytest.approx(
        0.75 * found["mean_nrmse"]
    )


def test_constant_velocity_is_exact_where_nothing_accelerates_and_causal() -> None:
    t = 0.01 * np.arange(301)
    q = np.stack([0.3 + 1.5 * t, -0.7 * t], 1)
    log = Episode(
        "ramp", t, q, t[:-1], np.zeros((300, 1)), "commanded", Channels((("a", "rad"), ("b", "rad")), (("u", "N·m"),))
    )
    predictor = ConstantVelocity(KalmanFilter([10.0, 10.0], [1e-4, 1e-4]), ["a", "b"])
    # the filter starts at rest
    asked = Questions.of(log, ["a", "b"], after=1.0, horizons=(0.05, 1.0))
    found = predictor(asked)
    np.testing.assert_allclose(found.mean, asked.truth, atol=1e-3)
    assert found.variance.abs().max() == 0.0
    np.testing.assert_allclose(found.horizon, [0.05, 1.0])


def test_interpolation_is_exact_for_cubics() -> None:
    # q = t³ - t: positions and velocities at the steps determine a cubic
    t = 0.1 * torch.arange(1, 8, dtype=torch.float64)
    path = torch.stack([t**3 - t, 3 * t**2 - 1], -1)[None]
    variance = torch.stack([t, 0 * t], -1)[None]
    offsets = np.array([0.03, 0.1, 0.456, 0.7])
    recording = episode(np.random.default_rng(0))
    asked = Questions(recording, np.array([0]), offsets[None], np.zeros((1, 1)), np.zeros((1, 4, 1)), tuple(offsets))
    start = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    found = at_times(Prediction(path, variance, 2 * variance, t), start, asked)
    np.testing.assert_allclose(found.mean[0, :, 0], offsets**3 - offsets, atol=1e-12)
    np.testing.assert_allclose(found.aleatoric[0, 1:, 0], offsets[1:], atol=1e-12)
    np.testing.assert_allclose(found.epistemic[0, 1:, 0], 2 * offsets[1:], atol=1e-12)
    np.testing.assert_allclose(found.horizon, offsets)


# predictors on a simulated recording

STEP = 2 * np.pi / 4096
TRUTH = {"dynamics.payload.mass": 0.8, "execution.latency.delay": 0.015}
OBSERVATION = Observation(span=0.5, bandwidth=20.0)


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain.from_config([{"stage": "latency"}]), 0.002, threads=1)


@pytest.fixture(scope="module")
def log(plant: Plant) -> Episode:
    twin = Twin(plant, TRUTH, Chain.from_config([{"stage": "encoder", "step": STEP}]))
    return twin.record("log", excite(np.random.default_rng(5), 5, 0.02, np.array([3.0]), (0.4, 0.9)), 0.02)


def simulator(plant: Plant, values: dict[str, float], spread: dict[str, Array] | None = None) -> SimulatorPredictor:
    return SimulatorPredictor(plant, values, spread or {}, np.zeros((2, 2)), OBSERVATION, ["position"])


def world_model(plant: Plant) -> EnsemblePredictor:
    torch.set_num_threads(1)
    config = EnsembleConfig((True,), 1, 0.02, history=3, members=2, hidden=(8,))
    return EnsemblePredictor(EnsembleDynamics(config), plant, TRUTH, OBSERVATION, ["position"], advance=0.015)


def test_the_true_simulator_errs_by_the_encoder(plant: Plant, log: Episode) -> None:
    q = Questions.of(log, ["position"], stride=10)
    found = simulator(plant, TRUTH)(q)
    error = np.abs(found.mean.numpy() - q.truth)
    assert (np.median(error, 0) < STEP).all()
    assert error.max() < 10 * STEP
    assert found.variance.abs().max() == 0.0
    # without the delay it is worse by far
    wrong = simulator(plant, TRUTH | {"execution.latency.delay": 0.0})(q)
    assert np.median(np.abs(wrong.mean.numpy() - q.truth)) > 5 * np.median(error)


def test_measured_actions_go_past_the_chain(plant: Plant) -> None:
    twin = Twin(plant.without_chain(), {"dynamics.payload.mass": 0.8})
    log = twin.record("log", excite(np.random.default_rng(6), 4, 0.02, np.array([3.0]), (0.4, 0.9)), 0.02)
    q = Questions.of(replace(log, action_source="measured"), ["position"], stride=20)
    error = np.abs(simulator(plant, TRUTH | {"execution.latency.delay": 0.05})(q).mean.numpy() - q.truth)
    assert np.median(error) < 1e-3


def test_the_spread_of_draws_is_epistemic(plant: Plant, log: Episode) -> None:
    q = Questions.of(log, ["position"], stride=50)
    draws = {"dynamics.payload.mass": np.array([0.7, 0.8, 0.9])}
    found = simulator(plant, TRUTH, draws)(q)
    single = [simulator(plant, TRUTH | {"dynamics.payload.mass": m}) for m in (0.7, 0.8, 0.9)]
    # all start from one estimate, that of the best values
    start = OBSERVATION.states(plant, TRUTH, [log], [q.starts], ["position"])
    paths = []
    for one in single:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Observation, "states", lambda *_: start)
            paths.append(one(q).mean.numpy())
    np.testing.assert_allclose(found.epistemic, np.var(paths, 0, ddof=1), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(found.mean, paths[1])
    assert found.aleatoric.abs().max() == 0.0


@pytest.mark.parametrize("make", [lambda p: simulator(p, TRUTH), world_model], ids=["simulator", "world model"])
def test_nothing_later_than_the_start_is_seen(plant: Plant, log: Episode, make: Callable[[Plant], Any]) -> None:
    predictor = make(plant)
    every = Questions.of(log, ["position"], stride=50)
    for one in range(0, len(every.starts), 3):
        rows = {k: getattr(every, k)[one : one + 1] for k in ("starts", "offsets", "now", "truth")}
        start = int(rows["starts"][0])
        ruined = log.observations.copy()
        ruined[start + 1 :] = 1e3 * np.random.default_rng(one).normal(size=ruined[start + 1 :].shape)
        asked = [Questions(e, **rows) for e in (log, replace(log, observations=ruined))]
        before, after = (predictor(q) for q in asked)
        for part in ("mean", "aleatoric", "epistemic"):
            assert getattr(before, part).numpy().tobytes() == getattr(after, part).numpy().tobytes()
        # what was recorded up to the start is seen, and so are the commands
        ruined = log.observations.copy()
        ruined[start] += 0.5
        assert not torch.equal(predictor(Questions(replace(log, observations=ruined), **rows)).mean, before.mean)
        pushed = replace(log, actions=log.actions + 1.0)
        assert not torch.equal(predictor(Questions(pushed, **rows)).mean, before.mean)


def test_measured_actions_are_brought_forward_for_the_world_model(plant: Plant, log: Episode) -> None:
    # the world model expects commands; what the actuator reports is those commands, here two rows later
    values = TRUTH | {"execution.latency.delay": 0.02}
    predictor = replace(world_model(plant), values=values, advance=0.02)
    late = np.concatenate([np.zeros((2, 1)), log.actions[:-2]])
    measured = replace(log, action_source="measured", actions=late)
    q = Questions.of(log.slice(0, log.duration - 0.1), ["position"], stride=40)
    assert len(q.starts) > 5
    asked = predictor(replace(q, episode=log)).mean
    reported = predictor(replace(q, episode=measured)).mean
    torch.testing.assert_close(reported, asked, atol=1e-5, rtol=0)
    unmoved = replace(predictor, advance=0.0)(replace(q, episode=measured)).mean
    assert (unmoved - asked).abs().max() > 1e-3


def test_the_covariance_of_the_start_is_that_of_its_error(plant: Plant) -> None:
    # an observer with the wrong mass and a coarse encoder errs more than one with neither
    fine, coarse = (
        Twin(plant, TRUTH, Chain.from_config([{"stage": "encoder", "step": s}])).record(
            "log", excite(np.random.default_rng(7), 5, 0.02, np.array([3.0]), (0.4, 0.9)), 0.02
        )
        for s in (1e-4, 0.02)
    )
    found = [start_covariance(plant, TRUTH, OBSERVATION, [e], ["position"]) for e in (fine, coarse)]
    assert all(c.shape == (2, 2) and np.linalg.eigvalsh(c).min() > 0 for c in found)
    assert found[1][0, 0] > 4 * found[0][0, 0]
    # the encoder's own error is uniform over a step; the observer averages some of it away
    assert found[1][0, 0] < 0.02**2 / 12 * 2
