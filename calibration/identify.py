"""Identification: a posterior over dynamics and execution parameters from recorded logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim2real.calibration.agreement import halves_apart, recordings_apart
from sim2real.calibration.diagnose import residual_report
from sim2real.calibration.discrepancy import discrepancies
from sim2real.calibration.ensemble import fit_ensemble
from sim2real.calibration.growing import FIRST, foreseeable, longest_possible, next_length
from sim2real.calibration.neural import fit_npe
from sim2real.calibration.posterior import Posterior
from sim2real.calibration.replay import Replay, replays
from sim2real.calibration.search import other_optima, settle, solve
from sim2real.calibration.shooting import ShootingProblem, fit_starts, misfit, refine, restore, square_root
from sim2real.calibration.sigma_points import EnsembleProblem, principal_axes
from sim2real.calibration.spread import Blocks, bootstrap, divergence, polish, roughness
from sim2real.calibration.unknowns import Marginals, Unknowns
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, ParameterError, did_you_mean
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet

Progress = Callable[[str], None]
METHODS = ("least_squares", "ensemble", "npe")
# So many short windows are enough to come to longer ones.
FEW = 48
# A fit has settled when the step that is left is shorter than this, in standard deviations of the posterior.
CLOSE_ENOUGH = 0.5


def identify(
    plant: Plant,
    episodes: Sequence[Episode],
    prior: ParameterSet,
    *,
    channels: Sequence[str],
    method: str = "least_squares",
    own: Sequence[str] = (),
    window: float | str = 0.5,
    stride: float | None = None,
    block: float = 1.0,
    tries: int = 24,
    starts: int = 2,
    rounds: int = 6,
    samples: int = 400,
    robust: float = 2.0,
    discrepancy: float = 0.0,
    examine: bool = True,
    rng: np.random.Generator,
    progress: Progress = lambda _: None,
) -> Posterior:
    """Fit parameters of a plant to recordings, and say how well they are known.

    `diagnose` says what the posterior cannot know.

    Logged commands are replayed through candidates of the plant over short windows whose start states are fitted along
    (multiple shooting). Recordings whose actions were measured go past the execution chain, so that its parameters are
    never fitted on them. The loss is soft L1, the steps are those of Levenberg and Marquardt, or of `method`; the
    spread is a Bayesian bootstrap (Rubin 1981) over blocks of time, one Gauss-Newton step a draw, so that it holds when
    residuals are correlated, with the small-sample correction CR3 and a Student factor (Bell & McCaffrey 2002), so that
    it holds for few blocks. It is never less than independent residuals would leave.

    Args:
        plant: the model, with its execution chain.
        episodes: recordings to fit; excluded stretches are left out.
        prior: distributions of factors or values; uniform ones are bounds, normal ones pull. A `Posterior` may be one.
        channels: names of the observations that are joint positions, in the order of the joints.
        method: one of `METHODS`.
        own: parameters of which every recording has its own value (a payload, the friction of the day); the others are
            shared by all. In the posterior such a parameter is that of a recording taken at random; those of each
            recording are in `evidence["of_recordings"]`.
        window: length of a window [s]; infinite for whole recordings; "auto" for as long as motions can be told from
            their start. Long windows say more where the model is right, and are misled more where it is not; motions
            that diverge need short ones.
        stride: between window starts [s]; the length of a window where not given.
        block: length of a bootstrap block [s].
        tries: draws from the prior that are tried before any is refined.
        starts: how many of them are refined; the best one goes on.
        rounds: further refinements at most, each with the noise of each channel estimated anew.
        samples: posterior samples to return.
        robust: residual, in standard deviations, beyond which the loss grows linearly.
        discrepancy: the share of the largest effort in the recordings that every driven joint may have as friction or
            spring that is not in the prior, so that what the model lacks is not forced into the parameters that it has.
            These parameters come with the posterior, for the others hold only together with them;
            `evidence["discrepancy"]` has their names and nominal values.
        examine: whether to look for what the posterior cannot know, for `diagnose`; it takes as long as a round.
        rng: generator of every draw.
        progress: called with a line at each step.

    Returns:
        The posterior over values in SI units.

    Raises:
        ParameterError: an execution parameter that no recording can inform, or a name that the plant does not have.
        LogError: no window fits into the recordings.
        MissingExtraError: the method needs a package that is not installed.
        NonFiniteError: the simulation diverges for every candidate.
    """
    if method == "npe" and isinstance(prior, Posterior):
        raise ParameterError("the method npe needs independent parameters; from a posterior, take least_squares")
    if isinstance(window, str) and window != "auto":
        raise ParameterError(f'expected window="auto" or a length in seconds, found {window!r}')
    if method not in METHODS:
        raise ParameterError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    nominal = plant.nominal()
    prior = prior if isinstance(prior, Posterior) else prior.against(nominal)
    if not episodes:
        raise LogError("there is no recording to identify from")
    asked = prior.names
    if discrepancy:
        prior = ParameterSet((*prior, *discrepancies(plant, episodes, prior, channels, discrepancy)))
    unknowns = Unknowns(prior.names, tuple(own), tuple(e.name for e in episodes) if own else ())
    longest = max(e.duration for e in episodes)

    def posed(length: float) -> ShootingProblem:
        apart = stride if stride is not None and length == limit else length
        cut = replays(plant, episodes, unknowns, channels=channels, window=length, block=block, stride=apart)
        if not cut:
            raise LogError(f"no window of {length:g} s fits the recordings {', '.join(e.name for e in episodes)}")
        _refuse_blind(prior.names, cut)
        return _problem(prior, unknowns, cut, robust, min(1.0, FIRST / min(length, longest)))

    limit = longest_possible(episodes) if window == "auto" else float(window)
    length = next_length(0.0, limit, longest)
    draws = None
    candidates = _candidates(prior, tries, rng)[:, unknowns.source]
    # where longer windows follow, some short ones are enough, and have to be settled only then
    problem: ShootingProblem = posed(length) if length == limit else posed(length).some(FEW)
    enough = rounds if length == limit else 1
    if method == "ensemble":
        fit = fit_ensemble(problem, Marginals(prior, unknowns), rounds=enough, rng=rng, progress=progress)
    else:
        alternatives = _alternatives(prior)[unknowns.source] if tries and not isinstance(prior, Posterior) else None
        fit = solve(problem, candidates, alternatives, starts=starts, rounds=enough, progress=progress)
    optima = [fit, *other_optima(problem, fit, candidates, starts, progress)] if method == "npe" else [fit]
    while length < limit:
        # derivatives at a point mislead long windows; those over what shorter ones left open do not
        solved, axes = problem, principal_axes(problem, problem.sensitivities(fit.x))
        longer = next_length(length, limit, longest)
        if window == "auto" and (reach := foreseeable(posed(longer), fit.x)) < min(longer, longest):
            longer = limit = max(reach // length, 1) * length  # so that start states can be taken over
        before, length = length, longer
        problem = EnsembleProblem.of(posed(length), axes)
        problem.inherit(solved)
        # windows that start where none did have a rough guess only
        begin = replace(problem, parts=[p.shorten(min(before / p.seconds, 1.0)) for p in problem.parts])
        fit_starts(begin, fit.x)
        problem.starts = begin.starts
        progress(f"windows of {min(length, longest):.3g} s")
        for k, one in enumerate(optima):
            problem.axes = axes
            if length == limit:
                optima[k] = settle(problem, one.x, rounds=rounds, progress=progress)
            else:
                optima[k] = refine(problem, one.x, iterations=12, tolerance=1e-3)
        fit = optima[0]
        restore(problem, fit)
    if method == "npe":
        fit, draws = fit_npe(problem, Marginals(prior, unknowns), optima, samples=samples, rng=rng, progress=progress)
    if draws is None:
        fit, blocks, step = polish(problem, fit, rounds=rounds, progress=progress)
        draws = bootstrap(problem, fit.x, blocks, samples, rng)
    else:
        problem.axes = None
        blocks = Blocks.of(problem, fit.x)
        step = blocks.decrement(problem, fit.x)[1] - fit.x
    best = fit.x
    left = float(np.max(np.abs(step) / np.maximum(draws.std(0), 1e-300)))
    evidence: dict[str, Any] = {
        "method": method,
        "mean_absolute_error": fit.cost,
        "windows": int(sum(len(p.windows) for p in problem.parts)),
        "blocks": len(blocks.gradient),
        "misfit": misfit(problem, best),
        "settled": fit.settled and (method == "npe" or left < CLOSE_ENOUGH),
        "step_left": left,
        "window": float(max(p.windows.offset.max() for p in problem.parts) * plant.timestep),
        **_residual_report(problem, best, channels),
        "of_recordings": unknowns.of_recordings(best, draws),
        "at_bound": [n for n in _at_bound(problem, best, unknowns) if n in asked],
        "discrepancy": {name: nominal[name] for name in prior.names if name not in asked},
    }
    if examine:
        evidence |= {
            "roughness": roughness(problem, best, draws),
            "divergence": divergence(problem, best),
            "halves": halves_apart(problem, blocks, unknowns, draws),
            "recordings_differ": recordings_apart(problem, best, blocks, unknowns),
        }
    mean = np.stack([best[unknowns.columns(prior.names, r)] for r in unknowns.recordings or ("",)]).mean(0)
    return Posterior(_as_values(prior), mean, unknowns.fold(draws, rng), problem.noise, evidence)


def _refuse_blind(names: Sequence[str], parts: Sequence[Replay]) -> None:
    """Raise where no recording has anything to say of a parameter of the execution."""
    informed = {n for part in parts for n in part.names}
    blind = [n for n in names if n not in informed]
    if blind:
        raise ParameterError(
            f"{', '.join(blind)}: no recording has commanded actions, so the logs say nothing of the execution; "
            "take them out of the prior, or add a recording of what was asked for"
        )


def _problem(
    prior: ParameterSet, unknowns: Unknowns, parts: list[Replay], robust: float, step: float
) -> ShootingProblem:
    low, high = (bound[unknowns.source] for bound in prior.bounds)
    spread = np.where(np.isfinite(prior.std), prior.std, 1.0)[unknowns.source]
    return ShootingProblem(
        parts=parts,
        names=unknowns.names,
        lower=low,
        upper=high,
        steps=np.maximum(2e-3 * step * spread, 1e-9),
        noise=np.ones(parts[0].windows.positions.shape[-1]),
        robust=robust,
        center=prior.center[unknowns.source],
        factor=square_root(unknowns.precision(prior.precision())),
    )


def _candidates(prior: ParameterSet, tries: int, rng: np.random.Generator) -> Array:
    """(C, P) starting points: the middle of the prior, and draws from it where it is not known from earlier logs."""
    if isinstance(prior, Posterior) or not tries:
        return prior.mean[None]
    return np.concatenate([prior.mean[None], np.stack(list(prior.sample(rng, tries).values()), 1)])


def _alternatives(prior: ParameterSet) -> Array:
    """(P, 3) values that a parameter is moved to where the fit is blind to it."""
    return np.stack([p.distribution.quantile(np.array([0.15, 0.4, 0.65])) for p in prior])


def _residual_report(problem: ShootingProblem, best: Array, channels: Sequence[str]) -> dict[str, Any]:
    parts = problem.parts
    return residual_report(
        [part.residuals_at(best[part.columns]) for part in parts],
        [part.windows.positions for part in parts],
        [part.windows.valid for part in parts],
        [part.windows.offset * part.plant.timestep for part in parts],
        [[part.recordings[k] for k in part.windows.recording] for part in parts],
        channels,
    )


def _at_bound(problem: ShootingProblem, best: Array, unknowns: Unknowns) -> list[str]:
    """Return the parameters that ended at an edge of the prior, in any recording."""
    low, high = problem.lower, problem.upper
    edge = np.minimum(best - low, high - best) < 1e-3 * (high - low)
    return [n for i, n in enumerate(unknowns.parameters) if edge[unknowns.source == i].any()]


def _as_values(prior: ParameterSet) -> ParameterSet:
    return ParameterSet(tuple(prior.prior)) if isinstance(prior, Posterior) else prior
