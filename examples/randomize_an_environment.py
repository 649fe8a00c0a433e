"""Randomize a Gymnasium environment: one at a time, 64 at once, and what that does to a policy.

    python examples/randomize_an_environment.py [--picture FILE]

A gait for HalfCheetah is found on the nominal model by the cross-entropy method, then runs on randomized ones.
"""

import argparse

import gymnasium as gym
import numpy as np

from sim2real import RandomizeDynamics, make_vec

RANDOMIZATION = {
    "dynamics.*.mass": "*U(0.7, 1.3) each",  # every body draws its own; inertias follow
    "dynamics.*.damping": "*U(0.5, 2)",  # one draw for all joints
    "dynamics.*.friction[0]": "*U(0.6, 1.4)",  # of two geoms in contact the larger counts
    "dynamics.*.gear": "*U(0.8, 1.2) each",
}
ENVS, STEPS = 64, 200


def gait(parameters: np.ndarray, t: float) -> np.ndarray:
    """Actions (n, 6) of gaits (n, 13): a frequency, and an amplitude and a phase for each joint."""
    frequency = 2.0 + parameters[:, :1]
    amplitude, phase = parameters[:, 1:7], parameters[:, 7:]
    return np.clip(amplitude * np.sin(2 * np.pi * frequency * t + np.pi * phase), -1, 1).astype(np.float32)


def run(envs: gym.vector.VectorEnv, parameters: np.ndarray, seed: int) -> np.ndarray:
    """Distances (STEPS + 1, n) that gaits cover [m]."""
    _, infos = envs.reset(seed=seed)
    distance = [infos["x_position"]]
    for k in range(STEPS):
        *_, infos = envs.step(gait(parameters, 0.05 * k))
        distance.append(infos["x_position"])
    return np.array(distance) - distance[0]


def find_gait(envs: gym.vector.VectorEnv, iterations: int = 8) -> np.ndarray:
    """The cross-entropy method: draw gaits, keep the eight that go farthest, draw around them."""
    rng = np.random.default_rng(0)
    mean, spread = np.zeros(13), np.ones(13)
    for k in range(iterations):
        tried = mean + spread * rng.normal(size=(ENVS, 13))
        best = tried[np.argsort(run(envs, tried, seed=k)[-1])[-8:]]
        mean, spread = best.mean(0), best.std(0) + 0.02
    return mean


def picture(nominal: np.ndarray, randomized: np.ndarray, file: str) -> None:
    """Draw distances over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=150, layout="constrained")
    time = 0.05 * np.arange(STEPS + 1)
    axes.plot(time, randomized, color="#c2542d", alpha=0.25, linewidth=0.8)
    axes.plot([], [], color="#c2542d", label=f"{ENVS} randomized plants")
    axes.plot(time, nominal, color="#1c4e80", linewidth=2.2, label="the nominal plant, on which it was found")
    axes.set(xlabel="time [s]", ylabel="distance [m]", title="One gait of HalfCheetah", xlim=(0, time[-1]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(file)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", help="draw the distances into this file")
    options = parser.parse_args()

    env = RandomizeDynamics(gym.make("HalfCheetah-v5"), RANDOMIZATION)
    _, info = env.reset(seed=0)
    print(f"one environment, {len(info['parameters'])} parameters:")
    for name in list(info["parameters"])[:3]:
        print(f"  {name:24} {info['parameters'][name]:.3f}")
    _, info = env.reset(options={"parameters": {"dynamics.torso.mass": 9.0}})
    print(f"  forced for one episode: torso {info['parameters']['dynamics.torso.mass']:g} kg\n")

    # without noise on the start, all of the spread comes from the dynamics
    plain = make_vec("HalfCheetah-v5", ENVS, reset_noise_scale=0.0)
    policy = find_gait(plain)
    nominal = run(plain, np.tile(policy, (ENVS, 1)), seed=100)[:, 0]
    envs = make_vec("HalfCheetah-v5", ENVS, parameters=RANDOMIZATION, reset_noise_scale=0.0)
    randomized = run(envs, np.tile(policy, (ENVS, 1)), seed=100)
    low, middle, high = np.quantile(randomized[-1], [0.05, 0.5, 0.95])
    print(f"a gait covers {nominal[-1]:.1f} m in 10 s on the nominal plant, on which it was found;")
    print(f"on {ENVS} randomized ones {middle:.1f} m in the median, 90 % of them between {low:.1f} and {high:.1f} m")
    if options.picture:
        picture(nominal, randomized, options.picture)


if __name__ == "__main__":
    main()
