"""Identification without derivatives: CMA-ES finds the valley, unscented Kalman inversion finds its floor.

For rough landscapes (dead zones, delays, dry friction, contacts), where a derivative at a point says little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
from cmaes import CMA

from sim2real.calibration.replay import Replay
from sim2real.calibration.search import ENOUGH, SHORT, solve
from sim2real.calibration.shooting import Fit, ShootingProblem, restore
from sim2real.calibration.sigma_points import EnsembleProblem
from sim2real.calibration.unknowns import Marginals
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Generations without a new best after which the search ends, and the most there are.
PATIENCE, GENERATIONS = 10, 80
# What the whole search may not be better than, relative to its first guess: then there is nothing left to find.
EXACT = 1e-9


def fit_ensemble(
    problem: ShootingProblem,
    prior: Marginals,
    *,
    rounds: int,
    rng: np.random.Generator,
    progress: Callable[[str], None],
) -> Fit:
    """Find the best parameters without derivatives.

    Args:
        problem: what to solve.
        prior: over the unknowns; the search goes over its quantiles.
        rounds: of refinement on all windows, at most.
        rng: of the search.
        progress: called with a line at each step.
    """
    few = problem.shorten(SHORT).some(ENOUGH)
    found = _search(few, prior, rng, progress)
    fit = solve(EnsembleProblem.of(problem), found, None, starts=len(found), rounds=rounds, progress=progress)
    restore(problem, fit)
    return fit


def _search(
    problem: ShootingProblem,
    prior: Marginals,
    rng: np.random.Generator,
    progress: Callable[[str], None],
) -> Array:
    """(1, U) the best that CMA-ES (Hansen & Ostermeier 2001) finds, among quantiles of the prior."""
    size, windows = len(problem.names), sum(len(p.windows) for p in problem.parts)
    search = CMA(
        mean=np.full(size, 0.5),
        sigma=0.25,
        bounds=np.tile([1e-6, 1 - 1e-6], (size, 1)),
        seed=int(rng.integers(2**31 - 1)),
        population_size=max(16, 4 + int(3 * np.log(size))),
    )
    best, lowest, since, first = prior.quantile(np.full((1, size), 0.5)), np.inf, 0, np.inf
    for generation in range(GENERATIONS):
        asked = np.stack([search.ask() for _ in range(search.population_size)])
        candidates = prior.quantile(asked)
        costs = profile_costs(problem, candidates, prior.quantile(search.mean[None])[0])
        finite = np.isfinite(costs)
        if finite.any():
            worst = costs[finite].max()
            told = np.where(finite, costs, 2 * worst + 1)
            search.tell(list(zip(asked, told.tolist(), strict=True)))
            first = min(first, worst)
            since += 1
            if costs.min() < (1 - 1e-2) * lowest:
                since = 0
            if costs.min() < lowest:
                best, lowest = candidates[[int(np.argmin(costs))]], float(costs.min())
        if generation % 10 == 9:
            progress(f"generation {generation + 1}: mean error {lowest / windows:.3g}")
        if search.should_stop() or since >= PATIENCE or lowest < EXACT * first:
            break
    if not np.isfinite(lowest):
        raise NonFiniteError("the simulation diverges for every candidate of the search; narrow the prior")
    return best


def profile_costs(problem: ShootingProblem, candidates: Array, center: Array) -> Array:
    """(C,) sums over the windows of the errors of candidates (C, U), each with its start states fitted by one step.

    How start states change the motion is taken from `center`; a candidate that diverges is infinitely bad.
    """
    slopes = []
    try:
        for part in problem.parts:
            _, by_state = part.by_start(center[part.columns])
            slopes.append(by_state)
    except NonFiniteError:
        return np.full(len(candidates), np.inf)
    out = np.full(len(candidates), np.inf)
    try:
        each = [_errors(p, candidates, s) for p, s in zip(problem.parts, slopes, strict=True)]
        return np.asarray(np.sum(each, 0))
    except NonFiniteError:
        for k in range(len(candidates)):
            with contextlib.suppress(NonFiniteError):
                one = [_errors(p, candidates[k : k + 1], s) for p, s in zip(problem.parts, slopes, strict=True)]
                out[k] = np.sum(one)
    return out


def _errors(part: Replay, candidates: Array, by_state: Array) -> Array:
    """(C,) sums over the windows of their root mean square errors."""
    many = len(part.windows)
    start = np.repeat(part.start[None], len(candidates), 0)
    values = candidates[:, part.columns]
    residual = part.residuals(part.run(values, start)).reshape(len(candidates), many, -1)
    a = by_state.reshape(many, -1, by_state.shape[-1])
    step = np.einsum("wxm,cwm->cwx", np.linalg.pinv(a), residual)
    residual = part.residuals(part.run(values, start - step))
    return np.asarray(np.sqrt((residual**2).mean((2, 3))).sum(1))
