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
        names = ["position", "angle", "velocity", "angular_velocity"]
        units = {"position": "m", "angle": "rad", "velocity": "m/s", "angular_velocity": "rad/s"}
        env = RecordEpisodes(gym.make("InvertedPendulum-v5"), logs, names, units, ["force"])
        env.action_space.seed(0)
        for seed in range(3):
            env.reset(seed=seed)
            ended = False
            while not ended:
                ended = env.step(env.action_space.sample())[2]
        env.close()
        episodes = read_logs(logs)
        for episode in episodes:
            print(f"{episode.name}: {len(episode)} steps in {episode.duration:.2f} s, {episode.channels.observations}")
        found = KalmanFilter.fit(episodes, ["angle"])
        print(f"a reading of the angle is off by {found.noise[0]:.2g} rad")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that LeRobot's stamps are frame_index / fps
            written = write_lerobot(episodes, Path(folder, "data_set"), fps=25, task="balance")
        print(*(f.relative_to(written) for f in sorted(written.rglob("*")) if f.is_file()), sep="\n")


if __name__ == "__main__":
    main()
