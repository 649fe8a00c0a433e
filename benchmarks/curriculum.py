"""Do automatically widened bounds make a policy survive more, and how much more than training on the nominal robot?

    python benchmarks/curriculum.py [--tasks NAME ...] [--seeds SEED ...] [--steps N] [--folder FOLDER] [--quick]
        [--json FILE]

PPO of stable-baselines3 on 16 environments of MuJoCo's batch, the same steps for both rows: `nominal` without
randomization, `automatic` with bounds that widen while the return at them holds. Saved at a quarter, a half and all of
the training, each policy is tried at 25 values of each parameter, the others nominal, eight episodes each: its `margin`
is how far the parameter may go, from the nominal value outwards, in the logarithm for factors, before the mean return
falls below `lose`; as a share of the widest distribution. `all at once` is the share of 1,000 draws of all parameters
together from the widest distributions in which one episode reaches `lose`.

What is done stays in the folder: killed, the script goes on from the last checkpoint, bounds and all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _recorded_robots import ROOT
from _surroundings import one_thread, surroundings

from sim2real.randomization import Automatic, ParameterSet, Randomization
from sim2real.randomization.vector import checkpoints, make_vec, resumed, to_stable_baselines
from sim2real.run_directory import write_json

ENVS, EPISODE, POINTS, TRIES, JOINT = 16, 200, 25, 8, 1000
SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Problem:
    """A robot task, and how far its parameters may go.

    Attributes:
        parameters: the widest distributions.
        hold, lose: returns of an episode of 200 steps.
        stack: how many of the last observations the policy sees.
        rate: of learning.
    """

    parameters: dict[str, str]
    hold: float
    lose: float
    stack: int = 1
    rate: float = 1e-3


PROBLEMS = {
    "cartpole": Problem(
        {
            "dynamics.pole.mass": "*LogU(0.05, 20)",
            "dynamics.motor.gear": "*LogU(0.05, 20)",
            "execution.latency.delay": "=U(0, 0.25) s",
        },
        hold=170.0,
        lose=120.0,
    ),
    "pendulum": Problem(
        {
            # what no controller could lift in time is left out
            "dynamics.payload.mass": "*LogU(0.1, 2)",
            "dynamics.motor.gear": "*LogU(0.5, 20)",
            "execution.latency.delay": "=U(0, 0.25) s",
        },
        hold=140.0,
        lose=110.0,
        stack=4,
        rate=3e-4,
    ),
}
LATENCY = [{"stage": "latency", "delay": 0.0, "longest": 0.25}]


def environments(task: str, n: int, parameters: Any = ()) -> Any:
    return make_vec(
        task,
        n,
        parameters=parameters,
        execution=LATENCY,
        autoreset_mode="SameStep",
        max_episode_steps=EPISODE,
        threads=1,
    )


def margins(task: str, problem: Problem, policy: Any) -> dict[str, float]:
    """Return for each parameter which share of its distribution the policy survives, about the nominal value."""
    out = {}
    for p in ParameterSet.parse(problem.parameters):
        u = np.linspace(0.0, 1.0, POINTS)
        draws = p.distribution.quantile(u)
        nominal = _nominal(task)[p.name]
        values = np.repeat(draws * (nominal if p.operation == "scale" else 1.0), TRIES)
        good = tried(task, problem, policy, {p.name: values}).reshape(POINTS, TRIES).mean(1) >= problem.lose
        start = int(np.abs(draws - (1.0 if p.operation == "scale" else nominal)).argmin())
        low = high = start
        while good[start] and low > 0 and good[low - 1]:
            low -= 1
        while good[start] and high < POINTS - 1 and good[high + 1]:
            high += 1
        out[p.name] = float(u[high] - u[low])
    return out


def together(task: str, problem: Problem, policy: Any) -> float:
    """Return in which share of draws of all parameters at once, from the widest distributions, the policy survives."""
    widest, nominal = ParameterSet.parse(problem.parameters), _nominal(task)
    draws = widest.sample(np.random.default_rng(0), JOINT)
    values = {p.name: draws[p.name] * (nominal[p.name] if p.operation == "scale" else 1.0) for p in widest.parameters}
    return float((tried(task, problem, policy, values) >= problem.lose).mean())


def tried(task: str, problem: Problem, policy: Any, values: dict[str, Any]) -> Any:
    """Return the returns (n,) of an episode under each of values, name -> (n,)."""
    many = len(next(iter(values.values())))
    envs = environments(task, many)
    latest, _ = envs.reset(seed=1000, options={"parameters": values})
    observation = np.concatenate([np.zeros_like(latest)] * (problem.stack - 1) + [latest], 1)
    returns, going = np.zeros(many), np.ones(many, bool)
    for _ in range(EPISODE):
        latest, reward, terminated, truncated, _ = envs.step(policy(observation))
        observation = np.concatenate([observation, latest], 1)[:, latest.shape[1] :]
        returns += reward * going
        going &= ~(terminated | truncated)
    return returns


def _nominal(task: str) -> dict[str, float]:
    return environments(task, 1).parameter_store().nominal()  # type: ignore[no-any-return]


def train(task: str, row: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train, from where a killed training was; return margins and bounds along the way."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecFrameStack

    problem = PROBLEMS[task]
    curriculum = Automatic(problem.hold, problem.lose, episodes=10, step=0.05)
    place = folder / f"{task}-{row}-{seed}-{steps}"
    widest = ParameterSet.parse(problem.parameters)
    model_file = resumed(place, curriculum)
    envs = to_stable_baselines(
        environments(task, ENVS, [Randomization(widest, curriculum)] if row == "automatic" else ())
    )
    envs = VecFrameStack(envs, problem.stack)
    if model_file is None:
        model = PPO(
            "MlpPolicy", envs, n_steps=256, batch_size=512, n_epochs=8, gamma=0.98, gae_lambda=0.95, seed=seed,
            learning_rate=problem.rate, device="cpu", policy_kwargs={"net_arch": [64, 64]},
        )  # fmt: skip
    else:
        model = PPO.load(model_file, envs, device="cpu")
    told: dict[str, Any] = {}
    for share in SHARES:
        file = place / f"at-{share:g}.json"
        if not file.exists():
            left = round(share * steps) - model.num_timesteps
            if left > 0:
                model.learn(left, reset_num_timesteps=False, callback=checkpoints(place, curriculum, steps // 10))
            found = margins(task, problem, lambda o: model.predict(o, deterministic=True)[0])
            found["all at once"] = together(task, problem, lambda o: model.predict(o, deterministic=True)[0])
            bounds = curriculum.bounds() if row == "automatic" else {}
            write_json(file, {"margins": found, "bounds": bounds, "width": curriculum.width, "moves": curriculum.moves})
        told[f"{share:g}"] = json.loads(file.read_text())
        words = ", ".join(
            f"{name.split('.', 1)[-1]} {value:.2f}" for name, value in told[f"{share:g}"]["margins"].items()
        )
        print(
            f"  {row}, seed {seed}, after {share:.0%}: survives {words}; bounds {told[f'{share:g}']['width']:.2f}",
            flush=True,
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(PROBLEMS), default=tuple(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800_000, help="of the environment, in all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "curriculum", help="keeps what is done")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one seed")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = (options.steps // 10, options.seeds[:1]) if options.quick else (options.steps, options.seeds)
    result: dict[str, Any] = {"tasks": {}}
    for task in options.tasks:
        print(task)
        rows = {r: [train(task, r, seed, steps, options.folder) for seed in seeds] for r in ("nominal", "automatic")}
        names = [*PROBLEMS[task].parameters, "all at once"]
        for row, found in rows.items():
            mean = {n: float(np.mean([f["1"]["margins"][n] for f in found])) for n in names}
            print(f"{task:10s}{row:12s}" + "".join(f"{n.split('.', 1)[-1]:>22s} {v:.2f}" for n, v in mean.items()))
        result["tasks"][task] = rows
        if options.json:
            options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "stable-baselines3"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
