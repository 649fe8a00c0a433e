"""`sweep`: search over keys of a recipe with Ray Tune, scored on validation recordings.

Every trial is scored twice, the second time only where the first was promising (asynchronous successive halving, Li et
al. 2020): with the first third of every training recording, then with all of them. Test recordings are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim2real.errors import LogError, require
from sim2real.pipeline import StagedRun, Watcher, set_threads
from sim2real.preparation import Setup, prepare
from sim2real.recipe import ControlSection, Recipe, read_value, with_overrides
from sim2real.run_directory import RunDirectory, read_json, write_json
from sim2real.search_space import SearchRange, require_same_recordings, search_space, shown

if TYPE_CHECKING:
    from sim2real.trials import Row


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found. Scores are on validation recordings; less is better.

    Attributes:
        best_recipe: YAML file of the recipe with the best values, which `sim2real run` takes.
        best_score: its score.
        baseline_score: of the recipe as it was.
        results: Parquet file with a row a trial; trial 0 is the recipe as it was.
        directory: the sweep's folder.
    """

    best_recipe: Path
    best_score: float
    baseline_score: float
    results: Path
    directory: Path


def sweep(
    recipe: Recipe, output: Path, *, again: bool = False, say: Callable[[str], None] = lambda _: None
) -> SweepResult:
    """Search over keys of a recipe, or go on with a search of the same recipe that was interrupted.

    Args:
        recipe: with a `sweep:` section.
        output: folder of runs; this sweep goes to `<name>-sweep-<fingerprint of the recipe>`.
        again: start over where the sweep had finished.
        say: told a line now and then.

    Returns:
        the best recipe, never worse than the one given, and all scores.

    Raises:
        RecipeError: the recipe has nothing to sweep, or a key or its range is wrong.
        MissingExtraError: Ray or Optuna is not installed.
        Sim2RealError: the recipe as it is fails, or its recordings are not those that the sweep was begun on.
        KeyboardInterrupt: interrupted; call again to go on.
    """
    # trials change directory, so every path is made absolute first
    paths = {k: v for k in ("robot", "logs", "log_schema") if isinstance(v := getattr(recipe, k), str)}
    recipe = with_overrides(recipe, {k: read_value(k, json.dumps(v)) for k, v in paths.items()})
    space = search_space(recipe)
    assert recipe.sweep is not None
    for module in ("ray", "optuna"):
        require(module, "tune")
    identity = [recipe.digest(), recipe.sweep.model_dump(), [repr(values) for values in space.values()]]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    directory = output.resolve() / f"{recipe.name}-sweep-{fingerprint}"
    done, best, results = (directory / name for name in ("sweep.json", "best.yaml", "results.parquet"))
    if again and done.is_file():
        shutil.rmtree(directory)
    say(f"{recipe.name} → {directory}")
    new, setup = not directory.is_dir(), prepare(recipe)
    if new:
        require_same_recordings(setup, space)
    RunDirectory(directory).belongs_to(setup.recordings.fingerprint())
    if done.is_file():
        say("finished earlier")
    else:
        from sim2real.trials import search

        (directory / "recipe.yaml").write_text(recipe.to_yaml())
        say(f"{recipe.sweep.trials} trials of {', '.join(space)}; {OBJECTIVES[recipe.sweep.objective]}, less is better")
        rows = search(recipe, space, directory, functools.partial(rung_scores, directory / "runs"), say)
        _write_best(recipe, space, rows, best)
        _write_results(space, rows, results)
        write_json(done, {"best_score": _best(rows).score, "baseline_score": rows[0].score})
    scores = read_json(done)
    return SweepResult(best, scores["best_score"], scores["baseline_score"], results, directory)


OBJECTIVES = {
    "identify": "scored by the NRMSE of the identified simulator on the validation recordings",
    "finetune": "scored by the CRPS of the fine-tuned model on the validation recordings [rad or m]",
    "control": "scored by how far from its goal the controller keeps the identified simulator, 0 to 1",
}


def rung_scores(runs: Path, recipe: Recipe, shares: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Score a recipe on its validation recordings, learning from more and more of its training recordings.

    Args:
        runs: folder of the run directories, one a recipe and share; what has finished there is not repeated.
        recipe: whose `sweep.objective` says what is scored.
        shares: of the duration of every training recording, from its beginning on.

    Yields:
        the share, and the score: normalised RMSE of the identified simulator, or CRPS of the fine-tuned model
        [rad or m], the mean over the horizons; or one less the mean closeness of the identified simulator to its goal
        under the controller. A share that is too short to learn from is passed over.
    """
    assert recipe.sweep is not None
    objective, control = recipe.sweep.objective, recipe.control
    until = {"identify": "observe", "finetune": "finetune", "control": "finetune"}[objective]
    set_threads()
    if objective == "control":  # how it is controlled does not change what is learned: trials share that
        recipe = recipe.model_copy(update={"control": ControlSection(limit=control.limit)})
    whole = prepare(recipe)
    for share in shares:
        folder = runs if share == 1 else runs / f"first-{100 * share:.0f}-percent"
        directory = RunDirectory(folder / f"{recipe.name}-{recipe.digest()}")
        with _alone_in(directory.path):
            setup = whole if share == 1 else _shortened(whole, share)
            directory.belongs_to(setup.recordings.fingerprint())
            (directory.path / "recipe.yaml").write_text(setup.recipe.to_yaml())
            run = StagedRun(directory, setup, Watcher(), examine=False)
            try:
                run.to(until)
            except LogError:
                if share == 1:
                    raise
                continue
        found = run.result(until)
        if objective == "control":
            yield share, 1.0 - run.rehearsed_return(control)
        elif until == "observe":
            yield share, float(min(found["validation_nrmse"].values()))
        else:
            yield share, float(np.mean(list(found["crps"]["after" if found["accepted"] else "before"].values())))


def _shortened(setup: Setup, share: float) -> Setup:
    """The same with the beginning of every training recording alone, and training that is as much shorter."""
    train = [e.slice(0.0, share * e.duration) for e in setup.recordings.train]
    long = {f"{s}.iterations": getattr(setup.recipe, s).iterations for s in ("model", "finetune")}
    long["model.rollout_iterations"] = setup.recipe.model.rollout_iterations
    recipe = with_overrides(setup.recipe, {key: math.ceil(share * n) for key, n in long.items()})
    return replace(setup, recipe=recipe, recordings=replace(setup.recordings, train=train))


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait for any other process in the directory: two trials may draw the same values."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _best(rows: Sequence[Row]) -> Row:
    """The first of the best rows: the recipe as it was, where nothing beat it."""
    scored = [row for row in rows if row.status == "finished" and math.isfinite(row.score)]
    return min(scored, key=lambda row: row.score)


def _write_best(recipe: Recipe, space: Mapping[str, SearchRange], rows: Sequence[Row], path: Path) -> None:
    best, trials = _best(rows), len(rows) - 1
    if best is rows[0]:
        header = [f"# None of {trials} trials was better than the recipe as it was: validation score {best.score:.5g}."]
    else:
        header = [f"# The best of {trials} trials: validation score {best.score:.5g}, unswept {rows[0].score:.5g}."]
        header += [f"#   {key}: {shown(value)} out of {space[key]}" for key, value in best.values.items()]
    found = with_overrides(recipe, best.values).model_copy(update={"sweep": None})
    path.write_text("\n".join([*header, found.to_yaml()]))


def _write_results(space: Mapping[str, SearchRange], rows: Sequence[Row], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table: dict[str, list[Any]] = {"trial": list(range(len(rows)))}
    for key in space:
        column = [row.values[key] for row in rows]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in column)
        table[key] = column if numbers else [shown(v) for v in column]
    for name in ("score", "status", "share", "seconds"):
        table[name] = [getattr(row, name) for row in rows]
    parquet.write_table(pa.table(table), path)
