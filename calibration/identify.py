"""Identification: a posterior over dynamics and execution parameters from recorded logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sim2real.calibration.diagnose import residual_report
from sim2real.calibration.posterior import Posterior
from sim2real.calibration.replay import columns, replays
from sim2real.calibration.shooting import ShootingProblem, misfit, solve, square_root
from sim2real.calibration.spread import bootstrap
from sim2real.episodes import Episode
from sim2real.errors import LogError, ParameterError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet

Progress = Callable[[str], None]


def identify(
    plant: Plant,
    episodes: Sequence[Episode],
    prior: ParameterSet,
    *,
    channels: Sequence[str],
    window: float = 0.5,
    stride: float = 0.5,
    block: float = 1.0,
    tries: int = 24,
    starts: int = 2,
    rounds: int = 6,
    samples: int = 400,
    robust: float = 2.0,
    rng: np.random.Generator,
    progress: Progress = lambda _: None,
) -> Posterior:
    """Fit parameters of a plant to recordings: multiple shooting, robust least squares, block bootstrap.

    `diagnose` says what the posterior cannot know.

    Logged commands are replayed through candidates of the plant over short windows whose start states are fitted along
    (multiple shooting). Recordings whose actions were measured go past the execution chain, so that its parameters are
    never fitted on them. The fit is `scipy.optimize.least_squares` with a soft-L1 loss; the spread is a Bayesian
    bootstrap (Rubin 1981) over blocks of time, one Gauss-Newton step a draw, so that it holds when residuals are
    correlated, with the small-sample correction CR3 and a Student factor (Bell & McCaffrey 2002), so that it holds for
    few blocks.

    Args:
        plant: the model, with its execution chain.
        episodes: recordings to fit; excluded stretches are left out.
        prior: distributions of factors or values; uniform ones are bounds, normal ones pull. A `Posterior` may be one.
        channels: names of the observations that are joint positions, in the order of the joints.
        window: length of a window [s].
        stride: between window starts [s].
        block: length of a bootstrap block [s].
        tries: draws from the prior that are tried before any is refined.
        starts: how many of them are refined; the best one goes on.
        rounds: further refinements at most, each with the noise of each channel estimated anew.
        samples: posterior samples to return.
        robust: residual, in standard deviations, beyond which the loss grows linearly.
        rng: generator of every draw.
        progress: called with a line at each step.

    Returns:
        The posterior over values in SI units.

    Raises:
        ParameterError: an execution parameter that no recording can inform, or a name that the plant does not have.
        LogError: no window fits into the recordings.
        NonFiniteError: the simulation diverges for every candidate.
    """
    prior = prior if isinstance(prior, Posterior) else prior.against(plant.nominal())
    names = prior.names
    parts = replays(plant, episodes, names, channels=channels, window=window, block=block, stride=stride)
    if not parts:
        raise LogError(f"no window of {window:g} s fits the recordings {', '.join(e.name for e in episodes)}")
    informed = {n for part in parts for n in part.names}
    blind = [n for n in names if n not in informed]
    if blind:
        raise ParameterError(
            f"{', '.join(blind)}: no recording has commanded actions, so the logs say nothing of the execution; "
            "take them out of the prior, or add a recording of what was asked for"
        )
    low, high = prior.bounds
    spread = np.where(np.isfinite(prior.std), prior.std, 1.0)
    precision = prior.precision()
    problem = ShootingProblem(
        parts=parts,
        names=names,
        lower=low,
        upper=high,
        steps=np.maximum(2e-3 * spread, 1e-7),
        noise=np.ones(len(channels)),
        robust=robust,
        center=prior.mean,
        factor=square_root(precision),
    )
    candidates = [prior.mean]
    if tries and not isinstance(prior, Posterior):
        candidates += list(np.stack(list(prior.sample(rng, tries).values()), 1))
    alternatives = None
    if not isinstance(prior, Posterior) and tries:
        alternatives = np.stack([p.distribution.scipy.ppf([0.15, 0.4, 0.65]) for p in prior])
    fit = solve(problem, np.stack(candidates), alternatives, starts=starts, rounds=rounds, progress=progress)
    best = fit.x
    draws = bootstrap(problem, best, samples, rng)
    left = [part.residuals_at(best[columns(names, part)]) for part in parts]
    evidence = {
        "mean_absolute_error": fit.cost,
        "windows": int(sum(len(p.windows) for p in parts)),
        "blocks": int(sum(len(np.unique(p.windows.block)) for p in parts)),
        "misfit": misfit(problem, best),
        "settled": fit.settled,
        "window": window,
        **residual_report(
            left,
            [part.windows.valid for part in parts],
            [part.windows.offset * plant.timestep for part in parts],
            [[part.recordings[k] for k in part.windows.recording] for part in parts],
            channels,
        ),
        "at_bound": [
            n for n, v, a, b in zip(names, best, low, high, strict=True) if min(v - a, b - v) < 1e-3 * (b - a)
        ],
    }
    return Posterior(_as_values(prior), best, draws, problem.noise, evidence)


def _as_values(prior: ParameterSet) -> ParameterSet:
    return ParameterSet(tuple(prior.prior)) if isinstance(prior, Posterior) else prior
