"""What do stages cost? On one environment, beside Gymnasium's wrappers; on 1024 plants, beside raw MuJoCo `Batch`.

    python benchmarks/adapters.py [--quick] [--json FILE]

Six execution stages at 5 physics substeps a control step and four sensor stages at the control step, on 6 joints.
Gymnasium's wrappers do what of it they can: delays in whole steps, noise, gain, dead zone, limit, rounding.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from mujoco.batch import Batch
from numpy.typing import NDArray

from sim2real.adapters import Chain
from sim2real.randomization.mujoco_simulator import available_threads

Array = NDArray[np.float64]
JOINTS, SUBSTEPS, DT = 6, 5, 0.01
EXECUTION: list[dict[str, Any]] = [
    {"stage": "latency", "delay": 0.013},
    {"stage": "gain", "gain": 0.95},
    {"stage": "dead_zone", "width": 0.05},
    {"stage": "noise", "additive": 0.01},
    {"stage": "lag", "time_constant": 0.01},
    {"stage": "torque_limit", "limit": 0.9},
]
PERCEPTION: list[dict[str, Any]] = [
    {"stage": "encoder", "step": 0.001},
    {"stage": "noise", "additive": 0.01},
    {"stage": "bias", "offset": 0.01},
    {"stage": "latency", "delay": 0.02},
]


class Nothing(gym.Env[Array, Array]):
    """An environment whose step costs nothing: what is timed is what is around it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (JOINTS,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (JOINTS,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(JOINTS), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return action, 0.0, False, False, {}


class DelayAction(gym.ActionWrapper[Any, Any, Any]):
    """What Gymnasium has no wrapper for: actions that come a whole number of steps late."""

    def __init__(self, env: Any, delay: int) -> None:
        super().__init__(env)
        self._line = [np.zeros(JOINTS)] * delay

    def action(self, action: Array) -> Array:
        self._line.append(action)
        return self._line.pop(0)


def of_gymnasium() -> Any:
    """Return the stack of Gymnasium's wrappers that comes nearest."""
    rng, box = np.random.default_rng(0), Nothing.action_space
    env: Any = wrappers.ClipAction(Nothing())
    env = wrappers.TransformAction(env, lambda a: a + 0.01 * rng.normal(size=JOINTS), box)
    env = wrappers.TransformAction(env, lambda a: a - np.clip(a, -0.05, 0.05), box)
    env = wrappers.TransformAction(env, lambda a: 0.95 * a, box)
    env = DelayAction(env, 1)
    space = Nothing.observation_space
    env = wrappers.TransformObservation(env, lambda o: np.round(o / 0.001) * 0.001, space)
    env = wrappers.TransformObservation(env, lambda o: o + 0.01 * rng.normal(size=JOINTS), space)
    env = wrappers.TransformObservation(env, lambda o: o + 0.01, space)
    return wrappers.DelayObservation(env, 2)


def microseconds(work: Callable[[], Any], calls: int, rounds: int = 7) -> float:
    """Time a call: the best round of several."""
    work()
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        best = min(best, (time.perf_counter() - start) / calls)
    return 1e6 * best


def single(fused: bool, calls: int) -> float:
    """Time both chains of one environment for a control step."""
    execution = Chain.from_config(EXECUTION).bind(1, JOINTS, DT / SUBSTEPS, fused=fused)
    perception = Chain.from_config(PERCEPTION, gap="perception").bind(1, JOINTS, DT, fused=fused)
    action, reading = np.full(JOINTS, 0.5), np.full((1, 1, JOINTS), 0.3)

    def step() -> None:
        execution.apply(np.repeat(action[None, None], SUBSTEPS, 1))
        perception.apply(reading)

    return microseconds(step, calls)


def batch(n: int, calls: int) -> tuple[float, float, float]:
    """Time a control step of n cheetahs: bare, with fused chains, with plain ones."""
    model: Any = gym.make("HalfCheetah-v5").unwrapped.model  # type: ignore[attr-defined]
    plants = Batch(model, n, available_threads())
    qpos = plants.bind("qpos")
    dt = float(model.opt.timestep)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (n, JOINTS))

    def chains(fused: bool) -> tuple[Any, Any]:
        execution = Chain.from_config(EXECUTION).bind(n, JOINTS, dt, fused=fused)
        return execution, Chain.from_config(PERCEPTION, gap="perception").bind(n, JOINTS, SUBSTEPS * dt, fused=fused)

    # All three send the same commands to the engine, so that it has the same contacts to solve.
    works = []
    for fused in (False, True):
        execution, perception = chains(fused)

        def step(_: Array, execution: Any = execution, perception: Any = perception) -> None:
            commands = execution.apply(np.repeat(actions[:, None], SUBSTEPS, 1))
            plants.rollout(SUBSTEPS, commands, record=())
            perception.apply(qpos[:, None, 3:])

        works.append((step, execution))

    def bare(commands: Array) -> None:
        plants.rollout(SUBSTEPS, commands, record=())
        qpos[:, 3:].copy()

    works.append((bare, None))
    recorder, best = chains(False)[0], [np.inf] * 3
    for work, _ in works:
        work(np.zeros((n, SUBSTEPS, JOINTS)))  # compiles
    for _ in range(7):  # in turns, from the same states
        recorder.reset()
        recorder.seed(range(n))
        sent = [recorder.apply(np.repeat(actions[:, None], SUBSTEPS, 1)) for _ in range(calls)]
        for k, (work, execution) in enumerate(works):
            plants.reset(None, stage=0)
            if execution is not None:
                execution.reset()
                execution.seed(range(n))
            start = time.perf_counter()
            for commands in sent:
                work(commands)
            best[k] = min(best[k], 1e6 * (time.perf_counter() - start) / calls)
    plain, fused_time, raw = best
    return raw, fused_time, plain


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    calls = 200 if options.quick else 2000
    theirs = of_gymnasium()
    theirs.reset(seed=0)
    bare = Nothing()
    action = np.full(JOINTS, 0.5)
    peers = microseconds(lambda: theirs.step(action), calls) - microseconds(lambda: bare.step(action), calls)
    figures = {
        "single_env_us_per_step": single(False, calls),
        "fused_us_per_step": single(True, calls),
        "gymnasium_wrappers_us_per_step": peers,
    }
    raw, fused, plain = batch(1024, 4 if options.quick else 20)
    figures |= {
        "ratio_to_raw_batch.1024": raw / fused,
        "ratio_to_raw_batch_plain.1024": raw / plain,
        "raw_batch_us_per_step.1024": raw,
    }
    print(f"one environment: 6 joints, 6 execution stages at {SUBSTEPS} substeps, 4 sensor stages; us a control step:")
    print(f"  plain {figures['single_env_us_per_step']:.1f}, fused {figures['fused_us_per_step']:.1f}, ", end="")
    print(f"Gymnasium's wrappers, once a step {peers:.1f}")
    print(f"1024 half cheetahs, {raw / 1e3:.1f} ms a control step bare; throughput beside that: ", end="")
    print(f"fused {raw / fused:.2f}, plain {raw / plain:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
