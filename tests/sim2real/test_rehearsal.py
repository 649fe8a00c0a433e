"""Simulations that a model of recordings rehearses on: what they hold, and what they are good for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sim2real.adapters import Chain, Latency
from sim2real.episodes import Episode
from sim2real.errors import ModelError
from sim2real.evaluation import Questions, RecordingPredictor, score
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

DT, SUBSTEP = 0.02, 0.005
STILL = Excitation(command=(0.0,), velocity=(0.0,), position=(1.0,))


def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Latency(delay=0.02)]), timestep=SUBSTEP, threads=1)


def config(**changed: Any) -> EnsembleConfig:
    settings: dict[str, Any] = {
        "wraps": (True,), "actions": 1, "timestep": DT, "history": 4, "members": 2, "hidden": (32,),
        "lookback": 5, "latents": 2,
    }  # fmt: skip
    return EnsembleConfig(**(settings | changed))


def masses(*values: float) -> dict[str, np.ndarray]:
    return {"dynamics.payload.mass": np.array(values)}


def estimator() -> KalmanFilter:
    return KalmanFilter([300.0], [1e-5])


def test_windows_are_what_the_plant_does() -> None:
    some = Rehearsal(plant(), masses(0.5, 2.0), Excitation((1.0,), (2.0,), (3.0,)), windows=20)
    found = some.record(config(), estimator(), 0.01, steps=10, rng=np.random.default_rng(0))
    assert found.state.shape == (2, 20, 2)
    assert found.past.shape == (2, 20, 5, 1)
    assert found.commands.shape == (2, 20, 13, 1)
    assert found.positions.shape == (2, 20, 10, 1)
    for member, mass in enumerate((0.5, 2.0)):
        running = plant().start(20, {"dynamics.payload.mass": np.full(20, mass)})
        sent = np.repeat(found.commands[member].double().numpy(), round(DT / SUBSTEP), 1)
        before = 3 * round(DT / SUBSTEP)
        running.reset(found.state[member].double().numpy(), sent[:, :before])
        path = running.step(sent[:, before:])[:, round(DT / SUBSTEP) - 1 :: round(DT / SUBSTEP), :1]
        # from a causal estimate, whose velocity is off a little
        assert np.abs(path[:, :3] - found.positions[member, :, :3].numpy()).max() < 0.02


def test_positions_before_the_start_are_those_that_led_there() -> None:
    some = Rehearsal(plant(), masses(1.0, 1.0), Excitation((1.0,), (2.0,), (3.0,)), windows=20)
    found = some.record(config(), estimator(), 0.01, steps=3, rng=np.random.default_rng(0))
    path = torch.cat([found.past, found.state[..., None, :1], found.positions], 2)[..., 0].numpy()
    bends = np.abs(np.diff(path, 3, axis=-1))
    assert bends.max() < 0.02  # one smooth motion: a step to the side would show three times over


def test_readings_are_as_noisy_as_the_filter_expects() -> None:
    some = Rehearsal(plant(), masses(1.0, 1.0), Excitation((0.0,), (0.0,), (1e-9,)), windows=400)
    found = some.record(config(), KalmanFilter([1.0], [0.01]), 0.01, steps=2, rng=np.random.default_rng(0))
    assert float(found.past.std()) == pytest.approx(0.01, rel=0.05)
    # the very readings that the filter saw: from the last ones it knows where the robot was
    last = np.corrcoef(found.past[..., -1, 0].flatten(), found.state[..., 0].flatten())[0, 1]
    assert last > 0.2
    assert float(found.positions.abs().max()) < 1e-6
    assert 1e-4 < float(found.state[..., 0].std()) < 0.01


def test_positions_between_slow_readings_are_interpolated() -> None:
    some = Rehearsal(plant(), masses(1.0, 1.0), Excitation((1.0,), (2.0,), (3.0,)), windows=20)
    found = some.record(config(), estimator(), 0.1, steps=3, rng=np.random.default_rng(0))
    path = found.past[..., 0].numpy()  # readings 0.1 s apart, positions 0.02 s apart: on one line
    assert np.abs(np.diff(path, 2, axis=-1)).max() < 1e-3
    assert np.isfinite(found.state.numpy()).all()


def test_a_draw_a_member_and_whole_substeps_are_asked_for() -> None:
    with pytest.raises(ModelError, match="expected 2, found 3"):
        Rehearsal(plant(), masses(1, 2, 3), STILL).record(
            config(), estimator(), 0.01, steps=3, rng=np.random.default_rng(0)
        )
    with pytest.raises(ModelError, match=r"whole number of the plant's 0.005 s, found 0.012 s"):
        Rehearsal(plant(), masses(1, 2), STILL).record(
            config(timestep=0.012), estimator(), 0.01, steps=3, rng=np.random.default_rng(0)
        )


def test_a_rehearsed_model_knows_what_was_not_recorded() -> None:
    torch.set_num_threads(1)
    robot = Twin(plant(), {"dynamics.payload.mass": 0.8}, Chain())
    small = robot.record("small", excite(np.random.default_rng(0), 6.0, DT, np.array([0.3]), (0.5, 1.3)), hold=DT)
    large = robot.record("large", excite(np.random.default_rng(1), 12.0, DT, np.array([3.0]), (0.5, 1.3)), hold=DT)
    excitation = Excitation((3.0,), (4.0,), (3.2,))

    def error(rehearsal: Rehearsal | None) -> float:
        model = EnsembleDynamics(config())
        settings: dict[str, Any] = {"iterations": 300, "batch": 32, "rate": 0.01}
        fit_to_recordings(model, [small], ["position"], rehearsal=rehearsal, **settings)
        asked = Questions.of(large, ["position"])
        found = RecordingPredictor(model, ["position"])(asked)
        return float(score(found, asked, ["hinge"], np.random.default_rng(0))["mean_nrmse"])

    rehearsed = error(Rehearsal(plant(), masses(0.78, 0.82), excitation, windows=500))
    assert rehearsed < 0.5 * error(None)


def test_a_model_can_be_pretrained_on_simulations_alone() -> None:
    torch.set_num_threads(1)
    light, heavy = (
        Twin(plant(), {"dynamics.payload.mass": m}, Chain()).record(
            "log", excite(np.random.default_rng(0), 12.0, DT, np.array([2.0]), (0.5, 1.3)), hold=DT
        )
        for m in (0.5, 1.5)
    )
    model, wild = EnsembleDynamics(config()), Excitation((3.0,), (4.0,), (3.2,))
    settings: dict[str, Any] = {"iterations": 300, "batch": 32, "rate": 0.01, "recorded": 0.0}
    rehearsal = Rehearsal(plant(), masses(0.5, 0.5), wild, windows=500)
    fit_to_recordings(model, [heavy], ["position"], rehearsal=rehearsal, **settings)

    def error(log: Episode) -> float:
        asked = Questions.of(log, ["position"])
        found = RecordingPredictor(model, ["position"])(asked)
        return float(score(found, asked, ["hinge"], np.random.default_rng(0))["mean_nrmse"])

    assert error(light) < 0.5 * error(heavy)
    with pytest.raises(ModelError, match="nothing to learn from"):
        fit_to_recordings(model, [heavy], ["position"], **settings)
