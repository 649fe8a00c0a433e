"""Record an environment, read the recordings back, and write them as a LeRobot data set."""

import tempfile
import warnings
from pathlib import Path

import gymnasium as gym

from sim2real.kalman import KalmanFilter
from sim2real.logs import read_logs, write_lerobot
from sim2real.logs.record import RecordEpisodes


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder, "logs")
        names = ["tip", "first", "second", "vx", "vy", "tip_speed", "first_speed", "second_speed"]
        units = {"tip": "rad", "first": "rad", "second": "rad", "first_speed": "rad/s", "second_speed": "rad/s"}
        env = RecordEpisodes(
            gym.make("Swimmer-v5", max_episode_steps=200), logs, names, units, ["torque_1", "torque_2"]
        )
        env.action_space.seed(0)
        for seed in range(3):
            env.reset(seed=seed)
            ended = False
            while not ended:
                ended = env.step(env.action_space.sample())[3]
        env.close()
        episodes = read_logs(logs)
        for episode in episodes:
            print(
                f"{episode.name}: {len(episode)} steps in {episode.duration:.2f} s, seed {episode.provenance['seed']}"
            )
        found = KalmanFilter.fit(episodes, ["first"])
        print(f"jerk of the first joint: {found.jerk[0]:.3g} rad/s³/√Hz")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that LeRobot's stamps are frame_index / fps
            written = write_lerobot(episodes, Path(folder, "data_set"), fps=25, task="swim")
        print(*(f.relative_to(written) for f in sorted(written.rglob("*")) if f.is_file()), sep="\n")


if __name__ == "__main__":
    main()
