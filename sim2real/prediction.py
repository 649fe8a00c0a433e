"""What every predictor returns: a mean, and the two kinds of uncertainty about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# The interval that recalibration makes true.
LEVEL = 0.9
# Of the errors on held-out data, a predictor's own spread accounts for this share at least [of the standard deviation].
OWN = 0.5


@dataclass(frozen=True)
class Prediction:
    """Of H future observations, in their units.

    The two variances add up to the predictive one (law of total variance over the members of an ensemble, or over the
    draws of a posterior): `aleatoric` is the mean of the members' variances, `epistemic` the variance of their means.

    Attributes:
        mean: (..., H, O).
        aleatoric: (..., H, O) variance that more data would not remove.
        epistemic: (..., H, O) variance for want of data.
        horizon: (H,) [s].
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    horizon: Tensor

    @classmethod
    def from_members(cls, means: Tensor, variances: Tensor, horizon: Tensor) -> Prediction:
        """Combine members: `means` and `variances` (members, ..., H, O)."""
        return cls(means.mean(0), variances.mean(0), means.var(0, unbiased=False), horizon)

    @classmethod
    def concatenate(cls, predictions: Sequence[Prediction]) -> Prediction:
        """Join predictions of the same horizons along their first axis."""
        mean, aleatoric, epistemic = (
            torch.cat([getattr(p, part) for p in predictions]) for part in ("mean", "aleatoric", "epistemic")
        )
        return cls(mean, aleatoric, epistemic, predictions[0].horizon)

    @classmethod
    def combined(
        cls,
        predictions: Sequence[Prediction],
        precise: Sequence[Prediction] | None = None,
        reference: int | None = None,
    ) -> Prediction:
        """Combine what several predictors say of the same, each weighted by the square of its precision.

        Weights add up to one. Precisions are the best weights of independent errors (Bates & Granger 1969); errors of
        predictors that read the same sensors are alike, and then the best weights lean more towards the better one. The
        variances are those of the mixture: where predictors disagree, that is epistemic.

        Args:
            predictions: recalibrated, or their variances cannot be compared.
            precise: the same, recalibrated for comparison, where another recalibration says how sure they are in the
                end; the predictions themselves if not given.
            reference: number of the one whose errors do not grow where nothing was recorded. The others count less the
                further they are from it, by the weight of a Cauchy error: more standard deviations of their difference
                than there can be are no news, but a sign that one is out of its depth.

        Raises:
            NonFiniteError: one is not finite.
        """
        for k, one in enumerate(predictions):
            one.require_finite(f"predictor {k + 1} of {len(predictions)}")
        mean, aleatoric, epistemic = (
            torch.stack([getattr(p, part).double() for p in predictions]) for part in ("mean", "aleatoric", "epistemic")
        )
        compared = torch.stack([one.variance.double() for one in precise or predictions])
        compared = compared.clamp_min(1e-24)
        weight = compared.pow(-2)
        if reference is not None:
            apart = (mean - mean[reference]) ** 2 / (compared + compared[reference])
            weight = weight / (1 + apart)
        weight = weight / weight.sum(0)
        pooled = (weight * mean).sum(0)
        epistemic = epistemic + (mean - pooled) ** 2
        return cls(pooled, (weight * aleatoric).sum(0), (weight * epistemic).sum(0), predictions[0].horizon)

    def widened(self, factor: Tensor) -> Prediction:
        """Return it with both variances multiplied by a factor that broadcasts to (..., H, O)."""
        return Prediction(self.mean, self.aleatoric * factor, self.epistemic * factor, self.horizon)

    @property
    def variance(self) -> Tensor:
        """(..., H, O)."""
        return self.aleatoric + self.epistemic

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Return the ends of the central normal interval of the given probability: two of (..., H, O)."""
        half = float(stats.norm.ppf(0.5 + level / 2)) * self.variance.sqrt()
        return self.mean - half, self.mean + half

    def require_finite(self, what: str) -> Prediction:
        """Return itself, or raise a NonFiniteError that names the predictor."""
        for part in ("mean", "aleatoric", "epistemic"):
            if not torch.isfinite(getattr(self, part)).all():
                raise NonFiniteError(f"{what} predicted a {part} that is not finite; train it on more or cleaner data")
        return self


@dataclass(frozen=True)
class Recalibration:
    """Variance as real data show it: `factor^2 * (scale^2 * variance + floor^2)`, per horizon and channel.

    Between horizons scale and floor are interpolated; before the first and beyond the last they are as there.

    `scale` and `floor` come from the likelihood, which outliers make wide; `factor`, one for all, then makes the
    central 90 % interval hold 90 % of the held-out errors (split conformal prediction with normalised scores; Lei et
    al. 2018). The scale does not vanish even where held-out spread and errors have nothing to do with each other: far
    from what was recorded, the predictor's own spread is all that tells that it does not know.

    Attributes:
        horizon: (H,) [s], rising.
        scale: (H, O) factor on the standard deviation.
        floor: (H, O) standard deviation that is added [unit of the channel].
        factor: on the standard deviation.
    """

    horizon: Array
    scale: Array
    floor: Array
    factor: float = 1.0

    @classmethod
    def fit(cls, prediction: Prediction, truth: Tensor, weight: Array | None = None) -> Recalibration:
        """Fit by maximum likelihood on held-out windows.

        Args:
            prediction: of N windows, (N, H, O).
            truth: (N, H, O).
            weight: (N,) of the windows, positive; alike where not given.
        """
        weight = np.full(len(truth), 1.0 / len(truth)) if weight is None else weight / weight.sum()
        error2 = ((prediction.mean - truth) ** 2).double().numpy()
        variance = prediction.variance.double().numpy()
        shape = error2.shape[1:]
        scale, floor = np.empty(shape), np.empty(shape)
        for index in np.ndindex(shape):
            e, v = error2[(slice(None), *index)], variance[(slice(None), *index)]
            spread, size = float(np.sqrt(weight @ v)), float(np.sqrt(weight @ e))
            best = min(
                (_likelihood(e, v, weight, spread, size, start) for start in ((1.0, 0.1), (0.1, 1.0), (3.0, 0.3))),
                key=lambda found: found[0],
            )
            scale[index], floor[index] = best[1], best[2]
        z = np.sqrt(error2 / np.maximum(scale**2 * variance + floor**2, 1e-18))
        each = np.broadcast_to(weight[:, None, None], z.shape)
        factor = _quantile(z.ravel(), each.ravel(), LEVEL) / float(stats.norm.ppf(0.5 + LEVEL / 2))
        return cls(prediction.horizon.double().numpy(), scale, floor, factor)

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction, of any horizons, with recalibrated variances; the floor counts as aleatoric."""
        at = prediction.horizon.double().numpy()
        scale2, floor2 = (
            torch.as_tensor(
                np.stack([(self.factor * np.interp(at, self.horizon, column)) ** 2 for column in values.T], 1),
                dtype=prediction.mean.dtype,
            )
            for values in (self.scale, self.floor)
        )
        return Prediction(
            prediction.mean,
            prediction.aleatoric * scale2 + floor2,
            prediction.epistemic * scale2,
            prediction.horizon,
        )

    def to_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("horizon", "scale", "floor")}
        return {**arrays, "factor": self.factor}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recalibration:
        horizon, scale, floor = (np.array(document[name], float) for name in ("horizon", "scale", "floor"))
        return cls(horizon, scale, floor, float(document["factor"]))


def _quantile(values: Array, weight: Array, level: float) -> float:
    """Return the quantile of weighted values (N,), linear between the middles of their weights."""
    order = np.argsort(values)
    middles = np.cumsum(weight[order]) - weight[order] / 2
    span = middles[-1] - middles[0]
    return float(np.interp(level, (middles - middles[0]) / span if span > 0 else middles, values[order]))


def _likelihood(
    error2: Array, variance: Array, weight: Array, spread: float, size: float, start: tuple[float, float]
) -> tuple[float, float, float]:
    """Minimise the normal negative log likelihood over (scale, floor) from one start; both relative to the errors."""
    unit = size / max(spread, 1e-12)

    def nll(x: Array) -> float:
        v = np.exp(2 * x[0]) * unit**2 * variance + np.exp(2 * x[1]) * size**2 + 1e-18
        return float(weight @ (np.log(v) + error2 / v))

    # bounded: a variance that is zero everywhere leaves the scale undetermined
    bounds = [(np.log(OWN), 2.0), (-5.0, 2.0)]
    x0 = np.log([max(start[0], OWN), start[1]])
    solution = optimize.minimize(nll, x0, method="L-BFGS-B", bounds=bounds)
    scale = float(np.exp(solution.x[0])) * unit if spread > 0 else 1.0
    return float(solution.fun), scale, float(np.exp(solution.x[1])) * size
