"""The gate: whether one model may replace another, by what both predict of recordings that neither has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.evaluation import HORIZONS, Questions
from sim2real.prediction import Prediction, Recalibration
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.scores import gaussian_crps

# A horizon may get worse by this share of its CRPS before the gate refuses.
MARGIN = 0.05
# Share of bootstrap draws in which the new model must be the better one.
SURE = 0.9
Answer = Callable[[EnsembleDynamics, Questions], Prediction]


def judge(
    old: EnsembleDynamics, new: EnsembleDynamics, answer: Answer, held_out: Sequence[Questions], seed: int = 0
) -> tuple[bool, str, dict[str, dict[str, float]]]:
    """Let the `gate` decide between two models on held-out recordings: the decision, why, and the CRPS of both.

    Args:
        old: the model that stays where the new one is refused.
        new: its rival.
        answer: predicts questions with a model.
        held_out: that neither has learned from.
        seed: of the bootstrap.
    """
    before, after = (_crps(answer, m, held_out) for m in (old, new))
    blocks, first = [], 0
    for questions in held_out:
        blocks.append(first + questions.blocks())
        first = int(blocks[-1].max()) + 1
    horizons = held_out[0].horizons
    accepted, reason = gate(before, after, np.concatenate(blocks), np.random.default_rng(seed), horizons=horizons)
    crps = {
        name: {f"{h:g}": float(v) for h, v in zip(horizons, rows.mean((0, 2)), strict=True)}
        for name, rows in (("before", before), ("after", after))
    }
    return accepted, reason, crps


def gate(
    before: Array,
    after: Array,
    blocks: NDArray[np.int_],
    rng: np.random.Generator,
    draws: int = 2000,
    horizons: Sequence[float] = HORIZONS,
) -> tuple[bool, str]:
    """Decide whether a model may replace another, from their CRPS on the same held-out windows.

    Accepted when

    - the CRPS pooled over horizons and channels (each relative to the old one) falls,
    - in at least 90 % of bootstrap draws of one-second blocks, so that luck is not taken for progress,
    - and no horizon, channels pooled, and no channel at any horizon surely rises by more than 5 %, at a level of 10 %
      for all of them together (Holm 1979).

    Args:
        before: (W, H, D) of the old model.
        after: (W, H, D) of the new one.
        blocks: (W,) the block of time of each window.
        rng: of the bootstrap.
        draws: of the bootstrap.
        horizons: of the H [s].

    Returns:
        whether the new model is accepted, and why, in words.
    """
    many = int(blocks.max()) + 1
    total = np.zeros((2, many, *before.shape[1:]))
    for k, rows in enumerate((before, after)):
        np.add.at(total[k], blocks, rows)
    picked = np.stack([np.bincount(rng.integers(many, size=many), minlength=many) for _ in range(draws)])
    resampled = np.einsum("rb,kbhd->krhd", picked.astype(float), total).clip(1e-300)
    pooled = np.log(resampled[1].sum(2) / resampled[0].sum(2)).mean(1)
    sure = float((pooled < 0).mean())
    change = 100 * (float(np.exp(np.log(after.mean((0, 2)) / before.mean((0, 2))).mean())) - 1)
    said, stays = (
        f"CRPS on held-out recordings changed by {change:+.1f} % (pooled over horizons)",
        "the old model stays",
    )
    if change >= 0:
        return False, f"refused: {said}; {stays}"
    if sure < SURE:
        return False, f"refused: {said}, but only {100 * sure:.0f} % of resampled blocks agree; {stays}"
    # channels pooled stand before each of them
    means = [np.concatenate([rows.mean((0, 2))[:, None], rows.mean(0)], 1) for rows in (before, after)]
    drawn = np.concatenate([resampled.sum(3)[..., None], resampled], 3)
    harmed = _worse(drawn[1] / drawn[0])
    if harmed is not None:
        h, d = harmed
        rise = f"{100 * (float(means[1][h, d] / means[0][h, d]) - 1):+.1f} %" + (f" in channel {d}" if d else "")
        return False, f"refused: {said}, but by {rise} at {horizons[h]:g} s; {stays}"
    return True, f"accepted: {said}, in {100 * sure:.0f} % of resampled blocks"


def _worse(ratio: Array) -> tuple[int, int] | None:
    """Return which of draws (R, H, K) rose by more than the margin most surely; None if none surely did."""
    chance = ((ratio <= 1 + MARGIN).sum(0) + 1) / (len(ratio) + 1)
    order = np.argsort(chance, axis=None)
    # Holm: the smallest of K is compared with level / K; what does not pass it stops there
    if chance.flat[order[0]] > (1 - SURE) / chance.size:
        return None
    h, d = np.unravel_index(order[0], chance.shape)
    return int(h), int(d)


def _crps(answer: Answer, model: EnsembleDynamics, held_out: Sequence[Questions]) -> Array:
    """(W, H, D) CRPS, each model with the variance that suits it best: what counts here is the motion it predicts."""
    predictions = [answer(model, questions).require_finite("the world model") for questions in held_out]
    pooled = Prediction.concatenate(predictions)
    truth = np.concatenate([q.truth for q in held_out])
    pooled = Recalibration.fit(pooled, torch.as_tensor(truth)).apply(pooled)
    error = pooled.mean.double().numpy() - truth
    return gaussian_crps(error, pooled.variance.double().numpy())
