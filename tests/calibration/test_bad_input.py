"""Logs and priors that are wrong lead to a finding or an error, never to a confident posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Latency
from sim2real.calibration import diagnose, identify
from sim2real.calibration.check import simulate_episode
from sim2real.episodes import Episode
from sim2real.errors import LogError, ParameterError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

UPPER, LOWER, DAMPING, DELAY = (
    "dynamics.upper.mass",
    "dynamics.lower.mass",
    "dynamics.elbow.damping",
    "execution.latency.delay",
)
TRUTH = {UPPER: 1.2, LOWER: 0.8, DAMPING: 0.15, DELAY: 0.02}
PRIOR = {UPPER: "*U(0.5, 2)", LOWER: "*U(0.5, 2)", DAMPING: "=U(0.02, 0.3)", DELAY: "=U(0, 0.05)"}
CHANNELS = ["shoulder.position", "elbow.position"]


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("two_link_arm"), Chain([Latency()]), timestep=0.004, threads=1)


@pytest.fixture(scope="module")
def log(plant: Plant) -> Episode:
    rng = np.random.default_rng(0)
    made = Twin(plant, TRUTH, period=0.012).record("log", excite(rng, 12, 0.024, np.ones(2), (0.5, 1.3)), hold=0.024)
    return simulate_episode(plant, made, TRUTH, CHANNELS, np.full(2, 0.002), rng)


def codes(plant: Plant, episode: Episode, prior: dict[str, str] = PRIOR, **settings: Any) -> set[str]:
    parameters = ParameterSet.parse(prior, plant.units())
    settings = {"channels": CHANNELS, "tries": 4, "starts": 1, "rounds": 3, "block": 0.5, **settings}
    return {f.code for f in diagnose(identify(plant, [episode], parameters, rng=np.random.default_rng(0), **settings))}


def test_good_logs_raise_no_alarm(plant: Plant, log: Episode) -> None:
    assert codes(plant, log) <= {"only-together"}


def test_a_wrong_sign_is_told(plant: Plant, log: Episode) -> None:
    assert "explains-little" in codes(plant, replace(log, observations=-log.observations))


def test_a_wrong_order_of_joints_is_told(plant: Plant, log: Episode) -> None:
    assert "explains-little" in codes(plant, log, channels=CHANNELS[::-1])


def test_logs_that_excite_nothing_inform_nothing(plant: Plant, log: Episode) -> None:
    still = replace(log, actions=0 * log.actions)
    still = simulate_episode(plant, still, TRUTH, CHANNELS, np.full(2, 0.002), np.random.default_rng(0))
    start = still.observations[0] * 0
    still = replace(still, observations=start + 0.002 * np.random.default_rng(1).normal(size=still.observations.shape))
    assert "not-informed" in codes(plant, still)


def test_a_prior_that_excludes_the_truth_is_told(plant: Plant, log: Episode) -> None:
    assert "at-bound" in codes(plant, log, PRIOR | {LOWER: "=U(1.2, 2)"})


def test_measured_efforts_say_nothing_of_the_execution(plant: Plant, log: Episode) -> None:
    with pytest.raises(ParameterError, match=r"execution\.latency\.delay: no recording has commanded actions"):
        codes(plant, replace(log, action_source="measured"))


def test_a_parameter_that_the_simulator_lacks_is_named(plant: Plant, log: Episode) -> None:
    with pytest.raises(ParameterError, match=r"no parameter named 'dynamics.lower.mas'; did you mean"):
        identify(
            plant, [log], ParameterSet.parse({"dynamics.lower.mas": "=U(0, 1)"}), channels=CHANNELS,
            rng=np.random.default_rng(0),
        )  # fmt: skip


def test_windows_that_fit_nowhere_and_no_recordings_are_named(plant: Plant, log: Episode) -> None:
    with pytest.raises(LogError, match="there is no recording to identify from"):
        identify(plant, [], ParameterSet.parse(PRIOR), channels=CHANNELS, rng=np.random.default_rng(0))
    with pytest.raises(LogError, match="no window of 20 s fits the recordings log"):
        codes(plant, log, window=20.0)
