"""How good is a predictive distribution? Proper scores, and whether its uncertainty is true.

Errors are predicted minus measured, variances those of normal predictions; both have the windows on their first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sim2real.episodes import Array
from sim2real.errors import ModelError

LEVELS = (0.5, 0.9, 0.95)
# Of a histogram of probability integral transforms, and of the predicted spread for its calibration error.
BINS = 10


def gaussian_nll(error: Array, variance: Array) -> Array:
    """Return the negative log likelihood of a normal prediction [nats]."""
    return np.asarray(0.5 * (np.log(2 * np.pi * variance) + error**2 / variance), float)


def gaussian_crps(error: Array, variance: Array) -> Array:
    """Return the continuous ranked probability score of a normal prediction (Gneiting & Raftery 2007, eq. 21)."""
    sigma = np.sqrt(variance)
    z = error / sigma
    return np.asarray(sigma * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)), float)


def half_width(level: float) -> float:
    """Return half the width of the central normal interval of a probability, in standard deviations."""
    return float(stats.norm.ppf(0.5 + level / 2))


def inside(error: Array, variance: Array, level: float) -> NDArray[np.bool_]:
    """Return whether what was measured lies within the central interval of a probability."""
    return np.asarray(np.abs(error) <= half_width(level) * np.sqrt(variance))


def pit_histogram(error: Array, variance: Array, bins: int = BINS) -> Array:
    """Return the shares (bins, ...) of the probability integral transforms of N windows; all alike where it is true.

    The first bin holds what was measured far below the prediction. U-shaped is over-confident (Gneiting et al. 2007).

    Args:
        error: (N, ...).
        variance: (N, ...).
        bins: of equal width.
    """
    at = np.clip((stats.norm.cdf(-error / np.sqrt(variance)) * bins).astype(int), 0, bins - 1)
    return np.asarray((at == np.arange(bins).reshape(-1, *np.ones(error.ndim, int))).mean(1))


def ence(error: Array, variance: Array, bins: int = BINS) -> Array:
    """Return the expected normalised calibration error (...) of N windows (Levi et al. 2022, "Evaluating and
    calibrating uncertainty prediction in regression tasks").

    Windows are sorted by their predicted spread into bins of equal size; in each the root mean squared error is
    compared with the root mean variance. 0 is true; 0.5 is half as much or as little again.

    Args:
        error: (N, ...).
        variance: (N, ...).
        bins: at most; no more than windows.
    """
    order = np.argsort(variance, 0, kind="stable")
    e, v = np.take_along_axis(error**2, order, 0), np.take_along_axis(variance, order, 0)
    parts = [
        (np.sqrt(x.mean(0)), np.sqrt(y.mean(0)))
        for x, y in zip(np.array_split(e, min(bins, len(e))), np.array_split(v, min(bins, len(v))), strict=True)
    ]
    return np.asarray(np.mean([np.abs(spread - rmse) / spread for rmse, spread in parts], 0))


def block_interval(
    values: Array, blocks: NDArray[np.int_], rng: np.random.Generator, draws: int = 1000, level: float = 0.9
) -> tuple[float, float]:
    """Return the interval of the mean of `values` (N,) when blocks of time are drawn with replacement.

    Args:
        values: one a window.
        blocks: (N,) the block of each window, numbered from 0.
        rng: of the draws.
        draws: how many.
        level: of the interval.
    """
    many = int(blocks.max()) + 1
    total, count = np.bincount(blocks, values, many), np.bincount(blocks, minlength=many)
    picked = rng.integers(many, size=(draws, many))
    means = total[picked].sum(1) / np.maximum(count[picked].sum(1), 1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def detection(uncertainty: Array, error: Array, share: float = 0.95) -> float:
    """Return how well uncertainty ranks N windows by error: the AUROC of errors above those of a share of the windows.

    1 where it is largest in just those windows, 0.5 where it says nothing (Mann & Whitney 1947).

    Args:
        uncertainty: (N,), of any unit.
        error: (N,), its size.
        share: of the windows that are not to be detected.

    Raises:
        ModelError: shapes that do not fit, or no window is above or below.
    """
    if uncertainty.shape != error.shape or error.ndim != 1:
        raise ModelError(f"expected an uncertainty and an error a window, found {uncertainty.shape} and {error.shape}")
    large = error > np.quantile(error, share) if len(error) else np.zeros(0, bool)
    many = int(large.sum())
    if not 0 < many < len(large):
        raise ModelError(f"{len(large)} windows cannot be parted by the size of their errors; score more of them")
    ranks = stats.rankdata(uncertainty)[large].sum()
    return float((ranks - many * (many + 1) / 2) / (many * (len(large) - many)))


def calibration(
    error: Array, variance: Array, channels: Sequence[str], blocks: NDArray[np.int_], rng: np.random.Generator
) -> dict[str, Any]:
    """Score the uncertainty of one horizon.

    Args:
        error: (N, O).
        variance: (N, O), positive.
        channels: O names.
        blocks: (N,) the block of time of each window, numbered from 0.
        rng: of the block bootstrap.

    Returns:
        nll [nats], crps [unit of the channels], ence [1], coverage and width `{level: ...}`, coverage90_interval (90 %,
        over blocks), coverage90_by_channel, worst (the channel whose 90 % intervals are furthest from true) and
        pit (shares of the windows, pooled over channels).

    Raises:
        ModelError: shapes that do not fit, no window, or a variance that is not positive.
    """
    if error.shape != variance.shape or error.ndim != 2 or error.shape[1] != len(channels) or not len(error):
        raise ModelError(
            f"expected errors and variances (windows, {len(channels)}), found {error.shape} and {variance.shape}"
        )
    if not (variance > 0).all():
        raise ModelError("a predicted variance is not positive: give certain predictions a floor")
    held = {level: inside(error, variance, level) for level in LEVELS}
    by_channel = {n: float(x) for n, x in zip(channels, held[0.9].mean(0), strict=True)}
    spread = float(np.sqrt(variance).mean())
    return {
        "nll": float(gaussian_nll(error, variance).mean()),
        "crps": float(gaussian_crps(error, variance).mean()),
        "ence": float(ence(error, variance).mean()),
        "coverage": {f"{level:g}": float(x.mean()) for level, x in held.items()},
        "coverage90_interval": list(block_interval(held[0.9].mean(1), blocks, rng)),
        "coverage90_by_channel": by_channel,
        "worst": max(by_channel, key=lambda name: abs(by_channel[name] - 0.9)),
        "width": {f"{level:g}": 2 * half_width(level) * spread for level in LEVELS},
        "pit": pit_histogram(error, variance).mean(1).tolist(),
    }
