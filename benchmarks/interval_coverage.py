"""Do the intervals of `identify` hold? Many truths for each method, and for what a model does not have.

    python benchmarks/interval_coverage.py [--problems NAME ...] [--truths N] [--workers N]
        [--folder FOLDER] [--json FILE]

Truths drawn from the prior of recipes/two_link_arm.yaml, 60 s at 100 Hz, noise of 2 mrad, in windows of half a second.
Every truth is kept in the folder as soon as it is identified: killed, the script goes on where it was.

- least_squares, ensemble, npe: `identify` with that method.
- correlated: `least_squares`, with noise that is correlated over 0.1 s.
- friction: the elbow that is recorded has dry friction of 0.03 N m, 2 % of the largest command, which the model lacks;
  `least_squares` with `discrepancy=0.02`.

Fifty truths take 20 to 40 minutes of a core, those of npe two hours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _surroundings import one_thread, surroundings

from sim2real.calibration.check import check
from sim2real.plant import Plant
from sim2real.preparation import prepare
from sim2real.randomization import RobotModel
from sim2real.recipe import load_recipe
from sim2real.stages import identify_anew

ROOT = Path(__file__).resolve().parent.parent
ROBOT = ROOT / "randomization" / "robots" / "two_link_arm.xml"
PROBLEMS = ("least_squares", "correlated", "friction", "ensemble", "npe")
NOISE, SEED = 0.002, 11


def with_friction(plant: Plant) -> Plant:
    """Return the arm with dry friction in its elbow."""
    was = '<joint name="elbow" type="hinge"'
    text = ROBOT.read_text()
    if was not in text:
        raise SystemExit(f"expected {was} in {ROBOT}, the joint that friction is given to")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ROBOT.name
        file.write_text(text.replace(was, was + ' frictionloss="0.03"'))
        return Plant(RobotModel(file), plant.chain, plant.timestep, plant.threads)


def measure(name: str, truths: int, workers: int, folder: Path) -> dict[str, Any]:
    """Identify the truths of a problem."""
    setup = prepare(load_recipe(ROOT / "recipes" / "two_link_arm.yaml"), threads=1)
    method = name if name in ("ensemble", "npe") else "least_squares"
    settings = {"method": method, "discrepancy": 0.02 if name == "friction" else 0.0, "tries": 8, "starts": 1}
    found = check(
        setup.plant,
        setup.recordings.train,
        setup.prior,
        partial(identify_anew, channels=setup.channels, settings=settings),
        channels=setup.channels,
        noise=np.full(len(setup.channels), NOISE),
        truths=truths,
        seed=SEED,
        correlation=0.1 if name == "correlated" else 0.0,
        body=with_friction(setup.plant) if name == "friction" else None,
        workers=workers,
        folder=folder / name,
        progress=lambda line: print(f"{name}: {line}", flush=True),
    )
    return found.to_json()


def show(problems: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'problem':14s} {'90 % intervals hold':>24s}  fewest  least p  settled  s a truth")
    for name, r in problems.items():
        low, high = r["coverage90"]["interval"]
        pooled = f"{r['coverage90']['pooled']:.3f} [{low:.3f}, {high:.3f}]"
        fewest = min(p["inside90"] for p in r["parameters"].values())
        uniform = min(p["uniform_p"] for p in r["parameters"].values())
        settled = f"{r['settled']}/{r['truths']}"
        print(f"{name:14s} {pooled:>24s} {fewest:7d} {uniform:8.2g} {settled:>8s} {r['seconds']:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--truths", type=int, default=50)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: the cores)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "interval_coverage", help="keeps what is done")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    problems: dict[str, Any] = {}
    for name in options.problems:
        problems[name] = measure(name, options.truths, options.workers, options.folder)
        if options.json:  # as far as it has got
            result = {"problems": problems, **surroundings("mujoco", "sbi", "torch", "numpy", "scipy")}
            options.json.write_text(json.dumps(result, indent=1))
    show(problems)


if __name__ == "__main__":
    one_thread()
    main()
