"""The spread of a fit: a block bootstrap where there are blocks enough, and a cautious normal where there are not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from sim2real.calibration.search import settle
from sim2real.calibration.shooting import (
    Fit,
    Sensitivity,
    ShootingProblem,
    bounded_step,
    fit_starts,
    mean_error,
    restore,
)
from sim2real.calibration.sigma_points import EnsembleProblem, at_scale, width_of
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Time over which what a model leaves unexplained is taken to be correlated, where too little is recorded to see it [s].
CORRELATED = 0.1
# The largest share of what is known of a direction that a single block may be taken to know.
LEVERAGE = 0.8
# A fit is at its optimum when a step would gain less than this, in units of the noise; so many steps are tried.
CLOSE, POLISH = 0.02, 3
# A step that gains less, in units of the noise, leaves the slopes as they are: it is about as long as the scatter.
NEARBY = 1.0
# A step that would gain more than this was not seen from a point: the ground is rough, and is gone over in wide steps.
ROUGH_GROUND = 100.0
# Shares of a step that are tried, one after the other.
SHARES = (1.0, 0.5, 0.25)
# Draws on which the shape of the error around the optimum is looked at, and how many windows.
ROUGH, LOOKED_AT = 7, 48


@dataclass(frozen=True)
class Blocks:
    """What each of B blocks of time says of U unknowns at the optimum: the normal equations of Gauss and Newton.

    Attributes:
        hessian: (B, U, U).
        gradient: (B, U).
        loss: (B,) robust loss.
        recording: (B,) what each was cut from.
        white: (U, U) variance that the sum of the gradients would have if residuals were independent of one another.
    """

    hessian: Array
    gradient: Array
    loss: Array
    recording: tuple[str, ...]
    white: Array

    @classmethod
    def of(cls, problem: ShootingProblem, best: Array, told: list[Sensitivity] | None = None) -> Blocks:
        """Linearise a problem at its optimum, the start states of the windows fitted along, or take what is told."""
        rows: list[tuple[Array, Array, float, str]] = []
        white = np.zeros((len(best), len(best)))
        for part, t in zip(problem.parts, told or at_scale(problem, best), strict=True):
            j, w = t.projected(), t.weight
            usual = ((w * t.residual)[part.windows.valid] ** 2).mean(0)
            white += np.einsum("wmdp,d,wmdq->pq", j, usual, j)
            for own in part.blocks():
                recording = part.recordings[part.windows.recording[own[0][0]]]
                some, slope, pull = w[own], j[own], (w * t.residual)[own]
                # the curvature of the soft-L1 loss falls off faster than its slope: w is (1 + r²)^-1/2, this is w³
                h = np.einsum("ndp,nd,ndq->pq", slope, some**3, slope)
                rows.append((h, np.einsum("ndp,nd->p", slope, pull), problem.loss(t.residual[own][None])[0], recording))
        hessian, gradient, loss = (np.array([r[i] for r in rows]) for i in range(3))
        return cls(hessian, gradient, loss, tuple(r[3] for r in rows), white)

    def decrement(self, problem: ShootingProblem, best: Array) -> tuple[float, Array]:
        """Return what a further step would take away from the loss, in units of its noise, and where it would lead."""
        h = self.hessian.sum(0) + problem.factor.T @ problem.factor + np.diag(width_of(problem) ** -2.0)
        g = self.gradient.sum(0) + problem.factor.T @ (problem.factor @ (best - problem.center))
        step = bounded_step(h, g, problem.lower - best, problem.upper - best)
        return float(-(2 * g @ step + step @ h @ step)), best + step


def polish(
    problem: ShootingProblem, fit: Fit, *, rounds: int, progress: Callable[[str], None]
) -> tuple[Fit, Blocks, Array]:
    """Take the steps that are left, with sensitivities as wide as what the data leave free.

    Args:
        problem: at the fit.
        fit: to be polished.
        rounds: of refinement at most, where wide sensitivities see much further down than those at a point did.
        progress: called with a line at each step.

    Returns:
        The optimum, its blocks, and the step (U,) that may be left: where it was tried and even a quarter of it
        makes the fit worse, that quarter, for there the landscape has an edge.
    """
    told = at_scale(problem, fit.x)
    blocks = Blocks.of(problem, fit.x, told)
    if blocks.decrement(problem, fit.x)[0] > ROUGH_GROUND and not isinstance(problem, EnsembleProblem):
        wide = EnsembleProblem.of(problem, problem.axes)
        fit = settle(wide, fit.x, rounds=rounds, progress=progress, afresh=False)
        restore(problem, fit)
        problem.axes = wide.axes
        told = at_scale(problem, fit.x)
        blocks = Blocks.of(problem, fit.x, told)
    best = fit.x
    for _ in range(POLISH):
        gain, ahead = blocks.decrement(problem, best)
        if gain < CLOSE:
            break
        moved = _towards(problem, best, ahead)
        if moved is None:
            return _fit_at(problem, fit, best), blocks, SHARES[-1] * (ahead - best)
        best, told = moved, at_scale(problem, moved) if gain > NEARBY else problem.again(moved, told)
        blocks = Blocks.of(problem, best, told)
    return _fit_at(problem, fit, best), blocks, blocks.decrement(problem, best)[1] - best


def _fit_at(problem: ShootingProblem, fit: Fit, x: Array) -> Fit:
    return replace(fit, x=x, cost=mean_error(problem, x)[0], starts=problem.starts)


def _towards(problem: ShootingProblem, best: Array, ahead: Array) -> Array | None:
    """Go as far towards a point as it gets better, the start states fitted along; None where it gets worse at once."""
    before, present = problem.starts, problem.cost(best)
    for share in SHARES:
        x = best + share * (ahead - best)
        with contextlib.suppress(NonFiniteError):
            fit_starts(problem, x)
            if problem.cost(x) < present:
                return x
        problem.starts = before
    return None


def bootstrap(problem: ShootingProblem, best: Array, blocks: Blocks, samples: int, rng: np.random.Generator) -> Array:
    """(S, U) one Gauss-Newton step from the optimum for each random weighting of the blocks."""
    h, g = blocks.hessian, blocks.gradient
    many, size = g.shape
    factor = np.concatenate([problem.factor, np.diag(1.0 / width_of(problem))])
    prior = factor.T @ factor
    if many < 2 * size:
        return laplace(problem, best, h.sum(0), prior, samples, rng)
    total = h.sum(0) + prior
    # a block has pulled the fit towards itself: leave its own share out, or few blocks look too sure (CR3); what one
    # block alone knows cannot be resampled, so its share is taken for no more than LEVERAGE
    root = np.linalg.cholesky(total)
    inverse = np.linalg.inv(root)
    share, basis = np.linalg.eigh(inverse @ h @ inverse.T)
    corrected = np.einsum("bqp,pr,br->bq", np.swapaxes(basis, 1, 2), inverse, g) / (1 - np.minimum(share, LEVERAGE))
    g = np.einsum("qp,bpr,br->bq", root, basis, corrected)
    multiplier = rng.exponential(size=(samples, many))
    multiplier /= multiplier.mean(1, keepdims=True)
    # what resampling sees of a few decisive moments is too little: never less than independent residuals would leave
    low = np.linalg.cholesky(blocks.white + 1e-12 * np.diag(np.diag(blocks.white)) + 1e-300 * np.eye(size))
    seen, axes = np.linalg.eigh(np.linalg.solve(low, np.linalg.solve(low, g.T @ g).T))
    unseen = low @ axes * np.sqrt(np.maximum(1 - seen, 0))
    # Student's t rather than normal, for the scatter itself is estimated from the blocks
    freedom = max(many - 1, 1)
    scatter = (multiplier - 1) @ g * np.sqrt(freedom / rng.chisquare(freedom, size=(samples, 1)))
    scatter += rng.normal(size=(samples, size)) @ unseen.T
    # what is known beforehand is uncertain too: without its scatter a prior that pulls would look like certainty
    scatter += rng.normal(size=(samples, len(factor))) @ factor
    shift = np.linalg.solve(np.einsum("sb,bpq->spq", multiplier, h) + prior, scatter[..., None])[..., 0]
    return into_bounds(best - shift, total, problem.lower, problem.upper)


def roughness(problem: ShootingProblem, best: Array, draws: Array) -> float:
    """Return the error that draws add to that of the optimum, relative to what their spread assumes; about 1 is right.

    The median of a few draws (S, U), on some of the windows. Far from 1, the landscape is not a valley on the scale of
    the intervals: every small change of a parameter leads to another local minimum.
    """
    few = problem.some(LOOKED_AT)
    fit_starts(few, best)
    told = few.sensitivities(best)
    h = sum(t.precision(3) for t in told)
    g = sum(np.einsum("wmdp,wmd->p", t.projected(), t.weight * t.residual) for t in told)
    kept, present = few.starts, few.cost(best) - few.prior(best)
    ratios = []
    for x in draws[:: max(len(draws) // ROUGH, 1)][:ROUGH]:
        try:
            fit_starts(few, x)
            more = few.cost(x) - few.prior(x) - present
        except NonFiniteError:
            more = np.inf
        step = x - best
        ratios.append((more - 2 * g @ step) / max(float(step @ h @ step), 1e-12))
        few.starts = kept
    return float(np.median(ratios))


def divergence(problem: ShootingProblem, best: Array) -> float:
    """Return how many times a small change of the start positions is magnified before a window ends, at most."""
    worst = 0.0
    for part in problem.parts:
        _, by_state = part.by_start(best[part.columns])
        worst = max(worst, float(np.abs(by_state[..., : by_state.shape[-1] // 2]).max()))
    return worst


def laplace(
    problem: ShootingProblem, best: Array, data: Array, prior: Array, samples: int, rng: np.random.Generator
) -> Array:
    """(S, P) normal draws for recordings too short to resample, residuals correlated over `CORRELATED` seconds."""
    valid = sum(int(p.windows.valid.sum()) for p in problem.parts)
    seconds = sum(float((p.windows.offset * p.windows.valid).max(1).sum()) * p.plant.timestep for p in problem.parts)
    share = min(1.0, seconds / CORRELATED / valid)
    precision = share * data + prior
    precision += 1e-12 * np.diag(np.maximum(np.diag(precision), 1e-12))
    root = np.linalg.cholesky(precision)
    draws = best + np.linalg.solve(root.T, rng.normal(size=(len(best), samples))).T
    return into_bounds(draws, precision, problem.lower, problem.upper)


def into_bounds(draws: Array, precision: Array, lower: Array, upper: Array) -> Array:
    """Move draws (S, P) that left the bounds to the most probable point within, the other parameters giving way.

    Clipping one parameter alone would break its correlation with the others (a delay against a lag).
    """
    root = np.linalg.cholesky(precision).T
    scale = np.sqrt(np.diag(precision))
    out = draws.copy()
    for s in np.flatnonzero(((draws < lower) | (draws > upper)).any(1)):
        solution = optimize.lsq_linear(root / scale, root @ draws[s], bounds=(lower * scale, upper * scale))
        out[s] = np.clip(solution.x / scale, lower, upper)
    # the solver stops short of a bound by next to nothing
    hair = np.where(np.isfinite(upper - lower), 1e-6 * (upper - lower), 0.0)
    out = np.where(out - lower < hair, lower, out)
    return np.asarray(np.where(upper - out < hair, upper, out))
