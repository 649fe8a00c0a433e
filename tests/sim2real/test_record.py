"""RecordEpisodes: what was seen is what is read, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sim2real.adapters import ExecutionGap
from sim2real.errors import LogError, ParameterError
from sim2real.logs import read_logs
from sim2real.logs.record import RecordEpisodes, recover
from sim2real.randomization.wrappers import RandomizeDynamics


def run(env: Any, episodes: int, steps: int) -> list[dict[str, Any]]:
    """Play, and keep what the outermost wrapper saw."""
    seen = []
    env.action_space.seed(0)
    for k in range(episodes):
        observation, _ = env.reset(seed=k)
        o, a, r, ended = [observation], [], [], False
        for _ in range(steps):
            action = env.action_space.sample()
            observation, reward, ended, truncated, _ = env.step(action)
            o.append(observation)
            a.append(action)
            r.append(reward)
            if ended or truncated:
                break
        seen.append({"o": np.array(o, float), "a": np.array(a, float).reshape(len(a), -1), "r": r, "end": ended})
    return seen


def same(episode: Any, seen: dict[str, Any]) -> None:
    np.testing.assert_array_equal(episode.observations, seen["o"])
    np.testing.assert_array_equal(episode.actions, seen["a"])
    np.testing.assert_array_equal(episode.rewards, seen["r"])
    assert episode.terminated == seen["end"]


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1", "Hopper-v5"])
def test_what_was_seen_is_what_is_read(tmp_path: Path, name: str) -> None:
    env = RecordEpisodes(gym.make(name), tmp_path)
    seen = run(env, 3, 60)
    env.close()
    episodes = read_logs(tmp_path)
    assert [e.name for e in episodes] == ["episode_000000", "episode_000001", "episode_000002"]
    for episode, expected in zip(episodes, seen, strict=True):
        same(episode, expected)
    period = {"Pendulum-v1": 0.05, "CartPole-v1": 0.02, "Hopper-v5": 0.008}[name]
    np.testing.assert_allclose(np.diff(episodes[0].observed_at), period)
    assert json.loads(episodes[0].provenance["environment"])["id"] == name
    assert not list(tmp_path.glob("*.part*"))


def test_names_units_and_parameters(tmp_path: Path) -> None:
    inner = RandomizeDynamics(
        ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "latency", "delay": 0.1}]),
        {"dynamics.pole.mass": "*U(0.8, 1.2)"},
    )
    env = RecordEpisodes(
        inner,
        tmp_path,
        names=["cos", "sin", "speed"],
        units={"speed": "rad/s", "torque": "N·m"},
        action_names=["torque"],
    )
    run(env, 1, 5)
    mass = inner.reset(seed=0)[1]["parameters"]["dynamics.pole.mass"]
    env.close()
    (episode,) = read_logs(tmp_path)
    assert episode.channels.observations == (("cos", "1"), ("sin", "1"), ("speed", "rad/s"))
    assert episode.channels.actions == (("torque", "N·m"),)
    assert episode.provenance["parameters"] == {"dynamics.pole.mass": mass}


def test_it_is_a_wrapper_as_gymnasium_wants_them(tmp_path: Path) -> None:
    env = RecordEpisodes(gym.make("Pendulum-v1"), tmp_path)
    check_env(env, skip_render_check=True)
    again = gym.make(env.spec)
    assert isinstance(again, RecordEpisodes)
    with pytest.raises(ParameterError, match="vector environment"):
        RecordEpisodes(gym.make_vec("Pendulum-v1", 2), tmp_path)


class Camera(gym.Env[Any, Any]):
    """A dictionary of observations with an image."""

    observation_space = gym.spaces.Dict(
        {
            "joint": gym.spaces.Dict({"q": gym.spaces.Box(-1, 1, (2,)), "mode": gym.spaces.Discrete(3)}),
            "image": gym.spaces.Box(0, 255, (64, 64, 3), np.uint8),
        }
    )
    action_space = gym.spaces.Discrete(2)
    dt = 0.1

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.0, False, False, {"applied": np.array([0.5 * action])}


def test_dictionaries_images_and_what_the_actuators_did(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"image has 12,288 numbers, an image: leave it out \(leave_out=\['image'\]\)"):
        RecordEpisodes(Camera(), tmp_path)
    env = RecordEpisodes(Camera(), tmp_path, leave_out=["image"], measured="applied")
    observation, _ = env.reset(seed=0)
    env.step(1)
    env.close()
    (episode,) = read_logs(tmp_path)
    assert [n for n, _ in episode.channels.observations] == ["joint.mode", "joint.q[0]", "joint.q[1]"] or [
        n for n, _ in episode.channels.observations
    ] == ["joint.q[0]", "joint.q[1]", "joint.mode"]
    names = [n for n, _ in episode.channels.observations]
    assert episode.observations[0, names.index("joint.q[1]")] == observation["joint"]["q"][1]
    assert episode.observations[0, names.index("joint.mode")] == observation["joint"]["mode"]
    assert episode.measured_actions is not None
    assert episode.measured_actions[0, 0] == 0.5
    env = RecordEpisodes(Camera(), tmp_path, leave_out=["image"], measured="torque")
    env.reset()
    with pytest.raises(LogError, match="reports no 'torque'; its info has applied"):
        env.step(0)


def test_the_wall_clock_stamps_actions_when_they_are_sent(tmp_path: Path) -> None:
    class Slow(Camera):
        observation_space = gym.spaces.Box(-1, 1, (1,))  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            time.sleep(0.01)
            return super().step(action)

    env = RecordEpisodes(Slow(), tmp_path, clock="wall")
    env.reset()
    for _ in range(5):
        env.step(0)
    env.close()
    (episode,) = read_logs(tmp_path)
    assert (episode.observed_at[1:] - episode.commanded_at >= 0.01).all()
    assert (np.diff(episode.commanded_at) > 0).all()


KILLED = """
import sys, gymnasium as gym
from sim2real import RecordEpisodes
env = RecordEpisodes(gym.make("Pendulum-v1"), sys.argv[1])
env.reset(seed=0)
for k in range(10**9):
    env.step(env.action_space.sample() * 0 + k % 3 - 1)
    if k == 150:
        print("ready", flush=True)
"""


def test_what_was_recorded_before_a_kill_is_read(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (part,) = tmp_path.glob("*.part.jsonl")
    with part.open("a") as file:
        file.write('{"c": 1')  # as if the kill had come in the middle of a line
    with pytest.warns(UserWarning, match="the last step was cut off"):
        recover(tmp_path)
    (episode,) = read_logs(tmp_path)
    assert len(episode) > 150
    np.testing.assert_array_equal(episode.actions[:150, 0], [k % 3 - 1 for k in range(150)])
    assert not list(tmp_path.glob("*.part*"))
    env = RecordEpisodes(gym.make("Pendulum-v1"), tmp_path)  # a next run goes on counting
    run(env, 1, 3)
    env.close()
    assert [e.name for e in read_logs(tmp_path)] == ["episode_000000", "episode_000001"]
