"""What does randomization cost? HalfCheetah-v5 on two threads, stepped raw, by us, and by Gymnasium's vector env.

    python benchmarks/randomization.py [--quick] [--json FILE]

Raw is `mujoco.batch.Batch.step` alone, without observations, rewards and resets, on the model as it is; ours
randomizes eight parameters of every environment. Gymnasium's Sync and Async run the same eight through the single
wrapper. All take turns, several rounds in one process, and the best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from mujoco.batch import Batch

from sim2real.randomization.vector import make_vec
from sim2real.randomization.wrappers import RandomizeDynamics

ID, THREADS = "HalfCheetah-v5", 2
PARAMETERS = {
    "dynamics.torso.mass": "*U(0.8, 1.2)",
    "dynamics.bfoot.mass": "*U(0.8, 1.2)",
    "dynamics.ffoot.mass": "*U(0.8, 1.2)",
    "dynamics.bthigh.damping": "*U(0.5, 2)",
    "dynamics.fthigh.damping": "*U(0.5, 2)",
    "dynamics.floor.friction[0]": "*U(0.5, 1.5)",
    "dynamics.bthigh.gear": "*U(0.8, 1.2)",
    "dynamics.world.gravity": "*N(1, 0.02)",
}


def seconds_a_step(step: Callable[[], Any], steps: int) -> float:
    """Time `steps` calls."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def best(contenders: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, float]:
    """Let contenders take turns; return the seconds a step of the best round of each."""
    out = dict.fromkeys(contenders, np.inf)
    for step, _ in contenders.values():
        step()
    for _ in range(rounds):
        for name, (step, steps) in contenders.items():
            out[name] = min(out[name], seconds_a_step(step, steps))
    return out


def resident() -> float:
    """Memory of this process now [bytes]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def vector_step(envs: gym.vector.VectorEnv[Any, Any, Any]) -> Callable[[], Any]:
    """A step with the same actions every time."""
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = envs.action_space.sample()
    return lambda: envs.step(actions)


def raw_step(n: int) -> Callable[[], Any]:
    """`Batch.step` alone, frame skip included, from the starts and with the actions of `vector_step`."""
    base: Any = gym.make(ID).unwrapped
    batch = Batch(base.model, n, nthread=THREADS)
    like: Any = make_vec(ID, n, threads=THREADS)
    like.reset(seed=0)
    batch.bind("qpos")[:], batch.bind("qvel")[:] = like.plants.qpos, like.plants.qvel
    like.action_space.seed(0)
    controls, actions = batch.bind("ctrl"), like.action_space.sample()

    def step() -> None:
        controls[:] = actions
        batch.step(nstep=base.frame_skip)

    return step


def compare(n: int, rounds: int, steps: int, gymnasium: bool) -> dict[str, float]:
    """Seconds a step of n environments, by each contender."""
    contenders = {"raw": (raw_step(n), steps)}
    contenders["ours"] = (vector_step(make_vec(ID, n, parameters=PARAMETERS, threads=THREADS)), steps)
    opened = []
    if gymnasium:
        for mode in ("sync", "async"):
            envs = make_vec(ID, n, parameters=PARAMETERS, vectorization=mode)  # type: ignore[arg-type]
            opened.append(envs)
            contenders[mode] = (vector_step(envs), max(steps // 4, 2))
    found = best(contenders, rounds)
    for envs in opened:
        envs.close()
    return found


def single_wrapper(rounds: int) -> float:
    """Seconds a step that the wrapper adds to one environment while nothing changes between resets.

    Timed on an environment that does nothing, so that the difference is not lost in the noise of physics.
    """

    class Still(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Box(-1, 1, (1,))
        mass = 1.0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return action, 0.0, False, False, {}

    from sim2real.randomization.env_parameters import attribute, register_parameters

    register_parameters(Still, {"dynamics.body.mass": attribute("mass", "kg")})
    bare, wrapped = Still(), RandomizeDynamics(Still(), {"dynamics.body.mass": "*U(0.8, 1.2)"})
    bare.reset(seed=0), wrapped.reset(seed=0)
    action = np.zeros(1, np.float32)
    found = best({"bare": (lambda: bare.step(action), 20000), "ours": (lambda: wrapped.step(action), 20000)}, rounds)
    return found["ours"] - found["bare"]


def memory(n: int) -> float:
    """Bytes that one environment of n takes."""
    before = resident()
    envs = make_vec(ID, n, parameters=PARAMETERS, threads=THREADS)
    envs.reset(seed=0)
    return (resident() - before) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    rounds = 3 if options.quick else 8
    result: dict[str, Any] = {"memory_bytes_per_env.1024": memory(1024)}
    rows = []
    for n, steps in ((64, 100), (1024, 10)):
        found = compare(n, rounds, steps, gymnasium=n == 64)
        result[f"ratio_to_raw_batch.{n}"] = found["raw"] / found["ours"]
        if "sync" in found:
            result["ratio_to_best_gymnasium"] = min(found["sync"], found["async"]) / found["ours"]
        rows += [(n, name, seconds) for name, seconds in found.items()]
    result["single_wrapper_us"] = 1e6 * single_wrapper(rounds)
    print(f"{'environments':>12s} {'':>8s} {'ms a step':>10s} {'steps/s':>10s} {'to raw':>7s}")
    for n, name, seconds in rows:
        raw = next(s for m, what, s in rows if m == n and what == "raw")
        print(f"{n:12d} {name:>8s} {1e3 * seconds:10.2f} {n / seconds:10.0f} {raw / seconds:7.3f}")
    print(f"ours to the better of Gymnasium's: {result['ratio_to_best_gymnasium']:.2f} times as fast")
    print(f"the single wrapper adds {result['single_wrapper_us']:.2f} µs a step")
    print(f"memory: {result['memory_bytes_per_env.1024'] / 1024:.1f} KiB an environment (of 1024)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
