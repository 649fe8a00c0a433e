"""What does Genesis do a second, what does randomization cost there, and how far is it from MuJoCo?

    python benchmarks/engines.py [--envs N ...] [--tasks NAME ...] [--quick] [--json FILE]

Environment steps a second of robot tasks, with resets: bare on Genesis; with all masses, dampings and gears (servos:
gains) of every environment randomized at every reset; and randomized on MuJoCo's batch, on as many threads as Genesis
has (one on the CPU, unless `QD_NUM_THREADS` says otherwise). They take turns, and the best round of each counts.
Episodes end after 200 steps, at other times in each environment, so that some begin at almost every step.

Then both engines follow the same commands for a second with the same parameters, drawn for each of 64 plants:
`disagree` is the largest distance between them, relative to the range of motion, of positions and velocities.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _surroundings import one_thread, surroundings

from sim2real.randomization import RobotModel
from sim2real.randomization.genesis import GenesisModel
from sim2real.randomization.vector import make_vec

TASKS = ("pendulum", "cartpole", "franka_reach", "go2_walk")
FIELDS = ("mass", "damping", "gear")


def stepper(task: str, n: int, parameters: dict[str, str], **how: Any) -> Callable[[], Any]:
    """Return a step of n environments whose episodes begin at different times."""
    envs = make_vec(task, n, parameters=parameters, autoreset_mode="SameStep", max_episode_steps=200, **how)
    envs.reset(seed=0)
    base: Any = envs.unwrapped
    base.elapsed[:] = np.arange(n) % 200
    envs.action_space.seed(0)
    actions: Any = 0.1 * envs.action_space.sample()
    if how.get("vectorization") == "genesis":
        actions = torch.as_tensor(actions, dtype=torch.float32, device=base.device)
    return lambda: envs.step(actions)


def rates(task: str, n: int, rounds: int, steps: int) -> dict[str, float]:
    """Return environment steps a second of each contender."""
    fields = FIELDS if task in ("pendulum", "cartpole") else ("mass", "kp", "kv")
    parameters = {f"dynamics.*.{field}": "*U(0.8, 1.2) each" for field in fields}
    threads = int(os.environ.get("QD_NUM_THREADS", "1"))
    contenders = {
        "bare": stepper(task, n, {}, vectorization="genesis"),
        "randomized": stepper(task, n, parameters, vectorization="genesis"),
        "mujoco": stepper(task, n, parameters, threads=threads),
    }
    out = dict.fromkeys(contenders, 0.0)
    for step in contenders.values():
        step()
    for _ in range(rounds):
        for name, step in contenders.items():
            clock = time.perf_counter()
            for _ in range(steps):
                step()
            out[name] = max(out[name], n * steps / (time.perf_counter() - clock))
    return out | {"share": out["randomized"] / out["bare"]}


def disagreement(robot: str, n: int = 64) -> float:
    """Return how far both engines are apart within a second, relative to the range of motion."""
    here, there = GenesisModel(robot).simulate(n, 0.001), RobotModel(robot).simulate(n, 0.001, 1)
    rng = np.random.default_rng(0)
    values = {
        name: value * rng.uniform(0.7, 1.3, n)
        for name, value in here.nominal().items()
        if value and name.split(".")[-1] in (*FIELDS, "armature", "frictionloss", "com[2]")
    }
    state = rng.uniform(-0.5, 0.5, (n, 2 * here.degrees_of_freedom))
    time_ = np.arange(1000) * 0.001
    wave = np.sin(2 * np.pi * time_[None] * rng.uniform(0.5, 3.0, (n, 1)))
    effort = np.repeat(wave[..., None], len(there.model.driven), 2) * (1.0 if robot == "pendulum" else 3.0)
    paths = []
    for simulator in (here, there):
        simulator.write(values)
        simulator.set_state(state)
        paths.append(simulator.step(effort))
    return float((np.abs(paths[0] - paths[1]) / np.ptp(paths[1], axis=(0, 1))).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", type=int, help="64 and 1,024; on a GPU 4,096 and 16,384")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    many = options.envs or ([4096, 16384] if torch.cuda.is_available() else [64, 1024])
    result: dict[str, Any] = {"steps_per_s": {}, "disagree": {}}
    print(f"{'task':14s}{'environments':>14s}{'bare':>12s}{'randomized':>12s}{'share':>8s}{'MuJoCo':>12s} steps/s")
    for task in options.tasks:
        for n in many:
            found = rates(task, n, 3 if options.quick else 5, 10 if options.quick else 50)
            result["steps_per_s"].setdefault(task, {})[str(n)] = found
            print(
                f"{task:14s}{n:14,d}{found['bare']:12,.0f}{found['randomized']:12,.0f}{found['share']:8.2f}"
                f"{found['mujoco']:12,.0f}",
                flush=True,
            )
    for robot in ("pendulum", "cartpole"):
        result["disagree"][robot] = disagreement(robot)
        print(f"{robot}: engines apart by {result['disagree'][robot]:.0e} of the motion within a second")
    if options.json:
        options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "genesis-world"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
