"""The spread of a fit: a block bootstrap where there are blocks enough, and a cautious normal where there are not."""

from __future__ import annotations

import numpy as np
from scipy import optimize

from sim2real.calibration.posterior import block_labels
from sim2real.calibration.shooting import Sensitivity, ShootingProblem, information
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Time over which what a model leaves unexplained is taken to be correlated, where too little is recorded to see it [s].
CORRELATED = 0.1
# The largest share of what is known of a direction that a single block may be taken to know.
LEVERAGE = 0.8
# Steps that tell jumps from slopes are at least so many times as wide as those for the fit.
COARSE = 20.0


def bootstrap(problem: ShootingProblem, best: Array, samples: int, rng: np.random.Generator) -> Array:
    """(S, P) one Gauss-Newton step from the optimum for each random weighting of the blocks."""
    hessians, gradients = [], []
    for part, told in zip(problem.parts, at_scale(problem, best), strict=True):
        j, w = told.projected(), told.weight
        # the curvature of the soft-L1 loss, which falls off faster than its slope: w is (1 + r²)^-1/2, this is w³
        h = np.einsum("wmdp,wmd,wmdq->wpq", j, w**3, j)
        g = np.einsum("wmdp,wmd->wp", j, w * told.residual)
        for rows in block_labels(part.windows.block):
            hessians.append(h[rows].sum(0))
            gradients.append(g[rows].sum(0))
    h, g = np.array(hessians), np.array(gradients)
    blocks, size = g.shape
    factor = np.concatenate([problem.factor, np.diag(1.0 / width_of(problem))])
    prior = factor.T @ factor
    if blocks < 2 * size:
        return laplace(problem, best, h.sum(0), prior, samples, rng)
    total = h.sum(0) + prior
    # a block has pulled the fit towards itself: leave its own share out, or few blocks look too sure (CR3); what one
    # block alone knows cannot be resampled, so its share is taken for no more than LEVERAGE
    root = np.linalg.cholesky(total)
    inverse = np.linalg.inv(root)
    share, basis = np.linalg.eigh(inverse @ h @ inverse.T)
    corrected = np.einsum("bqp,pr,br->bq", np.swapaxes(basis, 1, 2), inverse, g) / (1 - np.minimum(share, LEVERAGE))
    g = np.einsum("qp,bpr,br->bq", root, basis, corrected)
    multiplier = rng.exponential(size=(samples, blocks))
    multiplier /= multiplier.mean(1, keepdims=True)
    # Student's t rather than normal, for the scatter itself is estimated from the blocks
    freedom = max(blocks - 1, 1)
    scatter = (multiplier - 1) @ g * np.sqrt(freedom / rng.chisquare(freedom, size=(samples, 1)))
    # what is known beforehand is uncertain too: without its scatter a prior that pulls would look like certainty
    scatter += rng.normal(size=(samples, len(factor))) @ factor
    shift = np.linalg.solve(np.einsum("sb,bpq->spq", multiplier, h) + prior, scatter[..., None])[..., 0]
    return into_bounds(best - shift, total, problem.lower, problem.upper)


def width_of(problem: ShootingProblem) -> Array:
    """(P,) standard deviation of a uniform distribution between the bounds; without limit where there are none."""
    return np.asarray((problem.upper - problem.lower) / np.sqrt(12.0))


def at_scale(problem: ShootingProblem, best: Array) -> list[Sensitivity]:
    """Return sensitivities at the optimum, by differences as wide as the data leave each parameter free.

    Where the data hardly see a parameter (a lag far below a substep, a dead zone of zero), its derivative says nothing
    of how far it may go before they do. Where a motion jumps with a parameter (friction that sticks or does not), the
    derivative is as large as the step is small, and says nothing: it is left out.
    """
    steps, width = problem.steps, width_of(problem)
    try:
        fine = problem.sensitivities(best)
        for _ in range(2):
            wide = np.where(np.isfinite(width), 0.5 * width, 100 * steps)
            free = 1.0 / np.sqrt(np.maximum(information(fine), 1e-300))
            problem.steps = np.clip(free, steps, np.maximum(wide, steps))
            fine = problem.sensitivities(best)
        problem.steps = np.maximum(problem.steps, COARSE * steps)
        for one, coarse in zip(fine, problem.sensitivities(best), strict=True):
            usual = np.quantile(np.abs(coarse.by_parameter), 0.9, axis=(0, 1, 2))
            jumps = np.abs(one.by_parameter) > 3 * np.abs(coarse.by_parameter) + usual
            one.by_parameter = np.where(jumps, 0.0, one.by_parameter)
        return fine
    except NonFiniteError:  # so far away it diverges
        problem.steps = steps
        return problem.sensitivities(best)
    finally:
        problem.steps = steps


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
    return out
