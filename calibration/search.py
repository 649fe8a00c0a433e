"""The search for the best fit: from many starting points, in few and short windows first, until nothing changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim2real.calibration.shooting import Fit, Sensitivity, ShootingProblem, refine, restore, shown
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# The share of the windows' length on which starting points are told apart: long ones have more local minima.
SHORT = 0.35
# A round that takes away less than this share of the error is the last one.
SETTLED = 1e-3
# So many windows tell good starting points from bad ones; all of them only the good one is refined on.
ENOUGH = 24
# Two optima differ where a parameter does by this share of its scatter; this much more error is as good.
ANOTHER, AS_GOOD = 0.2, 1.05


def screen(problem: ShootingProblem, candidates: Array) -> list[int]:
    """Rank candidates (C, P) by the error from the first guess of the start states; those that diverge come last.

    Raises:
        NonFiniteError: every candidate diverges.
    """

    def cost(some: Array) -> Array:
        total = np.zeros(len(some))
        for part in problem.parts:
            start = np.repeat(part.start[None], len(some), 0)
            error = part.residuals(part.run(some[:, part.columns], start))
            total += np.sqrt((error**2).mean((2, 3))).sum(1)
        return total

    try:
        costs = cost(candidates)
    except NonFiniteError as error:
        costs, reason = np.full(len(candidates), np.inf), error
        for k in range(len(candidates)):
            with contextlib.suppress(NonFiniteError):
                costs[k] = cost(candidates[k : k + 1])[0]
        if not np.isfinite(costs).any():
            raise reason from None
    return [int(i) for i in np.argsort(costs) if np.isfinite(costs[i])]


def refine_best(problem: ShootingProblem, candidates: Array, starts: int, progress: Callable[[str], None]) -> list[Fit]:
    """Refine the most promising of some candidates (C, U), each from the first guess of the start states."""
    out = []
    guess = problem.starts
    for k, row in enumerate(screen(problem, candidates)[: max(starts, 1)]):
        problem.starts = guess
        with contextlib.suppress(NonFiniteError):
            out.append(refine(problem, candidates[row], iterations=12, tolerance=1e-3))
            progress(f"start {k + 1}: residual {shown(out[-1].noise)}")
    return out


def other_optima(
    problem: ShootingProblem, fit: Fit, candidates: Array, starts: int, progress: Callable[[str], None]
) -> list[Fit]:
    """Find other optima that explain the data as well as a fit does, from other candidates (C, U)."""
    out: list[Fit] = []
    width = np.maximum(np.abs(np.subtract(*np.quantile(candidates, [0.75, 0.25], axis=0))), 10 * problem.steps)
    for first in refine_best(problem.shorten(SHORT).some(ENOUGH), candidates, starts, progress):
        if any((np.abs(first.x - known.x) < ANOTHER * width).all() for known in (fit, *out)):
            continue
        with contextlib.suppress(NonFiniteError):
            found = refine(problem, first.x, iterations=20)
            if found.cost < AS_GOOD * fit.cost and all(
                (np.abs(found.x - known.x) > ANOTHER * width).any() for known in (fit, *out)
            ):
                out.append(found)
    restore(problem, fit)
    return out


def solve(
    problem: ShootingProblem,
    candidates: Array,
    alternatives: Array | None,
    *,
    starts: int,
    rounds: int,
    progress: Callable[[str], None],
) -> Fit:
    """Find the best fit that the data offer from many starting points: few and short windows first, then all.

    Args:
        problem: what to solve.
        candidates: (C, P) starting points; the best few are refined, and the best of those goes on.
        alternatives: (P, Q) values that a parameter is moved to where the fit says nothing of it (a torque limit above
            all commands, a dead zone of zero), for there no gradient can bring it back; None to leave it there.
        starts: how many candidates are refined.
        rounds: of refinement at most, each with the noise of every channel estimated anew.
        progress: called with a line at each step.
    """
    short = problem.shorten(SHORT)
    first = refine_best(short.some(ENOUGH), candidates, starts, progress)
    x = min(first, key=lambda f: f.cost).x if first else candidates[0]
    fit = refine(short, x, iterations=12, tolerance=1e-3)
    progress(f"short windows: residual {shown(fit.noise)}")
    restore(problem, fit)
    return settle(problem, fit.x, alternatives, rounds=rounds, progress=progress)


def settle(
    problem: ShootingProblem,
    x: Array,
    alternatives: Array | None = None,
    *,
    rounds: int,
    progress: Callable[[str], None],
    afresh: bool = True,
) -> Fit:
    """Refine from `x` and the present start states until a round of it changes nothing; arguments as in `solve`."""
    cost = np.inf
    for k in range(rounds):
        fit = refine(problem, x, iterations=12, afresh=afresh and k == 0)
        progress(f"round {k + 1}: residual {shown(fit.noise)}, mean error {fit.cost:.3g}")
        if alternatives is not None and k < 2:
            stuck, fit = fit, _unstick(problem, fit, alternatives, progress)
            alternatives = None if fit is stuck else alternatives
        restore(problem, fit)
        x = fit.x
        if fit.settled or fit.cost > (1 - SETTLED) * cost:
            return replace(fit, settled=True)
        cost = fit.cost
    return fit


def _unstick(problem: ShootingProblem, fit: Fit, alternatives: Array, progress: Callable[[str], None]) -> Fit:
    """Move every parameter that is at a bound, or that the data near the fit do not see, and keep what fits better."""
    restore(problem, fit)
    few = problem.some(ENOUGH)
    guess = few.starts
    seen = information(few.sensitivities(fit.x))
    width = alternatives.max(1) - alternatives.min(1)
    blind = seen * (0.1 * width) ** 2 < 1
    edge = np.minimum(fit.x - problem.lower, problem.upper - fit.x) < 1e-3 * width
    stuck = np.flatnonzero(blind | edge)
    if not len(stuck):
        return fit
    best, present = fit.x, refine(few, fit.x, iterations=6, tolerance=1e-3).cost
    for p in stuck:
        for value in alternatives[p]:
            moved = fit.x.copy()
            moved[p] = value
            few.starts = guess
            with contextlib.suppress(NonFiniteError):
                found = refine(few, moved, iterations=6, tolerance=1e-3)
                if found.cost < 0.98 * present:
                    best, present = found.x, found.cost
                    progress(f"{problem.names[p]} set free: residual {shown(found.noise)}")
    restore(problem, fit)
    if best is fit.x:
        return fit
    other = refine(problem, best, iterations=12)
    return other if other.cost < fit.cost else fit


def information(told: list[Sensitivity]) -> Array:
    """(P,) what the data say of each parameter alone, the start states fitted: 1 / variance."""
    total: Array = np.sum([np.einsum("wmdp,wmd->p", t.projected() ** 2, t.weight) for t in told], 0)
    return total
