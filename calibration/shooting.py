"""Multiple shooting: parameters and start states of all windows fitted together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from sim2real.calibration.replay import Replay
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Errors beyond so many robust standard deviations count as no larger: of an unstable motion some windows are lost.
OUTLYING = 10.0
# A refinement that leaves the noise that it started with, to this share of it, is the last one.
STEADY = 0.03
# A step that takes away less than these shares of the cost is followed by one with updated slopes, and by Newton's.
UPDATED, NEAR = 0.3, 1e-2
# But not where steps had to be damped by more than this: slopes say little there.
TRUSTED = 1.0
# Dampings that are tried side by side at each step, relative to the one that served last, which is no larger than this.
DAMPINGS, MOST_DAMPED = (0.1, 3.0, 100.0), 1e4
# The start state of a window is fitted until a step takes away less than this share of its cost, so many at most.
STARTED, START_STEPS = 0.1, 8


@dataclass
class Sensitivity:
    """What one part of a problem says at some parameters and start states, in standard deviations.

    Attributes:
        residual: (W, M, D).
        weight: (W, M, D) derivative of the robust loss.
        by_parameter: (W, M, D, P).
        by_state: (W, M, D, X).
    """

    residual: Array
    weight: Array
    by_parameter: Array
    by_state: Array

    def blocks(self, curved: bool = False) -> tuple[Array, Array, Array, Array, Array]:
        """Normal equations per window: Hpp (W, P, P), Hsp (W, X, P), Hss (W, X, X), gp (W, P), gs (W, X).

        Args:
            curved: with the curvature of soft L1, the cube of its weights: Newton's steps, which converge fast nearby.
                Else with the weights themselves (iteratively reweighted least squares), which converge from afar.
        """
        many, samples = len(self.residual), self.residual[0].size
        root = self.weight[..., None] ** (1.5 if curved else 0.5)
        a = (root * self.by_state).reshape(many, samples, -1)
        b = (root * self.by_parameter).reshape(many, samples, self.by_parameter.shape[-1])
        r = ((self.weight * self.residual)[..., None] / root).reshape(many, samples, 1)
        at, bt = np.swapaxes(a, 1, 2), np.swapaxes(b, 1, 2)
        return bt @ b, at @ b, at @ a, (bt @ r)[..., 0], (at @ r)[..., 0]

    def projected(self) -> Array:
        """By parameter (W, M, D, P), without what a change of the start state could explain."""
        many = len(self.residual)
        root = np.sqrt(self.weight)[..., None]
        q, _ = np.linalg.qr((root * self.by_state).reshape(many, -1, self.by_state.shape[-1]))
        b = (root * self.by_parameter).reshape(many, -1, self.by_parameter.shape[-1])
        b = b - q @ (np.swapaxes(q, 1, 2) @ b)
        return np.asarray(b.reshape(self.by_parameter.shape) / root)

    def precision(self, power: int = 1) -> Array:
        """(P, P) what is known of the parameters with start states fitted, by a power of the weights."""
        j = self.projected()
        return np.asarray(np.einsum("wmdp,wmd,wmdq->pq", j, self.weight**power, j))


@dataclass
class ShootingProblem:
    """All replays as one robust least-squares problem in the parameters and the start states of the windows.

    A step solves for both together; the start states, of which each window has its own, are eliminated window by window
    (the Schur complement of bundle adjustment; Triggs et al. 2000).

    Attributes:
        parts: the replays; each holds the present start states.
        names: of the parameters.
        lower, upper: (P,) bounds.
        steps: (P,) of the differences.
        noise: (D,) standard deviation of each channel's residuals.
        robust: residual, in standard deviations, beyond which the loss grows linearly (soft L1).
        center: (P,) of the prior.
        factor: (P, P) with factor.T @ factor the prior precision.
        axes: (P, P) half axes of what the data leave open, a row each, as far as they are known.
    """

    parts: list[Replay]
    names: tuple[str, ...]
    lower: Array
    upper: Array
    steps: Array
    noise: Array
    robust: float
    center: Array
    factor: Array
    axes: Array | None = None

    @property
    def starts(self) -> list[Array]:
        """The present start states, (W, X) a part."""
        return [part.start for part in self.parts]

    @starts.setter
    def starts(self, states: list[Array]) -> None:
        for part, start in zip(self.parts, states, strict=True):
            part.start = start

    def weights(self, residual: Array) -> Array:
        """Derivative of the soft-L1 loss at standardised residuals."""
        return np.asarray(1 / np.sqrt(1 + (residual / self.robust) ** 2))

    def loss(self, residual: Array) -> Array:
        """(C,) soft-L1 loss of standardised residuals (C, ...)."""
        scale = self.robust**2
        return np.asarray((2 * scale * (np.sqrt(1 + residual**2 / scale) - 1)).reshape(len(residual), -1).sum(1))

    def prior(self, x: Array) -> float:
        """Return what being far from the centre of the prior adds to the loss."""
        return float(((self.factor @ (x - self.center)) ** 2).sum())

    def cost(self, x: Array) -> float:
        """Return the cost of parameters (P,) from the present start states."""
        return float(self.costs(x[None], [start[None] for start in self.starts])[0])

    def costs(self, candidates: Array, starts: list[Array]) -> Array:
        """(C,) costs of candidates (C, P) from their start states, (C, W, X) a part; infinite where one diverges."""

        def some(rows: slice) -> Array:
            total = np.array([self.prior(x) for x in candidates[rows]])
            for part, start in zip(self.parts, starts, strict=True):
                positions = part.run(candidates[rows][:, part.columns], start[rows])
                total = total + self.loss(part.residuals(positions) / self.noise)
            return np.where(np.isfinite(total), total, np.inf)

        try:
            return some(slice(None))
        except NonFiniteError:
            out = np.full(len(candidates), np.inf)
            for k in range(len(candidates)):
                with contextlib.suppress(NonFiniteError):
                    out[k] = some(slice(k, k + 1))[0]
            return out

    def losses(self, part: Replay, x: Array, starts: Array) -> Array:
        """(C, W) losses of windows at parameters (P,), from start states (C, W, X); infinite where one diverges."""

        def of(some: Replay, starts: Array) -> Array:
            error = some.residuals(some.run(np.repeat(x[part.columns][None], len(starts), 0), starts)) / self.noise
            total = self.loss(error.reshape(-1, *error.shape[2:])).reshape(error.shape[:2])
            return np.where(np.isfinite(total), total, np.inf)

        try:
            return of(part, starts)
        except NonFiniteError:  # one window takes all others along: each by itself
            out = np.full(starts.shape[:2], np.inf)
            for c, w in np.ndindex(*out.shape):
                with contextlib.suppress(NonFiniteError):
                    out[c, w] = of(part.select(np.array([w])), starts[c : c + 1, w : w + 1])[0, 0]
            return out

    def sensitivities(self, x: Array) -> list[Sensitivity]:
        """Return what every part says at `x` and the present start states."""
        out = []
        signed = np.where(x + self.steps > self.upper, -self.steps, self.steps)
        for part in self.parts:
            where = part.columns
            residual, by_parameter, by_state = part.sensitivity(x[where], signed[where])
            full = np.zeros((*residual.shape, len(x)))
            full[..., where] = by_parameter
            noise = self.noise[:, None]
            residual = residual / self.noise
            out.append(Sensitivity(residual, self.weights(residual), full / noise, by_state / noise))
        return out

    def still(self, x: Array) -> list[Sensitivity]:
        """Return what every part says at `x` of the start states alone."""
        out = []
        for part in self.parts:
            residual, by_state = part.by_start(x[part.columns])
            residual = residual / self.noise
            none = np.zeros((*residual.shape, len(x)))
            out.append(Sensitivity(residual, self.weights(residual), none, by_state / self.noise[:, None]))
        return out

    def again(self, x: Array, told: list[Sensitivity]) -> list[Sensitivity]:
        """Return what every part says at `x` and the present start states, with the slopes that it had nearby."""
        residuals = [part.residuals_at(x[part.columns]) / self.noise for part in self.parts]
        return [replace(t, residual=r, weight=self.weights(r)) for t, r in zip(told, residuals, strict=True)]

    def updated(self, x: Array, told: list[Sensitivity], before: tuple[Array, list[Array]]) -> list[Sensitivity]:
        """Return what every part says at `x` and the present start states, by what it did on the way there.

        Broyden's (1965) update: the least change of the slopes, relative to their size, that explains the step.

        Args:
            x: (P,).
            told: what they said before.
            before: parameters (P,) and start states, (W, X) a part, where they said it.
        """
        out = self.again(x, told)
        for part, t, now, start in zip(self.parts, told, out, before[1], strict=True):
            slopes = np.concatenate([t.by_parameter, t.by_state], -1)
            step = np.concatenate([np.repeat((x - before[0])[None], len(start), 0), part.start - start], 1)
            along = (slopes**2).sum((1, 2)) * step
            length = np.maximum((along * step).sum(1), 1e-12)
            wrong = now.residual - t.residual - np.einsum("wmdk,wk->wmd", slopes, step)
            slopes = slopes + np.einsum("wmd,wk->wmdk", wrong, along / length[:, None])
            now.by_parameter, now.by_state = slopes[..., : len(x)], slopes[..., len(x) :]
        return out

    def along(self, x: Array, directions: Array) -> list[Sensitivity]:
        """Return what every part says at `x` and the present start states, its slopes being `secants`."""
        found = self.still(x)
        return [replace(t, by_parameter=s) for t, s in zip(found, self.secants(x, directions), strict=True)]

    def secants(self, x: Array, directions: Array) -> list[Array]:
        """Return how residuals change with the parameters, (W, M, D, P) a part, in standard deviations.

        By central differences along directions (K, P) that may be long and mix parameters. They are cut at the bounds,
        and no shorter than a step, for shorter ones drown in rounding.
        """
        directions = directions * np.maximum(1.0, 1.0 / np.max(np.abs(directions) / self.steps, 1))[:, None]
        ahead, behind = (np.clip(x + s * directions, self.lower, self.upper) for s in (1, -1))
        out = []
        for part in self.parts:
            where = part.columns
            found = part.secants(ahead[:, where], behind[:, where])
            full = np.zeros((*found.shape[:-1], len(x)))
            full[..., where] = found
            out.append(full / self.noise[:, None])
        return out

    def inherit(self, shorter: ShootingProblem) -> None:
        """Take the start states of windows from those that start there in a problem that is solved."""
        known = {
            (p.recordings[k], round(t, 6)): state
            for p in shorter.parts
            for k, t, state in zip(p.windows.recording, p.windows.start_time.tolist(), p.start, strict=True)
        }
        for part in self.parts:
            for w, (k, t) in enumerate(zip(part.windows.recording, part.windows.start_time.tolist(), strict=True)):
                part.start[w] = known.get((part.recordings[k], round(t, 6)), part.start[w])

    def shorten(self, share: float) -> ShootingProblem:
        """Return the problem of the first part of every window."""
        return replace(self, parts=[part.shorten(share) for part in self.parts])

    def some(self, most: int) -> ShootingProblem:
        """Return the problem of at most so many windows, spread evenly over the recordings."""
        total = sum(len(p.windows) for p in self.parts)
        if total <= most:
            return self
        parts = []
        for part in self.parts:
            many = max(round(most / total * len(part.windows)), 1)
            parts.append(part.select(np.unique(np.linspace(0, len(part.windows) - 1, many).round().astype(int))))
        return replace(self, parts=parts)


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
        settled: whether the last step was too small to matter, and the noise that was assumed is the one that is left.
    """

    cost: float
    x: Array
    noise: Array
    starts: list[Array]
    settled: bool


def refine(problem: ShootingProblem, x: Array, iterations: int, tolerance: float = 1e-5, afresh: bool = True) -> Fit:
    """Estimate each channel's noise at `x`, then take Levenberg-Marquardt steps of parameters and start states.

    It ends when a step takes away less than the share `tolerance` of the cost.

    Args:
        problem: what is refined; its start states and noise move along.
        x: (P,) where it begins.
        iterations: steps at most.
        tolerance: share of the cost.
        afresh: whether the start states are fitted to `x` first; else they are those of a fit at `x`.

    Raises:
        NonFiniteError: the simulation diverges at `x`.
    """
    x = np.clip(x, problem.lower, problem.upper)
    if afresh:
        problem.noise = np.ones_like(problem.noise)
        fit_starts(problem, x)
    problem.noise = np.maximum(_robust_std([p.residuals_at(x[p.columns]) for p in problem.parts], problem.parts), 1e-6)
    told, damping, gain, settled = None, 1e-3, np.inf, False
    for _ in range(iterations):
        simulated, before = told is None, (x, problem.starts)
        told = told or problem.sensitivities(x)
        x, damping, gain = _step(problem, x, told, damping, near=gain < NEAR)
        if gain < tolerance:
            settled = simulated  # updated slopes may say nothing where simulated ones would
            break
        told = problem.updated(x, told, before) if gain < UPDATED and damping < TRUSTED else None
    cost, left = mean_error(problem, x)
    steady = bool((np.abs(left / problem.noise - 1) < STEADY).all())
    return Fit(cost, x, problem.noise, problem.starts, settled and steady)


def mean_error(problem: ShootingProblem, x: Array) -> tuple[float, Array]:
    """Return the mean absolute error at `x`, far outliers cut, and the scale of the residuals of each channel (D,)."""
    found = [p.residuals_at(x[p.columns]) for p in problem.parts]
    errors = np.abs(np.concatenate([r[p.windows.valid] for r, p in zip(found, problem.parts, strict=True)]))
    left = np.maximum(_robust_std(found, problem.parts), 1e-9)
    return float(np.minimum(errors, OUTLYING * left).mean()), left


def fit_starts(problem: ShootingProblem, x: Array) -> None:
    """Fit the start states to parameters `x`, which leaves every window a problem of its own, damped by itself."""
    for whole in problem.parts:
        rows, damping, usual = np.arange(len(whole.windows)), np.full(len(whole.windows), 1e-3), 0.0
        whole.start = whole.start.copy()  # others may hold the states that it had
        for _ in range(START_STEPS):
            part = whole if len(rows) == len(whole.windows) else whole.select(rows)
            residual, by_state = part.by_start(x[part.columns])
            r = residual / problem.noise
            told = Sensitivity(r, problem.weights(r), np.zeros((*r.shape, 0)), by_state / problem.noise[:, None])
            _, _, hss, _, gs = told.blocks()
            tried = damping * np.array(DAMPINGS)[:, None]
            ahead = part.start - np.stack([_states_ahead(hss, gs[..., None], d)[..., 0] for d in tried])
            present, losses = problem.loss(r), problem.losses(part, x, ahead)
            usual = present.mean() if part is whole else usual
            best = np.argmin(losses, 0)[None]
            lowest, used = (np.take_along_axis(v, best, 0)[0] for v in (losses, tried))
            better = lowest < present
            whole.start[rows[better]] = np.take_along_axis(ahead, best[..., None], 0)[0][better]
            going = lowest < (1 - STARTED) * present
            # a step that led up is damped and tried again, where there is something to gain
            going |= ~better & (damping < MOST_DAMPED) & (present >= usual)
            rows, damping = rows[going], np.where(better, np.maximum(used, 1e-9), tried[-1])[going]
            if not len(rows):
                break


def _states_ahead(hss: Array, right: Array, damping: Array | float) -> Array:
    """(W, X, ...) solutions of the damped normal equations of start states, Hss (W, X, X), damping (W,) or one."""
    diagonal = np.einsum("wxx->wx", hss)
    extra = np.asarray(damping)[..., None] * diagonal + 1e-12 * (1 + diagonal)
    return np.linalg.solve(hss + extra[..., None] * np.eye(hss.shape[-1]), right)


def _step(
    problem: ShootingProblem, x: Array, told: list[Sensitivity], damping: float, near: bool
) -> tuple[Array, float, float]:
    """Take the best of some damped steps from `x`, the start states along, more and more damped until one gains.

    Returns:
        Where it leads, its damping, and the share of the cost that it gained, zero where none does.
    """
    normal = [t.blocks(curved=near) for t in told]
    hpp = sum(b[0].sum(0) for b in normal) + problem.factor.T @ problem.factor
    gp = sum(b[3].sum(0) for b in normal) + problem.factor.T @ (problem.factor @ (x - problem.center))
    present = sum(problem.loss(t.residual[None])[0] for t in told) + problem.prior(x)
    while damping <= MOST_DAMPED:
        candidates: list[Array] = []
        starts: list[list[Array]] = [[] for _ in problem.parts]
        tried = [damping * d for d in DAMPINGS]
        for d in tried:
            h, g, solved = hpp + d * np.diag(np.diag(hpp)), gp.copy(), []
            for _, hsp, hss, _, gs in normal:
                both = _states_ahead(hss, np.concatenate([hsp, gs[..., None]], -1), d)
                h = h - np.einsum("wxp,wxq->pq", hsp, both[..., :-1])
                g = g - np.einsum("wxp,wx->p", hsp, both[..., -1])
                solved.append(both)
            dx = bounded_step(h, g, problem.lower - x, problem.upper - x)
            candidates.append(np.clip(x + dx, problem.lower, problem.upper))
            for part, both, own in zip(problem.parts, solved, starts, strict=True):
                own.append(part.start - both[..., -1] - both[..., :-1] @ dx)
        costs = problem.costs(np.stack(candidates), [np.stack(own) for own in starts])
        best = int(np.argmin(costs))
        if costs[best] < present:
            for part, own in zip(problem.parts, starts, strict=True):
                part.start = own[best]
            return (
                candidates[best],
                float(np.clip(tried[best], 1e-9, MOST_DAMPED)),
                float((present - costs[best]) / present),
            )
        damping = tried[-1]
    return x, damping, 0.0


def bounded_step(hessian: Array, gradient: Array, low: Array, high: Array) -> Array:
    """Return the step (P,) within [low, high] that minimises the quadratic of a Hessian (P, P) and a gradient (P,)."""
    scale = 1 / np.sqrt(np.maximum(np.diag(hessian), 1e-300))
    scaled = hessian * np.outer(scale, scale) + 1e-10 * np.eye(len(scale))
    root = np.linalg.cholesky(scaled)
    target = -np.linalg.solve(root, scale * gradient)
    step = np.linalg.solve(root.T, target)
    if ((step * scale < low) | (step * scale > high)).any():
        gap = 1e-12 + 1e-9 * np.abs(high - low)  # scipy asks that the bounds differ
        solution = optimize.lsq_linear(root.T, target, bounds=((low - gap) / scale, (high + gap) / scale))
        step = solution.x
    return np.asarray(np.clip(step * scale, low, high))


def restore(problem: ShootingProblem, fit: Fit) -> None:
    """Put the problem back to where a fit left it."""
    problem.noise, problem.starts = fit.noise, fit.starts


def misfit(problem: ShootingProblem, x: Array) -> float:
    """Robust misfit of the data plus the pull of the prior, per sample; comparable between fits of equal noise."""
    samples = sum(int(p.windows.valid.sum()) * len(problem.noise) for p in problem.parts)
    return problem.cost(x) / samples


def shown(noise: Array) -> str:
    """Return noise (D,) as progress lines have it."""
    return ", ".join(f"{v:.2g}" for v in noise)


def _robust_std(residuals: list[Array], parts: list[Replay]) -> Array:
    """(D,) scale of the residuals that ignores outliers: the median absolute deviation."""
    valid = np.concatenate([r[p.windows.valid] for r, p in zip(residuals, parts, strict=True)])
    return np.asarray(1.4826 * np.median(np.abs(valid), axis=0))
