"""The spread of a fit: a block bootstrap where there are blocks enough, and a cautious normal where there are not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from sim2real.calibration.shooting import Sensitivity, ShootingProblem, bounded_step, fit_starts
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Time over which what a model leaves unexplained is taken to be correlated, where too little is recorded to see it [s].
CORRELATED = 0.1
# The largest share of what is known of a direction that a single block may be taken to know.
LEVERAGE = 0.8
# Steps that tell jumps from slopes are so many times as wide as those for the fit.
COARSE = 20.0
# A fit is at its optimum when a step would gain less than this, in units of the noise; so many steps are tried.
CLOSE, POLISH = 0.02, 3
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
    def of(cls, problem: ShootingProblem, best: Array) -> Blocks:
        """Linearise a problem at its optimum, the start states of the windows fitted along."""
        rows: list[tuple[Array, Array, float, str]] = []
        white = np.zeros((len(best), len(best)))
        for part, told in zip(problem.parts, at_scale(problem, best), strict=True):
            j, w = told.projected(), told.weight
            usual = ((w * told.residual)[part.windows.valid] ** 2).mean(0)
            white += np.einsum("wmdp,d,wmdq->pq", j, usual, j)
            for own in part.blocks():
                recording = part.recordings[part.windows.recording[own[0][0]]]
                some, slope, pull = w[own], j[own], (w * told.residual)[own]
                # the curvature of the soft-L1 loss falls off faster than its slope: w is (1 + r²)^-1/2, this is w³
                h = np.einsum("ndp,nd,ndq->pq", slope, some**3, slope)
                rows.append(
                    (h, np.einsum("ndp,nd->p", slope, pull), problem.loss(told.residual[own][None])[0], recording)
                )
        hessian, gradient, loss = (np.array([r[i] for r in rows]) for i in range(3))
        return cls(hessian, gradient, loss, tuple(r[3] for r in rows), white)

    def decrement(self, problem: ShootingProblem, best: Array) -> tuple[float, Array]:
        """Return what a further step would take away from the loss, in units of its noise, and where it would lead."""
        h = self.hessian.sum(0) + problem.factor.T @ problem.factor + np.diag(width_of(problem) ** -2.0)
        g = self.gradient.sum(0) + problem.factor.T @ (problem.factor @ (best - problem.center))
        step = bounded_step(h, g, problem.lower - best, problem.upper - best)
        return float(-(2 * g @ step + step @ h @ step)), best + step


def polish(problem: ShootingProblem, best: Array) -> tuple[Array, Blocks, Array]:
    """Take the steps that are left, with sensitivities as wide as what the data leave free.

    Returns:
        The optimum (U,), its blocks, and the step (U,) that may be left: where it was tried and even a quarter of it
        makes the fit worse, that quarter, for there the landscape has an edge.
    """
    blocks = Blocks.of(problem, best)
    for _ in range(POLISH):
        gain, ahead = blocks.decrement(problem, best)
        if gain < CLOSE:
            break
        moved = _towards(problem, best, ahead)
        if moved is None:
            return best, blocks, SHARES[-1] * (ahead - best)
        best, blocks = moved, Blocks.of(problem, moved)
    return best, blocks, blocks.decrement(problem, best)[1] - best


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


def width_of(problem: ShootingProblem) -> Array:
    """(P,) standard deviation of a uniform distribution between the bounds; without limit where there are none."""
    return np.asarray((problem.upper - problem.lower) / np.sqrt(12.0))


def at_scale(problem: ShootingProblem, best: Array) -> list[Sensitivity]:
    """Return sensitivities at the optimum, by differences as wide as the data leave the parameters free.

    The differences go along the principal axes of what is known (the sigma points of an unscented transform; Julier &
    Uhlmann 1997): where the data hardly see a parameter (a lag far below a substep, a dead zone of zero), or only see
    many of them together, a derivative says nothing of how far they may go before the data do. Where a motion jumps
    with a parameter (friction that sticks or does not), the derivative is as large as the step is small, and says
    nothing either: it is left out.
    """
    found = problem.sensitivities(best)
    try:
        for _ in range(2):
            slopes = problem.secants(best, principal_axes(problem, found))
            found = [replace(t, by_parameter=s) for t, s in zip(found, slopes, strict=True)]
        coarse = replace(problem, steps=COARSE * problem.steps).sensitivities(best)
    except NonFiniteError:  # so far away it diverges
        return problem.sensitivities(best)
    for one, other in zip(found, coarse, strict=True):
        usual = np.quantile(np.abs(other.by_parameter), 0.9, axis=(0, 1, 2))
        jumps = np.abs(one.by_parameter) > 3 * np.abs(other.by_parameter) + usual
        one.by_parameter = np.where(jumps, 0.0, one.by_parameter)
    return found


def principal_axes(problem: ShootingProblem, told: list[Sensitivity]) -> Array:
    """(P, P) directions, a row each, that are known independently, each as long as its standard deviation."""
    precision = sum(t.precision() for t in told)
    width = np.where(np.isfinite(width_of(problem)), width_of(problem), 100 * problem.steps)
    scaled = (precision + problem.factor.T @ problem.factor) * np.outer(width, width) + np.eye(len(width))
    known, axes = np.linalg.eigh(scaled)
    return np.asarray((axes / np.sqrt(known)).T * width)


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
