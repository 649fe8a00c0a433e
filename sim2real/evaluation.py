"""Open-loop prediction of recordings, scored: where will the robot be 0.1, 0.2, 0.5 and 1.0 s later, and how sure?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sim2real.episodes import Array, Episode
from sim2real.errors import LogError
from sim2real.estimation import Estimate, Observation
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant, Values
from sim2real.prediction import Prediction
from sim2real.windows import at_offsets, cut_windows, joint_positions
from sim2real.world_model.dataset import step_commands
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.recorded import estimates
from sim2real.world_model.scores import block_interval, calibration, inside
from sim2real.world_model.windows import causal_states

HORIZONS = (0.1, 0.2, 0.5, 1.0)
Scores = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """W windows of one recording to predict.

    Attributes:
        episode: the recording.
        starts: (W,) observations at which the windows start.
        offsets: (W, H) time from the start to the recorded sample nearest to each horizon [s].
        now: (W, D) measured positions at the start.
        truth: (W, H, D) measured positions at the horizons.
        horizons: of the H [s].
    """

    episode: Episode
    starts: NDArray[np.int_]
    offsets: Array
    now: Array
    truth: Array
    horizons: tuple[float, ...] = HORIZONS

    @classmethod
    def of(
        cls,
        episode: Episode,
        channels: Sequence[str],
        *,
        stride: int = 25,
        warmup: float = 0.1,
        after: float = 0.0,
        horizons: Sequence[float] = HORIZONS,
    ) -> Questions:
        """Ask about windows that start every `stride` samples.

        Args:
            episode: excluded stretches are not asked about.
            channels: the observations that are joint positions.
            stride: samples between starts.
            warmup: recorded time before the first start [s].
            after: time after the first observation before which no window starts [s].
            horizons: how far ahead [s].

        Raises:
            LogError: no window fits.
        """
        t, q = episode.observed_at, joint_positions(episode, channels)
        longest, half = max(horizons), 0.5 * episode.period
        first = max(int(np.searchsorted(t, t[0] + warmup)), 4)
        starts = np.arange(first, len(t), stride)
        starts = starts[t[starts] + longest <= t[-1] + half]
        starts = starts[~episode.is_excluded(t[starts] - warmup, t[starts] + longest)]
        starts = starts[t[starts] >= t[0] + after - 1e-9]
        if not len(starts):
            raise LogError(f"{episode.name}: no window of {longest:g} s to score; it lasts {episode.duration:.3g} s")
        ends = np.stack([_nearest(t, t[starts] + h, starts) for h in horizons], 1)
        return cls(episode, starts, t[ends] - t[starts][:, None], q[starts], q[ends], tuple(horizons))

    @property
    def horizon(self) -> torch.Tensor:
        """Return the horizons as a `Prediction` has them: (H,) [s]."""
        return torch.tensor(self.horizons, dtype=torch.float64)

    def blocks(self) -> NDArray[np.int_]:
        """Return the one-second block of the recording that each window starts in: (W,), numbered from 0."""
        t = self.episode.observed_at[self.starts]
        return np.asarray(np.unique((t - t[0]).astype(int), return_inverse=True)[1])


def _nearest(t: Array, at: Array, after: NDArray[np.int_]) -> NDArray[np.int_]:
    right = np.searchsorted(t, at)
    left_is_nearer = np.abs(t[right - 1] - at) <= np.abs(t[np.minimum(right, len(t) - 1)] - at)
    use_left = (right >= len(t)) | ((right > after + 1) & left_is_nearer)
    return np.asarray(np.where(use_left, right - 1, right))


Predictor = Callable[[Questions], Prediction]


def persistence(questions: Questions) -> Prediction:
    """Predict that nothing moves."""
    mean = torch.as_tensor(np.repeat(questions.now[:, None], len(questions.horizons), 1))
    return Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), questions.horizon)


@dataclass(frozen=True)
class ConstantVelocity:
    """Predicts that every joint keeps its velocity, as a Kalman filter estimates it; says nothing of its errors.

    Recalibrated, it is what a model of recordings falls back on where nothing was recorded: a part of a
    `CombinedPredictor`.

    Attributes:
        estimator: of positions and velocities, fitted to recordings.
        channels: the observations that are joint positions.
    """

    estimator: KalmanFilter
    channels: Sequence[str]

    def __call__(self, questions: Questions) -> Prediction:
        states = causal_states(self.estimator, questions.episode, self.channels)[questions.starts]
        velocity = states[:, None, len(self.channels) :]
        mean = torch.as_tensor(questions.now[:, None] + questions.offsets[..., None] * velocity)
        return Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), questions.horizon)


@dataclass(frozen=True)
class SimulatorPredictor:
    """Predicts with a plant, from a model-based state estimate; its epistemic variance is the posterior's.

    Attributes:
        plant: with its execution chain; measured actions go past it.
        best: values that give the mean.
        draws: name -> (S,) posterior values that give the spread; may be empty.
        start_covariance: (X, X) of the error of the state estimate, which adds to the spread; zeros for none.
        observation: how the start is estimated.
        channels: the observations that are joint positions.
        extrapolates: a dozen parameters do not remember what they were identified on, so errors are as large there as
            elsewhere; `CombinedPredictor` looks for it.
    """

    extrapolates: ClassVar[bool] = True

    plant: Plant
    best: dict[str, float]
    draws: Values
    start_covariance: Array
    observation: Observation
    channels: Sequence[str]

    def __call__(self, questions: Questions) -> Prediction:
        episode, starts = questions.episode, questions.starts
        plant = self.plant.without_chain() if episode.action_source == "measured" else self.plant
        known = plant.nominal()
        start = self.observation.states(self.plant, self.best, [episode], [starts], list(self.channels))
        windows = cut_windows(
            [episode],
            [starts],
            channels=self.channels,
            length=float(questions.offsets.max()) + plant.timestep,
            before=plant.filling,
            timestep=plant.timestep,
        )
        spread = len(next(iter(self.draws.values()))) if self.draws else 0
        n, many = 1 + spread, len(starts)
        values = {
            k: np.repeat(np.concatenate([[v], self.draws.get(k, np.full(spread, v))]), many)
            for k, v in self.best.items()
            if k in known
        }
        running = plant.start(n * many, values)
        kicks = np.random.default_rng(0).multivariate_normal(np.zeros(start.shape[1]), self.start_covariance, (n, many))
        kicks[0] = 0.0
        starts_of = start + kicks
        running.reset(starts_of.reshape(n * many, -1), np.tile(windows.before, (n, 1, 1)))
        states = running.step(np.tile(windows.commands, (n, 1, 1))).reshape(n, many, -1, start.shape[1])
        paths = at_offsets(states, starts_of, questions.offsets / plant.timestep)
        positions = torch.as_tensor(paths[..., : start.shape[1] // 2])
        epistemic = positions[1:].var(0, unbiased=True) if spread > 1 else torch.zeros_like(positions[0])
        return Prediction(positions[0], torch.zeros_like(epistemic), epistemic, questions.horizon)


@dataclass(frozen=True)
class EnsemblePredictor:
    """Predicts with a world model, from the state estimate of a model-based observer.

    Attributes:
        model: the world model.
        plant: of the observer.
        values: the observer's parameters.
        observation: how the start is estimated.
        channels: the observations that are joint positions.
        advance: by how much measured actions lag behind the commands that the model expects [s].
    """

    model: EnsembleDynamics
    plant: Plant
    values: dict[str, float]
    observation: Observation
    channels: Sequence[str]
    advance: float = 0.0

    def __call__(self, questions: Questions) -> Prediction:
        episode, starts = questions.episode, questions.starts
        state = self.observation.states(self.plant, self.values, [episode], [starts], list(self.channels))
        dt, back = self.model.config.timestep, self.model.config.history - 1
        steps = math.ceil(float(questions.offsets.max()) / dt - 1e-6)
        shift = self.advance if episode.action_source == "measured" else 0.0
        commands = step_commands(episode, episode.observed_at[starts] + shift, back, steps, dt)
        prediction = self.model.predict(Estimate(state, commands[:, :back]), commands[:, back:])
        return at_times(prediction, torch.as_tensor(state), questions)


@dataclass(frozen=True)
class RecordingPredictor:
    """Predicts with a world model that looks back, from its own filter: no plant is needed.

    Attributes:
        model: the world model.
        channels: the observations that are joint positions.
        particles: trajectories a member.
    """

    model: EnsembleDynamics
    channels: Sequence[str]
    particles: int = 8

    def __call__(self, questions: Questions) -> Prediction:
        dt = self.model.config.timestep
        steps = math.ceil(float(questions.offsets.max()) / dt - 1e-6)
        known, actions = estimates(self.model, questions.episode, questions.starts, self.channels, steps)
        prediction = self.model.predict(known, actions, self.particles)
        return at_times(prediction, torch.as_tensor(known.state), questions)


def at_times(prediction: Prediction, start: torch.Tensor, questions: Questions) -> Prediction:
    """Interpolate a prediction of states (W, T, X), a step apart, to positions when asked for: cubic in the mean."""
    d, offsets, dt = start.shape[-1] // 2, torch.as_tensor(questions.offsets), float(prediction.horizon[0])
    path = torch.cat([start[:, None], prediction.mean.double()], 1)
    k = (offsets / dt).floor().long().clamp(0, path.shape[1] - 2)
    rows = torch.arange(len(path))[:, None]
    s = (offsets / dt - k)[..., None]
    low, high = path[rows, k], path[rows, k + 1]
    q0, v0, q1, v1 = low[..., :d], low[..., d:], high[..., :d], high[..., d:]
    mean = (1 + 2 * s) * (1 - s) ** 2 * q0 + s * (1 - s) ** 2 * dt * v0
    mean = mean + s**2 * (3 - 2 * s) * q1 + s**2 * (s - 1) * dt * v1

    def linear(variance: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([variance[:, :1], variance], 1).double()[..., :d]
        return (1 - s) * padded[rows, k] + s * padded[rows, k + 1]

    return Prediction(mean, linear(prediction.aleatoric), linear(prediction.epistemic), questions.horizon)


def score(prediction: Prediction, questions: Questions, names: Sequence[str], rng: np.random.Generator) -> Scores:
    """Score a prediction: per horizon and joint, averaged over windows.

    RMSE and median error in rad (or m), NRMSE relative to the spread of the change, and what `scores.calibration` says
    of the uncertainty. Over all horizons: mean NRMSE, mean CRPS, and the coverage of the 90 % intervals with its own
    90 % interval over one-second blocks.

    Args:
        prediction: (W, H, D).
        questions: with the truth.
        names: of the joints.
        rng: of the block bootstrap.
    """
    truth, now = questions.truth, questions.now
    error = prediction.mean.double().numpy() - truth
    variance = np.maximum(prediction.variance.double().numpy(), 1e-10)
    nrmse = np.sqrt((error**2).mean(0)) / np.maximum((truth - now[:, None]).std(0), 1e-9)
    blocks = questions.blocks()

    def by_joint(values: Array) -> dict[str, float]:
        return {n: float(v) for n, v in zip(names, values, strict=True)}

    out: Scores = {"windows": len(truth), "mean_nrmse": float(nrmse.mean())}
    for h, horizon in enumerate(questions.horizons):
        out[f"{horizon:g}"] = {
            "rmse": by_joint(np.sqrt((error[:, h] ** 2).mean(0))),
            "nrmse": by_joint(nrmse[h]),
            "median_error": by_joint(np.median(np.abs(error[:, h]), 0)),
            **calibration(error[:, h], variance[:, h], names, blocks, rng),
        }
    pooled = inside(error, variance, 0.9).mean((1, 2))
    out["coverage90"] = float(pooled.mean())
    out["coverage90_interval"] = list(block_interval(pooled, blocks, rng))
    out["crps"] = float(np.mean([out[f"{h:g}"]["crps"] for h in questions.horizons]))
    return out


def start_covariance(
    plant: Plant,
    values: dict[str, float],
    observation: Observation,
    episodes: Sequence[Episode],
    channels: Sequence[str],
    period: float = 0.02,
) -> Array:
    """Return the covariance (X, X) of the state estimate's error, against two-sided states of the same recordings."""
    from sim2real.estimation import centred_state

    errors = []
    for episode in episodes:
        t = episode.observed_at
        clock, smooth = centred_state(t, joint_positions(episode, channels), period)
        starts = Questions.of(episode, channels).starts[:200]
        nearest = np.rint((t[starts] - clock[0]) / period).astype(int)
        inside = nearest < len(clock)
        starts, nearest = starts[inside], nearest[inside]
        found = observation.states(plant, values, [episode], [starts], list(channels))
        d = len(channels)
        target = smooth[nearest].copy()
        target[:, :d] += target[:, d:] * (t[starts] - clock[nearest])[:, None]
        errors.append(found - target)
    flat = np.concatenate(errors)
    # robust: the two-sided estimate itself is off at impacts
    scale = np.maximum(1.4826 * np.median(np.abs(flat), 0), 1e-6)
    inside = (np.abs(flat) < 4 * scale).all(1)
    return np.cov(flat[inside].T).reshape(flat.shape[1], flat.shape[1])


def mean_scores(rows: Sequence[Scores], key: str) -> float:
    """Return the mean of one score over recordings, weighted by their windows."""
    weights = [r["windows"] for r in rows]
    return float(np.average([r[key] for r in rows], weights=weights))
