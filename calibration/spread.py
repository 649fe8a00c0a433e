"""The spread of a fit: a block bootstrap where there are blocks enough, and a cautious normal where there are not."""

from __future__ import annotations

import numpy as np
from scipy import optimize

from sim2real.calibration.posterior import block_labels
from sim2real.calibration.shooting import ShootingProblem
from sim2real.episodes import Array

# Time over which what a model leaves unexplained is taken to be correlated, where too little is recorded to see it [s].
CORRELATED = 0.1


def bootstrap(problem: ShootingProblem, best: Array, samples: int, rng: np.random.Generator) -> Array:
    """(S, P) one Gauss-Newton step from the optimum for each random weighting of the blocks."""
    residuals, jacobians, weights = problem.projected(best)
    hessians, gradients = [], []
    for part, r, j, w in zip(problem.parts, residuals, jacobians, weights, strict=True):
        h = np.einsum("wmdp,wmd,wmdq->wpq", j, w, j)
        g = np.einsum("wmdp,wmd->wp", j, w * r)
        for rows in block_labels(part.windows.block):
            hessians.append(h[rows].sum(0))
            gradients.append(g[rows].sum(0))
    h, g = np.array(hessians), np.array(gradients)
    blocks, size = g.shape
    prior = problem.factor.T @ problem.factor
    if blocks < 2 * size:
        return laplace(problem, best, h.sum(0), prior, samples, rng)
    total = h.sum(0) + prior
    # bounds that the optimum touches, and directions without information, must not make the system singular
    ridge = 1e-9 * np.diag(np.maximum(np.diag(total), 1e-12))
    # a block has pulled the fit towards itself: leave its own share out, or few blocks look too sure (CR3)
    leverage = np.linalg.solve(total + ridge, h).swapaxes(1, 2)
    g = np.linalg.solve((1 + 1e-6) * np.eye(size) - leverage, g[..., None])[..., 0]
    multiplier = rng.exponential(size=(samples, blocks))
    multiplier /= multiplier.mean(1, keepdims=True)
    # Student's t rather than normal, for the scatter itself is estimated from the blocks
    freedom = max(blocks - 1, 1)
    scatter = (multiplier - 1) @ g * np.sqrt(freedom / rng.chisquare(freedom, size=(samples, 1)))
    # what is known beforehand is uncertain too: without its scatter a prior that pulls would look like certainty
    scatter += rng.normal(size=(samples, size)) @ problem.factor
    shift = np.linalg.solve(np.einsum("sb,bpq->spq", multiplier, h) + prior + ridge, scatter[..., None])[..., 0]
    return into_bounds(best - shift, total + ridge, problem.lower, problem.upper)


def laplace(
    problem: ShootingProblem, best: Array, data: Array, prior: Array, samples: int, rng: np.random.Generator
) -> Array:
    """(S, P) normal draws for recordings too short to resample, residuals correlated over `CORRELATED` seconds."""
    valid = sum(int(p.windows.valid.sum()) for p in problem.parts)
    seconds = sum(float((p.windows.offset * p.windows.valid).max(1).sum()) * p.plant.timestep for p in problem.parts)
    share = min(1.0, seconds / CORRELATED / valid)
    precision = share * data + prior
    precision += 1e-9 * np.diag(np.maximum(np.diag(precision), 1e-12))
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
