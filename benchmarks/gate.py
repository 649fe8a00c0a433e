"""Does the gate let good logs through, and poisoned ones not?

    python benchmarks/gate.py [--seeds N] [--json FILE]

A model is trained on simulations of a pendulum as a rough identification leaves it: an eighth of the payload too light,
and without the robot's friction. Twelve seconds of the robot's log, another one for each seed, tune it (`anchored`);
another log of the robot decides. The same with that log poisoned:

- `shuffled`: its commands in random order,
- `units`: its commands a thousand times as large,
- `reversed`: its commands with the other sign, a motor wired the wrong way round,
- `another robot`: a log of a pendulum with five times the payload and the friction.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _surroundings import one_thread, surroundings

from sim2real.adapters import Chain, Noise
from sim2real.calibration import OfReadings, finetune_dynamics
from sim2real.episodes import Episode
from sim2real.evaluation import Questions, RecordingPredictor
from sim2real.plant import Plant, repeated
from sim2real.prediction import Prediction
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

DT, LIMIT, PAYLOAD, FRICTION = 0.02, np.array([3.0]), "dynamics.payload.mass", "dynamics.hinge.frictionloss"
ROBOT, OTHER, BELIEVED = {PAYLOAD: 0.8, FRICTION: 0.1}, {PAYLOAD: 4.0, FRICTION: 0.5}, {PAYLOAD: 0.7}
KINDS = ("good", "shuffled", "units", "reversed", "another robot")


def log(plant: Plant, seed: int, values: dict[str, float]) -> Episode:
    """Record twelve seconds of a pendulum whose encoder is a little noisy."""
    rng = np.random.default_rng(seed)
    commands = excite(rng, 12.0, DT, LIMIT, (0.5, 1.3))
    recorded = Twin(plant, values, Chain([Noise(gap="perception", additive=5e-4)])).record(str(seed), commands, DT)
    # the twin's own noise has one seed
    return replace(recorded, observations=recorded.observations + 5e-4 * rng.normal(size=recorded.observations.shape))


def logged(plant: Plant, kind: str, seed: int) -> Episode:
    """Return a log, good or poisoned."""
    if kind == "another robot":
        return log(plant, seed, OTHER)
    found = log(plant, seed, ROBOT)
    change = {"shuffled": np.random.default_rng(seed).permutation, "units": lambda u: 1e3 * u, "reversed": np.negative}
    return replace(found, actions=change[kind](found.actions)) if kind in change else found


def answer(model: EnsembleDynamics, questions: Questions) -> Prediction:
    """Predict from readings."""
    return RecordingPredictor(model, ["position"])(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plant = Plant(RobotModel("pendulum"), timestep=0.005, threads=1)
    rehearsal = Rehearsal(plant, repeated(BELIEVED, 3), Excitation((3.0,), (4.0,), (3.1,)), windows=500)
    model = EnsembleDynamics(EnsembleConfig((True,), 1, DT, history=3, members=3, hidden=(48, 48), lookback=4))
    first = log(plant, 0, BELIEVED)
    fit_to_recordings(model, [first], ["position"], rehearsal=rehearsal, recorded=0.0, iterations=600)
    accepted = {kind: 0 for kind in KINDS}
    for seed in range(1, options.seeds + 1):
        held_out = [Questions.of(log(plant, 1000 + seed, ROBOT), ["position"])]
        for kind in KINDS:
            real = OfReadings.of(model, [logged(plant, kind, seed)], ["position"])
            found = finetune_dynamics(model, real, answer=answer, held_out=held_out, iterations=150, seed=seed)
            accepted[kind] += found.accepted
        print(f"after {seed}: " + ", ".join(f"{kind} {many}" for kind, many in accepted.items()), flush=True)
    if options.json:
        told = {"accepted": accepted, "seeds": options.seeds, **surroundings("mujoco", "torch", "numpy")}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    one_thread()
    main()
