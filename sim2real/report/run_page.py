"""report.html: what a whole run found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from sim2real.calibration import Posterior
from sim2real.errors import ModelError, RobotError
from sim2real.randomization import RobotModel
from sim2real.report import closed_loop, figures, parameter_figures
from sim2real.report.figures import Panel
from sim2real.report.findings import all_findings, verdict
from sim2real.report.identification import PAGE, identified, write_identification_report
from sim2real.report.notation import LOOKS, digits, look, percent
from sim2real.report.page import fill, write_page
from sim2real.report.parameter_table import parameter_rows
from sim2real.report.stroboscope import stroboscope
from sim2real.report.summary import Metrics, headline, horizons, key_figures, no_closed_loop, rmse
from sim2real.run_directory import read_json

NEEDED = ("name", "scores", "parameters")
SPLITS = {
    "test": "recordings that nothing was learned from or chosen on",
    "shift": "recordings of a changed robot, scored after the seconds that were adapted to",
    "validation": "recordings on which choices were made, so slightly optimistic",
}
COVERAGE = (("coverage", "of 50 %"), ("coverage", "of 90 %"), ("block", "bootstrap"), ("coverage", "of 95 %"))


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one recording: `columns` of numbers in two lines each, and a row for each predictor."""

    split: str
    recording: str
    windows: int
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[str], bool]]


def write_report(run_directory: Path) -> Path:
    """Write report.html into a run directory, in one piece.

    Args:
        run_directory: with metrics.json, and posterior/, closed_loop.npz and recipe.yaml where the run has them.

    Returns:
        the path of the report.

    Raises:
        ModelError: metrics.json is missing, damaged, or not that of a run.
    """
    if identified(run_directory):
        write_identification_report(run_directory)
    return write_page(run_directory / "report.html", render(run_directory))


def render(run_directory: Path) -> str:
    """Return the page."""
    metrics = read_metrics(run_directory / "metrics.json")
    recipe_path = run_directory / "recipe.yaml"
    recipe = recipe_path.read_text(encoding="utf-8") if recipe_path.is_file() else ""
    split, rows = headline(metrics)
    return fill(
        "template.html",
        metrics=metrics,
        verdict=verdict(metrics),
        key_figures=key_figures(metrics),
        findings=[list(group) for _, group in groupby(all_findings(metrics), lambda f: f.topic)],
        glance=figures.glance(rows) if rows else None,
        split=split,
        prediction=prediction_panels(metrics),
        calibration=calibration_panels(metrics),
        predictors=_predictors(metrics),
        refused=(metrics.get("finetune") or {}).get("accepted") is False,
        parameters=parameter_rows(metrics),
        costs=cost_panels(metrics),
        shift=shift_panels(metrics),
        posterior=posterior_panels(run_directory / "posterior"),
        closed_loop=closed_loop_panels(metrics, run_directory / "closed_loop.npz", recipe),
        no_closed_loop=no_closed_loop(metrics),
        tables=score_tables(metrics),
        splits=SPLITS,
        stages=figures.stage_seconds(metrics["seconds"]) if metrics.get("seconds") else None,
        looks=LOOKS,
        look=look,
        recipe=recipe,
        identification=PAGE if (run_directory / PAGE).is_file() else "",
    )


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json.

    Raises:
        ModelError: it is missing, damaged, or not that of a run.
    """
    found = read_json(path)
    missing = [k for k in NEEDED if not isinstance(found, dict) or k not in found]
    if missing:
        raise ModelError(f"{path} is not the metrics of a run: it lacks {', '.join(missing)}; run the recipe again")
    metrics: Metrics = found
    return metrics


def prediction_panels(metrics: Metrics) -> list[Panel]:
    """Draw the error against the horizon for each recording."""
    return [
        Panel(recording, f"{split.capitalize()}: {SPLITS[split]}.", figures.error_by_horizon(predictors))
        for split, recording, predictors in _scored(metrics)
    ]


def calibration_panels(metrics: Metrics) -> list[tuple[Panel, Panel]]:
    """Draw coverage and sharpness for each recording."""
    coverage = "Observed coverage; the dotted lines are where it should be. Bars at 90 %: block bootstrap."
    sharpness = "Width of the 90 % intervals: of two predictors that are equally well covered, the narrower knows more."
    return [
        (
            Panel(f"Coverage, {recording}", coverage, figures.calibration(predictors)),
            Panel(f"Sharpness, {recording}", sharpness, figures.sharpness(predictors)),
        )
        for split, recording, predictors in _scored(metrics)
        # recalibration was fitted on the validation recordings
        if split != "validation" or headline(metrics)[0] != "test"
    ]


def cost_panels(metrics: Metrics) -> list[Panel]:
    """Draw what each parameter costs."""
    found = metrics.get("attribution")
    return [parameter_figures.attribution(found)] if found and found.get("parameters") else []


def shift_panels(metrics: Metrics) -> list[Panel]:
    """Draw which parameter of a changed robot moved."""
    changed = (metrics.get("adaptation") or {}).items()
    return [parameter_figures.adaptation(name, a) for name, a in changed if a.get("errors")]


def posterior_panels(directory: Path) -> list[Panel]:
    """Draw the posterior that a run left, where it left one."""
    return parameter_figures.correlation(Posterior.load(directory)) if (directory / "posterior.json").is_file() else []


def closed_loop_panels(metrics: Metrics, path: Path, recipe: str) -> dict[str, list[Panel]]:
    """Draw the closed loop: `angles` and `summary`, empty where there was none."""
    if not metrics.get("closed_loop"):
        return {}
    measure, each = metrics.get("closed_loop_measure") or "uprightness", metrics.get("closed_loop_each")
    summary = [closed_loop.scores(each, measure)] if each else []
    if not path.is_file():
        return {"angles": [], "summary": summary}
    found = closed_loop.Trajectories.load(path)
    settings, robot = _document(recipe), _robot(_document(recipe))
    planning, told = closed_loop.planning_time(found), metrics.get("control_loop")
    file = path.parent / "loop" / "clock.npz"
    went_well = told is not None and "failed" not in told and file.is_file()
    in_time = closed_loop.InTime.load(file) if went_well else None
    more = [] if told is None or in_time is None else [closed_loop.clock(told, in_time)]
    if robot is not None and in_time is not None:
        more += stroboscope(robot.mj, in_time.times, in_time.readings, "The robot in real time, as it was read.")
    elif robot is not None and "after" in found.positions:
        one = found.positions["after"][0]
        more += stroboscope(robot.mj, found.time, one, "The first start with this run's world model.")
    return {
        "angles": closed_loop.motion(found, drawn(settings, metrics.get("joints") or [], robot)),
        "summary": [*summary, *([planning] if planning else []), *more],
    }


def _document(recipe: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _robot(recipe: Mapping[str, Any]) -> RobotModel | None:
    """Return a recipe's robot; None where it is a function, or its file is not there any more."""
    try:
        return RobotModel(str(recipe["robot"]))
    except (KeyError, RobotError):
        return None


def drawn(recipe: Mapping[str, Any], joints: Sequence[str], robot: RobotModel | None) -> closed_loop.Drawn:
    """Return what is drawn of a closed loop: the joint that is to stand upright, or the first one with a goal."""
    control = recipe.get("control")
    control = control if isinstance(control, dict) else {}
    costs = control.get("cost") or []
    joint, target, turns = (0, None, False) if costs else (0, control.get("target", math.pi), True)
    for term in costs:
        told = term if isinstance(term, dict) else {}
        upright = told.get("cost") == "upright"
        goal = told.get("goal") if told.get("cost") == "quadratic" else None
        goals = goal if isinstance(goal, dict) else {}
        weights = told.get("position") or dict.fromkeys(goals, 1.0)
        wanted = [told.get("joint", 0)] if upright else [j for j in goals if weights.get(j)]
        known = [n for n in (_number_of(j, joints) for j in wanted) if n is not None]
        if known:
            joint, turns = known[0], upright
            target = told.get("target", math.pi) if upright else goals[wanted[0]]
            break
    name = joints[joint] if joint < len(joints) else "the first joint"
    slides = robot is not None and joint < len(robot.joint_units) and robot.joint_units[joint] == "m"
    target = float(target) if isinstance(target, int | float) else None
    return closed_loop.Drawn(joint, name, target, turns, slides)


def _number_of(joint: Any, joints: Sequence[str]) -> int | None:
    if isinstance(joint, int):
        return joint if 0 <= joint < len(joints) else None
    return joints.index(joint) if joint in joints else None


def score_tables(metrics: Metrics) -> list[ScoreTable]:
    """Return the scores as tables, one a recording."""
    tables = []
    for split, recording, predictors in _scored(metrics):
        first = next(iter(predictors.values()))
        keys = horizons(first)
        columns = [("mean", "NRMSE"), *((f"RMSE {h} s", "[rad]") for h in keys), ("CRPS", "[rad]"), *COVERAGE]
        best = min(s["mean_nrmse"] for s in predictors.values())
        rows = [(name, _cells(scores), scores["mean_nrmse"] == best) for name, scores in predictors.items()]
        tables.append(ScoreTable(split, recording, first["windows"], columns, rows))
    return tables


def _cells(scores: Mapping[str, Any]) -> list[str]:
    keys = horizons(scores)
    half, almost = (sum(scores[h]["coverage"][v] for h in keys) / len(keys) for v in ("0.5", "0.95"))
    low, high = scores["coverage90_interval"]
    return [
        digits(scores["mean_nrmse"]),
        *(digits(rmse(scores, h)) for h in keys),
        digits(scores["crps"]),
        percent(half),
        percent(scores["coverage90"]),
        f"{percent(low).removesuffix(' %')} to {percent(high)}",
        percent(almost),
    ]


def _scored(metrics: Metrics) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Yield split, recording and predictors of every recording that was scored, the most telling first."""
    for split in SPLITS:
        for recording, predictors in (metrics["scores"].get(split) or {}).items():
            if predictors:
                yield split, recording, predictors


def _predictors(metrics: Metrics) -> list[str]:
    return list(dict.fromkeys(name for _, _, predictors in _scored(metrics) for name in predictors))
