"""Windows: short stretches of recordings, with the commands on the substep clock of a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array, Episode
from sim2real.errors import LogError


@dataclass(frozen=True)
class Windows:
    """W windows that start at recorded samples; each has its own number of samples, padded to M.

    Attributes:
        start_time: (W,) on the clock of the recording [s].
        block: (W,) number of the contiguous stretch of time that the window belongs to, for block bootstraps.
        recording: (W,) which of the episodes the window came from.
        before: (W, B, A) commands, one a substep, that lead up to the start.
        commands: (W, K, A) commands from the start on, one a substep.
        offset: (W, M) time of each sample after the start [substeps], not whole in general.
        positions: (W, M, D) measured joint positions.
        valid: (W, M) whether the sample exists.
    """

    start_time: Array
    block: NDArray[np.int_]
    recording: NDArray[np.int_]
    before: Array
    commands: Array
    offset: Array
    positions: Array
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start_time)

    def select(self, rows: NDArray[np.int_] | NDArray[np.bool_]) -> Windows:
        """Return some of the windows."""
        return Windows(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def joint_positions(episode: Episode, channels: Sequence[str]) -> Array:
    """Return the observations that are joint positions: (T + 1, D), in the order of `channels`."""
    return episode.observations[:, [episode.channels.column(name) for name in channels]]


def cut_windows(
    episodes: Sequence[Episode],
    starts: Sequence[NDArray[np.int_]],
    *,
    channels: Sequence[str],
    length: float,
    before: float,
    timestep: float,
    block: float = 1.0,
) -> Windows:
    """Cut one window at each start.

    Args:
        episodes: the recordings.
        starts: for each episode, indices of the observations at which windows start.
        channels: names of the observations that are joint positions.
        length: of a window [s]; shorter at the end of a recording, where samples are missing (`valid`).
        before: how much of the commands before the start is needed [s].
        timestep: substep [s].
        block: length of the stretches for the block bootstrap [s].
    """
    steps, back = round(length / timestep), round(before / timestep)
    rows: list[tuple[float, int, int, Array, Array, Array, Array]] = []
    first_block = 0
    for e, (episode, indices) in enumerate(zip(episodes, starts, strict=True)):
        positions, t = joint_positions(episode, channels), episode.observed_at
        blocks = first_block + ((t[indices] - t[0]) / block).astype(int)
        first_block = int(blocks.max(initial=first_block)) + 1
        for i, b in zip(indices, blocks, strict=True):
            j = int(np.searchsorted(t, t[i] + length + 1e-9))
            clock = t[i] + timestep * np.arange(-back, steps)
            commands = episode.commands_at(clock)
            offset = (t[i:j] - t[i]) / timestep
            rows.append((t[i], int(b), e, commands[:back], commands[back:], offset, positions[i:j]))
    if not rows:
        raise LogError(
            f"no window of {length:g} s fits the recordings ({', '.join(e.name for e in episodes) or 'none'}); "
            "record longer, or make the window shorter"
        )
    most = max(len(r[5]) for r in rows)

    def pad(values: Array) -> Array:
        return np.concatenate([values, np.repeat(values[-1:], most - len(values), 0)])

    return Windows(
        start_time=np.array([r[0] for r in rows]),
        block=np.array([r[1] for r in rows]),
        recording=np.array([r[2] for r in rows]),
        before=np.stack([r[3] for r in rows]),
        commands=np.stack([r[4] for r in rows]),
        offset=np.stack([pad(r[5]) for r in rows]),
        positions=np.stack([pad(r[6]) for r in rows]),
        valid=np.array([np.arange(most) < len(r[5]) for r in rows]),
    )


def regular_starts(episode: Episode, *, stride: float, length: float, warmup: float = 0.0) -> NDArray[np.int_]:
    """Return the observations nearest to every `stride` seconds whose window of `length` is whole and not excluded.

    Args:
        episode: the recording.
        stride: [s].
        length: of a window [s].
        warmup: what must have been recorded, and not be excluded, before the start [s].
    """
    t = episode.observed_at
    whole = np.flatnonzero((t >= t[0] + warmup - 1e-9) & (t + length <= t[-1] + 1e-9) & (t < t[-1]))
    if not len(whole):
        return whole
    at = np.arange(t[0] + warmup, t[-1] - length + 1e-9, stride)
    between = (t[whole[1:]] + t[whole[:-1]]) / 2
    indices = whole[np.unique(np.searchsorted(between, at))]
    return indices[~episode.is_excluded(t[indices] - warmup, t[indices] + length)]


def at_offsets(states: Array, start: Array, offset: Array) -> Array:
    """Interpolate states between substeps.

    Args:
        states: (..., W, K, X) after each substep.
        start: (..., W, X) before the first.
        offset: (W, M) times [substeps].

    Returns:
        (..., W, M, X)
    """
    path = np.concatenate([start[..., None, :], states], -2)
    k = np.clip(np.floor(offset).astype(int), 0, path.shape[-2] - 2)
    rows = np.arange(offset.shape[0])[:, None]
    fraction = (offset - k)[..., None]
    low, high = path[..., rows, k, :], path[..., rows, k + 1, :]
    result: Array = low + fraction * (high - low)
    return result
