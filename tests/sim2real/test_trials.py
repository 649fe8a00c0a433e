"""Trials on a cluster of three nodes in this machine: what fails, what dies, and what is tried on.

Processes of a cluster take minutes to come up, so these run by themselves: `make test-cluster`.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from sim2real.policy_recipe import PolicyRecipe
from sim2real.recipe import validated
from sim2real.run_directory import read_json
from sim2real.sweep import SweepResult, sweep

pytestmark = pytest.mark.cluster

# x says what becomes of a trial; every share that ends is written down
FUNCTION = """
import os, signal, time
from pathlib import Path

def score(recipe, share, folder):
    x = recipe.settings["x"]
    if x == 0:
        raise ValueError("x is <nothing>")
    if x == 1:
        return float("nan")
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 3:
        bytearray(10**18)
    time.sleep(recipe.settings["seconds"])
    with open(Path(__file__).parent / "shares", "a") as file:
        file.write(f"{x} {recipe.seed} {share}\\n")
    before = folder / "before"
    sofar = (before.read_text() if before.exists() else "") + f"{share:g} "
    before.write_text(sofar)
    return abs(x - 7) + recipe.seed / 100 + (0 if len(sofar.split()) == 4 * share else 1000)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes with a core each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `tune`)")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [found.add_node(num_cpus=1) for _ in range(2)]
    found.wait_for_nodes()
    ray.init(found.address, log_to_driver=False)
    yield found, nodes
    ray.shutdown()
    found.shutdown()
    os.environ.clear()
    os.environ.update(before)


def recipe(folder: Path, seconds: float = 0.0, keys: str = "int(0, 9)", **section: Any) -> PolicyRecipe:
    (folder / "own.py").write_text(FUNCTION)
    asked = {"objective": f"{folder}/own.py:score", "keys": {"settings.x": keys}, "cpus": 1, "retries": 1}
    document = {
        "name": "own",
        "settings": {"x": 9, "seconds": seconds},
        "sweep": {**asked, "shares": [0.25, 0.5, 0.75, 1], "concurrent": 3, **section},
    }
    return validated(PolicyRecipe, document, "recipe")


def rows(found: SweepResult) -> list[dict[str, Any]]:
    return parquet.read_table(found.results).to_pylist()  # type: ignore[no-any-return]


def shares(folder: Path) -> collections.Counter[str]:
    return collections.Counter((folder / "shares").read_text().splitlines())


def test_a_trial_that_fails_is_explained_and_does_not_stop_the_others(cluster: Any, tmp_path: Path) -> None:
    options = "choice(0, 1, 2, 3, 5, 6, 8)"
    found = sweep(recipe(tmp_path, keys=options, trials=12, scheduler="none", retries=0), tmp_path)
    why = {
        "0": "failed: ValueError: x is <nothing>",
        "1": "failed: its score is not finite: nan",
        "2": "failed: its process was killed each time that it was tried: out of memory, or its machine is gone",
        "3": "failed: MemoryError",
    }
    table = rows(found)
    assert len(table) == 13
    assert {str(row["settings.x"]) for row in table} >= set(why)
    for row in table:
        x = str(row["settings.x"])
        assert row["status"] == why.get(x, "finished")
        assert math.isnan(row["score"]) if x in why else row["score"] == abs(int(x) - 7)
    page = (found.directory / "sweep.html").read_text()
    assert "x is &lt;nothing&gt;" in page
    assert "process was killed" in page
    assert found.best_score == 1.0


def test_more_trials_are_tried_on_a_finished_sweep_and_other_seeds_asked(cluster: Any, tmp_path: Path) -> None:
    first = sweep(recipe(tmp_path, keys="int(4, 9)", trials=3), tmp_path)
    before = rows(first)
    assert len(before) == 4
    told: list[str] = []
    more = sweep(recipe(tmp_path, keys="int(4, 9)", trials=6, confirm=2), tmp_path, say=told.append)
    assert more.directory == first.directory
    assert len(rows(more)) == 7
    assert rows(more)[:4] == before
    assert not any("trial 3/6" in line for line in told)
    assert any("trial 6/6" in line for line in told)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(more.directory / "optuna.journal")))
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [t.params["settings.x"] for t in study.trials] == [r["settings.x"] for r in rows(more)[1:]]
    confirmed = read_json(more.directory / "sweep.json")["confirmed"]
    best = min(r["score"] for r in rows(more))
    assert confirmed["seeds"] == [1, 2]
    assert confirmed["default"] == pytest.approx([2.01, 2.02])
    assert confirmed["best"] == pytest.approx([best + 0.01, best + 0.02])
    # what the best trial left behind
    assert (more.directory / "best" / "before").read_text() == "0.25 0.5 0.75 1 "
    assert sweep(recipe(tmp_path, keys="int(4, 9)", trials=6, confirm=2), tmp_path).busy_fraction is None


def test_a_population_takes_over_what_is_better(cluster: Any, tmp_path: Path) -> None:
    found = sweep(recipe(tmp_path, seconds=0.1, keys="int(4, 40)", trials=4, scheduler="pbt"), tmp_path)
    table = rows(found)
    assert [row["status"] for row in table] == ["finished"] * 5
    # four shares were worked on, one after the other, whoever began them
    assert all(row["score"] < 1000 for row in table)
    assert all(4 <= row["settings.x"] <= 40 for row in table)


def test_a_node_that_dies_takes_no_trial_with_it(cluster: Any, tmp_path: Path) -> None:
    made, nodes = cluster

    def kill(line: str) -> None:
        if "trial 1/8" in line:
            made.remove_node(nodes[1], allow_graceful=False)

    asked = recipe(tmp_path, seconds=0.5, keys="int(4, 1000)", trials=8, scheduler="none", retries=3)
    found = sweep(asked, tmp_path, say=kill)
    table = rows(found)
    assert len(made.list_all_nodes()) == 2
    assert [row["status"] for row in table] == ["finished"] * 9
    assert len({row["settings.x"] for row in table}) == 9
    ended = shares(tmp_path)
    for row in table:
        assert row["score"] == abs(row["settings.x"] - 7)
        assert ended[f"{row['settings.x']} 0 1.0"] == 1
    # at most what ran when the node died, and the share before it, is done again
    assert sum(many - 1 for many in ended.values()) <= 2


def test_an_address_where_no_cluster_is_and_too_many_cores_are_told(cluster: Any, tmp_path: Path) -> None:
    from sim2real.errors import RecipeError

    with pytest.raises(RecipeError, match="a trial asks for 64 cores, the largest machine has 1"):
        sweep(recipe(tmp_path, cpus=64), tmp_path)
