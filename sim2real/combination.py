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


@dataclass(frozen=True)
class CombinedPredictor:
    """Predicts with an identified simulator and models of recordings together; see `Prediction.combined`.

    A simulator knows what physics says where nothing was recorded; a model of recordings knows what the simulator
    lacks, where much was. Each is recalibrated on held-out recordings first, horizon by horizon and joint by joint, so
    that their variances can be compared window by window.

    Attributes:
        parts: the predictors and their recalibrations.
        together: recalibration of what they say together.
    """

    parts: tuple[tuple[Predictor, Recalibration], ...]
    together: Recalibration | None = None

    @classmethod
    def fit(cls, predictors: Sequence[Predictor], held_out: Sequence[Questions]) -> CombinedPredictor:
        """Recalibrate predictors on questions about recordings that none of them was trained on.

        Raises:
            ModelError: there is no predictor, or no question.
        """
        if not predictors or not held_out:
            raise ModelError(
                f"predictors are combined by held-out recordings: found {len(predictors)} predictors, "
                f"{len(held_out)} recordings"
            )
        pooled = cls(tuple((p, recalibrate(p, held_out)) for p in predictors))
        return cls(pooled.parts, recalibrate(pooled, held_out))

    def __call__(self, questions: Questions) -> Prediction:
        found = Prediction.combined([calibration.apply(predictor(questions)) for predictor, calibration in self.parts])
        return self.together.apply(found) if self.together else found
