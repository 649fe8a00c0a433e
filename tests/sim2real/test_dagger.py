"""Rounds on a twin: a model that improves, rounds that survive a kill, and rounds that are taken back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from sim2real.adapters import Chain, Noise
from sim2real.dagger import dagger, finished, latest, roll_back
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, ModelError, SafetyError
from sim2real.estimation import Estimate
from sim2real.evaluation import Questions, RecordingPredictor
from sim2real.logs import read_logs
from sim2real.planning import Damping, Policy
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.safety import Limits, SafetyFilter
from sim2real.twin import Twin, excite
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

DT, LIMIT, PAYLOAD = 0.02, np.array([3.0]), "dynamics.payload.mass"
CONFIG = EnsembleConfig((True,), 1, DT, history=3, members=2, hidden=(32, 32), lookback=4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), timestep=0.005, threads=1)


@pytest.fixture(scope="module")
def model(plant: Plant) -> EnsembleDynamics:
    """Pre-trained in simulation on half of the payload that the robot has."""
    torch.set_num_threads(1)
    twin = Twin(plant, {PAYLOAD: 0.4}, period=DT)
    log = twin.record("log", excite(np.random.default_rng(0), 6.0, DT, LIMIT, (0.5, 1.3)), DT)
    rehearsal = Rehearsal(plant, repeated({PAYLOAD: 0.4}, 2), Excitation((3.0,), (4.0,), (3.1,)), windows=400)
    made = EnsembleDynamics(CONFIG)
    return fit_to_recordings(made, [log], ["position"], rehearsal=rehearsal, recorded=0.0, iterations=300, rate=0.01)


def robot(plant: Plant) -> TwinEnv:
    return TwinEnv(Twin(plant, {PAYLOAD: 0.8}, period=DT), LIMIT, DT)


class Pushes:
    """Commands of a seed that is the same in every episode, weighed by how fast the pendulum is."""

    def __init__(self, model: EnsembleDynamics) -> None:
        self.model = model

    def reset(self) -> None:
        self.rng = np.random.default_rng(1)

    def act(self, estimate: Estimate, t: float) -> Array:
        return np.clip(2.5 * self.rng.normal(size=(len(estimate.state), 1)) + 0.5 * estimate.state[:, 1:], -3, 3)


def go(plant: Plant, model: EnsembleDynamics, place: Path, env: gym.Env[Any, Any] | None = None, **changed: Any) -> Any:
    settings: dict[str, Any] = {
        "rounds": 2, "seconds": 8.0, "episode": 2.0, "iterations": 60, "rate": 0.005, "anchor": 0.01,
    } | changed  # fmt: skip
    made: Policy = Damping(0.2, LIMIT)
    return dagger(env or robot(plant), model, Pushes, made, ["position"], place, **settings)


def test_a_twin_is_an_environment(plant: Plant) -> None:
    check_env(robot(plant), skip_render_check=True)
    env = TwinEnv(Twin(plant, {PAYLOAD: 0.8}, period=DT), LIMIT, DT, seconds=0.1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1))
    env.reset(seed=0)
    assert [env.step(np.ones(1))[3] for _ in range(5)] == [False] * 4 + [True]


def test_starts_and_noise_are_those_of_the_seed(plant: Plant) -> None:
    noisy = Twin(plant, perception=Chain([Noise(gap="perception", additive=0.01)]), period=DT)
    env = TwinEnv(noisy, LIMIT, DT, spread=1e-12)
    one, same, other = (np.array([env.reset(seed=s)[0], env.step(np.zeros(1))[0]]) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).min() > 1e-6


class Falls(gym.Wrapper[Any, Any, Any, Any]):
    """A robot whose third and fourth episodes end after 0.4 s, or every one of them."""

    def __init__(self, env: gym.Env[Any, Any], every: bool = False) -> None:
        super().__init__(env)
        self.number, self.every = 0, every

    def reset(self, **how: Any) -> Any:
        self.number, self.left = self.number + 1, 20
        return self.env.reset(**how)

    def step(self, action: Any) -> Any:
        self.left -= 1
        seen, reward, _, truncated, info = self.env.step(action)
        early = self.every or self.number in (3, 4)
        return seen, reward, early and self.left <= 0, truncated, info


def test_episodes_that_end_early_are_learned_from_and_do_not_stop_a_round(
    plant: Plant, model: EnsembleDynamics, tmp_path: Path
) -> None:
    (found,) = go(plant, model, tmp_path, Falls(robot(plant)), rounds=1, seconds=7.0)
    assert found.episodes == 6
    assert found.seconds == pytest.approx(2 * 0.4 + 4 * 2.0)


@pytest.fixture(scope="module")
def unbroken(plant: Plant, model: EnsembleDynamics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rounds")
    go(plant, model, place)
    return place


def test_rounds_improve_the_model_and_leave_everything_on_disk(
    unbroken: Path, model: EnsembleDynamics, plant: Plant
) -> None:
    one, two = finished(unbroken)
    assert two.accepted, two.reason
    assert two.after < 0.6 * two.before
    assert (one.number, two.number) == (1, 2)
    assert (two.parent, one.model != two.model) == (one.model, True)
    assert one.seconds == pytest.approx(8.0)
    assert one.episodes == 4
    assert (one.share, two.share) == (0.5, 0.25)
    logs = read_logs(unbroken / "round-02" / "logs")
    assert [e.duration for e in logs] == pytest.approx([2.0] * 4)
    # the fallback brakes, the other one pushes: both have been in command
    brakes = [-0.2 * np.gradient(e.observations[:, 0], DT)[:-1] for e in logs]
    alike = np.concatenate([np.abs(e.actions[:, 0] - b) < 0.1 for e, b in zip(logs, brakes, strict=True)])
    assert 0.02 < alike.mean() < 0.7
    # on what nobody has seen
    twin = Twin(plant, {PAYLOAD: 0.8}, period=DT)
    new = twin.record("new", excite(np.random.default_rng(9), 12.0, DT, LIMIT, (0.5, 1.3)), DT)
    asked = Questions.of(new, ["position"])
    before, after = (
        float((RecordingPredictor(m, ["position"])(asked).mean - torch.as_tensor(asked.truth)).square().mean().sqrt())
        for m in (model, latest(unbroken))
    )
    assert after < 0.8 * before
    assert latest(unbroken).recalibration is not None


class Dies(gym.Wrapper[Any, Any, Any, Any]):
    """A robot whose process is killed after so many steps."""

    def __init__(self, env: gym.Env[Any, Any], after: int) -> None:
        super().__init__(env)
        self.left = after

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.env.step(action)


@pytest.mark.parametrize("after", [130, 430, 650])
def test_a_killed_run_ends_as_one_that_was_not(
    plant: Plant, model: EnsembleDynamics, unbroken: Path, tmp_path: Path, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(plant, model, tmp_path, Dies(robot(plant), after))
    number = 1 if after < 400 else 2
    logs = tmp_path / f"round-{number:02d}" / "logs"
    kept = sorted(f.name for f in logs.glob("episode_*.parquet"))
    assert len(kept) == (after - 400 * (number - 1)) // 100
    go(plant, model, tmp_path)
    assert len(list((logs / "cut_off").iterdir())) == 1
    assert len(list(logs.glob("episode_*.parquet"))) == 4
    assert finished(tmp_path) == finished(unbroken)
    for one, other in zip(latest(tmp_path).parameters(), latest(unbroken).parameters(), strict=True):
        assert torch.equal(one, other)


def test_rounds_can_be_taken_back(plant: Plant, model: EnsembleDynamics, unbroken: Path, tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "rounds"
    shutil.copytree(unbroken, place)
    (aside,) = roll_back(place, 1)
    assert json.loads((aside / "round.json").read_text())["number"] == 2
    assert [r.number for r in finished(place)] == [1]
    go(plant, model, place)
    assert finished(place) == finished(unbroken)


def test_what_cannot_be_done_is_told(plant: Plant, model: EnsembleDynamics, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"names of 1 joint positions among position, found \['angle'\]"):
        dagger(robot(plant), model, Pushes, Damping(0.2, LIMIT), ["angle"], tmp_path)
    for changed, kind, said in (
        ({"method": "anchord"}, ModelError, "did you mean anchored"),
        ({"iteration": 5}, ModelError, "takes no 'iteration'.*iterations"),
        ({"episode": 0.3}, LogError, r"expected 1.1 s or more, found 0.3 s"),
        ({"seconds": 2.0}, LogError, r"expected more than 2 s, found 2 s"),
        ({"env": TwinEnv(Twin(plant, period=0.01), LIMIT, 0.01)}, LogError, r"every 0.01 s, the model's step is 0.02"),
    ):
        with pytest.raises(kind, match=said):
            go(plant, model, tmp_path, **changed)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir()), "nothing was recorded"
    with pytest.raises(LogError, match="to hold out, found 6 and 0: they ended early"):
        go(plant, model, tmp_path / "falls", Falls(robot(plant), every=True), seconds=2.1, rounds=1)
    wide = TwinEnv(Twin(plant), np.array([3.0, 3.0]), DT)
    with pytest.raises(LogError, match="a robot that takes 1 numbers"):
        go(plant, model, tmp_path / "wide", wide)
    with pytest.raises(ModelError, match="rounds of another model"):
        go(plant, EnsembleDynamics(CONFIG, seed=5), unbroken)
    with pytest.raises(ModelError, match="a model that looks back"):
        go(plant, EnsembleDynamics(EnsembleConfig((True,), 1, DT)), tmp_path)
    with pytest.raises(ModelError, match="no round has finished"):
        latest(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        go(plant, EnsembleDynamics(CONFIG, seed=5), tmp_path, Dies(robot(plant), 150))
    with pytest.raises(ModelError, match="round-01 was begun with another model"):
        go(plant, model, tmp_path)
    with pytest.raises(ModelError, match=r"a number from 0, found .* and -1"):
        roll_back(tmp_path, -1)


def test_rounds_that_bring_nothing_are_the_last(
    plant: Plant, model: EnsembleDynamics, unbroken: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    found = go(
        plant, latest(unbroken), tmp_path, rounds=4, seconds=2.4, episode=1.2, iterations=1, patience=1,
        progress=said.append,
    )  # fmt: skip
    assert len(found) < 4
    assert any("stopped: the last 1 rounds lowered the error by less than 5%" in line for line in said)


def test_a_filter_stands_around_whatever_is_in_command_and_its_stop_ends_the_call(
    plant: Plant, model: EnsembleDynamics, tmp_path: Path
) -> None:
    made: list[SafetyFilter] = []

    def guard(policy: Policy) -> Policy:
        limits = Limits([8.0], velocity=[30.0], rate=[30.0])
        made.append(SafetyFilter(policy, limits, RobotModel("pendulum"), DT))
        if len(made) == 1:
            made[0].stop("the button was pressed")
        return made[-1]

    with pytest.raises(SafetyError, match="the robot was stopped: the button was pressed"):
        go(plant, model, tmp_path, rounds=1, guard=guard)
    assert len(read_logs(tmp_path / "round-01" / "logs")) == 1
    go(plant, model, tmp_path, rounds=1, guard=guard)
    episodes = read_logs(tmp_path / "round-01" / "logs")
    assert len(episodes) == 4
    assert made[1].stopped is None
    assert made[1].interventions["rate"] > 10
    for e in episodes[1:]:
        assert np.abs(np.diff(e.actions, axis=0)).max() <= 30.0 * DT + 1e-6


def test_a_model_that_is_trained_anew_takes_the_place_of_tuning_behind_the_same_gate(
    plant: Plant, model: EnsembleDynamics, tmp_path: Path
) -> None:
    rehearsal = Rehearsal(plant, repeated({PAYLOAD: 0.8}, 2), Excitation((3.0,), (4.0,), (3.1,)), windows=400)
    seen: list[int] = []

    def learn(recordings: Sequence[Episode]) -> EnsembleDynamics:
        """What an identified simulator teaches in the first round, next to nothing in the second."""
        seen.append(len(recordings))
        fresh = EnsembleDynamics(CONFIG, seed=5)
        iterations = 300 if len(seen) == 1 else 1
        return fit_to_recordings(
            fresh, recordings, ["position"], rehearsal=rehearsal, recorded=0.0, iterations=iterations, rate=0.01
        )

    first, second = go(plant, model, tmp_path, learn=learn, seconds=16.0)
    assert seen == [6, 12]
    assert first.accepted, first.reason
    assert first.after < 0.7 * first.before
    assert not second.accepted
    assert second.model != first.parent
    # the encoder was learned anew, too
    now = latest(tmp_path)
    assert now.encoder is not None
    assert model.encoder is not None
    assert not torch.equal(next(now.encoder.parameters()), next(model.encoder.parameters()))
