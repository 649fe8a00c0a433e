"""`sweep`: search over keys of a recipe with Ray Tune.

A trial is scored several times, on more and more of the work, and goes on only where it was promising (asynchronous
successive halving, Li et al. 2020). What is scored is an `Objective`. Test recordings are never touched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim2real.errors import require
from sim2real.objectives import Objective, objective_of, require_policy
from sim2real.policy_recipe import PolicyRecipe, SweptRecipe
from sim2real.preparation import prepare
from sim2real.recipe import read_value, with_overrides
from sim2real.run_directory import RunDirectory, read_json, write_json
from sim2real.search_space import SearchRange, require_same_recordings, search_space, shown

if TYPE_CHECKING:
    from sim2real.trials import Row


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        best_recipe: YAML file of the recipe with the best values.
        best_score: its score.
        baseline_score: of the recipe as it was.
        results: Parquet file with a row a trial; trial 0 is the recipe as it was.
        directory: the sweep's folder, with sweep.html.
        measure: what is scored, in words.
        better: whether less or more of it is.
        busy_fraction: share of the time in which a trial was worked on, of as many as there are at once; None where
            nothing was left to do.
    """

    best_recipe: Path
    best_score: float
    baseline_score: float
    results: Path
    directory: Path
    measure: str
    better: str
    busy_fraction: float | None = field(compare=False)


def sweep(
    recipe: SweptRecipe,
    output: Path,
    *,
    again: bool = False,
    address: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> SweepResult:
    """Search over keys of a recipe, go on with a search that was interrupted, or try more than was tried.

    Args:
        recipe: with a `sweep:` section.
        output: folder of runs; this sweep goes to `<name>-sweep-<fingerprint of the recipe>`.
        again: start over where the sweep had finished.
        address: of a Ray cluster, such as "auto"; without it everything runs on this machine.
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
    paths = {k: v for k in ("robot", "logs", "log_schema") if isinstance(v := getattr(recipe, k, None), str)}
    recipe = with_overrides(recipe, {k: read_value(k, json.dumps(v)) for k, v in paths.items()})
    space = search_space(recipe)
    assert recipe.sweep is not None
    for module in ("ray", "optuna"):
        require(module, "tune")
    objective, asked = objective_of(recipe), recipe.sweep
    identity = [recipe.digest(), asked.identity(), [[key, repr(values)] for key, values in space.items()]]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    directory = output.resolve() / f"{recipe.name}-sweep-{fingerprint}"
    done = directory / "sweep.json"
    if again and done.is_file():
        shutil.rmtree(directory)
    say(f"{recipe.name} → {directory}")
    data = _checked(recipe, space, new=not directory.is_dir())
    RunDirectory(directory).belongs_to(data)
    before: dict[str, Any] = read_json(done) if done.is_file() else {}
    confirmed = len((before.get("confirmed") or {}).get("seeds", ()))
    if before and before["trials"] >= asked.trials and confirmed >= asked.confirm:
        say("finished earlier")
        busy = None
    else:
        busy = _search(recipe, space, directory, objective, before, address, say)
    told = read_json(done)
    return SweepResult(
        directory / "best.yaml", told["best_score"], told["baseline_score"], directory / "results.parquet", directory,
        told["measure"], told["better"], busy,
    )  # fmt: skip


def _checked(recipe: SweptRecipe, space: Mapping[str, SearchRange], new: bool) -> str:
    """Try the recipe, and values of its keys where the sweep is new; return what tells its data from others."""
    assert recipe.sweep is not None
    if isinstance(recipe, PolicyRecipe):
        if new and ":" not in recipe.sweep.objective:
            for values in [{}, *({key: probe} for key, found in space.items() for probe in found.probes)]:
                require_policy(with_overrides(recipe, values))
        return recipe.digest()
    setup = prepare(recipe)
    if new and ":" not in recipe.sweep.objective:
        require_same_recordings(setup, space)
    return setup.recordings.fingerprint()


def _search(
    recipe: SweptRecipe,
    space: Mapping[str, SearchRange],
    directory: Path,
    objective: Objective,
    before: Mapping[str, Any],
    address: str | None,
    say: Callable[[str], None],
) -> float | None:
    """Search, and write what was found; return the share of the time in which trials were worked on."""
    from sim2real.report.sweep_page import write_sweep_report
    from sim2real.trials import best_of, search

    asked = recipe.sweep
    assert asked is not None
    (directory / "recipe.yaml").write_text(recipe.to_yaml())
    say(f"{asked.trials} trials of {', '.join(space)}; {objective.measure}, {objective.better} is better")
    results = directory / "results.parquet"

    def keep(rows: Sequence[Row]) -> None:
        _write_results(space, rows, results)

    found = search(recipe, space, directory, objective, say, keep, address)
    best = best_of(found.rows, objective)
    _write_best(recipe, space, found.rows, best, directory / "best.yaml")
    write_json(
        directory / "sweep.json",
        {
            "objective": asked.objective,
            "measure": objective.measure,
            "better": objective.better,
            "keys": {key: str(values) for key, values in space.items()},
            "trials": len(found.rows) - 1,
            "concurrent": asked.concurrent,
            "best_score": best.score,
            "baseline_score": found.rows[0].score,
            "wall_seconds": before.get("wall_seconds", 0.0) + found.wall,
            "busy_fraction": before.get("busy_fraction") if found.busy is None else found.busy,
            "confirmed": found.confirmed or before.get("confirmed"),
            "saved": found.best and str(found.best),
        },
    )
    write_sweep_report(directory)
    return found.busy


def _write_best(
    recipe: SweptRecipe, space: Mapping[str, SearchRange], rows: Sequence[Row], best: Row, path: Path
) -> None:
    trials = len(rows) - 1
    if best is rows[0]:
        header = [f"# None of {trials} trials was better than the recipe as it was: validation score {best.score:.5g}."]
    else:
        header = [f"# The best of {trials} trials: validation score {best.score:.5g}, unswept {rows[0].score:.5g}."]
        header += [f"#   {key}: {shown(value)} out of {space[key]}" for key, value in best.values.items()]
    found = with_overrides(recipe, best.values).model_copy(update={"sweep": None})
    path.write_text("\n".join([*header, found.to_yaml()]))


def _write_results(space: Mapping[str, SearchRange], rows: Sequence[Row], path: Path) -> None:
    """Write all rows in one piece: a kill leaves the old file or the new one."""
    import pyarrow as pa
    from pyarrow import parquet

    table: dict[str, list[Any]] = {"trial": list(range(len(rows)))}
    for key in space:
        column = [row.values[key] for row in rows]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in column)
        table[key] = column if numbers else [shown(v) for v in column]
    for name in ("score", "status", "share", "seconds"):
        table[name] = [getattr(row, name) for row in rows]
    partial = path.with_suffix(".partial")
    parquet.write_table(pa.table(table), partial)
    partial.replace(path)
