"""Several predictors as one: each counts where, and as far as, its own uncertainty says that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sim2real.errors import ModelError
from sim2real.evaluation import Predictor, Questions, SimulatorPredictor
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
    lacks, where much was. Each is recalibrated first, horizon by horizon and joint by joint, so that their
    variances can be compared window by window.

    Attributes:
        parts: the predictors and their recalibrations.
    """

    parts: tuple[tuple[Predictor, Recalibration], ...]

    @classmethod
    def fit(
        cls, predictors: Sequence[Predictor], held_out: Sequence[Questions], trained_on: Sequence[Questions] = ()
    ) -> CombinedPredictor:
        """Recalibrate predictors on questions about recordings.

        Args:
            predictors: those of a simulator also take what they were identified on, for a dozen parameters do not
                remember it, and from one recording to the next a robot differs.
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
        return cls(
            tuple((p, recalibrate(p, both if isinstance(p, SimulatorPredictor) else held_out)) for p in predictors)
        )

    def __call__(self, questions: Questions) -> Prediction:
        return Prediction.combined([calibration.apply(predictor(questions)) for predictor, calibration in self.parts])
