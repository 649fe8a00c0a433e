"""Dynamics-only fine-tuning on real data, and the gate that refuses a model that got worse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sim2real.episodes import Array
from sim2real.evaluation import HORIZONS, Questions
from sim2real.prediction import Prediction, Recalibration
from sim2real.world_model.dataset import Stretches
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.scores import gaussian_crps
from sim2real.world_model.training import batches, change_scale, optimise, rollout_loss, step_loss

# A horizon may get worse by this share of its CRPS before the gate refuses.
MARGIN = 0.05
# Share of bootstrap draws in which the new model must be the better one.
SURE = 0.9
Answer = Callable[[EnsembleDynamics, Questions], Prediction]


@dataclass(frozen=True)
class FinetuneResult:
    """What came of fine-tuning.

    Attributes:
        model: the fine-tuned model where it was accepted, otherwise the one it started from, unchanged.
        accepted: whether the fine-tuned model replaced the old one.
        reason: in words.
        crps: mean CRPS on the held-out recordings per horizon, `{"before": {...}, "after": {...}}` [rad or m].
    """

    model: EnsembleDynamics
    accepted: bool
    reason: str
    crps: dict[str, dict[str, float]]


def finetune_dynamics(
    model: EnsembleDynamics,
    real: Stretches,
    *,
    answer: Answer,
    held_out: Sequence[Questions],
    replay: Stretches | None = None,
    replay_weight: float = 0.3,
    anchor: float = 1.0,
    iterations: int = 300,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> FinetuneResult:
    """Fine-tune the dynamics towards real stretches, anchored to the weights that the model has, and gate the result.

    Every member is pulled towards its own pre-trained weights and sees the real data under its own random weighting of
    blocks of time (anchored ensembles, Pearce et al. 2020; Bayesian bootstrap, Rubin 1981), so that the members remain
    draws from a posterior whose prior is the simulator. Normalisers are not touched.

    Args:
        model: the pre-trained model; it is not changed.
        real: stretches of real recordings, shared by all members.
        answer: predicts held-out questions with a model.
        held_out: questions about recordings that `real` does not contain.
        replay: simulated stretches that are mixed in, so that nothing is forgotten.
        replay_weight: of the simulated loss relative to the real one.
        anchor: strength of the pull, as a number of real stretches that it is worth.
        iterations: of Adam.
        batch: stretches a member in an iteration.
        rate: peak learning rate.
        seed: of the draws.
        progress: called with a line now and then.

    Returns:
        the model to go on with, and why.

    Raises:
        NonFiniteError: the loss or a prediction is not finite.
    """
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    members, history = model.config.members, model.config.history
    anchors = [(w, w.square().mean().sqrt().clamp_min(1e-3)) for w in model.anchors()]
    weights = _block_weights(real.block, members, generator)
    real_scale = change_scale(real)
    replay_scale = change_scale(replay) if replay is not None else real_scale
    pull = anchor / real.states.shape[1]

    def part(data: Stretches, scale: Tensor, weight: Tensor) -> Tensor:
        states, commands, rows = batches(data, members, batch, generator)
        w = torch.gather(weight, 1, rows) if weight.shape[1] > 1 else weight.expand(members, batch)
        k = int(torch.randint(data.steps, (1,), generator=generator))
        single = step_loss(tuned, states[:, :, k : k + 2], commands[:, :, k : k + history], w)
        return 30 * rollout_loss(tuned, states, commands, scale, w) + 0.1 * single

    def loss(_: int) -> Tensor:
        value = part(real, real_scale, weights)
        if replay is not None and replay_weight > 0:
            value = value + replay_weight * part(replay, replay_scale, torch.ones(members, 1))
        distance = sum(
            ((w - old) / size).square().sum()
            for w, (old, size) in zip(tuned.dynamics.parameters(), anchors, strict=True)
        )
        return value + pull * distance / members

    optimise(tuned, loss, iterations, rate, lambda i, v: progress(f"fine-tune {i + 1}/{iterations}: loss {v:.3f}"))
    before, after = (_crps(answer, m, held_out) for m in (model, tuned))
    blocks, first = [], 0
    for questions in held_out:
        blocks.append(first + questions.blocks())
        first = int(blocks[-1].max()) + 1
    accepted, reason = gate(before, after, np.concatenate(blocks), np.random.default_rng(seed))
    crps = {
        name: {f"{h:g}": float(v) for h, v in zip(HORIZONS, rows.mean(0), strict=True)}
        for name, rows in (("before", before), ("after", after))
    }
    return FinetuneResult(tuned if accepted else model, accepted, reason, crps)


def gate(
    before: Array, after: Array, blocks: NDArray[np.int_], rng: np.random.Generator, draws: int = 2000
) -> tuple[bool, str]:
    """Decide whether a model may replace another, from their CRPS on the same held-out windows.

    Accepted when the CRPS pooled over horizons (each relative to the old one) falls in at least 90 % of bootstrap draws
    of one-second blocks, so that luck is not taken for progress, and no horizon rises by more than 5 %.

    Args:
        before: (W, H) of the old model.
        after: (W, H) of the new one.
        blocks: (W,) the block of time of each window.
        rng: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        whether the new model is accepted, and why, in words.
    """
    many = int(blocks.max()) + 1
    total = np.stack([[np.bincount(blocks, column, many) for column in rows.T] for rows in (before, after)])
    picked = rng.integers(many, size=(draws, many))
    resampled = total[:, :, picked].sum(-1)
    pooled = np.log(resampled[1] / resampled[0]).mean(0)
    sure = float((pooled < 0).mean())
    ratio = after.mean(0) / before.mean(0)
    change = 100 * (float(np.exp(np.log(ratio).mean())) - 1)
    said = f"CRPS on held-out recordings changed by {change:+.1f} % (pooled over horizons)"
    if change >= 0:
        return False, f"refused: {said}; the pre-trained model stays"
    if sure < SURE:
        return (
            False,
            f"refused: {said}, but only {100 * sure:.0f} % of resampled blocks agree; the pre-trained model stays",
        )
    worst = int(np.argmax(ratio))
    if ratio[worst] > 1 + MARGIN:
        rise = f"by {100 * (ratio[worst] - 1):+.1f} % at {HORIZONS[worst]:g} s"
        return False, f"refused: {said}, but {rise}; the pre-trained model stays"
    return True, f"accepted: {said}, in {100 * sure:.0f} % of resampled blocks"


def _crps(answer: Answer, model: EnsembleDynamics, held_out: Sequence[Questions]) -> Array:
    """(W, H) CRPS, each model with the variance that suits it best: what counts here is the motion it predicts."""
    predictions = [answer(model, questions).require_finite("the world model") for questions in held_out]
    pooled = Prediction.concatenate(predictions)
    truth = np.concatenate([q.truth for q in held_out])
    pooled = Recalibration.fit(pooled, torch.as_tensor(truth)).apply(pooled)
    error = pooled.mean.double().numpy() - truth
    crps: Array = gaussian_crps(error, pooled.variance.double().numpy()).mean(2)
    return crps


def _block_weights(block: Tensor, members: int, generator: torch.Generator) -> Tensor:
    """(M, N) exponential weights, one a block of time and member, of mean one."""
    numbers, index = torch.unique(block, return_inverse=True)
    weights = torch.empty(members, len(numbers)).exponential_(generator=generator)[:, index]
    return weights / weights.mean(1, keepdim=True)
