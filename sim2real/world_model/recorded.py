"""A world model from recordings alone: what its windows hold, how it is trained on them, and how it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, ModelError
from sim2real.estimation import Estimate
from sim2real.kalman import KalmanFilter
from sim2real.windows import joint_positions
from sim2real.world_model.dataset import step_commands
from sim2real.world_model.ensemble import EnsembleConfig, EnsembleDynamics
from sim2real.world_model.network import gaussian_nll
from sim2real.world_model.training import optimise

# Recorded time before a window for the filter to settle [s].
WARMUP = 0.1
# What rollouts are trained over, one after the other: seconds, and the share of the iterations.
GROWING = ((0.03, 0.3), (0.16, 0.4), (0.5, 0.3))


@dataclass(frozen=True)
class Recorded:
    """N windows of recordings on the model's clock, float32.

    Attributes:
        state: (N, X) causal estimate at the start.
        past: (N, K, D) positions before the start.
        commands: (N, L - 1 + T, A): the history before the start, then one command a step.
        positions: (N, T, D) measured after each step.
    """

    state: Tensor
    past: Tensor
    commands: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def of(
        cls,
        episodes: Sequence[Episode],
        channels: Sequence[str],
        config: EnsembleConfig,
        estimator: KalmanFilter,
        *,
        steps: int,
        most: int = 20_000,
    ) -> Recorded:
        """Cut windows of T steps from recordings, as many as fit and at most so many, evenly spread.

        Raises:
            LogError: none fits.
        """
        span = steps * config.timestep
        starts = [_starts(e, config, span) for e in episodes]
        total = sum(map(len, starts))
        if not total:
            names = ", ".join(e.name for e in episodes) or "none"
            raise LogError(f"no window of {span:g} s fits the recordings ({names}) to learn from")
        thin = max(math.ceil(total / most), 1)
        return cls.joined(
            [
                _window(e, rows[::thin], channels, config, causal_states(estimator, e, channels), steps)
                for e, rows in zip(episodes, starts, strict=True)
                if len(rows)
            ]
        )

    @classmethod
    def joined(cls, parts: Sequence[Recorded]) -> Recorded:
        """Return the windows of several recordings."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def _starts(episode: Episode, config: EnsembleConfig, span: float) -> NDArray[np.int_]:
    """Return the readings at which windows may start that last so long [s]: what comes before is recorded, too."""
    t = episode.observed_at
    before = max(WARMUP, config.lookback * config.timestep, config.history * config.timestep)
    rows = np.flatnonzero((t >= t[0] + before) & (t + span <= t[-1]))
    return rows[~episode.is_excluded(t[rows] - before, t[rows] + span)]


def causal_states(estimator: KalmanFilter, episode: Episode, channels: Sequence[str]) -> Array:
    """Return what a filter makes of every reading of a recording when it comes: (N, X)."""
    t, q = episode.observed_at, joint_positions(episode, channels)
    nothing = np.zeros((1, 0))
    estimator.reset(q[:1])
    out = [np.concatenate([q[0], np.zeros_like(q[0])])]
    for k in range(1, len(q)):
        out.append(estimator.update(float(t[k] - t[k - 1]), q[k : k + 1], nothing)[0])
    return np.stack(out)


def _window(
    episode: Episode,
    starts: NDArray[np.int_],
    channels: Sequence[str],
    config: EnsembleConfig,
    states: Array,
    steps: int,
) -> Recorded:
    """Return the windows of one recording that start at some of its readings."""
    t, q, dt = episode.observed_at, joint_positions(episode, channels), config.timestep
    begin = t[starts][:, None]

    def read(at: Array) -> Array:
        return np.stack([np.interp(at, t, q[:, d]) for d in range(q.shape[1])], -1)

    past = read(begin - dt * np.arange(config.lookback, 0, -1))
    commands = step_commands(episode, t[starts], config.history - 1, steps, dt)
    after = read(begin + dt * np.arange(1, steps + 1))
    return Recorded(*(torch.as_tensor(x, dtype=torch.float32) for x in (states[starts], past, commands, after)))


def fit_to_recordings(
    model: EnsembleDynamics,
    episodes: Sequence[Episode],
    channels: Sequence[str],
    *,
    iterations: int = 3000,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> EnsembleDynamics:
    """Train a fresh model that looks back on recordings: rollouts of growing length, from causal starts.

    What counts is where the robot is after every step, relative to how far it gets in that time. Encoder and dynamics
    learn together. Variances come last: what a step of a rollout leaves of what the encoder says a step later.

    Args:
        model: with a lookback; its normalisers, filter and weights are set.
        episodes: with commanded actions; excluded stretches are left out.
        channels: the observations that are joint positions.
        iterations: of Adam, over all lengths.
        batch: windows a member in an iteration.
        rate: peak learning rate.
        seed: of the draws.
        progress: called with a line now and then.

    Raises:
        ModelError: the model does not look back.
        LogError: no window fits.
        NonFiniteError: the loss diverges.
    """
    config, encoder = model.config, model.encoder
    if encoder is None:
        raise ModelError("a model learns from recordings alone by looking back: set lookback in its EnsembleConfig")
    d, dt, history = config.joints, config.timestep, config.history
    estimator = KalmanFilter.fit(episodes, channels)
    encoder.jerk.copy_(torch.as_tensor(estimator.jerk))
    encoder.noise.copy_(torch.as_tensor(estimator.noise))
    lengths = [max(round(seconds / dt), 2) for seconds, _ in GROWING]
    data = Recorded.of(episodes, channels, config, estimator, steps=max(lengths))
    _normalise(model, data)
    scale = (data.positions - data.state[:, None, :d]).std(0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    parameters = [*model.dynamics.parameters(), *encoder.parameters()]

    def rollouts(steps: int) -> Callable[[int], Tensor]:
        def loss(_: int) -> Tensor:
            rows = torch.randint(len(data), (config.members, batch), generator=generator)
            commands = data.commands[rows][:, :, : history - 1 + steps]
            start = encoder(data.state[rows], data.past[rows], commands[:, :, : history - 1], dt)
            error = (model.rollout(start, commands)[..., :d] - data.positions[rows][:, :, :steps]) / scale[:steps]
            return 30 * torch.nn.functional.huber_loss(error, torch.zeros_like(error)) + 1e-3 * _size(start, d)

        return loss

    for (_, share), steps in zip(GROWING, lengths, strict=True):
        many = round(share * iterations)

        def tell(i: int, value: float, steps: int = steps, many: int = many) -> None:
            progress(f"rollouts of {steps * dt:.2g} s, {i + 1}/{many}: loss {value:.4f}")

        optimise(model, rollouts(steps), many, rate, tell, parameters)
    _fit_variances(model, episodes, channels, estimator, generator, max(iterations // 10, 1), batch, rate)
    return model


def _normalise(model: EnsembleDynamics, data: Recorded) -> None:
    config, encoder = model.config, model.encoder
    assert encoder is not None
    dt, history = config.timestep, config.history
    velocity = data.positions.diff(dim=1) / dt
    change = velocity.diff(dim=1).flatten(0, 1).std(0).clamp_min(1e-9)
    encoder.normalise(encoder.features(data.state, data.past, data.commands[:, : history - 1], dt), change, dt)
    resting = torch.nn.functional.pad(data.state, (0, config.latents))
    model.feature_mean.zero_()
    model.feature_scale.fill_(1.0)
    raw = model.features(resting, data.commands[:, :history])
    mean, spread = raw.mean(0), raw.std(0).clamp_min(1e-6)
    latent = slice(raw.shape[1] - history * config.actions - config.latents, raw.shape[1] - history * config.actions)
    mean[latent], spread[latent] = 0.0, 1.0
    model.feature_mean.copy_(mean)
    model.feature_scale.copy_(spread)
    model.target_scale.copy_(torch.cat([change, 0.1 * dt * change]))


def _size(start: Tensor, d: int) -> Tensor:
    """Mean square of the latent numbers, which would otherwise be free to be as large as they like."""
    latents = start[..., 2 * d :]
    return latents.square().mean() if latents.numel() else latents.sum()


def _fit_variances(
    model: EnsembleDynamics,
    episodes: Sequence[Episode],
    channels: Sequence[str],
    estimator: KalmanFilter,
    generator: torch.Generator,
    iterations: int,
    batch: int,
    rate: float,
) -> None:
    """Fit the part of the last layer that says how unsure a step is; no mean moves."""
    config, encoder = model.config, model.encoder
    assert encoder is not None
    d, dt, history = config.joints, config.timestep, config.history
    now, later = _pairs(episodes, channels, config, estimator)
    weight, bias = model.dynamics.weights[-1], model.dynamics.biases[-1]
    only = torch.zeros(weight.shape[-1])
    only[2 * d : 4 * d] = 1.0
    hooks = [p.register_hook(lambda g: g * only) for p in (weight, bias)]

    def loss(_: int) -> Tensor:
        rows = torch.randint(len(now), (config.members, batch), generator=generator)
        with torch.no_grad():
            start, after = (
                encoder(w.state[rows], w.past[rows], w.commands[rows][:, :, : history - 1], dt) for w in (now, later)
            )
        mean, log_variance = model.step(start, now.commands[rows][:, :, :history])
        left = (model.raw_target(start, after) - model.raw_target(start, mean)).detach() / model.target_scale
        return gaussian_nll(left, log_variance).mean()

    try:
        optimise(model, loss, iterations, rate, parameters=[weight, bias])
    finally:
        for hook in hooks:
            hook.remove()


def _pairs(
    episodes: Sequence[Episode], channels: Sequence[str], config: EnsembleConfig, estimator: KalmanFilter
) -> tuple[Recorded, Recorded]:
    """Return windows of a step, and those that start at the reading nearest to a step later, aligned."""
    first, second = [], []
    dt = config.timestep
    for e in episodes:
        t, states = e.observed_at, causal_states(estimator, e, channels)
        rows = _starts(e, config, 3 * dt)
        after = np.searchsorted(t, t[rows] + dt - 1e-9)
        near = np.abs(t[after] - t[rows] - dt) < 0.25 * dt
        if near.any():
            first.append(_window(e, rows[near], channels, config, states, 1))
            second.append(_window(e, after[near], channels, config, states, 1))
    if not first:
        raise LogError(f"no two readings are a model step of {dt:g} s apart; choose another timestep")
    return Recorded.joined(first), Recorded.joined(second)


def estimates(
    model: EnsembleDynamics, episode: Episode, starts: NDArray[np.int_], channels: Sequence[str], steps: int
) -> tuple[Estimate, Array]:
    """Return what is known at some readings (N,) of a recording, and the commands (N, T, A) of the steps that follow.

    Raises:
        ModelError: the model does not look back.
    """
    if model.encoder is None:
        raise ModelError("the model does not look back; predict with it from an observer")
    states = causal_states(model.encoder.estimator(), episode, channels)
    window = _window(episode, starts, channels, model.config, states, steps)
    past, commands = window.past.double().numpy(), window.commands.double().numpy()
    back = model.config.history - 1
    return Estimate(states[starts], commands[:, :back], past), commands[:, back:]
