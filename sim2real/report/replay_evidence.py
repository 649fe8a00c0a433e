"""What replaying the recordings with a posterior shows: windows with their predicted bands, and what is left over.

It is computed where the recordings are, and kept small beside the posterior, so that a report can be drawn anywhere.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from sim2real.calibration import Posterior
from sim2real.calibration.replay import Replay, replays
from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, ModelError, NonFiniteError
from sim2real.plant import Plant
from sim2real.report.start_states import Told, fitted, soft_loss

# Recordings whose windows and spectra are kept, those with the largest errors first.
RECORDINGS = 12
# Windows of a recording that are kept: one half typical, the other half the worst.
WINDOWS = 4
# Samples of a window that are kept at most, and numbers that are kept of all windows together.
POINTS, NUMBERS = 160, 300_000
# Samples of a window under which there is no spectrum.
SEGMENT = 8
# Equally likely values of a standard normal variable.
NORMAL: Array = np.asarray(stats.norm.ppf((np.arange(25) + 0.5) / 25))


@dataclass(frozen=True)
class ReplayEvidence:
    """What replay.npz holds: N windows of K samples at most, F frequencies at most, the rest of either being NaN.

    Attributes:
        recordings: (R,) names of all recordings that were replayed.
        seconds: (R,) how much of each was.
        channels: (D,) joint positions.
        units: (D,) of theirs.
        owner: (N,) the recording that a window comes from.
        typical: (N,) whether its error is that of the median window; otherwise it is among the worst.
        start: (N,) on the clock of the recording [s].
        error: (N, D) root mean square of what the most probable values leave.
        offset: (N, K) time after the start [s].
        measured, mean, low, high: (N, K, D) what was measured, and mean and 90 % of what is predicted, noise included.
        spectral: (Q,) the recording that a spectrum belongs to.
        frequency: (Q, F) [Hz].
        power: (Q, F, D) density of the residuals, one-sided [unit²/Hz].
        level: (Q, D) the density that white noise of the same variance would have.
    """

    recordings: NDArray[np.str_]
    seconds: Array
    channels: NDArray[np.str_]
    units: NDArray[np.str_]
    owner: NDArray[np.int_]
    typical: NDArray[np.bool_]
    start: Array
    error: Array
    offset: Array
    measured: Array
    mean: Array
    low: Array
    high: Array
    spectral: NDArray[np.int_]
    frequency: Array
    power: Array
    level: Array

    @classmethod
    def load(cls, path: Path) -> ReplayEvidence:
        """Read replay.npz.

        Raises:
            ModelError: it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path} is damaged ({error}); identify again") from None


def replay_evidence(
    plant: Plant,
    episodes: Sequence[Episode],
    posterior: Posterior,
    channels: Sequence[str],
    window: float,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Replay recordings in windows side by side, from start states that are fitted to each.

    Of every draw the start states are fitted anew, by one Gauss-Newton step, as in the fit itself: what a start state
    can make up for does not widen the bands.

    Args:
        plant: what was identified.
        episodes: the recordings that it was identified on.
        posterior: what was found.
        channels: the observations that are joint positions.
        window: length of a window [s].
        draws: from the posterior, for the bands.
        rng: of the draws.

    Returns:
        the arrays of a `ReplayEvidence`.

    Raises:
        LogError: no window fits into the recordings.
        NonFiniteError: the simulation diverges at the most probable values, or for every draw.
    """
    own = tuple(posterior.evidence.get("of_recordings") or ())
    unknowns = Unknowns(posterior.names, own, tuple(e.name for e in episodes) if own else ())
    parts = replays(plant, episodes, unknowns, channels=channels, window=window, block=window, stride=window)
    if not parts:
        raise LogError(f"no window of {window:g} s fits the recordings {', '.join(e.name for e in episodes)}")
    found = [one for part in parts for one in _recordings(part, posterior)]
    worst = sorted(range(len(found)), key=lambda i: -float(np.median(found[i].errors())))[:RECORDINGS]
    points = min(POINTS, NUMBERS // (4 * WINDOWS * len(worst) * len(channels)))
    shown = [one for i in worst for one in _windows(found[i], i, _draws(posterior, found[i], draws, rng), points)]
    spectra = [_spectrum(found[i], i) for i in worst]
    unit = dict(episodes[0].channels.observations)
    return {
        "recordings": np.array([one.name for one in found]),
        "seconds": window * np.array([len(one.replay.windows) for one in found], float),
        "channels": np.array(list(channels)),
        "units": np.array([unit[name] for name in channels]),
        **_stacked(shown),
        **_stacked(spectra),
    }


@dataclass(frozen=True)
class _Recording:
    """The W windows of one recording, replayed with the most probable values from fitted start states.

    Attributes:
        name: of the recording.
        replay: at those start states.
        noise: (D,) standard deviation of each channel.
        told: what is left, and how it changes with the start states.
    """

    name: str
    replay: Replay
    noise: Array
    told: Told

    def errors(self) -> Array:
        """(W,) root mean square of what is left of a window, in standard deviations."""
        return np.asarray(np.sqrt(np.square(self.rms() / self.noise).mean(1)))

    def rms(self) -> Array:
        """(W, D) root mean square of what is left of each channel."""
        return np.stack([np.sqrt(np.square(r[ok]).mean(0)) for r, ok in self._windows()]) * self.noise

    def _windows(self) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
        return zip(self.told.residual, self.replay.windows.valid, strict=True)


def _recordings(part: Replay, posterior: Posterior) -> Iterator[_Recording]:
    """Fit the start states of every window, and yield its recordings one by one."""
    values = _values(posterior, part.recordings[0])
    start, told = fitted(part, np.array([values[n] for n in part.names]), posterior.noise)
    for k, name in enumerate(part.recordings):
        rows = np.flatnonzero(part.windows.recording == k)
        if len(rows):
            one = replace(part.select(rows), start=start[rows])
            yield _Recording(name, one, posterior.noise, Told(told.residual[rows], told.slopes[rows]))


def _values(posterior: Posterior, recording: str) -> dict[str, float]:
    """Return the most probable values, a recording's own ones where it has any."""
    of = posterior.evidence.get("of_recordings") or {}
    return posterior.values | {name: float(each[recording]["mean"]) for name, each in of.items()}


def _draws(posterior: Posterior, one: _Recording, draws: int, rng: np.random.Generator) -> Array:
    """(S, P) draws of the parameters of a replay; of a recording's own ones, all that is known is an interval."""
    drawn, (low, high) = posterior.sample(rng, draws), posterior.prior.bounds
    for name, each in (posterior.evidence.get("of_recordings") or {}).items():
        i, known = posterior.names.index(name), each[one.name]
        width = float(np.diff(known["interval90"])[0]) / (2 * stats.norm.ppf(0.95))
        drawn[name] = np.clip(known["mean"] + width * rng.normal(size=draws), low[i], high[i])
    return np.stack([drawn[name] for name in one.replay.names], 1)


def _windows(one: _Recording, owner: int, parameters: Array, points: int) -> Iterator[dict[str, Any]]:
    """Yield what is kept of the windows of a recording that are shown."""
    rows, typical = chosen(one.errors())
    few, rms = one.replay.select(rows), one.rms()[rows]
    gain = Told(one.told.residual[rows], one.told.slopes[rows]).gain(np.full(len(rows), 1e-9))
    paths, w = _paths(few, gain, parameters, one.noise), few.windows
    for k in range(len(rows)):
        valid = np.flatnonzero(w.valid[k])
        kept = valid[np.unique(np.linspace(0, len(valid) - 1, min(points, len(valid))).round().astype(int))]
        mean, low, high = band(paths[:, k, kept], one.noise)
        yield {
            "owner": owner,
            "typical": typical[k],
            "start": w.start_time[k],
            "error": rms[k],
            "offset": (w.offset[k, kept] * few.plant.timestep).astype(np.float32),
            "measured": w.positions[k, kept].astype(np.float32),
            "mean": mean.astype(np.float32),
            "low": low.astype(np.float32),
            "high": high.astype(np.float32),
        }


def chosen(errors: Array) -> tuple[NDArray[np.int_], NDArray[np.bool_]]:
    """Return which windows are shown, in order of time within either kind, and which of them are typical."""
    order, half = np.argsort(errors, kind="stable"), WINDOWS // 2
    if len(order) <= WINDOWS:
        usual, worst = np.split(order, [(len(order) + 1) // 2])
    else:
        first = (len(order) - half) // 2
        usual, worst = order[first : first + half], order[-half:]
    return np.concatenate([np.sort(usual), np.sort(worst)]), np.arange(len(usual) + len(worst)) < len(usual)


def _paths(few: Replay, gain: Array, parameters: Array, noise: Array) -> Array:
    """(S, W, M, D) positions that each draw (S, P) predicts; draws that diverge are left out.

    Raises:
        NonFiniteError: every draw diverges.
    """
    try:
        return _refitted(few, gain, parameters, noise)
    except NonFiniteError as error:
        found, reason = [], error
        for row in parameters:
            with contextlib.suppress(NonFiniteError):
                found.append(_refitted(few, gain, row[None], noise))
        if not found:
            raise reason from None
        return np.concatenate(found)


def _refitted(few: Replay, gain: Array, parameters: Array, noise: Array) -> Array:
    """Replay draws from start states that one Gauss-Newton step fits to each, where that makes them fit better."""
    start = np.repeat(few.start[None], len(parameters), 0)
    before = few.run(parameters, start)
    left = few.residuals(before) / noise
    after = few.run(parameters, start - np.einsum("wxm,swm->swx", gain, left.reshape(*left.shape[:2], -1)))
    better = soft_loss(few.residuals(after) / noise) < soft_loss(left)
    return np.where(better[..., None, None], after, before)


def band(paths: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Return mean and 90 % interval, (K, D) each, of paths (S, K, D) that noise (D,) is added to."""
    mixed = paths[:, None] + noise * NORMAL[:, None, None]
    low, high = np.quantile(mixed.reshape(-1, *paths.shape[1:]), [0.05, 0.95], axis=0)
    return paths.mean(0), low, high


def _spectrum(one: _Recording, owner: int) -> dict[str, Any]:
    """Return the spectrum of what is left of a recording: Welch's, its segments being the windows."""
    w, seconds = one.replay.windows, one.replay.plant.timestep
    clocks = [offset[valid] * seconds for offset, valid in zip(w.offset, w.valid, strict=True)]
    even = np.linspace(0, min(c[-1] for c in clocks), int(np.median([len(c) for c in clocks])))
    left = one.told.residual * one.noise
    rows = [r[: len(c)].T for c, r in zip(clocks, left, strict=True)]
    if len(even) < SEGMENT:
        none = np.full((1, len(one.noise)), np.nan)
        return {"spectral": owner, "frequency": none[:, 0], "power": none, "level": none[0]}
    evenly = np.array([[np.interp(even, c, x) for x in row] for c, row in zip(clocks, rows, strict=True)])
    rate = 1 / even[1]
    frequency, power = signal.welch(evenly, rate, nperseg=len(even))
    return {
        "spectral": owner,
        "frequency": frequency[1:].astype(np.float32),
        "power": np.moveaxis(power.mean(0)[:, 1:], 0, 1).astype(np.float32),
        "level": 2 * evenly.var(2).mean(0) / rate,
    }


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Stack what several rows have under each key, the shorter ones with NaN at their ends."""

    def stack(values: Sequence[Any]) -> NDArray[Any]:
        if np.ndim(values[0]) == 0 or len({np.shape(v) for v in values}) == 1:
            return np.array(values)
        most = max(len(v) for v in values)
        return np.stack(
            [np.pad(v, [(0, most - len(v)), *[(0, 0)] * (v.ndim - 1)], constant_values=np.nan) for v in values]
        )

    return {key: stack([row[key] for row in rows]) for key in rows[0]}
