"""Does closing the gap bring the controller back? Ten swing-ups of the twin for each of a few seeds.

    python benchmarks/swing_up.py [--quick] [--json FILE]

Runs recipes/pendulum.yaml per seed and prints how upright the pendulum was (0 hangs, 1 stands, averaged over time and
starts) for: the safe fallback, MPC on the nominal model (before), on the fine-tuned one (after), and on the world model
trained on the twin's own dynamics (oracle).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from sim2real.pipeline import run
from sim2real.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 seed instead of 3")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    rows = []
    names = ("fallback", "before", "after", "oracle")
    print(f"{'seed':>4s} {' '.join(f'{n:>9s}' for n in names)} {'recovered':>10s} {'job [s]':>8s}")
    for seed in range(1 if options.quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            directory = run(load_recipe(ROOT / "recipes" / "pendulum.yaml", [f"seed={seed}"]), Path(folder))
            metrics = json.loads((directory / "metrics.json").read_text())
        r = metrics["closed_loop"]
        share = (r["after"] - r["fallback"]) / (r["oracle"] - r["fallback"])
        seconds = sum(metrics["seconds"].values())
        values = " ".join(f"{r[k]:9.3f}" for k in names)
        print(f"{seed:4d} {values} {share:10.3f} {seconds:8.0f}", flush=True)
        rows.append({"seed": seed, **r, "recovered": share, "seconds": seconds})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
