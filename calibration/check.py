"""Can a recipe's posteriors be trusted? Identify simulated truths drawn from the prior, and look where they fall."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.calibration.posterior import Posterior
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, NonFiniteError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet
from sim2real.run_directory import read_json, write_json
from sim2real.windows import at_offsets, joint_positions

# Identifies episodes: (plant, episodes, prior, rng) -> posterior. A function of a module, since it is sent to workers.
Identify = Callable[[Plant, Sequence[Episode], ParameterSet, np.random.Generator], Posterior]


@dataclass(frozen=True)
class Check:
    """What identifying N simulated truths has shown.

    Attributes:
        names: of the parameters.
        truth: (N, P) drawn from the prior.
        best: (N, P) what was found.
        ranks: (N, P) share of posterior samples below the truth.
        settled: (N,) whether the fit says that it has converged.
        seconds: (N,) for each.
    """

    names: tuple[str, ...]
    truth: Array
    best: Array
    ranks: Array
    settled: NDArray[np.bool_]
    seconds: Array

    def covered(self, level: float = 0.9) -> NDArray[np.bool_]:
        """(N, P) whether the truth lies within the central interval."""
        return np.abs(self.ranks - 0.5) <= level / 2

    def coverage(self, level: float = 0.9) -> tuple[float, float, float]:
        """Share of truths within their intervals over all parameters, and its own 90 % interval.

        The interval resamples truths, each with all of its parameters, for these are found together.
        """
        inside = self.covered(level).mean(1)
        draws = np.random.default_rng(0).choice(inside, (2000, len(inside))).mean(1)
        low, high = np.quantile(draws, [0.05, 0.95])
        return float(inside.mean()), float(low), float(high)

    def uniformity(self) -> dict[str, float]:
        """Return the p-value of each parameter's ranks being uniform (simulation-based calibration, Talts et al. 2018).

        Kolmogorov-Smirnov, corrected for the number of parameters (Bonferroni).
        """
        from scipy import stats

        found = {n: float(stats.kstest(self.ranks[:, i], "uniform").pvalue) for i, n in enumerate(self.names)}
        return {name: min(1.0, p * len(self.names)) for name, p in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        uniform, inside = self.uniformity(), self.covered()
        pooled = self.coverage()
        return {
            "truths": len(self.truth),
            "settled": int(self.settled.sum()),
            "coverage90": {"pooled": pooled[0], "interval": list(pooled[1:])},
            "coverage50": self.coverage(0.5)[0],
            "seconds": float(np.median(self.seconds)),
            "parameters": {
                name: {
                    "inside90": int(inside[:, i].sum()),
                    "median_error": float(np.median(np.abs(self.best[:, i] - self.truth[:, i]))),
                    "uniform_p": uniform[name],
                }
                for i, name in enumerate(self.names)
            },
        }


def simulate_episode(
    plant: Plant,
    episode: Episode,
    values: dict[str, float],
    channels: Sequence[str],
    noise: Array,
    rng: np.random.Generator,
    correlation: float = 0.0,
) -> Episode:
    """Return an episode as a plant with other parameters would have recorded it.

    Args:
        plant: what is simulated.
        episode: whose commands and clocks are used, and whose first reading it starts from, at rest.
        values: parameters of the plant.
        channels: the observations that are joint positions; the others are left as they are.
        noise: (D,) standard deviation of the readings.
        rng: of the noise.
        correlation: time over which the noise is correlated [s]; white if zero.
    """
    start = joint_positions(episode, channels)[0]
    t = episode.observed_at
    steps = int(np.ceil((t[-1] - t[0]) / plant.timestep)) + 1
    running = plant.start(1, {k: np.full(1, v) for k, v in values.items() if k in plant.nominal()})
    state = np.concatenate([start, np.zeros_like(start)])[None]
    running.reset(state)
    states = running.step(episode.commands_at(t[0] + plant.timestep * np.arange(steps))[None])
    there = at_offsets(states, state, ((t - t[0]) / plant.timestep)[None])[0, :, : len(start)]
    error = rng.normal(size=there.shape)
    if correlation > 0:
        keep = np.exp(-np.diff(t) / correlation)
        for k in range(1, len(t)):
            error[k] = keep[k - 1] * error[k - 1] + np.sqrt(1 - keep[k - 1] ** 2) * error[k]
    observations = episode.observations.copy()
    observations[:, [episode.channels.column(name) for name in channels]] = there + noise * error
    return replace(episode, observations=observations)


def check(
    plant: Plant,
    episodes: Sequence[Episode],
    prior: ParameterSet,
    identify: Identify,
    *,
    channels: Sequence[str],
    noise: Array,
    truths: int = 50,
    seed: int = 0,
    correlation: float = 0.0,
    body: Plant | None = None,
    workers: int = 1,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Check:
    """Draw truths from a prior, simulate the episodes with each, identify, and see where the truth falls.

    Args:
        plant: that is identified.
        episodes: whose commands are replayed.
        prior: the truths are draws from it.
        identify: what is checked.
        channels: the observations that are joint positions.
        noise: (D,) of the readings [rad or m].
        truths: how many.
        seed: of draws and noise.
        correlation: of the noise over time [s].
        body: the plant that is simulated, where it is not quite the one that is identified.
        workers: processes.
        folder: where every truth is kept as soon as it is identified, so that a check that was killed goes on where it
            was, and one of 50 truths goes on to 100. A folder belongs to one `identify` with one set of arguments.
        progress: called with a line for each truth.

    Raises:
        NonFiniteError: a truth cannot be simulated.
        LogError: the folder holds truths of another seed or prior, of other recordings or other noise.
    """
    values = prior.against(plant.nominal())
    asked = {
        "seed": seed,
        "prior": {p.name: str(p.distribution) for p in values},
        "recordings": [f"{e.name}: {len(e)} steps" for e in episodes],
        "noise": np.asarray(noise).tolist(),
        "correlation": correlation,
    }
    rows: dict[int, Any] = _kept(folder, truths, asked) if folder else {}
    jobs = {k: (body or plant, plant, list(episodes), values, identify, list(channels), noise, correlation, [seed, k])
            for k in range(truths) if k not in rows}  # fmt: skip

    def put(k: int, row: Any) -> None:
        rows[k] = row
        if folder:
            found = [np.asarray(v).tolist() for v in row]
            write_json(_file(folder, k), {"asked": asked, "found": found})
        error = ", ".join(f"{v:.3g}" for v in row[1] - row[0])
        progress(f"truth {len(rows)}/{truths} ({row[4]:.0f} s): off by {error}")

    if rows:
        progress(f"{len(rows)} of {truths} truths were identified before")
    if workers == 1:
        for k, job in jobs.items():
            put(k, _one(*job))
    elif jobs:
        with ProcessPoolExecutor(workers, get_context("spawn"), _single_thread) as pool:
            waiting = {pool.submit(_one, *job): k for k, job in jobs.items()}
            try:
                for done in as_completed(waiting):
                    put(waiting[done], done.result())
            finally:
                pool.shutdown(cancel_futures=True)
    return Check(values.names, *(np.array([rows[k][i] for k in range(truths)]) for i in range(5)))


def _file(folder: Path, truth: int) -> Path:
    return folder / f"truth-{truth:04d}.json"


def _kept(folder: Path, truths: int, asked: dict[str, Any]) -> dict[int, Any]:
    """Return the truths that were identified in a folder before."""
    rows = {}
    for k in range(truths):
        path = _file(folder, k)
        if path.is_file():
            kept = read_json(path)
            if kept["asked"] != asked:
                other = ", ".join(name for name in asked if kept["asked"].get(name) != asked[name])
                raise LogError(f"{path} is of another check ({other} differs); name another folder, or remove this one")
            rows[k] = kept["found"]
    return rows


def _single_thread() -> None:
    import torch

    os.environ["SIM2REAL_THREADS"] = "1"
    torch.set_num_threads(1)


def _one(
    body: Plant,
    plant: Plant,
    episodes: list[Episode],
    prior: ParameterSet,
    identify: Identify,
    channels: list[str],
    noise: Array,
    correlation: float,
    seed: list[int],
) -> tuple[Array, Array, Array, bool, float]:
    rng = np.random.default_rng(seed)
    for attempt in range(20):
        truth = {name: float(v[0]) for name, v in prior.sample(rng, 1).items()}
        try:
            recorded = [simulate_episode(body, e, truth, channels, noise, rng, correlation) for e in episodes]
            break
        except NonFiniteError:
            if attempt == 19:
                raise
    clock = time.perf_counter()
    posterior = identify(plant, recorded, prior, rng).marginal(prior.names)
    seconds = time.perf_counter() - clock
    target = np.array([truth[name] for name in prior.names])
    ranks = (posterior.samples < target).mean(0) + 0.5 * (posterior.samples == target).mean(0)
    return target, posterior.best, ranks, bool(posterior.evidence.get("settled", True)), seconds
