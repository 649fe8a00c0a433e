"""How many pictures a second do environments give, beside Gymnasium's own renderer on the same pictures? One thread.

    python benchmarks/pictures.py [--envs N ...] [--steps T] [--quick] [--json FILE]

HalfCheetah-v5 takes random actions, and each step is observed in pictures of 64 x 64. Rows:

- `ours`: `make_vec(..., pixels=...)`, with shadows as Gymnasium draws them, and without.
- `randomized`: the same with every light, colour and length drawn anew at each reset.
- `gymnasium`: its `AddRenderObservation` around each environment in its `SyncVectorEnv`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from _surroundings import one_thread, surroundings
from gymnasium.wrappers import AddRenderObservation

from sim2real import make_vec

SIZE = {"camera": "track", "height": 64, "width": 64}
LOOKS = {
    "perception.*.diffuse": "*U(0.3, 1)",
    "perception.*.rgba[0], perception.*.rgba[1], perception.*.rgba[2]": "=U(0.1, 1) each",
    "dynamics.*.scale": "*U(0.75, 1.3)",
}


def gymnasiums(n: int) -> Any:
    """Return Gymnasium's environments."""

    def one() -> gym.Env[Any, Any]:
        how = {"render_mode": "rgb_array", "camera_name": "track", "height": 64, "width": 64}
        return AddRenderObservation(gym.make("HalfCheetah-v5", **how))

    return gym.vector.SyncVectorEnv([one] * n)


ROWS = {
    "gymnasium": gymnasiums,
    "ours": lambda n: make_vec("HalfCheetah-v5", n, pixels={**SIZE, "shadows": True}, threads=1),
    "ours, no shadows": lambda n: make_vec("HalfCheetah-v5", n, pixels=SIZE, threads=1),
    "randomized, no shadows": lambda n: make_vec("HalfCheetah-v5", n, pixels=SIZE, parameters=LOOKS, threads=1),
}


def pictures_per_second(envs: Any, steps: int) -> float:
    """Step and count."""
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(steps)]
    clock = time.perf_counter()
    for action in actions:
        envs.step(action)
    taken = time.perf_counter() - clock
    envs.close()
    return float(steps * envs.num_envs / taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="ten steps")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    # Gymnasium's renderer wants to be told, where there is no screen
    os.environ.setdefault("MUJOCO_GL", "egl")
    result: dict[str, Any] = {}
    for n in options.envs:
        for name, make in ROWS.items():
            found = pictures_per_second(make(n), max(1, (10 if options.quick else options.steps) // n))
            result.setdefault(name, {})[str(n)] = found
            print(f"{name:24s}{n:5d} environments{found:10.0f} pictures/s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(result | surroundings("mujoco", "gymnasium"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
