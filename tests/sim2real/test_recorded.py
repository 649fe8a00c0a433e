"""World models that learn from recordings alone: what they see, what they learn, and what they do not touch."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sim2real.adapters import Chain, FirstOrderLag, Noise
from sim2real.combination import recalibrate, recalibrate_model
from sim2real.episodes import Channels, Episode, resample
from sim2real.errors import LogError, ModelError
from sim2real.estimation import Estimate
from sim2real.evaluation import Questions, RecordingPredictor, persistence, score
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, fit_to_recordings
from sim2real.world_model.recorded import _fit_variances, estimates, step_pairs
from sim2real.world_model.training import optimise
from sim2real.world_model.windows import Recorded, causal_states

DT = 0.02


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(**changed: Any) -> EnsembleConfig:
    settings: dict[str, Any] = {
        "wraps": (True,), "actions": 1, "timestep": DT, "history": 4, "members": 3, "hidden": (32,),
        "lookback": 5, "latents": 2,
    }  # fmt: skip
    return EnsembleConfig(**(settings | changed))


def ramp(velocity: float = 1.5, seconds: float = 2.0) -> Episode:
    """Constant velocity; the command is the number of the reading."""
    t = 0.01 * np.arange(round(seconds / 0.01) + 1)
    return Episode(
        name="ramp",
        observed_at=t,
        observations=(0.3 + velocity * t)[:, None],
        commanded_at=t[:-1],
        actions=np.arange(len(t) - 1.0)[:, None],
        action_source="commanded",
        channels=Channels((("position", "rad"),), (("torque", "N·m"),)),
    )


@pytest.fixture(scope="module")
def logs() -> list[Episode]:
    """A pendulum behind a lag of which positions say nothing."""
    plant = Plant(RobotModel("pendulum"), Chain([FirstOrderLag(time_constant=0.06)]), timestep=0.005, threads=1)
    robot = Twin(plant, {"dynamics.payload.mass": 0.8}, Chain([Noise(gap="perception", additive=0.001)]))
    return [
        robot.record(name, excite(np.random.default_rng(k), 24.0, 0.02, np.array([3.0]), (0.5, 1.3)), hold=0.02)
        for k, name in enumerate(("one", "two"))
    ]


@pytest.fixture(scope="module")
def trained(logs: list[Episode]) -> EnsembleDynamics:
    torch.set_num_threads(1)
    return fit_to_recordings(EnsembleDynamics(config()), logs[:1], ["position"], iterations=500, batch=32, rate=0.01)


def test_windows_hold_what_was_measured_and_sent() -> None:
    log, some = ramp(), config()
    estimator = KalmanFilter([1.0], [1e-4])
    found = Recorded.of([log], ["position"], some, estimator, steps=3)
    # 0.1 s for the filter to settle before the first, 3 steps after the last
    assert len(found) == 201 - 10 - 6
    start = found.state[:, :1].double().numpy()
    np.testing.assert_allclose(found.state[-1, 1], 1.5, rtol=1e-3)
    k = np.arange(-5, 0)
    np.testing.assert_allclose(found.past[..., 0], start + 1.5 * DT * k, atol=2e-3)
    np.testing.assert_allclose(found.positions[..., 0], start + 1.5 * DT * np.arange(1, 4), atol=2e-3)
    # the command of reading r acts from r to r + 1: a step of two readings takes the mean of two
    first = np.arange(10, 195)[:, None]
    np.testing.assert_allclose(found.commands[..., 0], first + 2 * np.arange(-3, 3) + 0.5, atol=1e-4)


def test_excluded_stretches_are_not_seen_and_no_window_is_an_error() -> None:
    estimator = KalmanFilter([1.0], [1e-4])
    log = replace(ramp(), excluded=((1.0, 1.1),))
    whole, cut = (Recorded.of([e], ["position"], config(), estimator, steps=3) for e in (ramp(), log))
    # what lies within 0.1 s after it, or reaches into it with its 0.06 s
    assert 0.2 / 0.01 <= len(whole) - len(cut) <= 0.28 / 0.01
    assert len(Recorded.of([ramp()], ["position"], config(), estimator, steps=3, most=50)) <= 50
    with pytest.raises(LogError, match=r"no window of 4 s fits the recordings \(ramp\)"):
        Recorded.of([ramp()], ["position"], config(), estimator, steps=200)


@pytest.mark.parametrize("period", [0.004, 0.012, 0.02, 0.024, 0.05])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_a_step_is_as_long_as_it_says_whatever_the_clock_of_the_readings(period: float, jitter: float) -> None:
    rng = np.random.default_rng(0)
    t = period * np.arange(round(4.0 / period))
    t = t + jitter * period * rng.uniform(-1, 1, len(t))
    log = replace(ramp(), observed_at=t, observations=1.5 * t[:, None], commanded_at=t[:-1], actions=0 * t[:-1, None])
    now, later, _ = step_pairs([log], ["position"], config(), KalmanFilter([1.0], [1e-4]))
    # by what is read before each window: the state itself lags a little
    moved = (later.past - now.past)[..., -1, 0].double().numpy()
    np.testing.assert_allclose(moved.mean(), 1.5 * DT, rtol=5e-3)
    np.testing.assert_allclose(moved, 1.5 * DT, rtol=0.1)
    assert len(now) > 0.7 * 3.7 / max(period, DT)


def test_members_disagree_more_where_nothing_was_recorded(trained: EnsembleDynamics, logs: list[Episode]) -> None:
    plant = Plant(RobotModel("pendulum"), Chain([FirstOrderLag(time_constant=0.06)]), timestep=0.005, threads=1)
    commands = excite(np.random.default_rng(0), 24.0, 0.02, np.array([0.5]), (0.5, 1.3))
    weak = Twin(plant, {"dynamics.payload.mass": 0.8}).record("weak", commands, hold=0.02)
    model = EnsembleDynamics(config())
    fit_to_recordings(model, [weak], ["position"], iterations=300, batch=32, rate=0.01)
    fast = Questions.of(logs[1], ["position"])
    whole, cut = (RecordingPredictor(m, ["position"])(fast).epistemic[:, -1].median() for m in (trained, model))
    assert float(cut) > 4 * float(whole)


def test_a_recalibrated_model_keeps_it_on_disk_and_drops_it_when_it_learns(
    trained: EnsembleDynamics, logs: list[Episode], tmp_path: Path
) -> None:
    asked = Questions.of(logs[1], ["position"])
    model = deepcopy(trained)
    predictor = RecordingPredictor(model, ["position"])
    found = recalibrate(predictor, [asked])
    expected = found.apply(predictor(asked))
    model.recalibration = found
    # at horizons between its steps the variance is interpolated before or after
    torch.testing.assert_close(predictor(asked).variance, expected.variance, rtol=0.05, atol=1e-7)
    torch.testing.assert_close(predictor(asked).mean, expected.mean)
    with pytest.raises(ModelError, match="held-out questions: found none"):
        recalibrate_model(model, predictor, [])
    assert model.recalibration is found
    model.save(tmp_path)
    again = EnsembleDynamics.load(tmp_path)
    assert torch.equal(RecordingPredictor(again, ["position"])(asked).variance, predictor(asked).variance)
    document = (tmp_path / "recalibration.json").read_text()
    for broken, said in (("{", "damaged"), (document.replace("]]", ", 1.0]]"), "damaged")):
        (tmp_path / "recalibration.json").write_text(broken)
        with pytest.raises(ModelError, match=said):
            EnsembleDynamics.load(tmp_path)
    optimise(again, lambda _: again.dynamics.biases[0].sum(), 1, 1e-3)
    again.save(tmp_path)
    assert not (tmp_path / "recalibration.json").exists()


def test_readings_further_apart_than_a_step_are_interpolated(logs: list[Episode]) -> None:
    sparse = resample(logs[0], 0.04)
    assert sparse.period > DT
    now, later, block = step_pairs([sparse], ["position"], config(), KalmanFilter([100.0], [1e-3]))
    assert len(now) == len(later) > 0.9 * sparse.duration / DT
    assert len(block) == len(now)
    assert int(block.diff().max()) == 1
    assert int(block[-1]) == int(sparse.duration - 0.06)
    # a step later is where the readings of twice as often say that it is
    every = resample(logs[0], DT)
    known, measured = every.observed_at[:, None], every.observations
    t = resample(sparse, DT).observed_at
    np.testing.assert_allclose(
        later.positions[:, 0, 0], np.interp(t[7:-1][: len(later)], known[:, 0], measured[:, 0]), atol=0.02
    )


def test_the_state_is_causal() -> None:
    log = ramp()
    changed = log.observations.copy()
    changed[101:] += 1.0
    estimator = KalmanFilter([100.0], [1e-3])
    one = causal_states(estimator, log, ["position"])
    other = causal_states(estimator, replace(log, observations=changed), ["position"])
    np.testing.assert_array_equal(one[:101], other[:101])
    assert not np.array_equal(one[101], other[101])


def test_a_rollout_starts_from_the_estimate_and_its_correction() -> None:
    model = EnsembleDynamics(config())
    rng = np.random.default_rng(0)
    known = Estimate(rng.normal(size=(7, 2)), rng.normal(size=(7, 3, 1)), rng.normal(size=(7, 5, 1)))
    assert model.encoder is not None
    with torch.no_grad():
        for p in model.encoder.network.parameters():
            p.zero_()
    with torch.no_grad():
        begun = model.begin(known)
    assert begun.shape == (3, 7, 4)
    np.testing.assert_allclose(begun[..., :2], np.broadcast_to(known.state, (3, 7, 2)), rtol=1e-6)
    assert (begun[..., 2:] == 0).all()
    assert model.predict(known, np.zeros((7, 4, 1))).mean.shape == (7, 4, 2)  # latents are nobody's business
    with pytest.raises(ModelError, match="needs the last 5 positions, the estimate has 0"):
        model.begin(Estimate(known.state, known.commands))
    with pytest.raises(ModelError, match="needs the last 5 positions, the estimate has 2"):
        model.begin(Estimate(known.state, known.commands, np.zeros((7, 2, 1))))
    with pytest.raises(ModelError, match="2 latents need a lookback"):
        config(lookback=0)


def test_it_learns_a_robot_whose_lag_it_cannot_see(logs: list[Episode], trained: EnsembleDynamics) -> None:
    asked = Questions.of(logs[1], ["position"])
    prediction = RecordingPredictor(trained, ["position"])(asked)
    found, still = (score(p, asked, ["hinge"], np.random.default_rng(0)) for p in (prediction, persistence(asked)))
    assert found["mean_nrmse"] < 0.25 < 0.9 < still["mean_nrmse"]
    assert found["0.1"]["nrmse"]["hinge"] < 0.1
    assert (prediction.epistemic > 0).all()


def test_the_correction_is_worth_its_while(logs: list[Episode], trained: EnsembleDynamics) -> None:
    asked = Questions.of(logs[1], ["position"])
    known, actions = estimates(trained, logs[1], asked.starts, ["position"], 5)
    with torch.no_grad():
        from_encoder = trained.begin(known)
        plain = torch.nn.functional.pad(torch.as_tensor(known.state, dtype=torch.float32).expand(3, -1, -1), (0, 2))
        sent = torch.as_tensor(np.concatenate([known.commands, actions], 1), dtype=torch.float32).expand(3, -1, -1, -1)
        with_it, without = (trained.rollout(s, sent)[..., -1, 0].mean(0).numpy() for s in (from_encoder, plain))
    truth = np.interp(logs[1].observed_at[asked.starts] + 5 * DT, logs[1].observed_at, logs[1].observations[:, 0])
    assert np.sqrt(np.mean((with_it - truth) ** 2)) < 0.85 * np.sqrt(np.mean((without - truth) ** 2))


def test_fitting_variances_moves_no_mean(logs: list[Episode], trained: EnsembleDynamics) -> None:
    asked = Questions.of(logs[1], ["position"])
    known, actions = estimates(trained, logs[1], asked.starts, ["position"], 10)
    before = trained.predict(known, actions, 4)
    assert trained.encoder is not None
    generator = torch.Generator().manual_seed(0)
    _fit_variances(trained, logs[:1], ["position"], trained.encoder.estimator(), generator, 20, 32, 0.1)
    after = trained.predict(known, actions, 4)
    torch.testing.assert_close(after.mean, before.mean)
    assert not torch.allclose(after.aleatoric, before.aleatoric)


def test_it_is_the_same_by_seed_and_from_disk(logs: list[Episode], tmp_path: Path) -> None:
    def fitted(seed: int) -> EnsembleDynamics:
        return fit_to_recordings(
            EnsembleDynamics(config(), seed=1), [logs[0].slice(0, 6)], ["position"], iterations=20, batch=8, seed=seed
        )

    one, same, other = fitted(0), fitted(0), fitted(5)
    asked = Questions.of(logs[1], ["position"])
    answers = [RecordingPredictor(m, ["position"], 2)(asked) for m in (one, same, other)]
    assert torch.equal(answers[0].mean, answers[1].mean)
    assert torch.equal(answers[0].variance, answers[1].variance)
    assert not torch.equal(answers[0].mean, answers[2].mean)
    one.save(tmp_path)
    again = EnsembleDynamics.load(tmp_path)
    assert again.config == one.config
    assert again.encoder is not None
    assert torch.equal(again.encoder.jerk, one.encoder.jerk if one.encoder else torch.zeros(1))
    assert torch.equal(RecordingPredictor(again, ["position"], 2)(asked).variance, answers[0].variance)


def test_a_model_that_does_not_look_back_says_so(logs: list[Episode]) -> None:
    plain = EnsembleDynamics(config(lookback=0, latents=0))
    with pytest.raises(ModelError, match="set lookback in its EnsembleConfig"):
        fit_to_recordings(plain, logs, ["position"])
    with pytest.raises(ModelError, match="predict with it from an observer"):
        RecordingPredictor(plain, ["position"])(Questions.of(logs[1], ["position"]))


def test_a_short_recording_is_learned_from_over_shorter_rollouts(logs: list[Episode]) -> None:
    said: list[str] = []
    short = [logs[0].slice(0, 0.5)]
    fit_to_recordings(EnsembleDynamics(config()), short, ["position"], iterations=6, batch=8, progress=said.append)
    # half of the 0.4 s that are left after the first window could start
    lengths = list(dict.fromkeys(line.split(",")[0] for line in said))
    assert lengths == [f"rollouts of {seconds} s" for seconds in ("0.04", "0.16", "0.2")]
    with pytest.raises(LogError, match=r"no window of 0\.04 s fits"):
        fit_to_recordings(EnsembleDynamics(config()), [logs[0].slice(0, 0.12)], ["position"], iterations=6)


def test_a_command_that_never_changed_is_not_looked_at(logs: list[Episode], tmp_path: Path) -> None:
    # a gain that was 100 in every recording: 800 says nothing that was learned, and must not ruin what was
    channels = replace(logs[0].channels, actions=(*logs[0].channels.actions, ("gain", "1")))

    def with_gain(log: Episode, gain: float) -> Episode:
        return replace(log, channels=channels, actions=np.column_stack([log.actions, np.full(len(log.actions), gain)]))

    model = EnsembleDynamics(config(actions=2))
    fit_to_recordings(model, [with_gain(logs[0], 100.0)], ["position"], iterations=30, batch=16)
    model.save(tmp_path)
    predictor = RecordingPredictor(EnsembleDynamics.load(tmp_path), ["position"])
    same, other = (
        predictor(Questions.of(with_gain(logs[1], gain), ["position"], stride=50)) for gain in (100.0, 800.0)
    )
    assert torch.isfinite(same.mean).all()
    torch.testing.assert_close(other.mean, same.mean)
    torch.testing.assert_close(other.variance, same.variance)
