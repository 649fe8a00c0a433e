"""Let bounds widen while PPO trains: as far as the policy holds, and no further. Killed and run again, it goes on.

python examples/widen_bounds.py [--steps N] [--folder FOLDER]
"""

import argparse
from pathlib import Path

import torch
from stable_baselines3 import PPO

from sim2real.randomization import Automatic, ParameterSet, Randomization
from sim2real.randomization.vector import checkpoints, make_vec, resumed, to_stable_baselines

WIDEST = {
    "dynamics.pole.mass": "*LogU(0.1, 10)",
    "dynamics.motor.gear": "*LogU(0.1, 10)",
}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, default=Path("widen_bounds"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # returns of an episode of 100 steps: at 80 a bound moves outwards, below 50 it comes back
    curriculum = Automatic(hold=80.0, lose=50.0, episodes=5, step=0.05)
    last = resumed(options.folder, curriculum)
    envs = make_vec(
        "cartpole",
        16,
        parameters=[Randomization(ParameterSet.parse(WIDEST), curriculum)],
        max_episode_steps=100,
        autoreset_mode="SameStep",
    )
    trained = to_stable_baselines(envs)
    if last is None:
        model = PPO("MlpPolicy", trained, n_steps=128, batch_size=256, learning_rate=1e-3, gamma=0.98, device="cpu")
    else:
        model = PPO.load(last, trained, device="cpu")
        print(f"going on from step {model.num_timesteps}, bounds {curriculum.bounds()}", flush=True)
    print("  step   share of the widest ranges that is drawn from")
    saved = checkpoints(options.folder, curriculum, every=4096)
    while model.num_timesteps < options.steps:
        model.learn(8192, callback=saved, reset_num_timesteps=False)
        print(f"{model.num_timesteps:6d}   {curriculum.width:.2f}", flush=True)
    for name, (low, high) in curriculum.bounds().items():
        print(f"{name}: from {low:.2f} to {high:.2f} times the nominal value")


if __name__ == "__main__":
    main()
