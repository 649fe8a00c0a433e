"""Does a sweep survive `kill -9` of its driver at any moment, and with how much done twice?

    python benchmarks/killed_sweeps.py [--kills N] [--seed SEED] [--json FILE]

Trials of a function of one's own write down every share that they finish, with a checkpoint after each. A sweep runs
once without a break; then it is killed at random moments, and the same command is given again. Counted is how often it
finishes, whether the table has every trial once, and how many shares that had been finished were done again: at most
one a trial that was running, where a checkpoint is written in less than the time of a share.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _surroundings import surroundings
from pyarrow import parquet

FUNCTION = """
import os, time

def score(recipe, share, folder):
    time.sleep(1.5)
    with open(os.environ["SHARES"], "a") as file:
        file.write(f"{recipe.settings['x']} {share}\\n")
        file.flush()
        os.fsync(file.fileno())
    return (recipe.settings["x"] - 0.7) ** 2
"""
RECIPE = """
name: killed
settings: {x: 0.1}
sweep:
  objective: function.py:score
  keys: {settings.x: "U(0, 1)"}
  scheduler: none
  shares: [0.25, 0.5, 0.75, 1]
  trials: 6
"""
TRIALS = 6


def begin(place: Path) -> list[str]:
    """Write what is swept to a folder; return the command."""
    place.mkdir(parents=True)
    (place / "function.py").write_text(FUNCTION)
    (place / "recipe.yaml").write_text(RECIPE)
    return [sys.executable, "-m", "sim2real.cli", "sweep", str(place / "recipe.yaml"), "--output", str(place / "runs")]


def go(place: Path, command: list[str], seconds: float | None = None) -> int | None:
    """Run the sweep, or kill it after some seconds; return its exit status, None where it was killed."""
    how = {"env": {**os.environ, "SHARES": str(place / "shares")}, "stdout": subprocess.DEVNULL}
    child = subprocess.Popen(command, **how)
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return None


def done(place: Path) -> collections.Counter[str]:
    """Return how often each share of each trial was finished, the recipe as it was left out."""
    file = place / "shares"
    lines = file.read_text().splitlines() if file.is_file() else []
    return collections.Counter(line for line in lines if not line.startswith("0.1 "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    rng, rows = np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder) / "unbroken"
        clock = time.perf_counter()
        assert go(unbroken, begin(unbroken)) == 0
        whole = time.perf_counter() - clock
        print(f"unbroken: {whole:.0f} s")
        for k in range(options.kills):
            place = Path(folder) / f"{k:02d}"
            command, after = begin(place), float(rng.uniform(0.0, whole))
            ended = go(place, command, after)
            before = done(place)
            status = go(place, command) if ended is None else ended
            (results,) = place.glob("runs/*/results.parquet")
            table = parquet.read_table(results).to_pydict()
            again = {line: many for line, many in done(place).items() if many > 1}
            worst = max(collections.Counter(line.split()[0] for line in again).values(), default=0)
            rows.append(
                {
                    "seconds": after,
                    "shares_before": sum(before.values()),
                    "finished": status == 0,
                    "every_trial_once": table["status"] == ["finished"] * (TRIALS + 1)
                    and len(set(table["settings.x"])) == TRIALS + 1,
                    "done_again": sum(again.values()) - len(again),
                    "done_again_of_a_trial": worst,
                }
            )
            row = rows[-1]
            print(
                f"killed after {after:5.1f} s, {row['shares_before']:2d} shares done: "
                f"{'finished' if row['finished'] else 'FAILED'}, "
                f"{'every trial once' if row['every_trial_once'] else 'TRIALS MISSING OR TWICE'}, "
                f"{row['done_again']} shares done again, {worst} of a trial at most",
                flush=True,
            )
    result: dict[str, Any] = {
        "kills": len(rows),
        "finished": sum(r["finished"] for r in rows),
        "every_trial_once": sum(r["every_trial_once"] for r in rows),
        "most_done_again_of_a_trial": max(r["done_again_of_a_trial"] for r in rows),
        "rows": rows,
    }
    print(
        f"{result['finished']} of {len(rows)} finished, {result['every_trial_once']} with every trial once; "
        f"of a trial at most {result['most_done_again_of_a_trial']} finished shares were done again"
    )
    if options.json:
        options.json.write_text(json.dumps(result | surroundings("ray"), indent=1))


if __name__ == "__main__":
    main()
