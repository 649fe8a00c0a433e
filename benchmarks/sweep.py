"""Does a sweep find what transfers, on trials that it did not see, and are the cores at work all the while?

    python benchmarks/sweep.py [--trials N] [--confirm SEEDS] [--quick] [--json FILE]

`recipes/late_cartpole.yaml`: PPO learns in randomized simulations and is scored on a twin with a heavy pole and late
commands; what is randomized, and how fast is learned, is swept, with asynchronous halving, two trials at once. The
recipe as it is and the best one are then trained from other seeds and scored from other starts, which the sweep did not
see. Printed are both, in how many seeds the best one wins, and the time beside the sum of the trials' times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _surroundings import surroundings

from sim2real.policy_recipe import load_policy_recipe
from sim2real.run_directory import read_json
from sim2real.sweep import sweep

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "late_cartpole.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--confirm", type=int, default=5, help="other seeds")
    parser.add_argument("--folder", type=Path, help="keeps the sweep; a killed script goes on where it was")
    parser.add_argument("--quick", action="store_true", help="six trials of a tenth of the steps")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    asked = [f"sweep.trials={options.trials}", f"sweep.confirm={options.confirm}"]
    if options.quick:
        asked = ["sweep.trials=6", "sweep.confirm=1", "train.steps=4000", "sweep.shares=[0.5,1]"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = sweep(load_policy_recipe(RECIPE, asked), folder, say=print)
        told = read_json(found.directory / "sweep.json")
    confirmed = told["confirmed"]
    pairs = [(d, b) for d, b in zip(confirmed["default"], confirmed["best"], strict=True) if None not in (d, b)]
    result: dict[str, Any] = {
        "trials": told["trials"],
        "default": found.baseline_score,
        "best": found.best_score,
        "unseen": {
            "default": float(np.mean([d for d, _ in pairs])),
            "best": float(np.mean([b for _, b in pairs])),
            "better_in": sum(b > d for d, b in pairs),
            "seeds": len(confirmed["seeds"]),
        },
        "wall_seconds": told["wall_seconds"],
        "busy_fraction": told["busy_fraction"],
    }
    unseen = result["unseen"]
    print(f"{told['measure']}: as it is {found.baseline_score:.1f}, best {found.best_score:.1f}")
    print(
        f"other seeds: as it is {unseen['default']:.1f}, best {unseen['best']:.1f}, "
        f"better in {unseen['better_in']} of {unseen['seeds']}"
    )
    print(f"{told['wall_seconds']:.0f} s; trials were worked on {told['busy_fraction']:.0%} of the time of two at once")
    if options.json:
        options.json.write_text(json.dumps(result | surroundings("ray", "optuna", "stable-baselines3"), indent=1))


if __name__ == "__main__":
    main()
