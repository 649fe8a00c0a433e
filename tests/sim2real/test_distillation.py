"""Distillation: what a teacher is asked, and that the student has learned it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sim2real.distillation import Lesson, distill, practise
from sim2real.episodes import Channels, Episode
from sim2real.errors import ModelError
from sim2real.estimation import Observation
from sim2real.evaluation import Questions, RecordingPredictor, SimulatorPredictor
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant
from sim2real.prediction import Prediction
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, fit_to_recordings

DT = 0.02
CONFIG = EnsembleConfig((True,), 1, DT, history=3, members=2, hidden=(32,), lookback=4)
MASS = {"dynamics.payload.mass": 0.8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), timestep=0.005, threads=1)


def log(plant: Plant, name: str, strongest: float) -> Episode:
    """What a pendulum does under commands that are not strong."""
    commands = excite(np.random.default_rng(len(name)), 12.0, DT, np.array([strongest]), (0.5, 1.3))
    found = Twin(plant, MASS).record(name, commands, DT)
    return replace(found, channels=Channels((("angle", "rad"),), found.channels.actions))


def practice(plant: Plant, episodes: int = 5) -> list[Episode]:
    wild = Excitation((3.0,), (4.0,), (3.0,))
    twin = Twin(plant, MASS, period=DT)
    return practise(twin, wild, ["angle"], hold=DT, rng=np.random.default_rng(0), episodes=episodes)


def goes_up(questions: Questions) -> Prediction:
    """Predict that every joint moves by 0.7 rad/s."""
    mean = torch.as_tensor(questions.now[:, None] + 0.7 * questions.offsets[..., None])
    return Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), questions.horizon)


def test_a_lesson_is_what_the_teacher_says_of_the_practice(plant: Plant) -> None:
    lesson = Lesson(goes_up, practice(plant), ["angle"])
    estimator = KalmanFilter([100.0], [1e-3])
    found = lesson.record(CONFIG, estimator, 0.01, steps=6, rng=np.random.default_rng(0))
    steps = 0.7 * DT * torch.arange(1, 7)[:, None]
    torch.testing.assert_close(found.positions.diff(dim=1), steps[:1].expand(len(found), 5, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.positions[:, 0], found.state[:, :1] + steps[0], atol=5e-3, rtol=0)
    # a reading every 0.02 s: 0.1 s before the first start, and seven steps after the last
    assert len(found) == 5 * (101 - 5 - 7)
    assert found.commands.shape == (len(found), 2 + 6, 1)
    few = replace(lesson, windows=50).record(CONFIG, estimator, 0.01, steps=6, rng=np.random.default_rng(0))
    assert 40 <= len(few) <= 50


def test_a_practice_that_is_too_short_is_refused(plant: Plant) -> None:
    lesson = Lesson(goes_up, [e.slice(0.0, 0.15) for e in practice(plant)], ["angle"])
    with pytest.raises(ModelError, match=r"no recording to ask the teacher about is as long as 0\.26 s"):
        lesson.record(CONFIG, KalmanFilter([100.0], [1e-3]), 0.01, steps=7, rng=np.random.default_rng(0))


def test_a_practice_is_random_within_what_was_asked_for(plant: Plant) -> None:
    found = practice(plant, episodes=40)
    assert len({e.name for e in found}) == 40
    assert all(e.channels.observations == (("angle", "rad"),) for e in found)
    starts = np.array([e.observations[0, 0] for e in found])
    assert np.abs(starts).max() <= 3.0
    assert starts.std() > 1.0
    strongest = np.array([np.abs(e.actions).max() for e in found])
    assert strongest.max() <= 3.0
    assert (strongest < 1.0).mean() > 0.3  # weak commands are not rare
    rests: dict[str, Any] = {"excitation": Excitation((0.0,), (0.0,), (1e-12,)), "channels": ["angle"], "hold": DT}
    noisy = practise(Twin(plant, MASS, period=DT), **rests, rng=np.random.default_rng(0), noise=np.array([0.02]))
    readings = np.stack([e.observations[:, 0] for e in noisy])
    assert readings.std() == pytest.approx(0.02, rel=0.05)
    assert abs(np.corrcoef(readings)[0, 1:]).mean() < 0.2  # each has its own
    again = practice(plant, episodes=40)
    np.testing.assert_array_equal(again[7].observations, found[7].observations)


def test_a_student_knows_what_its_teacher_knows_and_the_recordings_do_not(plant: Plant) -> None:
    logs = [log(plant, name, 0.4) for name in ("weak", "weaker")]
    teacher = SimulatorPredictor(plant, MASS, {}, np.zeros((2, 2)), Observation(0.1, 50.0), ["angle"])
    found = distill(teacher, EnsembleDynamics(CONFIG), logs, practice(plant, 60), logs[1:], ["angle"], iterations=250)
    alone = fit_to_recordings(EnsembleDynamics(CONFIG), logs, ["angle"], iterations=250)
    strong = Questions.of(log(plant, "strong", 2.5), ["angle"])

    def error(model: EnsembleDynamics) -> float:
        answer = RecordingPredictor(model, ["angle"])(strong)
        return float(((answer.mean.numpy() - strong.truth) ** 2).mean() ** 0.5)

    assert error(found.model) < 0.5 * error(alone)
    assert found.model.recalibration is not None
    assert found.teacher < 0.1
    assert found.student < 0.5
    assert 0.2 * (found.student - found.teacher) < found.apart < 2 * (found.student + found.teacher)
    assert set(found.to_json()) == {"teacher", "student", "apart"}
