"""How much latency, mass and motor does a policy survive? Train one for half a minute, then ask.

python examples/question_a_policy.py
"""

import tempfile
from pathlib import Path

import torch
from stable_baselines3 import PPO

from sim2real import make_vec, to_stable_baselines
from sim2real.robustness import RobustnessRecipe, robustness

LATENCY = [{"stage": "latency", "delay": 0.0, "longest": 0.25}]


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    envs = make_vec("cartpole", 16, execution=LATENCY, autoreset_mode="SameStep", max_episode_steps=100, threads=1)
    model = PPO("MlpPolicy", to_stable_baselines(envs), n_steps=128, batch_size=512, learning_rate=1e-3, seed=0)
    model.learn(12_000)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "policy.zip")
        recipe = RobustnessRecipe(
            env="cartpole",
            policy=str(Path(folder) / "policy.zip"),
            max_episode_steps=100,
            execution=LATENCY,
            parameters={
                "dynamics.pole.mass": "*LogU(0.05, 20)",
                "dynamics.motor.gear": "*LogU(0.05, 20)",
                "execution.latency.delay": "=U(0, 0.25) s",
            },
            sweep={"objective": "robustness", "lose": "60 %", "episodes": 8, "samples": 8, "map_episodes": 1},
        )
        found = robustness(recipe, Path(folder), say=print)
        print(f"mean return {found.nominal:.0f}; it fails below {found.lose:.0f}")
        for line in found.told():
            print(line)


if __name__ == "__main__":
    main()
