"""Do parts of the logs agree? Two halves of them, and each recording with all the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sim2real.calibration.replay import Replay
from sim2real.calibration.search import ENOUGH
from sim2real.calibration.shooting import ShootingProblem, bounded_step, refine
from sim2real.calibration.sigma_points import width_of
from sim2real.calibration.spread import Blocks
from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Standard errors beyond which a recording may have a parameter of its own.
SURE = 3.0
# The share of its error that a recording must lose when one parameter may differ there.
WORTHWHILE = 0.2
# Recordings, and parameters of each, that are tried: the most promising ones.
TRIED = 2
# Precision that holds a parameter where it is: 1 over a standard deviation, in steps of its differences.
STIFF = 1e4


def halves_apart(problem: ShootingProblem, blocks: Blocks, unknowns: Unknowns, draws: Array) -> dict[str, float]:
    """Return how far apart two halves of the logs would put each parameter, in standard errors of the difference.

    The first half of all blocks against the second, by one Gauss-Newton step each from the common optimum; parameters
    that recordings have of their own are left out, and so is everything where a half has fewer blocks than unknowns.
    """
    many, size = blocks.gradient.shape
    if many < 4 * size:
        return {}
    flat = np.diag(width_of(problem) ** -2.0)
    steps = []
    for half in (slice(None, many // 2), slice(many // 2, None)):
        h, g = blocks.hessian[half].sum(0) + flat, blocks.gradient[half].sum(0)
        steps.append(bounded_step(h, g, np.full(size, -np.inf), np.full(size, np.inf)))
    # each half knows half as much as both together, and their difference has twice the variance of a half
    error = 2 * draws.std(0, ddof=1)
    apart = np.abs(steps[0] - steps[1]) / np.where(error > 0, error, np.inf)
    shared = [name not in unknowns.own for name in (unknowns.parameters[i] for i in unknowns.source)]
    return {unknowns.names[u]: float(apart[u]) for u in np.flatnonzero(shared)}


def recordings_apart(
    problem: ShootingProblem, best: Array, blocks: Blocks, unknowns: Unknowns
) -> dict[str, dict[str, Any]]:
    """Return which recordings would be explained better with one parameter of their own.

    The one that would gain most is named and taken out, the others are fitted again, and so on, up to half of them: as
    long as it takes part, a recording of another robot makes those of this one look odd too.

    Returns:
        `{recording: {parameter, common, own, error, error_own}}`, errors [rad or m] being those of the replay.
    """
    found: dict[str, dict[str, Any]] = {}
    moving: dict[str, int] = {}
    names = list(dict.fromkeys(blocks.recording))
    while len(found) < len(names) // 2:
        promised = {r: p for r in names if r not in found and (p := _promising(blocks, r))}
        moved = {}
        for r in sorted(promised, key=lambda r: -max(promised[r].values()))[:TRIED]:
            if best_own := _own_parameter(problem, best, r, list(promised[r])[:TRIED]):
                moved[r] = best_own
        if not moved:
            break
        worst = min(moved, key=lambda r: moved[r]["error_own"] / moved[r]["error"])
        moving[worst] = moved[worst].pop("unknown")
        found[worst] = {"parameter": unknowns.parameters[unknowns.source[moving[worst]]], **moved[worst]}
        rest = replace(problem, parts=_of_recordings(problem, [n for n in names if n not in found]), axes=None).some(
            4 * ENOUGH
        )
        try:
            best = refine(rest, best, iterations=8, tolerance=1e-3).x
            blocks = Blocks.of(rest, best)
        except NonFiniteError:
            break
        for recording, unknown in moving.items():
            found[recording]["common"] = float(best[unknown])
    return found


def _promising(blocks: Blocks, recording: str) -> dict[int, float]:
    """Return the share of its error that a recording would lose if one unknown differed there, the most first.

    By a Gauss-Newton step of each unknown alone from the common optimum; those that promise too little are left out.
    """
    rows = [i for i, r in enumerate(blocks.recording) if r == recording]
    if len(rows) < 2:
        return {}
    h, g = np.einsum("bpp->p", blocks.hessian[rows]), blocks.gradient[rows]
    sure = np.abs(g.mean(0)) > SURE * g.std(0, ddof=1) / np.sqrt(len(rows))
    gain = np.where(sure, g.sum(0) ** 2 / np.maximum(h, 1e-300), 0.0) / max(float(blocks.loss[rows].sum()), 1e-300)
    return {int(u): float(gain[u]) for u in np.argsort(-gain) if gain[u] > 0.25 * WORTHWHILE}


def _own_parameter(
    problem: ShootingProblem, best: Array, recording: str, promising: list[int]
) -> dict[str, Any] | None:
    """Find the unknown that explains a recording best by differing there; None where none does much."""
    found: dict[str, Any] | None = None
    for unknown in promising:
        moved = _alone(problem, best, recording, unknown)
        if moved is None or moved["error_own"] > (1 - WORTHWHILE) * moved["error"]:
            continue
        if found is None or moved["error_own"] < found["error_own"]:
            found = {"unknown": unknown, **moved}
    return found


def _of_recordings(problem: ShootingProblem, recordings: list[str]) -> list[Replay]:
    """Return the replays of some recordings."""
    some = []
    for part in problem.parts:
        rows = np.flatnonzero([part.recordings[k] in recordings for k in part.windows.recording])
        if len(rows):
            some.append(part.select(rows))
    return some


def _alone(problem: ShootingProblem, best: Array, recording: str, unknown: int) -> dict[str, float] | None:
    """Fit one parameter to one recording, the others as they are; None where that diverges."""
    # held by a prior that hardly gives way, not by bounds, for differences must go to one side of those
    held = np.diag(STIFF / problem.steps)
    some = replace(problem, parts=_of_recordings(problem, [recording]), center=best, factor=held).some(ENOUGH)
    try:
        before = refine(some, best, iterations=0)
        some.axes = None  # those of a problem in which nothing could give way
        some.factor = held * (np.arange(len(best)) != unknown)
        after = refine(some, best, iterations=8, tolerance=1e-3)
    except NonFiniteError:
        return None
    return {
        "common": float(best[unknown]),
        "own": float(after.x[unknown]),
        "error": before.cost,
        "error_own": after.cost,
    }
