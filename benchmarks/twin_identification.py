"""Are the posteriors right? Identify the twin of recipes/pendulum.yaml from 20 recordings; count the truths inside.

    python benchmarks/twin_identification.py [--quick] [--json FILE]

Prints, per parameter: how often the truth lies in the 90 % interval, the median absolute error, the median width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from sim2real.pipeline import set_threads
from sim2real.preparation import prepare
from sim2real.recipe import load_recipe
from sim2real.stages import identify_stage

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 20")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    set_threads()
    seeds = range(3 if options.quick else 20)
    inside: dict[str, list[bool]] = {}
    error: dict[str, list[float]] = {}
    width: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    seconds = []
    for seed in seeds:
        setup = prepare(load_recipe(ROOT / "recipes" / "pendulum.yaml", [f"seed={seed}"]))
        assert setup.twin is not None
        clock = time.perf_counter()
        posterior = identify_stage(setup, lambda _: None)
        seconds.append(time.perf_counter() - clock)
        row = []
        for parameter in posterior:
            name, truth = parameter.name, setup.twin.values[parameter.name]
            low, high = posterior.interval(name)
            units[name] = parameter.unit
            inside.setdefault(name, []).append(low <= truth <= high)
            error.setdefault(name, []).append(abs(posterior.values[name] - truth))
            width.setdefault(name, []).append(high - low)
            row.append(f"{name.split('.', 1)[1]} {posterior.values[name]:.4g}{'' if inside[name][-1] else '!'}")
        print(f"seed {seed:2d} ({seconds[-1]:.0f} s): " + ", ".join(row), flush=True)
    result = {
        name: {
            "inside": int(np.sum(inside[name])),
            "of": len(seeds),
            "median_error": float(np.median(error[name])),
            "median_width90": float(np.median(width[name])),
            "unit": units[name],
        }
        for name in inside
    }
    print(f"\n{'parameter':34s} {'inside 90 %':>12s} {'median error':>14s} {'median width':>14s}")
    for name, r in result.items():
        count = f"{r['inside']} of {r['of']}"
        print(f"{name:34s} {count:>12s} {r['median_error']:>14.3g} {r['median_width90']:>14.3g} {r['unit']}")
    print(f"seconds an identification (median): {np.median(seconds):.1f}")
    if options.json:
        options.json.write_text(json.dumps({"parameters": result, "seconds": float(np.median(seconds))}, indent=1))


if __name__ == "__main__":
    main()
