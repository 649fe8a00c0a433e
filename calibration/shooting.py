"""Multiple shooting as a least-squares problem in the parameters alone, and its solution."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from sim2real.calibration.replay import Replay, columns
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError
from sim2real.plant import require_finite

# Errors beyond so many robust standard deviations count as no larger: of an unstable motion some windows are lost.
OUTLYING = 10.0
# The share of the windows' length on which starting points are told apart: long ones have more local minima.
SHORT = 0.35
# A round that takes away less than this share of the error is the last one.
SETTLED = 1e-3
# So many windows tell good starting points from bad ones; all of them only the good one is refined on.
ENOUGH = 24


@dataclass
class ShootingProblem:
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
        try:
            return self._residuals(x)
        except NonFiniteError:
            # a step into parameters with which the simulation diverges: far worse than any that does not
            if self._size == 0:
                raise
            return np.full(self._size, 1e6)

    def _residuals(self, x: Array) -> Array:
        out = []
        for part, (residual, _) in zip(self.parts, self._simulated(x), strict=True):
            require_finite(residual, "the simulated motion")
            self._weights[id(part)] = self.weights(residual)
            out.append((residual / self.noise).ravel())
        found = np.concatenate([*out, self.factor @ (x - self.center)])
        self._size = len(found)
        return found

    def __post_init__(self) -> None:
        self._weights: dict[int, Array] = {}
        self._size = 0
        self._last: tuple[Array, list[tuple[Array, Array]]] | None = None

    def forget(self) -> None:
        """Forget what follows from noise and start states that are no longer in force."""
        self._weights.clear()
        self._last = None

    def _simulated(self, x: Array) -> list[tuple[Array, Array]]:
        """Residuals and their Jacobians by the start states, per part; kept for the Jacobian that is asked for next."""
        if self._last is None or not np.array_equal(self._last[0], x):
            found = [p.with_starts(x[columns(self.names, p)], self._weights.get(id(p))) for p in self.parts]
            self._last = x.copy(), found
        return self._last[1]

    def shorten(self, share: float) -> ShootingProblem:
        """Return the problem of the first part of every window."""
        return replace(self, parts=[part.shorten(share) for part in self.parts])

    def some(self, most: int) -> ShootingProblem:
        """Return the problem of at most so many windows, spread evenly over the recordings."""
        total = sum(len(p.windows) for p in self.parts)
        if total <= most:
            return self
        share = most / total
        parts = []
        for part in self.parts:
            many = max(round(share * len(part.windows)), 1)
            parts.append(part.select(np.unique(np.linspace(0, len(part.windows) - 1, many).round().astype(int))))
        return replace(self, parts=parts)

    def projected(self, x: Array) -> tuple[list[Array], list[Array], list[Array]]:
        """Per part: standardised residuals (W, M, D), projected Jacobians (W, M, D, P), weights (W, M, D)."""
        residuals, jacobians, weights = [], [], []
        for part, (residual, by_state) in zip(self.parts, self._simulated(x), strict=True):
            where = columns(self.names, part)
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


def square_root(precision: Array) -> Array:
    """Square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(precision)
    return np.asarray(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


@dataclass(frozen=True)
class Fit:
    """What a refinement has come to.

    Attributes:
        cost: mean absolute error, far outliers cut; comparable between fits whose noise differs.
        x: (P,) parameters.
        noise: (D,) of the channels.
        starts: states at the window starts, per part.
        settled: whether the last step was too small to matter.
    """

    cost: float
    x: Array
    noise: Array
    starts: list[Array]
    settled: bool


def refine(problem: ShootingProblem, x: Array, evaluations: int) -> Fit:
    """Estimate each channel's noise at `x`, then solve for the parameters."""
    gap = 1e-6 * (problem.upper - problem.lower)
    gap = np.where(np.isfinite(gap), gap, 0.0)
    problem.forget()
    problem.noise = np.ones_like(problem.noise)
    problem.noise = np.maximum(_robust_std(problem.projected(x)[0], problem.parts), 1e-6)
    solution = optimize.least_squares(
        problem.residuals,
        np.clip(x, problem.lower + gap, problem.upper - gap),
        jac=problem.jacobian,
        bounds=(problem.lower, problem.upper),
        x_scale="jac",
        loss=problem.loss,  # type: ignore[arg-type]  # the stubs miss that a plain callable will do
        max_nfev=evaluations,
        xtol=1e-6,
        ftol=1e-6,
    )
    problem.forget()
    found = [p.with_starts(solution.x[columns(problem.names, p)])[0] for p in problem.parts]
    errors = np.abs(np.concatenate([r[p.windows.valid] for r, p in zip(found, problem.parts, strict=True)]))
    cut = OUTLYING * np.maximum(_robust_std(found, problem.parts), 1e-9)
    cost = float(np.minimum(errors, cut).mean())
    return Fit(cost, solution.x, problem.noise, [p.start for p in problem.parts], solution.status > 0)


def screen(problem: ShootingProblem, candidates: Array) -> list[int]:
    """Rank candidates (C, P) by the error from the first guess of the start states; those that diverge come last.

    Raises:
        NonFiniteError: every candidate diverges.
    """

    def cost(some: Array) -> Array:
        total = np.zeros(len(some))
        for part in problem.parts:
            start = np.repeat(part.start[None], len(some), 0)
            error = part.residuals(part.run(some[:, columns(problem.names, part)], start))
            total += np.sqrt((error**2).mean((2, 3))).sum(1)
        return total

    try:
        costs = cost(candidates)
    except NonFiniteError:
        costs = np.full(len(candidates), np.inf)
        for k in range(len(candidates)):
            with contextlib.suppress(NonFiniteError):
                costs[k] = cost(candidates[k : k + 1])[0]
        if not np.isfinite(costs).any():
            raise
    return [int(i) for i in np.argsort(costs) if np.isfinite(costs[i])]


def restore(problem: ShootingProblem, fit: Fit) -> None:
    problem.noise = fit.noise
    problem.forget()
    for part, start in zip(problem.parts, fit.starts, strict=True):
        part.start = start


def solve(
    problem: ShootingProblem,
    candidates: Array,
    alternatives: Array | None,
    *,
    starts: int,
    rounds: int,
    progress: Callable[[str], None],
) -> Fit:
    """Find the best fit that the data offer from many starting points.

    Args:
        problem: what to solve.
        candidates: (C, P) starting points; the best few are refined, and the best of those goes on.
        alternatives: (P, Q) values that a parameter is moved to where the fit says nothing of it (a torque limit above
            all commands, a dead zone of zero), for there no gradient can bring it back; None to leave it there.
        starts: how many candidates are refined.
        rounds: of refinement at most, each with the noise of every channel estimated anew.
        progress: called with a line at each step.
    """
    short, first = problem.shorten(SHORT), []
    few = short.some(ENOUGH)
    for k, row in enumerate(screen(few, candidates)[: max(starts, 1)]):
        first.append(refine(few, candidates[row], evaluations=12))
        progress(f"start {k + 1}: residual {_shown(first[-1].noise)}")
    fit = refine(short, min(first, key=lambda f: f.cost).x, evaluations=15)
    progress(f"short windows: residual {_shown(fit.noise)}")
    cost = np.inf
    for k in range(rounds):
        restore(problem, fit)
        fit = refine(problem, fit.x, evaluations=15)
        progress(f"round {k + 1}: residual {_shown(fit.noise)}")
        if alternatives is not None and k < 2:
            fit = _unstick(problem, fit, alternatives, progress)
        if fit.settled and fit.cost > (1 - SETTLED) * cost:
            break
        cost = fit.cost
    restore(problem, fit)
    return fit


def _unstick(problem: ShootingProblem, fit: Fit, alternatives: Array, progress: Callable[[str], None]) -> Fit:
    """Move every parameter that is at a bound, or that the data near the fit do not see, and keep what fits better."""
    restore(problem, fit)
    _, jacobians, weights = problem.projected(fit.x)
    seen = sum(np.einsum("wmdp,wmd->p", j**2, w) for j, w in zip(jacobians, weights, strict=True))
    width = alternatives.max(1) - alternatives.min(1)
    blind = seen * (0.1 * width) ** 2 < 1
    edge = np.minimum(fit.x - problem.lower, problem.upper - fit.x) < 1e-3 * width
    best = fit
    for p in np.flatnonzero(blind | edge):
        for value in alternatives[p]:
            restore(problem, fit)
            moved = fit.x.copy()
            moved[p] = value
            found = refine(problem, moved, evaluations=6)
            if found.cost < 0.98 * best.cost:
                best = found
                progress(f"{problem.names[p]} set free: residual {_shown(found.noise)}")
    if best is not fit:
        restore(problem, best)
        best = refine(problem, best.x, evaluations=15)
    return best


def _shown(noise: Array) -> str:
    return ", ".join(f"{v:.2g}" for v in noise)


def _robust_std(residuals: list[Array], parts: list[Replay]) -> Array:
    """(D,) scale of the residuals that ignores outliers: the median absolute deviation."""
    valid = np.concatenate([r[p.windows.valid] for r, p in zip(residuals, parts, strict=True)])
    return np.asarray(1.4826 * np.median(np.abs(valid), axis=0))


def misfit(problem: ShootingProblem, x: Array) -> float:
    """Robust misfit of the data plus the pull of the prior, per sample; comparable between fits of equal noise."""
    residual = problem.residuals(x)
    return float(problem.loss(residual**2)[0].sum() / len(residual))
