"""What do seconds of real logs make of a world model that was trained in simulation, and how long does it take?

    python benchmarks/finetune.py [--robots NAME ...] [--seconds S ...] [--seeds SEED ...] [--logs FOLDER]
        [--folder FOLDER] [--quick] [--json FILE]

From the first S seconds of the training recordings (all of them where S is 0) a simulator is identified, and a model
that looks back is trained on simulations of its posterior: `pretrained`. Where an action is a gain or a mode, as with
the XL330, simulations are driven as the recordings were. `scratch` is trained on the same recordings alone. Then each
method of `finetune_dynamics` tunes the pre-trained model on them, beside replayed simulations, whether the gate lets it
through or not; `auto` is what it lets through. Everything is recalibrated on the validation recordings, which the gate
looks at, too, and scored on the test recordings, each kind by itself.

Of each row: mean NRMSE with its 90 % interval over one-second blocks, CRPS, coverage of the 90 % intervals, and
`forgets`, the error on simulations that it had not seen, relative to how far the robot gets.

Then seconds to tune on 30 s of 100 Hz logs, and milliseconds of an update of the last layer at 20 Hz: on one core.

What was answered stays in the folder: killed, the script goes on where it was. benchmarks/results/finetune has what was
answered so far, a quarter of an hour each: give it as the folder to go on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _recorded_robots import RECIPES, ROOT, Robot, configuration, present
from _surroundings import one_thread, surroundings
from calibration_of_uncertainty import identified

from sim2real.calibration import FinetuneResult, OfReadings, OnlineLastLayer, finetune_dynamics
from sim2real.calibration.tuning import METHODS
from sim2real.combination import recalibrate_model
from sim2real.estimation import Estimate
from sim2real.evaluation import Questions, RecordingPredictor, score
from sim2real.prediction import Prediction
from sim2real.run_directory import write_json
from sim2real.world_model import Driven, EnsembleConfig, EnsembleDynamics, fit_to_recordings

ROWS = ("scratch", "pretrained", *METHODS, "auto")
# Of an update: model steps at 20 Hz.
ONLINE = 400
# Robots whose actions are not all commands that may be drawn at random.
MODES = ("xl330",)


def tuned(
    robot: Robot, modes: bool, seed: int, quick: bool
) -> tuple[dict[str, EnsembleDynamics], OfReadings, dict[str, Any]]:
    """Return the models of all rows, simulations that none has seen, and what `auto` and the gate said."""
    assert robot.setup is not None
    config, iterations = configuration(robot), 200 if quick else 3000
    _, rehearsal = identified(robot.setup, seed, config)
    if modes:
        seen = Driven.of(robot.commanded, robot.channels, config.timestep)
        rehearsal = replace(rehearsal, excitation=replace(rehearsal.excitation, recorded=seen, share=1.0))

    def fresh(**how: Any) -> EnsembleDynamics:
        model = EnsembleDynamics(config, seed)
        return fit_to_recordings(model, robot.commanded, robot.channels, iterations=iterations, seed=seed, **how)

    models = {"scratch": fresh(), "pretrained": fresh(rehearsal=rehearsal, trust=1.0, recorded=0.0)}
    start = models["pretrained"]
    real = OfReadings.of(start, robot.commanded, robot.channels, min(0.5, 0.3 * robot.commanded[0].duration))
    period = robot.commanded[0].period
    replay = OfReadings.simulated(start, rehearsal, period, seed=1000 + seed)
    held_out = [Questions.of(e, robot.channels) for e in robot.recordings.validation]

    def answer(model: EnsembleDynamics, questions: Questions) -> Prediction:
        return RecordingPredictor(model, robot.channels)(questions)

    said: dict[str, Any] = {}

    def tune(method: str) -> FinetuneResult:
        clock = time.perf_counter()
        found = finetune_dynamics(
            start, real, answer=answer, held_out=held_out, method=method, replay=replay, seed=seed,
            iterations=30 if quick else 300,
        )  # fmt: skip
        said[method] = found.to_json() | {"seconds": time.perf_counter() - clock}
        return found

    auto = tune("auto")
    models["auto"] = auto.model
    for method in METHODS:
        if method == auto.method:  # what `auto` tuned is that to the bit
            models[method], said[method] = auto.tuned, said["auto"]
        else:
            models[method] = tune(method).tuned
    unseen = OfReadings.simulated(start, replace(rehearsal, windows=200), period, seed=2000 + seed)
    return models, unseen, said


def measure(robot: Robot, modes: bool, seed: int, quick: bool) -> dict[str, Any]:
    """Tune and score."""
    models, unseen, said = tuned(robot, modes, seed, quick)
    held = [Questions.of(e, robot.channels) for e in robot.recordings.validation]
    out: dict[str, Any] = {}
    for name, model in models.items():
        predictor = RecordingPredictor(model, robot.channels)
        recalibrate_model(model, predictor, held)
        rows = {}
        for e in robot.recordings.test:
            q = Questions.of(e, robot.channels)
            answer = predictor(q)
            found = score(answer, q, robot.joints, np.random.default_rng(0))
            rows[e.name] = {
                "mean_nrmse": found["mean_nrmse"],
                "mean_nrmse_interval": interval(answer, q),
                "crps": found["crps"],
                "coverage90": found["coverage90"],
            }
        out[name] = {
            **{key: float(np.mean([r[key] for r in rows.values()])) for key in ("mean_nrmse", "crps", "coverage90")},
            "forgets": float(unseen.errors(model).mean().sqrt()),
            "recordings": rows,
            **({"said": said[name]} if name in said else {}),
        }
    return out


def interval(answer: Prediction, q: Questions, draws: int = 1000) -> list[float]:
    """Return the 90 % interval of the mean NRMSE when one-second blocks are drawn anew; the spread of changes stays."""
    relative = ((answer.mean.double().numpy() - q.truth) / (q.truth - q.now[:, None]).std(0).clip(1e-9)) ** 2
    blocks = q.blocks()
    many = int(blocks.max()) + 1
    total, rng = np.zeros((many, *relative.shape[1:])), np.random.default_rng(0)
    np.add.at(total, blocks, relative)
    picked = np.stack([np.bincount(rng.integers(many, size=many), minlength=many) for _ in range(draws)]).astype(float)
    windows = picked @ np.bincount(blocks, minlength=many)
    means = np.einsum("rb,bhd->rhd", picked, total) / windows[:, None, None].clip(1)
    return np.quantile(np.sqrt(means).mean((1, 2)), [0.05, 0.95]).tolist()


def clocks(quick: bool) -> dict[str, Any]:
    """Return how long tuning takes on 30 s of 100 Hz logs of a twin, and an update in the loop."""
    from sim2real.plant import Plant
    from sim2real.randomization import RobotModel
    from sim2real.twin import Twin, excite

    plant = Plant(RobotModel("double_pendulum"), timestep=0.002, threads=1)
    joints, actions = plant.degrees_of_freedom, plant.actions
    limit = np.full(actions, 0.5)
    seconds = 8.0 if quick else 30.0
    learn, held = (
        Twin(plant).record(str(k), excite(np.random.default_rng(k), seconds, 0.01, limit, (0.5, 1.3)), 0.01)
        for k in range(2)
    )
    channels = [name for name, _ in learn.channels.observations]
    config = EnsembleConfig(plant.model.wraps, actions, 0.01, history=6, hidden=(128, 128), lookback=8, latents=4)
    model = fit_to_recordings(EnsembleDynamics(config), [learn], channels, iterations=30 if quick else 100)
    real = OfReadings.of(model, [learn], channels)
    asked = [Questions.of(held, channels)]
    out: dict[str, Any] = {"seconds": {}}
    for method in METHODS:
        found = finetune_dynamics(
            model, real, answer=lambda m, q: RecordingPredictor(m, channels)(q), held_out=asked, method=method,
            iterations=30 if quick else 300,
        )  # fmt: skip
        out["seconds"][method] = found.seconds
    online, rng = OnlineLastLayer(copy.deepcopy(model)), np.random.default_rng(0)
    estimates = [
        Estimate(rng.normal(size=(1, 2 * joints)), rng.normal(size=(1, 5, actions)), rng.normal(size=(1, 8, joints)))
        for _ in range(ONLINE + 1)
    ]
    taken = []
    for before, after in pairwise(estimates):
        clock = time.perf_counter()
        online.update(before, after.commands[:, -1], after)
        taken.append(1e3 * (time.perf_counter() - clock))
    return out | {"online_p50_ms": float(np.median(taken)), "online_p99_ms": float(np.quantile(taken, 0.99))}


def show(rows: dict[str, Any]) -> None:
    """Print a table for each recording."""
    recordings: Sequence[str] = list(rows["scratch"]["recordings"])
    for recording in recordings:
        print(f"{recording:24s}{'mean NRMSE':>12s}{'by chance':>18s}{'CRPS':>9s}{'covers 90 %':>13s}{'forgets':>9s}")
        for name in ROWS:
            r = rows[name]["recordings"][recording]
            low, high = r["mean_nrmse_interval"]
            print(
                f"{name:24s}{r['mean_nrmse']:12.4f}{f'{low:.3f} to {high:.3f}':>18s}{r['crps']:9.4f}"
                f"{r['coverage90']:13.2f}{rows[name]['forgets']:9.3f}",
                flush=True,
            )
    print(f"auto chose {rows['auto']['said']['method']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="*", choices=tuple(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--seconds", nargs="+", type=float, default=[10.0, 30.0, 0.0], help="0 for all of them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "finetune", help="keeps what is done")
    parser.add_argument("--quick", action="store_true", help="a fifteenth of the iterations")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    result = clocks(options.quick) | {"robots": {}, "quick": options.quick}
    print(", ".join(f"{name} {seconds:.2g} s" for name, seconds in result["seconds"].items()), "on 30 s of 100 Hz logs")
    print(f"last layer in the loop: {result['online_p50_ms']:.2g} ms, 99 % within {result['online_p99_ms']:.2g} ms")
    for name, robot in present(options.robots, options.logs):
        for seconds in options.seconds:
            less = robot.reduced(round(seconds / robot.dt)) if seconds else robot
            amount, seeds = f"{seconds:g}" if seconds else "all", []
            for seed in options.seeds:
                file = options.folder / f"{name}-{amount}-{seed}{'-quick' if options.quick else ''}.json"
                if not file.exists():
                    write_json(file, measure(less, name in MODES, seed, options.quick))
                seeds.append(json.loads(file.read_text()))
                print(f"\n{name}, {amount} s, seed {seed}")
                show(seeds[-1])
            rows = {
                row: {
                    key: float(np.mean([found[row][key] for found in seeds]))
                    for key in ("mean_nrmse", "crps", "coverage90", "forgets")
                }
                for row in ROWS
            }
            result["robots"].setdefault(name, {})[amount] = rows | {"seeds": seeds}
            if options.json:  # as far as it has got
                options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
