"""How well is a real pendulum predicted? Run recipes/dfki_pendulum.yaml on the owners' recordings and score it.

    python benchmarks/real_pendulum.py [LOGS] [--quick] [--json FILE]

LOGS (by default ../shared/data/pendulum, beside the checkout) is the folder with the published `<run>_measured.csv` and
`<run>_desired.csv`. Beside the predictors of the run, one more is scored on the changed robot: the simulator identified
before the change with its mass, so both its inertia and its gravity torque, doubled by hand. Every scoring of a test
recording is appended to benchmarks/test_ledger.jsonl.
`--quick` identifies and scores the simulator only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.calibration import Posterior
from sim2real.estimation import Observation
from sim2real.evaluation import Questions, score
from sim2real.pipeline import Watcher, run
from sim2real.preparation import prepare
from sim2real.recipe import load_recipe
from sim2real.run_directory import read_json
from sim2real.stages import simulator_predictor

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "benchmarks" / "test_ledger.jsonl"


def doubled(directory: Path, logs: Path) -> dict[str, Any]:
    """Score the mass doubled by hand on the windows after the adaptation seconds."""
    setup = prepare(load_recipe(ROOT / "recipes" / "dfki_pendulum.yaml", [f"logs={logs}"]))
    observed = read_json(directory / "stages" / "observe.json")["result"]
    observation = Observation(observed["span"], observed["bandwidth"])
    values = Posterior.load(directory / "posterior").values
    values = {n: v * (2 if n.endswith((".mass", ".armature")) else 1) for n, v in values.items()}
    rows = {}
    for shift in setup.recordings.shift:
        for episode in shift.recordings:
            questions = Questions.of(episode, setup.channels, after=shift.after(episode))
            prediction = simulator_predictor(setup, values, {}, observation)(questions)
            rows[episode.name] = score(prediction, questions, ["hinge"], np.random.default_rng(0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "pendulum")
    parser.add_argument("--quick", action="store_true", help="a small world model: the simulator's scores only count")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    if not options.logs.is_dir():
        print(f"not measured: {options.logs} does not exist; name the folder of the recordings")
        return
    overrides = [f"logs={options.logs}"]
    if options.quick:
        overrides += ["model={timestep: 0.01, stretches: 20, iterations: 50}", "finetune.iterations=5"]
    recipe = load_recipe(ROOT / "recipes" / "dfki_pendulum.yaml", overrides)
    with tempfile.TemporaryDirectory() as folder:
        watcher = Watcher(end=lambda name, seconds, _: print(f"  {name:<10} {seconds:6.1f} s", flush=True))
        directory = run(recipe, Path(folder), watcher=watcher)
        metrics = json.loads((directory / "metrics.json").read_text())
        by_hand = doubled(directory, options.logs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    rows = []
    for split in ("test", "shift"):
        for recording, predictors in metrics["scores"][split].items():
            extra = {"mass doubled by hand": by_hand[recording]} if split == "shift" else {}
            print(f"\n{split} {recording} ({next(iter(predictors.values()))['windows']} windows)")
            print(
                f"  {'predictor':22s} {'mean NRMSE':>10s} {'RMSE 0.1, 0.2, 0.5, 1.0 s [rad]':>36s} {'90 % covers':>24s}"
            )
            for name, s in {**predictors, **extra}.items():
                rmse = " ".join(f"{s[h]['rmse']['hinge']:8.4f}" for h in ("0.1", "0.2", "0.5", "1"))
                low, high = s["coverage90_interval"]
                covers = "" if name in extra else f"{s['coverage90']:.2f} [{low:.2f}, {high:.2f}]"
                print(f"  {name:22s} {s['mean_nrmse']:10.4f} {rmse:>36s} {covers:>24s}")
                rows.append({"recording": recording, "predictor": name, "mean_nrmse": s["mean_nrmse"]})
    print(f"\nfine-tuning {metrics['finetune']['reason']}")
    for found in metrics["adaptation"].values():
        print(found["sentence"])
    with LEDGER.open("a") as ledger:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for row in rows:
            ledger.write(json.dumps({"when": now, "commit": commit, "quick": options.quick, **row}) + "\n")
    if options.json:
        options.json.write_text(json.dumps({"metrics": metrics, "mass_doubled_by_hand": by_hand}, indent=1))


if __name__ == "__main__":
    main()
