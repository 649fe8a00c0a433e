"""Identification: a posterior over dynamics and execution parameters from recorded logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from sim2real.calibration.posterior import Posterior, block_labels
from sim2real.calibration.replay import Replay, columns, replays
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, ParameterError
from sim2real.plant import Plant, require_finite
from sim2real.randomization import ParameterSet

Progress = Callable[[str], None]
# Time over which what a model leaves unexplained is taken to be correlated, where too little is recorded to see it [s].
CORRELATED = 0.1


@dataclass
class _Problem:
    """Residuals and Jacobians of all replays as one least-squares problem in the parameters alone.

    The start state of every window is eliminated: at each evaluation it takes a Gauss-Newton step, and the Jacobian is
    projected onto what no start state can explain (variable projection; Golub & Pereyra 2003, Kaufman 1975).
    """

    parts: list[Replay]
    names: tuple[str, ...]
    lower: Array
    upper: Array
    steps: Array
    noise: Array
    robust: float
    center: Array
    factor: Array  # (P, P) with factor.T @ factor the prior precision

    def weights(self, residual: Array) -> Array:
        """Derivative of the soft-L1 loss at standardised residuals."""
        return np.asarray(1 / np.sqrt(1 + (residual / self.noise / self.robust) ** 2))

    def residuals(self, x: Array) -> Array:
        out = []
        for part in self.parts:
            residual, _ = part.with_starts(x[columns(self.names, part)], self._weights.get(id(part)))
            require_finite(residual, "the simulated motion")
            self._weights[id(part)] = self.weights(residual)
            out.append((residual / self.noise).ravel())
        return np.concatenate([*out, self.factor @ (x - self.center)])

    def __post_init__(self) -> None:
        self._weights: dict[int, Array] = {}

    def forget_weights(self) -> None:
        self._weights.clear()

    def projected(self, x: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """Per part: standardised residuals (W, M, D), projected Jacobians (W, M, D, P), weights (W, M, D)."""
        residuals, jacobians, weights = [], [], []
        for part in self.parts:
            where = columns(self.names, part)
            residual, by_state = part.with_starts(x[where], self._weights.get(id(part)))
            weight = self.weights(residual)
            steps = np.where(x + self.steps > self.upper, -self.steps, self.steps)[where]
            by_parameter = part.jacobian(x[where], steps, residual)
            root = np.sqrt(weight)[..., None]
            many = residual.shape[0]
            a = (root * by_state).reshape(many, -1, by_state.shape[-1])
            b = (root * by_parameter).reshape(many, -1, len(where))
            q, _ = np.linalg.qr(a)
            b = b - q @ (np.swapaxes(q, 1, 2) @ b)
            full = np.zeros((*residual.shape, len(x)))
            full[..., where] = b.reshape(*residual.shape, len(where)) / root
            residuals.append(residual / self.noise)
            jacobians.append(full / self.noise[:, None])
            weights.append(weight)
        return residuals, jacobians, weights

    def jacobian(self, x: Array) -> Array:
        _, jacobians, _ = self.projected(x)
        return np.concatenate([*(j.reshape(-1, len(x)) for j in jacobians), self.factor])

    def loss(self, z: Array) -> Array:
        """Soft-L1 on the data, squares on the prior: rho, rho', rho'' of squared residuals, as scipy asks."""
        prior = len(self.factor)
        scale = self.robust**2
        t = 1 + z / scale
        rho = np.stack([2 * scale * (np.sqrt(t) - 1), t**-0.5, -0.5 / scale * t**-1.5])
        rho[:, len(z) - prior :] = np.stack([z[-prior:], np.ones(prior), np.zeros(prior)]) if prior else 0
        return rho


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
    rounds: int = 2,
    samples: int = 400,
    robust: float = 2.0,
    rng: np.random.Generator,
    progress: Progress = lambda _: None,
) -> Posterior:
    """Fit parameters of a plant to recordings: multiple shooting, robust least squares, block bootstrap.

    Logged commands are replayed through candidates of the plant over short windows whose start states are fitted along
    (multiple shooting). Recordings whose actions were measured go past the execution chain, so that its parameters are
    never fitted on them. The fit is `scipy.optimize.least_squares` with a soft-L1 loss; the spread is a Bayesian bootstrap
    (Rubin 1981) over blocks of time, one Gauss-Newton step a draw, so that it holds when residuals are correlated, with
    the small-sample correction CR3 and a Student factor (Bell & McCaffrey 2002), so that it holds for few blocks.

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
        rounds: further refinements, each with the noise of each channel estimated anew.
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
    problem = _Problem(
        parts=parts,
        names=names,
        lower=low,
        upper=high,
        steps=np.maximum(2e-3 * spread, 1e-7),
        noise=np.ones(len(channels)),
        robust=robust,
        center=prior.mean,
        factor=np.linalg.cholesky(precision).T if precision.any() and np.all(np.diag(precision) > 0) else _root(precision),
    )
    candidates = [prior.mean]
    if tries and not isinstance(prior, Posterior):
        candidates += list(np.stack(list(prior.sample(rng, tries).values()), 1))
    cost, order = _screen(problem, np.stack(candidates))
    progress(f"tried {len(candidates)} draws from the prior")
    first = []
    for k, row in enumerate(order[: max(starts, 1)]):
        first.append(_refine(problem, candidates[row], evaluations=8))
        progress(f"start {k + 1}: residual {_shown(first[-1].noise)}")
    fit = min(first, key=lambda f: f.cost)
    for k in range(rounds):
        _restore(problem, fit)
        fit = _refine(problem, fit.x, evaluations=15)
        progress(f"round {k + 1}: residual {_shown(fit.noise)}")
    _restore(problem, fit)
    best = fit.x
    draws = _bootstrap(problem, best, samples, rng)
    evidence = {
        "mean_absolute_error": fit.cost,
        "windows": int(sum(len(p.windows) for p in parts)),
        "blocks": int(sum(len(np.unique(p.windows.block)) for p in parts)),
        "loss": _loss(problem, best),
        "at_bound": [n for n, v, a, b in zip(names, best, low, high, strict=True) if min(v - a, b - v) < 1e-3 * (b - a)],
    }
    return Posterior(_as_values(prior), best, draws, problem.noise, evidence)


def _loss(problem: _Problem, x: Array) -> float:
    """Robust misfit of the data plus the pull of the prior, per sample; comparable between fits of equal noise."""
    residual = problem.residuals(x)
    return float(problem.loss(residual**2)[0].sum() / len(residual))


def _as_values(prior: ParameterSet) -> ParameterSet:
    return ParameterSet(tuple(prior.prior)) if isinstance(prior, Posterior) else prior


def _root(precision: Array) -> Array:
    """Square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(precision)
    return np.asarray(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


def _screen(problem: _Problem, candidates: Array) -> tuple[Array, list[int]]:
    """Rank candidates by the median squared error from the first guess of the start states."""
    cost = np.zeros(len(candidates))
    for part in problem.parts:
        where = columns(problem.names, part)
        start = np.repeat(part.start[None], len(candidates), 0)
        error = part.residuals(part.run(candidates[:, where], start))
        cost += np.sqrt((error**2).mean((2, 3))).sum(1)
    return cost, [int(i) for i in np.argsort(cost)]


@dataclass(frozen=True)
class _Fit:
    cost: float  # mean absolute error, comparable between fits whose noise differs
    x: Array
    noise: Array
    starts: list[Array]


def _refine(problem: _Problem, x: Array, evaluations: int) -> _Fit:
    """Estimate each channel's noise at `x`, then solve for the parameters."""
    gap = 1e-6 * (problem.upper - problem.lower)
    gap = np.where(np.isfinite(gap), gap, 0.0)
    problem.forget_weights()
    problem.noise = np.ones_like(problem.noise)
    problem.noise = np.maximum(_robust_std(problem.projected(x)[0], problem.parts), 1e-6)
    solution = optimize.least_squares(
        problem.residuals,
        np.clip(x, problem.lower + gap, problem.upper - gap),
        jac=problem.jacobian,
        bounds=(problem.lower, problem.upper),
        x_scale="jac",
        loss=problem.loss,
        max_nfev=evaluations,
        xtol=1e-6,
        ftol=1e-6,
    )
    errors = [p.with_starts(solution.x[columns(problem.names, p)])[0][p.windows.valid] for p in problem.parts]
    cost = float(np.abs(np.concatenate(errors)).mean())
    return _Fit(cost, solution.x, problem.noise, [p.start for p in problem.parts])


def _restore(problem: _Problem, fit: _Fit) -> None:
    problem.noise = fit.noise
    problem.forget_weights()
    for part, start in zip(problem.parts, fit.starts, strict=True):
        part.start = start


def _shown(noise: Array) -> str:
    return ", ".join(f"{v:.2g}" for v in noise)


def _robust_std(residuals: list[Array], parts: list[Replay]) -> Array:
    """(D,) scale of the residuals that ignores outliers: the median absolute deviation."""
    valid = np.concatenate([r[p.windows.valid] for r, p in zip(residuals, parts, strict=True)])
    return np.asarray(1.4826 * np.median(np.abs(valid), axis=0))


def _bootstrap(problem: _Problem, best: Array, samples: int, rng: np.random.Generator) -> Array:
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
        return _laplace(problem, best, h.sum(0), prior, samples, rng)
    total = h.sum(0) + prior
    # bounds that the optimum touches, and directions without information, must not make the system singular
    ridge = 1e-9 * np.diag(np.maximum(np.diag(total), 1e-12))
    # a block has pulled the fit towards itself: leave its own share out, or few blocks look too sure (CR3)
    leverage = np.linalg.solve(total + ridge, h).swapaxes(1, 2)
    g = np.linalg.solve((1 + 1e-6) * np.eye(size) - leverage, g[..., None])[..., 0]
    multiplier = rng.exponential(size=(samples, blocks))
    multiplier /= multiplier.mean(1, keepdims=True)
    shift = np.linalg.solve(np.einsum("sb,bpq->spq", multiplier, h) + prior + ridge, ((multiplier - 1) @ g)[..., None])
    # Student's t rather than normal, for the scatter itself is estimated from the blocks
    freedom = max(blocks - 1, 1)
    shift = shift[..., 0] * np.sqrt(freedom / rng.chisquare(freedom, size=(samples, 1)))
    return _into_bounds(best - shift, total + ridge, problem.lower, problem.upper)


def _laplace(problem: _Problem, best: Array, data: Array, prior: Array, samples: int, rng: np.random.Generator) -> Array:
    """(S, P) normal draws for recordings too short to resample, residuals being correlated over `CORRELATED` seconds."""
    valid = sum(int(p.windows.valid.sum()) for p in problem.parts)
    seconds = sum(
        float((p.windows.offset * p.windows.valid).max(1).sum()) * p.plant.timestep for p in problem.parts
    )
    share = min(1.0, seconds / CORRELATED / valid)
    precision = share * data + prior
    precision += 1e-9 * np.diag(np.maximum(np.diag(precision), 1e-12))
    root = np.linalg.cholesky(precision)
    draws = best + np.linalg.solve(root.T, rng.normal(size=(len(best), samples))).T
    return _into_bounds(draws, precision, problem.lower, problem.upper)


def _into_bounds(draws: Array, precision: Array, lower: Array, upper: Array) -> Array:
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
