"""One ensemble in place of several predictors and a simulator: what a planner can afford to ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim2real.combination import recalibrate_model
from sim2real.episodes import Array, Episode
from sim2real.errors import ModelError
from sim2real.evaluation import Predictor, Questions, RecordingPredictor, Scores, mean_scores, score
from sim2real.kalman import KalmanFilter
from sim2real.twin import Twin
from sim2real.windows import joint_positions
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, fit_to_recordings
from sim2real.world_model.rehearsal import WEAKEST
from sim2real.world_model.windows import Recorded, before_start, causal_states, cut_window, window_starts


@dataclass(frozen=True)
class Lesson:
    """What a teacher predicts along recordings of its own practice; a source of windows for `fit_to_recordings`.

    Attributes:
        teacher: answers at any horizons.
        practice: recordings whose starts and commands the teacher is asked about; how they went on does not matter.
        channels: the observations that are joint positions.
        windows: at most so many.
    """

    teacher: Predictor
    practice: Sequence[Episode]
    channels: Sequence[str]
    windows: int = 1500

    def record(
        self, config: EnsembleConfig, estimator: KalmanFilter, period: float, *, steps: int, rng: np.random.Generator
    ) -> Recorded:
        """Ask the teacher where the robot is after each of T steps, from as many starts as there are windows: (N, ...).

        Raises:
            ModelError: the practice has no window of T steps.
        """
        dt = config.timestep
        horizons = tuple(dt * np.arange(1, steps + 1))
        starts = [window_starts(e, config, (steps + 1) * dt) for e in self.practice]
        thin = max(math.ceil(sum(map(len, starts)) / self.windows), 1)
        parts = []
        for episode, rows in zip(self.practice, starts, strict=True):
            some = rows[:: max(min(thin, len(rows)), 1)]
            if not len(some):
                continue
            states = causal_states(estimator, episode, self.channels)
            asked = cut_window(episode, some, self.channels, config, states, steps)
            offsets = np.tile(horizons, (len(some), 1))
            now = joint_positions(episode, self.channels)[some]
            answer = self.teacher(Questions(episode, some, offsets, now, asked.positions.double().numpy(), horizons))
            positions = answer.require_finite("the teacher").mean.float()
            parts.append(Recorded(asked.state, asked.past, asked.commands, positions))
        if not parts:
            need = before_start(config) + (steps + 1) * dt
            raise ModelError(f"no recording to ask the teacher about is as long as {need:.3g} s")
        return Recorded.joined(parts)


def practise(
    twin: Twin,
    excitation: Excitation,
    channels: Sequence[str],
    *,
    hold: float,
    rng: np.random.Generator,
    noise: Array | float = 0.0,
    episodes: int = 60,
    seconds: float = 2.0,
) -> list[Episode]:
    """Record a twin from random states under random commands, weak ones more often than strong ones.

    Its readings should be as far apart as those of the robot.

    Args:
        twin: a simulation with the identified parameters.
        excitation: its commands and states.
        channels: what its joint positions are called in the recordings of the robot.
        hold: time that each command is held [s].
        rng: of both, and of the noise.
        noise: standard deviation of the readings, of each joint [unit of the joint].
        episodes: how many.
        seconds: of each.
    """
    commands, starts = excitation.draw(rng, episodes, round(seconds / hold), WEAKEST)
    made = [twin.record(f"practice {k}", u, hold, x) for k, (u, x) in enumerate(zip(commands, starts, strict=True))]
    named = tuple((name, unit) for name, (_, unit) in zip(channels, twin.channels.observations, strict=True))
    return [
        replace(
            e,
            observations=e.observations + noise * rng.normal(size=e.observations.shape),
            channels=replace(e.channels, observations=named),
        )
        for e in made
    ]


@dataclass(frozen=True)
class Distilled:
    """A model that stands for its teacher.

    Attributes:
        model: recalibrated on the held-out recordings.
        teacher: mean NRMSE of the teacher on them.
        student: of the model.
        apart: root mean squared difference of the two, over all horizons, relative to how far the robot gets.
    """

    model: EnsembleDynamics
    teacher: float
    student: float
    apart: float

    def to_json(self) -> dict[str, float]:
        """Return what is told of it."""
        return {"teacher": self.teacher, "student": self.student, "apart": self.apart}


def distill(
    teacher: Predictor,
    model: EnsembleDynamics,
    recordings: Sequence[Episode],
    practice: Sequence[Episode],
    held_out: Sequence[Episode],
    channels: Sequence[str],
    *,
    trust: float = 1.0,
    iterations: int = 3000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Distilled:
    """Train a fresh model on recordings, and on what a teacher says where nothing was recorded; no simulator is in it.

    Args:
        teacher: such as a `CombinedPredictor`, which asks a simulator and several models.
        model: with a lookback; see `fit_to_recordings`.
        recordings: that the teacher learned from.
        practice: recordings of a simulation, such as `practise` makes: their starts and commands are asked about.
        held_out: recordings that say how much is lost.
        channels: the observations that are joint positions.
        trust: what a window of the teacher's counts relative to a recorded one.
        iterations: of training.
        seed: of training.
        progress: called with a line now and then.

    Raises:
        ModelError: the model does not look back, or a practice is too short.
        LogError: no window fits the recordings, or those held out.
        NonFiniteError: training diverges.
    """
    # a teacher that simulates takes its time: no more is asked than is learned from often
    lesson = Lesson(teacher, practice, channels, windows=min(Lesson.windows, 20 * iterations))
    fit_to_recordings(
        model, recordings, channels, rehearsal=lesson, trust=trust, iterations=iterations, seed=seed, progress=progress
    )
    asked = [Questions.of(e, channels) for e in held_out]
    student = RecordingPredictor(model, channels)
    recalibrate_model(model, student, asked)
    rows: dict[str, list[Scores]] = {"teacher": [], "student": []}
    squares = []
    for q in asked:
        answers = {"teacher": teacher(q), "student": student(q)}
        for name, answer in answers.items():
            rows[name].append(score(answer, q, channels, np.random.default_rng(0)))
        difference = (answers["student"].mean - answers["teacher"].mean).double().numpy()
        squares.append((difference / (q.truth - q.now[:, None]).std(0).clip(1e-9)) ** 2)
    errors = {name: mean_scores(found, "mean_nrmse") for name, found in rows.items()}
    return Distilled(model, errors["teacher"], errors["student"], float(np.sqrt(np.concatenate(squares).mean())))
