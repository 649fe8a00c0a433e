"""Learn what an environment does from its recordings, and ask how far ahead that can be trusted."""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from sim2real.logs import read_logs
from sim2real.logs.record import RecordEpisodes
from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, Transitions, fit_transitions


def record(logs: Path, episodes: int) -> Transitions:
    """Record an environment under random actions."""
    names = ["cart", "pole", "cart_speed", "pole_speed"]
    env = RecordEpisodes(gym.make("InvertedPendulum-v5", reset_noise_scale=0.5), logs, names)
    env.action_space.seed(episodes)
    for seed in range(episodes):
        env.reset(seed=1000 * episodes + seed)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
    env.close()
    return Transitions.of(read_logs(logs))


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = record(Path(folder, "learn"), 200)
        print(f"{len(data)} transitions of {', '.join(data.names)}")
        config = TransitionConfig(
            4, 1, timestep=0.04, members=5, elites=4, hidden=(64, 64), names=data.names, events=("terminated",)
        )
        model = TransitionEnsemble(config)
        fit_transitions(
            model, data, Schedule(epochs=60, batch=64), checkpoint=Path(folder, "training.safetensors"), progress=print
        )
        model.save(Path(folder, "model"))
        model = TransitionEnsemble.load(Path(folder, "model"))

        tried = [record_one(seed) for seed in range(300)]
        begun = np.stack([seen[0] for seen, _ in tried])
        pushed = np.stack([np.concatenate([sent[:5], np.zeros((max(5 - len(sent), 0), 1))]) for _, sent in tried])
        fallen = np.array([[len(sent) <= k for k in range(1, 6)] for _, sent in tried])
        chance = model.foretell(begun, pushed).events
        assert chance is not None
        for k in (0, 2, 4):
            print(
                f"fallen within {k + 1} steps: {fallen[:, k].mean():.0%} of poles, {chance[:, k].mean():.0%} foretold"
            )

        episodes = [e for e in tried if len(e[1]) >= 5][:60]
        start = np.stack([seen[0] for seen, _ in episodes])
        sent = np.stack([sent[:5] for _, sent in episodes])
        truth = np.stack([seen[1:6] for seen, _ in episodes])
        found = model.predict(start, sent, particles=20)
        low, high = (v.numpy() for v in found.interval(0.9))
        inside = ((low <= truth) & (truth <= high)).mean((0, 2))
        error = np.abs(found.mean.numpy() - truth)[..., 1].mean(0)
        for k, seconds in enumerate(found.horizon):
            print(f"{seconds:.2f} s ahead: pole off by {error[k]:.4f} rad, 90 % intervals hold {inside[k]:.0%}")


def record_one(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the observations (T + 1, 4) and actions (T, 1) of one episode that was not learned from."""
    env = gym.make("InvertedPendulum-v5", reset_noise_scale=0.5)
    env.action_space.seed(10**6 + seed)
    seen, sent = [env.reset(seed=10**6 + seed)[0]], []
    while True:
        sent.append(env.action_space.sample())
        after, _, terminated, truncated, _ = env.step(sent[-1])
        seen.append(after)
        if terminated or truncated:
            return np.array(seen), np.array(sent)


if __name__ == "__main__":
    main()
