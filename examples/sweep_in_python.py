"""Sweep two keys of a recipe from Python: three quick trials on a simulated pendulum, scored on validation seconds."""

import tempfile
from pathlib import Path

from pyarrow import parquet

import sim2real.recipes
from sim2real.recipe import load_recipe, with_overrides
from sim2real.sweep import sweep

# Little is recorded and little is tried, so that this ends within a minute.
QUICK = {
    "twin.record.seconds": 9.0,
    "twin.record.test_seconds": 2.1,
    "twin.record.validation_share": 0.3,
    "observer.bandwidths": [45.0],
    "identify.tries": 0,
    "identify.rounds": 1,
    "identify.samples": 10,
    "sweep": {
        "keys": {
            # the seconds that predictions estimate their start from, and the prior of the latency
            "observer.span": "LogU(0.05, 0.3)",
            "parameters.execution.latency.delay": "choice(=U(0, 0.08), =TN(0.03, 0.01, 0, 0.08))",
        },
        "trials": 3,
    },
}


def main() -> None:
    """Run the example."""
    recipe = load_recipe(Path(sim2real.recipes.__file__).parent / "pendulum.yaml")
    with tempfile.TemporaryDirectory() as folder:
        found = sweep(with_overrides(recipe, QUICK), Path(folder), say=print)
        for row in parquet.read_table(found.results).to_pylist():
            print(row)
        best = load_recipe(found.best_recipe)
        print(f"best: {found.best_score:.5f}, unswept: {found.baseline_score:.5f}, span: {best.observer.span:g} s")


if __name__ == "__main__":
    main()
