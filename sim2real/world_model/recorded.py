"""A world model from recordings alone: what its windows hold, how it is trained on them, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim2real.episodes import Array, Episode, resample
from sim2real.errors import LogError, ModelError
from sim2real.estimation import Estimate
from sim2real.kalman import KalmanFilter
from sim2real.world_model.ensemble import EnsembleConfig, EnsembleDynamics
from sim2real.world_model.network import gaussian_nll, input_scale
from sim2real.world_model.physics import PhysicsPriors
from sim2real.world_model.training import optimise
from sim2real.world_model.windows import Recorded, before_start, causal_states, cut_window, window_starts

# What rollouts are trained over, one after the other: seconds, and the share of the iterations. Where recordings are
# short, none is longer than this share of what follows the first start in the longest of them.
GROWING = ((0.03, 0.3), (0.16, 0.4), (0.5, 0.3))
LONGEST = 0.5
# Readings are a model step apart if they are by this share of it; if fewer than this share are, all are interpolated.
NEARLY, USABLE = 0.02, 0.8


class Lessons(Protocol):
    """Where windows come from that a model learns beside recordings: a `Rehearsal`, or what a teacher says."""

    def record(
        self, config: EnsembleConfig, estimator: KalmanFilter, period: float, *, steps: int, rng: np.random.Generator
    ) -> Recorded:
        """Return windows of T steps: (N, ...) for all members, or (M, N, ...).

        Args:
            config: of the model.
            estimator: that windows start behind.
            period: between readings of the recordings [s].
            steps: T.
            rng: of whatever is random.
        """
        ...


def fit_to_recordings(
    model: EnsembleDynamics,
    episodes: Sequence[Episode],
    channels: Sequence[str],
    *,
    rehearsal: Lessons | None = None,
    trust: float = 0.3,
    recorded: float = 1.0,
    physics: PhysicsPriors | None = None,
    iterations: int = 3000,
    batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> EnsembleDynamics:
    """Train a fresh model that looks back on recordings: rollouts of growing length, from causal starts.

    What counts is where the robot is after every step, relative to how far it gets in that time. Encoder and dynamics
    learn together. Variances come last: what a step of a rollout leaves of what the encoder says a step later.

    With a rehearsal, every batch also has as many simulated windows: where nothing was recorded, the model does what
    the simulator does, each member what its own draw of the parameters says.

    Args:
        model: with a lookback; its normalisers, filter and weights are set.
        episodes: with commanded actions; excluded stretches are left out.
        channels: the observations that are joint positions.
        rehearsal: what counts beside the recordings: simulations, or the `Lesson` of a teacher.
        trust: what such a window counts.
        recorded: what a recorded window counts; 0 to pre-train on the rehearsal alone, and take from the recordings
            only how noisy readings are, and how unsure a step is.
        physics: penalties on all rollouts.
        iterations: of Adam, over all lengths.
        batch: windows a member in an iteration.
        rate: peak learning rate.
        seed: of the draws.
        progress: called with a line now and then.

    Raises:
        ModelError: the model does not look back, or there is nothing to learn from.
        LogError: no window fits.
        NonFiniteError: the loss diverges.
    """
    config, encoder = model.config, model.encoder
    if encoder is None:
        raise ModelError("a model learns from recordings alone by looking back: set lookback in its EnsembleConfig")
    if not recorded and rehearsal is None:
        raise ModelError("nothing to learn from: recordings count nothing, and there is no rehearsal")
    d, dt, history = config.joints, config.timestep, config.history
    estimator = KalmanFilter.fit(episodes, channels)
    encoder.jerk.copy_(torch.as_tensor(estimator.jerk))
    encoder.noise.copy_(torch.as_tensor(estimator.noise))
    room = LONGEST * max(0.0, *(e.duration - before_start(config) for e in episodes)) if episodes else 0.0
    lengths = [max(round(min(seconds, room) / dt), 2) for seconds, _ in GROWING]
    sources = []
    if recorded:
        sources.append((Recorded.of(episodes, channels, config, estimator, steps=max(lengths)), recorded))
    if rehearsal is not None:
        progress("preparing the rehearsal")
        period = float(np.median(np.concatenate([np.diff(e.observed_at) for e in episodes])))
        rng = np.random.default_rng(seed)
        sources.append((rehearsal.record(config, estimator, period, steps=max(lengths), rng=rng), trust))
    _normalise(model, Recorded.joined([some for some, _ in sources]))
    scales = [some.spread() for some, _ in sources]
    generator = torch.Generator().manual_seed(seed)
    parameters = [*model.dynamics.parameters(), *encoder.parameters()]

    def rollouts(steps: int) -> Callable[[int], Tensor]:
        def loss(_: int) -> Tensor:
            drawn = [some.drawn(config.members, batch, generator) for some, _ in sources]
            w = Recorded(*(torch.cat([getattr(p, f.name) for p in drawn], 1) for f in fields(Recorded)))
            commands = w.commands[:, :, : history - 1 + steps]
            start = encoder(w.state, w.past, commands[:, :, : history - 1], dt)
            path = model.rollout(start, commands)
            left = torch.split(path[..., :d] - w.positions[:, :, :steps], batch, 1)
            total = 1e-3 * _size(start, d)
            if physics is not None:
                total = total + physics(start, path, model.target_scale[:d], dt)
            for error, scale, (_data, weight) in zip(left, scales, sources, strict=True):
                error = error / scale[:steps]
                total = total + 30 * weight * torch.nn.functional.huber_loss(error, torch.zeros_like(error))
            return total

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
    mean, spread = raw.mean(0), input_scale(raw)
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
    now, later, _ = step_pairs(episodes, channels, config, estimator)
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


def step_pairs(
    episodes: Sequence[Episode],
    channels: Sequence[str],
    config: EnsembleConfig,
    estimator: KalmanFilter,
    steps: int = 1,
) -> tuple[Recorded, Recorded, Tensor]:
    """Return windows of T steps, those that start at the reading nearest to a step later, and the second of each.

    Where readings are not a step apart, nearly, those of a clock that is are interpolated. Seconds are numbered through
    all recordings: (N,).

    Raises:
        LogError: none fits.
    """
    first, second, blocks = [], [], []
    dt, begun = config.timestep, 0
    for e in episodes:
        rows, after, near = _a_step_apart(e, config, steps)
        if near.mean() < USABLE if len(near) else e.period > dt:
            e = resample(e, dt)
            rows, after, near = _a_step_apart(e, config, steps)
        t, states = e.observed_at, causal_states(estimator, e, channels)
        if near.any():
            first.append(cut_window(e, rows[near], channels, config, states, steps))
            second.append(cut_window(e, after[near], channels, config, states, 1))
            blocks.append(begun + (t[rows[near]] - t[0]).astype(int))
            begun = int(blocks[-1].max()) + 1
    if not first:
        raise LogError(
            f"no recording has a window of {(steps + 2) * dt:g} s whose readings are a model step of {dt:g} s apart; "
            "record longer, or choose another timestep"
        )
    return Recorded.joined(first), Recorded.joined(second), torch.as_tensor(np.concatenate(blocks))


def _a_step_apart(
    e: Episode, config: EnsembleConfig, steps: int
) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.bool_]]:
    """Return where windows may start, the readings nearest to a step later, and whether they are that far away."""
    t, dt = e.observed_at, config.timestep
    rows = window_starts(e, config, (steps + 2) * dt)
    right = np.clip(np.searchsorted(t, t[rows] + dt), 1, len(t) - 1)
    after = np.where(t[right] - t[rows] - dt < t[rows] + dt - t[right - 1], right, right - 1)
    return rows, after, np.abs(t[after] - t[rows] - dt) < NEARLY * dt


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
    window = cut_window(episode, starts, channels, model.config, states, steps)
    past, commands = window.past.double().numpy(), window.commands.double().numpy()
    back = model.config.history - 1
    return Estimate(states[starts], commands[:, :back], past), commands[:, back:]
