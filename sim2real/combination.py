"""Several predictors as one: each counts where, and as far as, its own uncertainty says that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.evaluation import Predictor, Questions
from sim2real.prediction import Prediction, Recalibration
from sim2real.world_model.ensemble import EnsembleDynamics

# Models of recordings count half where commands or motions are by this share of their recorded range outside it.
BEYOND = 0.1
# Commands until a horizon are looked at this many times in the longest.
RESOLUTION = 100


def recalibrate(predictor: Predictor, held_out: Sequence[Questions]) -> Recalibration:
    """Fit the recalibration of a predictor on held-out questions; each recording counts alike, however long it is.

    Raises:
        ModelError: there is no question.
    """
    if not held_out:
        raise ModelError("a predictor is recalibrated on held-out questions: found none; ask `Questions.of`")
    pooled = Prediction.concatenate([predictor(q) for q in held_out])
    truth = torch.as_tensor(np.concatenate([q.truth for q in held_out]))
    return Recalibration.fit(pooled, truth, np.concatenate([np.full(len(q.truth), 1 / len(q.truth)) for q in held_out]))


def recalibrate_model(model: EnsembleDynamics, predictor: Predictor, held_out: Sequence[Questions]) -> None:
    """Give a model the recalibration that a predictor, which asks it, needs on held-out questions."""
    old, model.recalibration = model.recalibration, None
    try:
        old = recalibrate(predictor, held_out)
    finally:
        model.recalibration = old


@dataclass(frozen=True)
class Range:
    """What recordings have shown: the commands until each horizon, how far the robot went, and where it was.

    Between horizons it is interpolated.

    Attributes:
        horizon: (H,) [s].
        least: (H, F) of what was seen.
        most: (H, F).
        lowest: (D,) positions.
        highest: (D,).
    """

    horizon: Array
    least: Array
    most: Array
    lowest: Array
    highest: Array

    @classmethod
    def of(cls, recorded: Sequence[Questions]) -> Range:
        """Take the range of what recordings ask."""
        seen = np.concatenate([_extremes(q, q.truth) for q in recorded])
        positions = np.concatenate([q.truth for q in recorded])
        horizon = np.array(recorded[0].horizons)
        return cls(horizon, seen.min(0), seen.max(0), positions.min((0, 1)), positions.max((0, 1)))

    def doubt(self, questions: Questions, going: Array) -> Array:
        """Return by what to multiply the variances (W, H, 1) of models that know only what was recorded.

        1 inside; the square root of 2 where something is `BEYOND` of the width of its range outside it, so that weights
        are halved. Positions a whole turn apart are one and the same.

        Args:
            questions: about W windows.
            going: (W, H, D) positions to which the robot probably goes.
        """
        least, most = (
            np.stack([np.interp(questions.horizons, self.horizon, column) for column in values.T], 1)
            for values in (self.least, self.most)
        )
        beyond = _outside(_extremes(questions, going), least, most)
        turns = 2 * np.pi * np.rint((going - 0.5 * (self.lowest + self.highest)) / (2 * np.pi))
        away = _outside(going - turns, self.lowest, self.highest)
        share = np.concatenate([beyond, away], -1).max(-1, keepdims=True)
        return np.asarray(np.sqrt(1 + (share / BEYOND) ** 2))


def _outside(values: Array, low: Array, high: Array) -> Array:
    """Return how far values are outside a range, relative to its width."""
    width = high - low + 1e-3 * np.maximum(np.abs(low), np.abs(high)) + 1e-9  # a constant is recorded with rounding
    return np.asarray(np.maximum(low - values, values - high).clip(0) / width)


def _extremes(q: Questions, positions: Array) -> Array:
    """Return least and largest command from the start to each horizon, and how far joints go: (W, H, 2 A + D)."""
    begin, elapsed = q.episode.observed_at[q.starts], q.offsets.max() / RESOLUTION * (np.arange(RESOLUTION) + 0.5)
    sent = q.episode.commands_at(begin[:, None] + elapsed)
    last = np.clip(np.searchsorted(elapsed, q.horizons), 1, RESOLUTION) - 1
    least, most = (f.accumulate(sent, 1)[:, last] for f in (np.minimum, np.maximum))
    return np.concatenate([least, most, positions - q.now[:, None]], -1)


def extrapolates(predictor: Predictor) -> bool:
    """Return whether a predictor says of itself that its errors do not grow where nothing was recorded."""
    return bool(getattr(predictor, "extrapolates", False))


@dataclass(frozen=True)
class CombinedPredictor:
    """Predicts with an identified simulator and models of recordings together; see `Prediction.combined`.

    A simulator knows what physics says where nothing was recorded; a model of recordings knows what the simulator
    lacks, where much was. Each is recalibrated first, horizon by horizon and joint by joint, so that their
    variances can be compared window by window. Where a model of recordings contradicts the simulator by more than both
    allow for, the simulator counts more: it has few parameters, and extrapolates. So it does where commands are
    stronger, or the robot is going further, than in the recordings that they were trained on.

    Attributes:
        parts: each predictor, its recalibration on held-out recordings, which weighs it, and the one that says how sure
            it is.
        known: what the predictors were trained on; None where that was not told.
    """

    parts: tuple[tuple[Predictor, Recalibration, Recalibration], ...]
    known: Range | None = None

    @classmethod
    def fit(
        cls, predictors: Sequence[Predictor], held_out: Sequence[Questions], trained_on: Sequence[Questions] = ()
    ) -> CombinedPredictor:
        """Recalibrate predictors on questions about recordings.

        Args:
            predictors: one that says of itself that it extrapolates, as a `SimulatorPredictor` does, is as sure as it
                is right on what it was identified on, too, for from one recording to the next a robot differs.
            held_out: none of the predictors was trained on.
            trained_on: the simulators were identified on, the others learned from.

        Raises:
            ModelError: there is no predictor, or no question.
        """
        if not predictors or not held_out:
            raise ModelError(
                f"predictors are combined by held-out recordings: found {len(predictors)} predictors, "
                f"{len(held_out)} recordings"
            )
        both = [*held_out, *trained_on]
        parts = []
        for predictor in predictors:
            weighs = recalibrate(predictor, held_out)
            wider = bool(trained_on) and extrapolates(predictor)
            parts.append((predictor, weighs, recalibrate(predictor, both) if wider else weighs))
        return cls(tuple(parts), Range.of(trained_on) if trained_on else None)

    def __call__(self, questions: Questions) -> Prediction:
        answers = [(predictor(questions), weighs, says) for predictor, weighs, says in self.parts]
        simulators = [k for k, (predictor, _, _) in enumerate(self.parts) if extrapolates(predictor)]
        reference = simulators[0] if simulators else None
        precise = [weighs.apply(answer) for answer, weighs, _ in answers]
        if reference is not None and self.known is not None:
            doubt = torch.as_tensor(self.known.doubt(questions, precise[reference].mean.double().numpy()))
            precise = [p if k in simulators else p.widened(doubt) for k, p in enumerate(precise)]
        return Prediction.combined([says.apply(answer) for answer, _, says in answers], precise, reference)
