"""The robot has changed: what do seconds of it make of a simulator and of a world model?

    python benchmarks/changed_machine.py [--robots NAME ...] [--seed SEED] [--logs FOLDER] [--quick] [--json FILE]

A simulator is identified on the training recordings of the robot as it was, and a world model that looks back trained
on simulations of its posterior. Then, for a few amounts of data of the changed robot, `adapt` finds what changed, and
`tune_dynamics` (anchored) tunes the model on them beside simulations of the adapted posterior. Scored are recordings of
the changed robot, without the seconds that were adapted to. The rows:

- `simulator`, `model`: as they were; `adapted simulator`, `tuned model`: after.
- `doubled by hand`: the simulator of the pendulum with twice the masses, for its payload was doubled.

All are recalibrated on the validation recordings of the robot as it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _recorded_robots import RECIPES, ROOT, Robot, configuration, load
from _surroundings import one_thread, surroundings

from sim2real.calibration import OfReadings, Posterior, adapt, tune_dynamics
from sim2real.combination import recalibrate
from sim2real.estimation import Observation
from sim2real.evaluation import Predictor, Questions, RecordingPredictor, score, start_covariance
from sim2real.preparation import Setup, Shift, prepare
from sim2real.recipe import load_recipe
from sim2real.stages import choose_observer, excitation, identify_stage, simulator_predictor, validation
from sim2real.world_model import EnsembleDynamics, Rehearsal, fit_to_recordings

# Seconds that are adapted to.
AMOUNTS = {"double_pendulum": (2.0, 5.0, 10.0), "pendulum": (2.0, 4.0), "qube": (2.0, 10.0)}


def with_seconds(name: str, logs: Path, seconds: float) -> Setup:
    """Read a robot whose changed self is known for so many seconds."""
    path = ROOT / "recipes" / f"{RECIPES[name][0]}.yaml"
    split = load_recipe(path, [f"logs={logs}"]).split
    assert split is not None
    shifts = [s.model_dump() | {"seconds": seconds} for s in split.shift]
    return prepare(load_recipe(path, [f"logs={logs}", f"split.shift={json.dumps(shifts)}"]), threads=1)


class Known:
    """What is known of the robot as it was.

    Args:
        robot: with its recordings.
        seed: of all draws.
        quick: whether models are trained for a fifteenth of the iterations.
    """

    def __init__(self, robot: Robot, seed: int, quick: bool) -> None:
        assert robot.setup is not None
        self.robot, self.setup, self.seed, self.quick = robot, robot.setup, seed, quick
        self.posterior = identify_stage(self.setup, lambda _: None, examine=False)
        self.observation: Observation = choose_observer(self.setup, self.posterior.values)[0]
        self.config = configuration(robot)
        self.model = EnsembleDynamics(self.config, seed)
        fit_to_recordings(
            self.model, robot.commanded, robot.channels, rehearsal=self.rehearsal(self.posterior), trust=1.0,
            recorded=0.0, iterations=200 if quick else 3000, seed=seed,
        )  # fmt: skip

    def rehearsal(self, posterior: Posterior, windows: int = 2000) -> Rehearsal:
        """Return simulations of a posterior."""
        draws = posterior.sample(np.random.default_rng(self.seed), self.config.members)
        return Rehearsal(self.setup.plant, draws, excitation(self.setup, self.config.timestep), windows)

    def simulator(self, posterior: Posterior, factor: float = 1.0) -> Predictor:
        """Return the simulator of a posterior, its masses times a factor."""
        plant, channels = self.setup.plant, self.robot.channels
        values = {n: v * (factor if n.endswith((".mass", ".armature")) else 1.0) for n, v in posterior.values.items()}
        held = self.setup.recordings.validation
        covariance = start_covariance(plant, posterior.values, self.observation, held, channels)
        draws = posterior.sample(np.random.default_rng(self.seed), 16) if factor == 1.0 else {}
        return simulator_predictor(self.setup, values, draws, self.observation, covariance)

    def tuned(self, posterior: Posterior, shift: Shift) -> EnsembleDynamics:
        """Tune the model on the seconds of a changed robot."""
        channels, e = self.robot.channels, shift.adapt_to
        seconds = min(0.5, 0.3 * e.duration)
        replay = OfReadings.simulated(self.model, self.rehearsal(posterior), e.period, seconds, self.seed)
        real = OfReadings.of(self.model, [e], channels, seconds)
        iterations = 30 if self.quick else 600
        return tune_dynamics(
            self.model, real, replay=replay, replay_weight=1.0, iterations=iterations, rate=3e-3, seed=self.seed
        ).model


def measure(known: Known, setup: Setup, by_hand: bool) -> dict[str, Any]:
    """Adapt to the seconds of one changed robot; score what comes after them."""
    (shift,) = setup.recordings.shift
    held, channels = validation(known.setup), known.robot.channels
    now = adapt(
        known.setup.plant, known.posterior, [shift.adapt_to], channels=channels,
        window=known.setup.recipe.identify.window, rng=np.random.default_rng(known.seed),
    )  # fmt: skip
    rows: dict[str, Predictor] = {
        "simulator": known.simulator(known.posterior),
        "adapted simulator": known.simulator(now.posterior),
        "model": RecordingPredictor(known.model, channels),
        "tuned model": RecordingPredictor(known.tuned(now.posterior, shift), channels),
    }
    if by_hand:
        rows["doubled by hand"] = known.simulator(known.posterior, 2.0)
    # what was adapted keeps the recalibration of what it came from, for it cannot know its own
    heirs = {"adapted simulator": "simulator", "tuned model": "model", "doubled by hand": "simulator"}
    found: dict[str, Any] = {}
    of = {name: recalibrate(rows[name], held) for name in ("simulator", "model")}
    for name, predictor in rows.items():
        recalibration = of[heirs.get(name, name)]
        found[name] = {}
        for e in shift.recordings:
            q = Questions.of(e, channels, after=shift.after(e))
            answer = recalibration.apply(predictor(q))
            s = score(answer, q, known.robot.joints, np.random.default_rng(0))
            told = ("mean_nrmse", "crps", "coverage90", "coverage90_interval")
            found[name][e.name] = {key: s[key] for key in told}
    return {"rows": found, "sentence": now.to_json()["sentence"]}


def show(name: str, seconds: float, found: Mapping[str, Any]) -> None:
    """Print a table."""
    print(f"\n{name}, {seconds:g} s: {found['sentence']}")
    print(f"{'':20s}{'recording':24s}{'mean NRMSE':>11s}{'CRPS':>9s}  covers 90 %")
    for row, recordings in found["rows"].items():
        for recording, s in recordings.items():
            low, high = s["coverage90_interval"]
            covers = f"{s['coverage90']:.2f} [{low:.2f}, {high:.2f}]"
            print(f"{row:20s}{recording:24s}{s['mean_nrmse']:11.4f}{s['crps']:9.4f}  {covers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", choices=tuple(AMOUNTS), default=tuple(AMOUNTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--quick", action="store_true", help="a fifteenth of the iterations")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"robots": {}, "quick": options.quick}
    for name in options.robots:
        logs = options.logs / name
        if not logs.is_dir():
            print(f"{name}: not measured: {logs} does not exist; name the folder above it with --logs")
            continue
        known = Known(load(name, logs), options.seed, options.quick)
        for seconds in AMOUNTS[name]:
            found = measure(known, with_seconds(name, logs, seconds), name == "pendulum")
            result["robots"].setdefault(name, {})[f"{seconds:g}"] = found
            show(name, seconds, found)
            if options.json:
                options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
