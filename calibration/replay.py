"""Replay: logged commands through candidates of a plant, from window starts that are fitted along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError
from sim2real.plant import Plant, RunningPlant
from sim2real.windows import Windows, at_offsets, cut_windows, regular_starts

# A velocity step for finite differences that dwarfs rounding and is small beside any motion [rad or rad/s].
STATE_STEP = 1e-4


@dataclass
class Replay:
    """W windows of recordings that share one plant, ready to be replayed with C candidates at once.

    Attributes:
        plant: without its chain where actions were measured.
        windows: the recordings' side.
        names: the parameters that this plant has, among those that are fitted.
        columns: (P,) where each of them stands among the unknowns of the fit.
        block: length of the stretches of time that are resampled [s].
        start: (W, X) present guess of the states at the window starts.
        recordings: names of those that the windows came from.
    """

    plant: Plant
    windows: Windows
    names: tuple[str, ...]
    columns: NDArray[np.int_]
    block: float
    start: Array
    recordings: tuple[str, ...] = ()
    _running: dict[int, RunningPlant] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        """Length of the windows [s]."""
        return float(self.windows.commands.shape[1] * self.plant.timestep)

    def run(self, parameters: Array, start: Array) -> Array:
        """Simulate every window with every candidate.

        Args:
            parameters: (C, P) one candidate a row, in the order of `names`.
            start: (C, W, X).

        Returns:
            (C, W, M, D) positions at the recorded samples.
        """
        candidates, many = len(parameters), len(self.windows)
        if candidates not in self._running:
            self._running[candidates] = self.plant.start(candidates * many)
        running = self._running[candidates]
        running.write({n: np.repeat(parameters[:, i], many) for i, n in enumerate(self.names)})
        running.reset(start.reshape(candidates * many, -1), np.tile(self.windows.before, (candidates, 1, 1)))
        states = running.step(np.tile(self.windows.commands, (candidates, 1, 1)))
        states = states.reshape(candidates, many, *states.shape[1:])
        return at_offsets(states, start, self.windows.offset)[..., : start.shape[-1] // 2]

    def select(self, rows: NDArray[np.int_]) -> Replay:
        """Return the replay of some of the windows."""
        return replace(self, windows=self.windows.select(rows), start=self.start[rows], _running={})

    def shorten(self, share: float) -> Replay:
        """Return the replay of the first part of every window."""
        w = self.windows
        steps = max(round(share * w.commands.shape[1]), 1)
        valid = w.valid & (w.offset <= steps + 1e-6)
        most = int(valid.sum(1).max())
        shorter = replace(
            w,
            commands=w.commands[:, :steps],
            offset=np.minimum(w.offset[:, :most], steps),
            positions=w.positions[:, :most],
            valid=valid[:, :most],
        )
        return replace(self, windows=shorter, start=self.start.copy(), _running={})

    def blocks(self) -> list[tuple[NDArray[np.int_], NDArray[np.int_]]]:
        """Return which samples, (windows, samples), belong to each block: whole windows, or parts of longer ones."""
        w = self.windows
        within = np.floor((w.offset * self.plant.timestep + 1e-9) / self.block).astype(int)
        longest = float(w.offset.max()) * self.plant.timestep
        label = w.block[:, None] + (within if longest > self.block + 1e-6 else 0) + np.zeros_like(within)
        # a window starts blocks of its own where it is longer than one
        label = label + (w.recording * (int(label.max()) + 1))[:, None]
        window, sample = np.nonzero(w.valid)
        order = np.argsort(label[window, sample], kind="stable")
        cuts = np.flatnonzero(np.diff(label[window, sample][order])) + 1
        return [(window[rows], sample[rows]) for rows in np.split(order, cuts)]

    def residuals(self, positions: Array) -> Array:
        """Return predicted minus measured positions (..., W, M, D), zero where there is no sample."""
        return np.where(self.windows.valid[..., None], positions - self.windows.positions, 0.0)

    def residuals_at(self, parameters: Array) -> Array:
        """Return the residuals (W, M, D) from the present starts, for parameters (P,)."""
        return self.residuals(self.run(parameters[None], self.start[None])[0])

    def sensitivity(self, parameters: Array, steps: Array) -> tuple[Array, Array, Array]:
        """Return residuals and their derivatives by parameters and start states, by one-sided differences at once.

        Args:
            parameters: (P,) in the order of `names`.
            steps: (P,) signed steps; none, and there are no derivatives by parameters.

        Returns:
            (W, M, D), (W, M, D, P) and (W, M, D, X).
        """
        many, size = len(steps), self.start.shape[1]
        candidates = np.repeat(parameters[None], 1 + many + size, 0)
        candidates[1 : many + 1] += np.diag(steps) if many else 0.0
        starts = np.repeat(self.start[None], len(candidates), 0)
        starts[many + 1 :] += STATE_STEP * np.eye(size)[:, None, :]
        positions = self.run(candidates, starts)
        slopes = np.where(self.windows.valid[..., None], positions[1:] - positions[0], 0.0)
        slopes = np.moveaxis(slopes / np.concatenate([steps, np.full(size, STATE_STEP)])[:, None, None, None], 0, -1)
        return self.residuals(positions[0]), slopes[..., :many], slopes[..., many:]

    def by_start(self, parameters: Array) -> tuple[Array, Array]:
        """Return residuals (W, M, D) and their derivatives by the start states (W, M, D, X), for parameters (P,)."""
        residual, _, slopes = self.sensitivity(parameters, np.zeros(0))
        return residual, slopes

    def secants(self, ahead: Array, behind: Array) -> Array:
        """Return how positions change with the parameters (W, M, D, P), by regression over pairs of points.

        Args:
            ahead, behind: (K, P), K at least P, in the order of `names`.
        """
        starts = np.repeat(self.start[None], 2 * len(ahead), 0)
        positions = self.run(np.concatenate([ahead, behind]), starts)
        change = np.where(self.windows.valid[..., None], positions[: len(ahead)] - positions[len(ahead) :], 0.0)
        return np.asarray(np.moveaxis(np.tensordot(np.linalg.pinv(ahead - behind), change, 1), 0, -1))


def replays(
    plant: Plant,
    episodes: Sequence[Episode],
    unknowns: Unknowns,
    *,
    channels: Sequence[str],
    window: float,
    block: float,
    stride: float,
) -> list[Replay]:
    """Cut episodes into windows: those with commanded actions go through the chain, measured ones past it.

    Args:
        plant: the model.
        episodes: the recordings.
        unknowns: what is fitted; where recordings have parameters of their own, each is a replay by itself.
        channels: the observations that are joint positions.
        window: length [s]; infinite for whole recordings.
        block: for the block bootstrap [s].
        stride: between window starts [s].
    """
    out: list[Replay] = []
    first_block = 0
    for some in unknowns.apart(episodes):
        length = min(window, max(e.duration for e in some))
        starts = [_starts(e, window, stride) for e in some]
        if not any(len(s) for s in starts):
            continue
        windows = cut_windows(
            some, starts, channels=channels, length=length, before=plant.filling, timestep=plant.timestep, block=block
        )
        windows.block[:] += first_block
        first_block = int(windows.block.max()) + 1
        model = plant.without_chain() if some[0].action_source == "measured" else plant
        known = model.nominal()
        guess = _first_guess(windows, plant.timestep)
        mine = tuple(n for n in unknowns.parameters if n in known)
        where = unknowns.columns(mine, some[0].name)
        out.append(Replay(model, windows, mine, where, block, guess, tuple(e.name for e in some)))
    return out


def _starts(episode: Episode, window: float, stride: float) -> NDArray[np.int_]:
    """Return where windows start: one, at the beginning, where the whole recording is one window."""
    if np.isfinite(window):
        return regular_starts(episode, stride=stride, length=window)
    if episode.excluded:
        raise LogError(
            f"{episode.name} has excluded stretches, so it cannot be replayed as a whole: give windows a length"
        )
    return np.zeros(1, int)


def _first_guess(windows: Windows, timestep: float) -> Array:
    """Start states from a parabola through the first fifth of each window (both sides: this is fitting)."""
    states = []
    for offset, positions, valid in zip(windows.offset, windows.positions, windows.valid, strict=True):
        t, q = offset[valid] * timestep, positions[valid]
        m = min(max(6, len(t) // 5), len(t))
        c = np.linalg.lstsq(np.vander(t[:m], min(3, m), increasing=True), q[:m], rcond=None)[0]
        states.append(np.concatenate([q[0], c[1] if len(c) > 1 else np.zeros(q.shape[1])]))
    return np.stack(states)
