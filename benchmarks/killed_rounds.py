"""Do rounds of control, recording and fine-tuning survive `kill -9` at any moment, and end as if nothing had happened?

    python benchmarks/killed_rounds.py [--kills N] [--seed SEED] [--json FILE]

Three rounds of six seconds on a simulated pendulum run once without a break. Then as often as asked a run is killed at
a random moment, and the same command is given again. Counted is how often it finishes, how often rounds and weights are
to the bit those of the unbroken run, and whether every episode that had ended before the kill is there, unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _surroundings import one_thread, surroundings

from sim2real.dagger import dagger, finished, latest
from sim2real.planning import MPPI, Damping, Upright
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

DT, LIMIT, PAYLOAD = 0.02, np.array([4.0]), "dynamics.payload.mass"


def pretrain(place: Path) -> None:
    """Train a model that believes in half of the payload, and save it."""
    plant = Plant(RobotModel("pendulum"), timestep=0.005, threads=1)
    twin = Twin(plant, {PAYLOAD: 0.4}, period=DT)
    log = twin.record("log", excite(np.random.default_rng(0), 6.0, DT, LIMIT, (0.5, 1.3)), DT)
    rehearsal = Rehearsal(plant, repeated({PAYLOAD: 0.4}, 2), Excitation((4.0,), (4.0,), (3.1,)), windows=400)
    model = EnsembleDynamics(EnsembleConfig((True,), 1, DT, history=3, members=2, hidden=(32, 32), lookback=4))
    fit_to_recordings(model, [log], ["position"], rehearsal=rehearsal, recorded=0.0, iterations=300, rate=0.01)
    model.save(place)


def go(place: Path) -> None:
    """Go round."""
    plant = Plant(RobotModel("pendulum"), timestep=0.005, threads=1)
    robot = TwinEnv(Twin(plant, {PAYLOAD: 0.8}, period=DT), LIMIT, DT)
    dagger(
        robot, EnsembleDynamics.load(place / "model"), lambda model: MPPI(model, Upright(), LIMIT, candidates=40),
        Damping(0.2, LIMIT), ["position"], place / "rounds", seconds=6.0, episode=1.5, iterations=100, patience=9,
    )  # fmt: skip


def episodes(place: Path) -> dict[str, str]:
    """Return a digest of every episode that has ended."""
    found = sorted(place.glob("rounds/round-*/logs/episode_*.parquet"))
    return {str(f.relative_to(place)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}


def outcome(place: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return what rounds say of themselves, and the weights that they end with."""
    rounds = [asdict(r) for r in finished(place / "rounds")]
    return rounds, [p.detach().numpy().tobytes() for p in latest(place / "rounds").parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        go(options.child)
        return
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder) / "unbroken"
        pretrain(unbroken / "model")
        command = [sys.executable, __file__, "--child"]
        clock = time.perf_counter()
        subprocess.run([*command, str(unbroken)], check=True)
        whole = time.perf_counter() - clock
        expected = outcome(unbroken)
        print(f"unbroken: {whole:.1f} s, {len(expected[0])} rounds")
        rows = []
        for k in range(options.kills):
            place = Path(folder) / f"{k:02d}"
            EnsembleDynamics.load(unbroken / "model").save(place / "model")
            after = float(rng.uniform(0.0, whole))
            child = subprocess.Popen([*command, str(place)])
            try:
                child.wait(after)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
            before, done = episodes(place), len(finished(place / "rounds"))
            again = subprocess.run([*command, str(place)], check=False)
            now = episodes(place)
            row = {
                "seconds": after,
                "rounds_before": done,
                "episodes_before": len(before),
                "finished": again.returncode == 0,
                "kept": all(now.get(name) == digest for name, digest in before.items()),
                "equal": again.returncode == 0 and outcome(place) == expected,
            }
            rows.append(row)
            print(
                f"killed after {after:5.1f} s, {done} rounds and {len(before)} episodes: "
                f"{'finished' if row['finished'] else 'FAILED'}, "
                f"{'all kept' if row['kept'] else 'LOST'}, {'equal' if row['equal'] else 'DIFFERENT'}",
                flush=True,
            )
    told = {key: sum(bool(row[key]) for row in rows) for key in ("finished", "kept", "equal")}
    print(", ".join(f"{key} {many} of {len(rows)}" for key, many in told.items()))
    if options.json:
        document = {**told, "kills": rows, **surroundings("mujoco", "torch", "numpy")}
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    one_thread()
    main()
