"""Neural posterior estimation: simulate windows with many parameters, learn the posterior, narrow down, again.

For posteriors that no normal distribution describes: several peaks, curved valleys, a parameter pressed to its bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim2real.calibration.shooting import Fit, ShootingProblem, fit_starts, refine, restore
from sim2real.calibration.sigma_points import at_scale, principal_axes, width_of
from sim2real.calibration.unknowns import Marginals
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError, require

# Simulations a round and rounds at most; a round that shrinks no axis below this share of before is the last one.
SIMULATIONS, ROUNDS, SHRUNK = 600, 6, 0.6
# How many standard errors of a least-squares fit the first region reaches.
REACH = 5.0
# A region is too small where more than this share of the draws lies this close to its edge.
REACHED, EDGE = 0.05, 0.95
# Simulations that are run side by side.
BATCH = 50
# How far beyond its outermost draw the region reaches in which the next round simulates.
MARGIN = 1.25
# Of the regression, relative to the variance of its inputs.
RIDGE = 1e-4
# In so many parts simulations are split, each predicted from the others.
FOLDS = 10
# Summaries so many times as large as usual count as no larger.
TAIL = 5.0
# Draws that a region is made of.
OUTLINE = 2000


@dataclass(frozen=True)
class Region:
    """A box with axes of its own, in which a round draws its parameters.

    Attributes:
        center: (U,).
        axes: (U, U) half axes, a row each.
    """

    center: Array
    axes: Array

    @classmethod
    def around(cls, draws: Array, scale: Array) -> Region:
        """Return a box around draws (S, U), along their principal axes in units of `scale` (U,)."""
        center = np.median(draws, 0)
        z = (draws - center) / scale
        _, basis = np.linalg.eigh(np.atleast_2d(np.cov(z.T)) + 1e-18 * np.eye(z.shape[1]))
        reach = MARGIN * np.abs(z @ basis).max(0) + 1e-12
        return cls(center, (basis * reach).T * scale)

    @property
    def size(self) -> float:
        """Volume, in units of no matter what."""
        return float(np.abs(np.linalg.det(self.axes)))

    def within(self, x: Array) -> Array:
        """Return coordinates (S, U) of points (S, U); inside of the box they lie in [-1, 1]."""
        return np.asarray((x - self.center) @ np.linalg.inv(self.axes))


class Summaries:
    """What a posterior is learned from: how far a Gauss-Newton step would move each of some references.

    These are sufficient near a reference (score compression; Alsing & Wandelt 2018). Residuals of the recordings, whole
    windows of them with a random sign, stand for what simulations lack: noise as wide, as correlated and as
    heavy-tailed as it is.

    Args:
        problem: what is simulated; its start states are fitted to each reference.
        references: (R, U).
        pilot: (C, U) parameters that show how far motions will be from those of the references.
    """

    def __init__(self, problem: ShootingProblem, references: Array, pilot: Array) -> None:
        self.problem, self.references, self.knee = problem, references, problem.robust
        self._starts, self._maps, self._residuals, self._positions = [], [], [], []
        left = []
        for x in references:
            fit_starts(problem, x)
            self._starts.append(problem.starts)
            problem.axes = None  # what is open around one optimum is not what is open around another
            told = at_scale(problem, x)
            h = sum(t.precision() for t in told)
            inverse = np.linalg.inv(h + np.diag(width_of(problem) ** -2.0) + problem.factor.T @ problem.factor)
            self._maps.append([t.projected() @ inverse for t in told])
            left.append([t.residual for t in told])
            self._residuals.append([t.residual * _unfitted(t.by_state) for t in told])
            self._positions.append([p.run(x[None, p.columns], p.start[None])[0] for p in problem.parts])
        self.knee = self._knee(pilot)
        self.observed = np.concatenate(
            [self._step(k, [-r[None] for r in residuals])[0] for k, residuals in enumerate(left)]
        )

    def _knee(self, pilot: Array) -> float:
        """Return the residual beyond which steps count it less: hardly any of the simulated ones, only outliers."""
        far = []
        for part, start, positions in zip(self.problem.parts, self._starts[0], self._positions[0], strict=True):
            with contextlib.suppress(NonFiniteError):
                made = part.run(pilot[:, part.columns], np.repeat(start[None], len(pilot), 0))
                far.append(2 * np.quantile(np.abs((made - positions) / self.problem.noise), 0.99))
        return max(self.problem.robust, *far) if far else self.problem.robust

    def _step(self, reference: int, residuals: list[Array]) -> Array:
        """(C, U) steps from a reference for standardised residuals (C, W, M, D) a part, measured minus predicted."""
        steps = 0.0
        for r, towards in zip(residuals, self._maps[reference], strict=True):
            steps = steps + np.einsum("cwmd,wmdp->cp", r / np.sqrt(1 + (r / self.knee) ** 2), towards)
        return np.asarray(steps)

    def simulate(self, x: Array, rng: np.random.Generator) -> Array:
        """(C, R U) summaries of what parameters (C, U) would have recorded; not a number where one diverges."""
        try:
            return self._simulate(x, rng)
        except NonFiniteError:
            out = np.full((len(x), self.references.size), np.nan)
            for k in range(len(x)):
                with contextlib.suppress(NonFiniteError):
                    out[k] = self._simulate(x[k : k + 1], rng)[0]
            return out

    def _simulate(self, x: Array, rng: np.random.Generator) -> Array:
        first = self._starts[0]
        made, noise = [], []
        for part, start, residual in zip(self.problem.parts, first, self._residuals[0], strict=True):
            made.append(part.run(x[:, part.columns], np.repeat(start[None], len(x), 0)))
            shape = (len(x), len(residual), 1, 1)
            noise.append(rng.choice([-1.0, 1.0], shape) * residual[rng.integers(len(residual), size=shape[:2])])
        found = []
        for k, positions in enumerate(self._positions):
            residuals = [
                np.where(part.windows.valid[..., None], (m - p) / self.problem.noise + e, 0.0)
                for part, m, p, e in zip(self.problem.parts, made, positions, noise, strict=True)
            ]
            found.append(self._step(k, residuals))
        return np.concatenate(found, 1)


def fit_npe(
    problem: ShootingProblem,
    prior: Marginals,
    optima: list[Fit],
    *,
    samples: int,
    rng: np.random.Generator,
    progress: Callable[[str], None],
) -> tuple[Fit, Array]:
    """Return where the middle of a posterior is, and samples (S, U) of it.

    Truncated sequential neural posterior estimation (Deistler et al. 2022) with `sbi`: the first round draws from the
    prior wherever the optima of a least-squares fit leave it any chance, the later ones where the round before has seen
    anything; a round whose draws reach the edge of its region makes it larger.

    Args:
        problem: what to solve.
        prior: over the unknowns.
        optima: of a least-squares fit, the best first; there is more than one where the posterior has several peaks.
        samples: to return.
        rng: of every draw.
        progress: called with a line a round.

    Raises:
        MissingExtraError: sbi is not installed.
        NonFiniteError: most simulations diverge.
    """
    require("sbi", "sbi")
    restore(problem, optima[0])
    scale = np.where(np.isfinite(width_of(problem)), width_of(problem), 100 * problem.steps)
    references = np.stack([f.x for f in optima])
    region = _first_region(problem, references, scale)
    settled = False
    for k in range(ROUNDS):
        x = _inside(region, SIMULATIONS, problem, prior, rng)
        summaries = Summaries(problem, references, x[:BATCH])
        made = np.concatenate([summaries.simulate(x[i : i + BATCH], rng) for i in range(0, len(x), BATCH)])
        whole = np.isfinite(made).all(1)
        if whole.sum() < 0.2 * len(x):
            raise NonFiniteError(
                f"{len(x) - whole.sum()} of {len(x)} simulations diverge within the prior; narrow it, or take a "
                "shorter timestep"
            )
        learned = Learned.on(region.within(x[whole]), made[whole], int(rng.integers(2**31 - 1)))
        draws = _draw(learned, summaries.observed, region, problem, rng)
        progress(f"round {k + 1}: spread {', '.join(f'{v:.2g}' for v in draws.std(0) / scale)} of the prior's")
        if (np.abs(region.within(draws)) > EDGE).any(1).mean() > REACHED:
            region = replace(region, axes=2 * region.axes)
            continue
        before, region = region, Region.around(draws, scale)
        settled = region.size > SHRUNK ** len(scale) * before.size
        if settled:
            break
    fit = refine(problem, np.median(draws, 0), iterations=0)
    return replace(fit, settled=settled), draws[rng.permutation(len(draws))[:samples]]


def _first_region(problem: ShootingProblem, references: Array, scale: Array) -> Region:
    """Return a box that reaches REACH standard errors beyond every reference (R, U)."""
    points = []
    for x in references:
        fit_starts(problem, x)
        axes = principal_axes(problem, problem.sensitivities(x))
        points += [x + REACH / MARGIN * axes, x - REACH / MARGIN * axes]
    return Region.around(np.concatenate(points), scale)


def _unfitted(by_state: Array) -> float:
    """Return by how much residuals are too small because every window (W, M, D, X) had its start state fitted."""
    readings, states = by_state.shape[1] * by_state.shape[2], by_state.shape[3]
    return float(np.sqrt(readings / max(readings - states, 1)))


def _inside(
    region: Region,
    many: int,
    problem: ShootingProblem,
    prior: Marginals,
    rng: np.random.Generator,
) -> Array:
    """(C, U) draws from the prior within a region."""
    out: list[Array] = []
    for _ in range(200):
        x = region.center + rng.uniform(-1, 1, (4 * many, len(region.center))) @ region.axes
        x = x[((x >= problem.lower) & (x <= problem.upper)).all(1)]
        if len(x):
            density = prior.log_prob(x)
            out.append(x[np.log(rng.uniform(size=len(x))) < density - density.max()])
        if sum(map(len, out)) >= many:
            break
    found = np.concatenate(out)
    return found[rng.integers(len(found), size=many)] if len(found) < many else found[:many]


@dataclass(frozen=True)
class Learned:
    """A posterior that was learned: around what regression predicts, a flow of what it leaves.

    Attributes:
        scale: (S,) of the summaries.
        weights: (F, U) of the regression.
        flow: density of the remainder, given summaries and prediction.
    """

    scale: Array
    weights: Array
    flow: Any

    @classmethod
    def on(cls, theta: Array, x: Array, seed: int) -> Learned:
        """Train on parameters (N, U) and summaries (N, S).

        Quadratic ridge regression (semi-automatic summaries; Fearnhead & Prangle 2012), then a masked autoregressive
        flow (Papamakarios et al. 2017) of `sbi`.
        """
        import torch
        from sbi.inference import NPE

        scale = np.asarray(np.maximum(np.median(np.abs(x), 0), 1e-12), float)
        features = _features(x / scale)
        found = cls(scale, _regression(features, theta), None)
        # what regression leaves of simulations that it has seen is too little: each is predicted from the others
        mean, fold = np.empty_like(theta), np.arange(len(theta)) % FOLDS
        for k in range(FOLDS):
            mean[fold == k] = features[fold == k] @ _regression(features[fold != k], theta[fold != k])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a network this small is slower on more, and forty times slower beside other work
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                inference = NPE(density_estimator="maf", show_progress_bars=False, tracker=_Silent())
                condition = found.condition(x, mean)
                inference.append_simulations(
                    *(torch.as_tensor(v, dtype=torch.float32) for v in (theta - mean, condition))
                )
                return replace(found, flow=inference.train(training_batch_size=100, learning_rate=1e-3))
        finally:
            torch.set_num_threads(threads)

    def condition(self, x: Array, mean: Array) -> Array:
        """Return what the flow is told: summaries (N, S), and what regression predicts from them (N, U)."""
        return np.concatenate([np.clip(x / self.scale, -TAIL, TAIL), mean], 1)

    def sample(self, x: Array, many: int, seed: int) -> Array:
        """(many, U) draws given summaries (S,)."""
        import torch

        mean = _features(x[None] / self.scale) @ self.weights
        condition = self.condition(x[None], mean)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            left = self.flow.sample((many,), torch.as_tensor(condition, dtype=torch.float32))[:, 0].numpy()
        return np.asarray(mean + left, float)


class _Silent:
    """What `sbi` tells of a training, to nobody: by default it leaves a folder of it in the present one."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_params(self, params: dict[str, Any]) -> None:
        pass

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        pass

    def flush(self) -> None:
        pass


def _regression(features: Array, theta: Array) -> Array:
    """(F, U) weights of ridge regression."""
    normal = features.T @ features + RIDGE * len(features) * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(normal, features.T @ theta), float)


def _features(x: Array) -> Array:
    """(N, F) ones, summaries (N, S) without their tails, and products of two."""
    z = np.clip(x, -TAIL, TAIL)
    first, second = np.triu_indices(z.shape[1])
    return np.concatenate([np.ones((len(z), 1)), z, z[:, first] * z[:, second]], 1)


def _draw(
    learned: Learned, observed: Array, frame: Region, problem: ShootingProblem, rng: np.random.Generator
) -> Array:
    """(S, U) draws of a learned posterior within the bounds, and within the region that it was learned in."""
    out: list[Array] = []
    for _ in range(50):
        z = learned.sample(observed, 4 * OUTLINE, int(rng.integers(2**31 - 1)))
        x = frame.center + z @ frame.axes
        inside = ((x >= problem.lower) & (x <= problem.upper)).all(1)
        inside &= (np.abs(z) <= 1).all(1)
        out.append(x[inside])
        if sum(map(len, out)) >= OUTLINE:
            break
    found = np.concatenate(out)
    if len(found) < 100:
        raise NonFiniteError(
            "what was learned lies outside of the prior: the recordings are unlike anything that it can simulate; "
            "widen the prior, or look at the recordings"
        )
    return found[:OUTLINE]
