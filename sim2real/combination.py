"""Several predictors as one: each counts where, and as far as, its own uncertainty says that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sim2real.errors import ModelError
from sim2real.evaluation import Predictor, Questions
from sim2real.prediction import Prediction, Recalibration


def recalibrate(predictor: Predictor, held_out: Sequence[Questions]) -> Recalibration:
    """Fit the recalibration of a predictor on held-out questions; each recording counts alike, however long it is."""
    pooled = Prediction.concatenate([predictor(q) for q in held_out])
    truth = torch.as_tensor(np.concatenate([q.truth for q in held_out]))
    return Recalibration.fit(pooled, truth, np.concatenate([np.full(len(q.truth), 1 / len(q.truth)) for q in held_out]))


def extrapolates(predictor: Predictor) -> bool:
    """Return whether a predictor says of itself that its errors do not grow where nothing was recorded."""
    return bool(getattr(predictor, "extrapolates", False))


@dataclass(frozen=True)
class CombinedPredictor:
    """Predicts with an identified simulator and models of recordings together; see `Prediction.combined`.

    A simulator knows what physics says where nothing was recorded; a model of recordings knows what the simulator
    lacks, where much was. Each is recalibrated first, horizon by horizon and joint by joint, so that their
    variances can be compared window by window. Where a model of recordings contradicts the simulator by more than both
    allow for, the simulator counts more: it has few parameters, and extrapolates.

    Attributes:
        parts: each predictor, its recalibration on held-out recordings, which weighs it, and the one that says how sure
            it is.
    """

    parts: tuple[tuple[Predictor, Recalibration, Recalibration], ...]

    @classmethod
    def fit(
        cls, predictors: Sequence[Predictor], held_out: Sequence[Questions], trained_on: Sequence[Questions] = ()
    ) -> CombinedPredictor:
        """Recalibrate predictors on questions about recordings.

        Args:
            predictors: one that says of itself that it extrapolates, as a `SimulatorPredictor` does, is as sure as it
                is right on what it was identified on, too, for from one recording to the next a robot differs.
            held_out: none of the predictors was trained on.
            trained_on: the simulators were identified on.

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
        return cls(tuple(parts))

    def __call__(self, questions: Questions) -> Prediction:
        answers = [(predictor(questions), weighs, says) for predictor, weighs, says in self.parts]
        simulators = [k for k, (predictor, _, _) in enumerate(self.parts) if extrapolates(predictor)]
        return Prediction.combined(
            [says.apply(answer) for answer, _, says in answers],
            precise=[weighs.apply(answer) for answer, weighs, _ in answers],
            reference=simulators[0] if simulators else None,
        )
