"""A model from an environment's recordings, from Python and from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from sim2real.episodes import Episode
from sim2real.errors import LogError, ModelError
from sim2real.learn import ahead, learn
from sim2real.logs import read_logs
from sim2real.logs.record import RecordEpisodes
from sim2real.world_model import TransitionConfig, TransitionEnsemble


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    env = RecordEpisodes(gym.make("Pendulum-v1", max_episode_steps=60), folder, ["cosine", "sine", "speed"])
    env.action_space.seed(0)
    for seed in range(12):
        env.reset(seed=seed)
        while not env.step(env.action_space.sample())[3]:
            pass
    env.close()
    return folder


@pytest.fixture(scope="module")
def episodes(logs: Path) -> list[Episode]:
    torch.set_num_threads(1)
    return list(read_logs(logs))


def test_a_killed_run_goes_on_and_ends_the_same(episodes: list[Episode], tmp_path: Path) -> None:
    def kill(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    whole = learn(episodes, tmp_path / "whole", epochs=4, members=2, hidden=(16,))
    with pytest.raises(KeyboardInterrupt):
        learn(episodes, tmp_path / "killed", epochs=4, members=2, hidden=(16,), say=kill)
    lines: list[str] = []
    again = learn(episodes, tmp_path / "killed", epochs=4, members=2, hidden=(16,), say=lines.append)
    assert "2 epochs were trained before" in lines
    assert again.scores == whole.scores
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ModelError, match="another model, schedule"):
        learn(episodes, tmp_path / "killed", epochs=4, members=3, hidden=(16,))
    learn(episodes, tmp_path / "killed", epochs=1, members=3, hidden=(16,), again=True)
    with pytest.raises(LogError, match="the recordings, or the model that is tuned, have changed"):
        learn(episodes[:5], tmp_path / "killed", epochs=1, members=3, hidden=(16,))


def test_rewards_and_ends_are_learned_where_they_differ(episodes: list[Episode], tmp_path: Path) -> None:
    found = learn(episodes, tmp_path / "reward", epochs=15, members=2, hidden=(32,))
    assert (found.model.config.numbers, found.model.config.events) == (("reward",), ())
    assert found.outcomes["reward"] < 0.3
    assert json.loads((tmp_path / "reward" / "metrics.json").read_text())["outcomes"] == found.outcomes
    mute = [replace(e, rewards=None, terminated=k % 2 == 0) for k, e in enumerate(episodes)]
    ends = learn(mute, tmp_path / "ends", epochs=1, members=2, hidden=(16,))
    assert (ends.model.config.numbers, ends.model.config.events) == ((), ("terminated",))
    # the recording that is held out does not end
    assert ends.outcomes == {}
    none = learn([replace(e, rewards=None) for e in episodes], tmp_path / "none", epochs=1, members=2, hidden=(16,))
    assert none.model.heads is None


def test_what_is_scored_was_not_learned_from(episodes: list[Episode], tmp_path: Path) -> None:
    found = learn(episodes, tmp_path, epochs=1, members=2, hidden=(16,))
    assert found.held_out == (episodes[9].name,)
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["held_out"] == [episodes[9].name]
    seen = np.concatenate([e.observations[:-1] for e in episodes if e.name != episodes[9].name])
    np.testing.assert_allclose(found.model.input_mean[:3], seen.mean(0), rtol=1e-4, atol=1e-6)


def test_scores_are_those_of_a_model_that_nothing_moves(episodes: list[Episode]) -> None:
    """Changes of zero are as bad as no change, and intervals as wide as the changes hold most of them."""
    model = TransitionEnsemble(TransitionConfig(3, 1, 0.05, 2, 2, (), ("cosine", "sine", "speed")))
    changes = np.concatenate([np.diff(e.observations, axis=0) for e in episodes])
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.zero_()
    model.change_scale.copy_(torch.as_tensor(changes.std(0)))
    rows = {row["steps"]: row for row in ahead(model, episodes)}
    assert set(rows) == {1, 5, 10, 20}, "50 steps have too few windows in these recordings"
    assert rows[1]["windows"] == 12 * 60
    assert rows[20]["windows"] == 12 * 3
    assert rows[1]["nrmse"] == pytest.approx(1.0, abs=0.05)
    assert rows[20]["seconds"] == pytest.approx(1.0)
    assert 0.8 < rows[1]["coverage"]["0.9"] < 1.0
    drifting = [replace(e, observations=e.observations + np.arange(61.0)[:, None]) for e in episodes]
    for row in ahead(model, drifting):
        assert row["nrmse"] == pytest.approx(1.0, abs=0.05), "what drifts is no better foretold by no change"


def test_too_few_and_uneven_recordings_are_refused(episodes: list[Episode], tmp_path: Path) -> None:
    with pytest.raises(LogError, match="expected two recordings at least"):
        learn(episodes[:1], tmp_path)
    other = replace(episodes[-1], channels=replace(episodes[0].channels, actions=(("other", "1"),)))
    with pytest.raises(LogError, match="has other channels than"):
        learn([*episodes[:3], other], tmp_path)
    t = episodes[0].observed_at ** 1.5
    uneven = replace(episodes[0], observed_at=t, commanded_at=t[:-1])
    with pytest.raises(LogError, match="expected steps of one length"):
        learn([uneven, replace(uneven, name="other")], tmp_path)


def test_the_code_of_the_page_runs(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "world_model.md").read_text()
    part = page.split("## An environment's observations")[1].split("\n## ")[0]
    code = "".join(re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL))
    (tmp_path / "logs").symlink_to(logs)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("epochs=60", "epochs=1"), names)
    assert names["prediction"].mean.shape == (8, 20, 3)
    assert names["told"].events.shape == names["told"].numbers.mean.shape == (8, 20, 1)


def test_the_command_line_says_how_far_ahead_it_can_be_trusted(logs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim2real.cli", "learn", str(logs), "--output", "run", "--epochs", "30"]
    command += ["--members", "3", "--hidden", "48", "48"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 1 recordings that were not learned from" in done.stdout
    first = next(line for line in done.stdout.splitlines() if line.startswith("1 "))
    assert float(first.split()[2]) < 0.1, done.stdout
    assert TransitionEnsemble.load(tmp_path / "run" / "model").config.names == ("cosine", "sine", "speed")
    other = subprocess.run(
        [*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert other.returncode == 1
    assert "--again" in other.stderr
