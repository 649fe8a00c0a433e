"""Windows of recordings as a model that looks back sees them: what was known at the start, and how it went on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim2real.episodes import Array, Episode
from sim2real.errors import LogError
from sim2real.kalman import KalmanFilter
from sim2real.windows import joint_positions
from sim2real.world_model.dataset import step_commands
from sim2real.world_model.ensemble import EnsembleConfig

# Recorded time before a window for the filter to settle [s].
WARMUP = 0.1


@dataclass(frozen=True)
class Recorded:
    """N windows of recordings on the model's clock, float32; (M, N, ...) where every member has its own.

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
        return self.state.shape[-2]

    def drawn(self, members: int, size: int, generator: torch.Generator) -> Recorded:
        """Draw windows for every member: (M, size, ...)."""
        return self.taken(torch.randint(len(self), (members, size), generator=generator))

    def taken(self, rows: Tensor) -> Recorded:
        """Return some windows for every member, by their numbers (M, B): (M, B, ...)."""
        if self.state.dim() == 2:
            return self._each(lambda value: value[rows])
        member = torch.arange(len(rows))[:, None]
        return self._each(lambda value: value[member, rows])

    def where(self, keep: Tensor) -> Recorded:
        """Return some windows, by a mask (N,)."""
        return self._each(lambda value: value[keep] if self.state.dim() == 2 else value[:, keep])

    def first(self, members: int) -> Recorded:
        """Return the windows of the first members: all of them where members share them."""
        return self._each(lambda value: value if self.state.dim() == 2 else value[:members])

    def expanded(self, members: int) -> Recorded:
        """Return the windows for every member: (M, N, ...)."""
        return self._each(lambda value: value.expand(members, *value.shape) if self.state.dim() == 2 else value)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Recorded:
        return Recorded(*(change(getattr(self, f.name)) for f in fields(self)))

    def spread(self) -> Tensor:
        """(T, D) standard deviation of how far the robot gets in each number of steps."""
        change = self.positions - self.state[..., None, : self.positions.shape[-1]]
        return change.flatten(0, -3).std(0).clamp_min(1e-6)

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
        starts = [window_starts(e, config, span) for e in episodes]
        total = sum(map(len, starts))
        if not total:
            names = ", ".join(e.name for e in episodes) or "none"
            raise LogError(f"no window of {span:g} s fits the recordings ({names}) to learn from")
        thin = max(math.ceil(total / most), 1)
        return cls.joined(
            [
                cut_window(e, rows[::thin], channels, config, causal_states(estimator, e, channels), steps)
                for e, rows in zip(episodes, starts, strict=True)
                if len(rows)
            ]
        )

    @classmethod
    def joined(cls, parts: Sequence[Recorded]) -> Recorded:
        """Return the windows of several recordings, those of members one after the other."""

        def rows(part: Recorded, name: str) -> Tensor:
            value: Tensor = getattr(part, name)
            return value if part.state.dim() == 2 else value.flatten(0, 1)

        return cls(*(torch.cat([rows(p, f.name) for p in parts]) for f in fields(cls)))


def before_start(config: EnsembleConfig) -> float:
    """Return how long a recording has to be before a window may start [s]."""
    return max(WARMUP, config.lookback * config.timestep, config.history * config.timestep)


def window_starts(episode: Episode, config: EnsembleConfig, span: float) -> NDArray[np.int_]:
    """Return the readings at which windows may start that last so long [s]: what comes before is recorded, too."""
    t, before = episode.observed_at, before_start(config)
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


def cut_window(
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
