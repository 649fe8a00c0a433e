"""Does halving find the margin that a brute-force grid finds, and with how many of its episodes? One thread.

    python benchmarks/robustness.py [--tasks NAME ...] [--seeds SEED ...] [--steps N] [--quick] [--json FILE]

PPO of stable-baselines3 learns the cart-pole and the pendulum on the nominal robot. `sim2real.robustness` looks for
where each of three parameters makes it fail; brute force tries every value of the same grid with the same 32 starts. A
margin agrees where both are the same place on the grid, or neighbours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _surroundings import one_thread, surroundings

from sim2real.policy_episodes import Episodes
from sim2real.randomization.vector import make_vec, to_stable_baselines
from sim2real.robustness import RobustnessRecipe, robustness

EPISODES, GRID = 32, 41
PARAMETERS = {
    "cartpole": ({"dynamics.pole.mass": "*LogU(0.02, 50)", "dynamics.motor.gear": "*LogU(0.05, 20)"}, 120.0),
    "pendulum": ({"dynamics.payload.mass": "*LogU(0.2, 5)", "dynamics.motor.gear": "*LogU(0.2, 20)"}, 110.0),
}
LATENCY = [{"stage": "latency", "delay": 0.0, "longest": 0.25}]


def trained(task: str, seed: int, steps: int) -> Any:
    """Return a policy that learned on the nominal robot."""
    from stable_baselines3 import PPO

    envs = make_vec(task, 16, execution=LATENCY, autoreset_mode="SameStep", max_episode_steps=200, threads=1)
    model = PPO(
        "MlpPolicy", to_stable_baselines(envs), n_steps=256, batch_size=512, n_epochs=8, gamma=0.98, gae_lambda=0.95,
        learning_rate=1e-3, seed=seed, device="cpu",
    )  # fmt: skip
    model.learn(steps)
    return lambda observations: model.predict(observations, deterministic=True)[0]


def brute_force(recipe: RobustnessRecipe, policy: Any, lose: float) -> tuple[dict[str, tuple[int, int]], int]:
    """Try everything: return the outermost places on the grid of each parameter that are good, and the episodes."""
    episodes = Episodes(recipe, policy, recipe.max_episode_steps)
    out = {}
    names = list(episodes.bound.targets)
    nominal = [0.0 if n.startswith("execution") else _share_of_one(episodes, k) for k, n in enumerate(names)]
    for k, name in enumerate(names):
        u = np.tile(nominal, (GRID * EPISODES, 1))
        u[:, k] = np.repeat(np.linspace(0, 1, GRID), EPISODES)
        good = episodes.run(u, np.tile(np.arange(EPISODES), GRID)).reshape(GRID, EPISODES).mean(1) >= lose
        low = high = round(nominal[k] * (GRID - 1))
        while low > 0 and good[low - 1]:
            low -= 1
        while high < GRID - 1 and good[high + 1]:
            high += 1
        out[name] = low, high
    episodes.close()
    return out, episodes.count


def _share_of_one(episodes: Episodes, column: int) -> float:
    """Return where the factor of a logarithmic distribution is one."""
    distribution = episodes.bound.parameters.parameters[column].distribution
    low, high = np.log(distribution.quantile([0.0, 1.0]))
    return float(-low / (high - low))


def measure(task: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, ask both, compare."""
    parameters, lose = PARAMETERS[task]
    recipe = RobustnessRecipe.model_validate(
        {
            "env": task,
            "policy": f"{task}-{seed}",
            "max_episode_steps": 200,
            "execution": LATENCY,
            "parameters": parameters | {"execution.latency.delay": "=U(0, 0.25) s"},
            "sweep": {
                "objective": "robustness", "lose": lose, "episodes": EPISODES, "grid": GRID, "samples": 0,
                "map_episodes": 0,
            },
        }
    )  # fmt: skip
    policy = trained(task, seed, steps)
    with tempfile.TemporaryDirectory() as folder:
        found = robustness(recipe, Path(folder), policy=policy)
    theirs, many = brute_force(recipe, policy, lose)
    rows = {}
    for m in found.margins:
        values = {value: k for k, value in enumerate(_grid(recipe, m.name, m.nominal))}
        ours = tuple(min(values.items(), key=lambda item: abs(item[0] - end))[1] for end in (m.low, m.high))
        rows[m.name] = {"ours": ours, "brute_force": theirs[m.name], "told": m.told()}
    used = sum(count for m in found.margins for *_, count in m.tried)
    return {"margins": rows, "episodes": {"ours": used, "brute_force": many}}


def _grid(recipe: RobustnessRecipe, name: str, nominal: float) -> Any:
    from sim2real.randomization import ParameterSet

    (p,) = ParameterSet.parse({name: recipe.parameters[name]})
    return p.distribution.quantile(np.linspace(0, 1, GRID)) * (nominal if p.operation == "scale" else 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(PARAMETERS), default=tuple(PARAMETERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150_000, help="of training")
    parser.add_argument("--quick", action="store_true", help="a fifth of the training, one seed")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, steps = (options.seeds[:1], options.steps // 5) if options.quick else (options.seeds, options.steps)
    result: dict[str, Any] = {}
    agree = total = ours = theirs = 0
    for task in options.tasks:
        for seed in seeds:
            found = result[f"{task}-{seed}"] = measure(task, seed, steps)
            for row in found["margins"].values():
                apart = [abs(a - b) for a, b in zip(row["ours"], row["brute_force"], strict=True)]
                agree, total = agree + sum(a <= 1 for a in apart), total + len(apart)
                print(f"{task:10s}{seed:3d}  {row['told']:60s} cells apart: {apart[0]}, {apart[1]}", flush=True)
            ours, theirs = ours + found["episodes"]["ours"], theirs + found["episodes"]["brute_force"]
    print(f"{agree} of {total} ends agree to one cell of {GRID}, with {ours / theirs:.1%} of {theirs:,} episodes")
    if options.json:
        summary = {"agree": agree, "of": total, "share_of_episodes": ours / theirs}
        options.json.write_text(json.dumps(result | summary | surroundings("mujoco", "stable-baselines3"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
