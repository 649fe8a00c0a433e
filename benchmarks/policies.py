"""What do latency and a dead zone cost a policy that was trained without them? PPO on Pendulum and on Hopper.

    python benchmarks/policies.py [--quick] [--json FILE] [--plot FILE] [--policies FOLDER]

Each policy is trained once, with stable-baselines3, on the bare environment (and kept in the folder); then it is
evaluated behind `ExecutionGap` with growing delays and dead zones, over the same seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sim2real import make_vec, to_stable_baselines

Array = NDArray[np.float64]
DELAYS = {"Pendulum-v1": (0, 25, 50, 75, 100, 150), "Hopper-v5": (0, 4, 8, 12, 16, 24, 32)}  # [ms]
ZONES = {
    "Pendulum-v1": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    "Hopper-v5": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
}  # [of an action]
TRAINING: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "envs": 4, "steps": 100_000, "n_steps": 1024, "batch_size": 64, "gamma": 0.9, "learning_rate": 1e-3,
        "use_sde": True, "sde_sample_freq": 4,
    },
    "Hopper-v5": {
        "envs": 32, "steps": 1_500_000, "n_steps": 256, "batch_size": 512, "gamma": 0.99, "learning_rate": 3e-4,
    },
}  # fmt: skip


def trained(env: str, folder: Path, share: float) -> tuple[PPO, VecNormalize]:
    """Return a policy, and what normalizes its observations; trains them where they are not there yet."""
    file, statistics = folder / f"{env}.zip", folder / f"{env}.pkl"
    settings = dict(TRAINING[env])
    count, steps = settings.pop("envs"), settings.pop("steps")
    venv = to_stable_baselines(make_vec(env, count, autoreset_mode="SameStep"))
    if file.exists():
        return PPO.load(file, device="cpu"), VecNormalize.load(str(statistics), venv)
    normalized = VecNormalize(venv, gamma=settings["gamma"], norm_reward=env != "Pendulum-v1")
    model = PPO("MlpPolicy", normalized, seed=0, device="cpu", **settings)
    model.learn(int(share * steps))
    folder.mkdir(parents=True, exist_ok=True)
    normalized.save(str(statistics))
    model.save(file)
    return model, normalized


def returns(model: PPO, normalize: VecNormalize, env: str, execution: list[dict[str, Any]], episodes: int) -> Array:
    """Return the sum of rewards of each episode behind some stages: (episodes,)."""
    envs = make_vec(env, episodes, execution=execution, autoreset_mode="NextStep")
    observation, _ = envs.reset(seed=1000)
    total, going = np.zeros(episodes), np.ones(episodes, bool)
    while going.any():
        action, _ = model.predict(normalize.normalize_obs(observation), deterministic=True)
        observation, reward, terminated, truncated, _ = envs.step(
            np.clip(action, envs.action_space.low, envs.action_space.high)
        )
        total += np.where(going, reward, 0.0)
        going &= ~(terminated | truncated)
    envs.close()
    return total


def draw(curves: dict[str, dict[str, tuple[Array, Array]]], file: Path) -> None:
    """Draw mean returns with their quartiles."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for row, (env, gaps) in zip(axes, curves.items(), strict=True):
        for axis, (label, (x, y)) in zip(row, gaps.items(), strict=True):
            low, middle, high = np.quantile(y, [0.25, 0.5, 0.75], axis=1)
            axis.fill_between(x, low, high, color="#c2410c", alpha=0.2, lw=0)
            axis.plot(x, middle, color="#c2410c", marker="o", ms=3)
            axis.set_xlabel(label)
            axis.set_ylabel("return of an episode")
            axis.set_title(env, fontsize=10)
    figure.savefig(file, dpi=90)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="hardly train, few episodes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    parser.add_argument("--policies", type=Path, default=Path("runs/policies"), help="folder for what is trained")
    options = parser.parse_args()
    torch.set_num_threads(1)
    episodes, share = (4, 0.02) if options.quick else (30, 1.0)
    folder = options.policies / "quick" if options.quick else options.policies
    figures: dict[str, float] = {}
    curves: dict[str, dict[str, tuple[Array, Array]]] = {}
    for env in TRAINING:
        model, normalize = trained(env, folder, share)
        delays = [
            returns(model, normalize, env, [{"stage": "latency", "delay": 1e-3 * ms}], episodes) for ms in DELAYS[env]
        ]
        zones = [returns(model, normalize, env, [{"stage": "dead_zone", "width": w}], episodes) for w in ZONES[env]]
        curves[env] = {
            "latency [ms]": (np.array(DELAYS[env], float), np.array(delays)),
            "half width of the dead zone [of an action]": (np.array(ZONES[env]), np.array(zones)),
        }
        for what, (x, y) in curves[env].items():
            print(
                f"{env}, {what}: " + ", ".join(f"{a:g} {b:.0f}" for a, b in zip(x, y.mean(1), strict=True)), flush=True
            )
            figures |= {f"return.{env}.{what.split()[0]}.{a:g}": float(b) for a, b in zip(x, y.mean(1), strict=True)}
    if options.plot:
        draw(curves, options.plot)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
