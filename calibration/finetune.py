"""Dynamics-only fine-tuning on real data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sim2real.calibration.evidence import Evidence, OfReadings, OfStates
from sim2real.calibration.gate import Answer, judge
from sim2real.calibration.last_layer import regress_last_layer
from sim2real.calibration.tuning import KINDS, METHODS, Method, move, require_method
from sim2real.errors import ModelError
from sim2real.evaluation import Questions
from sim2real.world_model.dataset import Stretches
from sim2real.world_model.ensemble import EnsembleDynamics

# Stretches of time that `auto` compares methods on, and members of the ensemble that it tunes for that.
FOLDS, FEW = 4, 2
# After half of them, methods whose error is larger than the smallest one by this share are not tried on the others.
BEHIND = 0.1


@dataclass(frozen=True)
class Tuned:
    """A tuned model that no gate has seen.

    Attributes:
        model: tuned.
        method: that was used.
        tried: with `auto`, for each method the root mean squared error on what it had not seen, relative to how far the
            robot gets; `none` is the model as it was, which may have seen it: through its simulator, for one.
        forgetting: that error on replayed simulations, `{"before": ..., "after": ...}`; empty without a replay.
        seconds: that the tuning took, without cross-validation [s].
    """

    model: EnsembleDynamics
    method: str
    tried: dict[str, float]
    forgetting: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class FinetuneResult:
    """What came of fine-tuning.

    Attributes:
        model: the fine-tuned model where it was accepted, otherwise the one it started from, unchanged.
        tuned: the fine-tuned model in any case, to look at.
        accepted: whether the fine-tuned model replaced the old one.
        reason: in words.
        crps: mean CRPS on the held-out recordings per horizon, `{"before": {...}, "after": {...}}` [rad or m].
        method, tried, forgetting, seconds: as in `Tuned`.
    """

    model: EnsembleDynamics
    tuned: EnsembleDynamics
    accepted: bool
    reason: str
    crps: dict[str, dict[str, float]]
    method: str
    tried: dict[str, float]
    forgetting: dict[str, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it."""
        told = ("accepted", "reason", "crps", "method", "tried", "forgetting")
        return {name: getattr(self, name) for name in told}


@dataclass(frozen=True)
class _Settings:
    anchor: float
    iterations: int
    batch: int
    rate: float
    replay_weight: float
    seed: int


def finetune_dynamics(
    model: EnsembleDynamics,
    real: Stretches | OfReadings,
    *,
    answer: Answer,
    held_out: Sequence[Questions],
    seed: int = 0,
    **tuning: Any,
) -> FinetuneResult:
    """Fine-tune the dynamics towards real recordings, and gate the result.

    Args:
        model: the pre-trained model; it is not changed.
        real: windows of real recordings, as `tune_dynamics` takes them.
        answer: predicts held-out questions with a model.
        held_out: questions about recordings that `real` does not contain.
        seed: of the draws.
        tuning: what else `tune_dynamics` takes: the method and its settings, and a replay.

    Returns:
        the model to go on with, and why.

    Raises:
        ModelError: nothing is held out, or what `tune_dynamics` says.
        NonFiniteError: the loss or a prediction is not finite.
    """
    if not held_out or len({q.horizons for q in held_out}) > 1:
        raise ModelError(
            f"the gate needs held-out questions of the same horizons, found {len(held_out)}; ask `Questions.of`"
        )
    tuned = tune_dynamics(model, real, seed=seed, **tuning)
    accepted, reason, crps = judge(model, tuned.model, answer, held_out, seed)
    return FinetuneResult(
        tuned.model if accepted else model, tuned.model, accepted, reason, crps,
        tuned.method, tuned.tried, tuned.forgetting, tuned.seconds,
    )  # fmt: skip


def tune_dynamics(
    model: EnsembleDynamics,
    real: Stretches | OfReadings,
    *,
    method: Method | Literal["auto"] = "anchored",
    replay: Stretches | OfReadings | None = None,
    replay_weight: float = 0.3,
    anchor: float = 0.05,
    iterations: int = 300,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Tune the dynamics towards real recordings, whether that makes them better or not.

    Every member sees the real data under its own random weighting of blocks of time (Bayesian bootstrap, Rubin 1981),
    so that the members remain draws from a posterior. Encoder and normalisers are not touched. The methods:

    - `anchored`: all weights, each pulled towards what it was: the pre-trained model is the prior (Pearce et al. 2020).
    - `full`: all weights, free.
    - `low_rank`: of each layer an update of low rank (Hu et al. 2022), anchored.
    - `delta`: a small network beside the frozen one, anchored at nothing.
    - `last_layer`: Bayesian linear regression of single steps on what the last layer sees, in closed form.
    - `auto`: whichever predicts best what it has not seen, by cross-validation of the first `FEW` members over `FOLDS`
      stretches of time. What is a tenth behind after half of them is not tried further. Whether that is better than
      the model as it is, is for a gate to say: what made the model may have seen these recordings.

    Args:
        model: the pre-trained model; it is not changed.
        real: windows of real recordings: `from_episodes`, or, for a model that looks back, `OfReadings.of`.
        method: how the dynamics may move.
        replay: simulated windows that are mixed in, so that nothing is forgotten; `last_layer` does without.
        replay_weight: of the simulated loss relative to the real one.
        anchor: strength of the pull, as a number of seconds of real recordings that the pre-trained weights are worth;
            windows of a second overlap, and count as one.
        iterations: of Adam.
        batch: windows a member in an iteration.
        rate: peak learning rate.
        seed: of the draws.
        progress: called with a line now and then.

    Raises:
        ModelError: no such method, `real` is something else, or `auto` has too few blocks of time.
        NonFiniteError: the loss is not finite.
    """
    require_method(method)
    settings = _Settings(anchor, iterations, batch, rate, replay_weight, seed)
    evidence, simulated = _evidence(real), None if replay is None else _evidence(replay)
    tried: dict[str, float] = {}
    if method == "auto":
        method, tried = cross_validate(model, evidence, simulated, settings, progress)
        progress(f"chosen by cross-validation: {method}")
    clock = time.perf_counter()
    tuned = _tune(model, evidence, simulated, method, settings, progress)
    seconds = time.perf_counter() - clock
    forgetting = {}
    if simulated is not None:
        forgetting = {name: _error(simulated.errors(m)) for name, m in (("before", model), ("after", tuned))}
    return Tuned(tuned, method, tried, forgetting, seconds)


def _evidence(data: Stretches | OfReadings) -> Evidence:
    if isinstance(data, Stretches):
        return OfStates(data)
    if not isinstance(data, OfReadings):
        raise ModelError(
            f"expected windows of recordings, `from_episodes` or `OfReadings.of`, found a {type(data).__name__}"
        )
    return data


def _error(squares: Tensor) -> float:
    return float(squares.mean().sqrt())


def cross_validate(
    model: EnsembleDynamics,
    real: Evidence,
    replay: Evidence | None,
    settings: _Settings,
    progress: Callable[[str], None],
) -> tuple[Method, dict[str, float]]:
    """Return the method with the smallest error on stretches of time that it was not tuned on, and all errors.

    A method that is far behind after half of the stretches is not tried on the others; its error is that of those.
    The blocks on both sides of a stretch are left out of the tuning, too. The error of `none` is that of the model.
    """
    numbers = torch.unique(real.block)
    if len(numbers) < 2 * FOLDS:
        raise ModelError(
            f"method auto compares on {FOLDS} stretches of time: expected {2 * FOLDS} blocks of recordings or more, "
            f"found {len(numbers)}; name a method, or record longer"
        )
    few = min(FEW, model.config.members)
    model, real, replay = model.first(few), real.first(few), None if replay is None else replay.first(few)
    racing = [name for name in METHODS if model.config.hidden or name != "delta"]
    squares: dict[Method, list[Tensor]] = {name: [] for name in racing}
    as_it_was = []
    for fold, held in enumerate(torch.tensor_split(numbers, FOLDS)):
        near = (real.block >= held[0] - 1) & (real.block <= held[-1] + 1)
        inside = (real.block >= held[0]) & (real.block <= held[-1])
        seen, unseen = real.where(~near), real.where(inside)
        as_it_was.append(unseen.errors(model))
        if fold == FOLDS // 2:
            so_far = {name: _error(torch.cat(squares[name])) for name in racing}
            racing = [name for name in racing if so_far[name] <= (1 + BEHIND) * min(so_far.values())]
        for name in racing if len(racing) > 1 else ():
            progress(f"cross-validation {fold + 1}/{FOLDS}: {name}")
            squares[name].append(unseen.errors(_tune(model, seen, replay, name, settings, lambda _: None)))
    tried: dict[str, float] = {name: _error(torch.cat(found)) for name, found in squares.items()}
    best = min(racing, key=lambda name: tried[name])
    return best, {"none": _error(torch.cat(as_it_was))} | tried


def _tune(
    model: EnsembleDynamics,
    real: Evidence,
    replay: Evidence | None,
    method: Method,
    settings: _Settings,
    progress: Callable[[str], None],
) -> EnsembleDynamics:
    generator = torch.Generator().manual_seed(settings.seed)
    weights, seconds = _block_weights(real.block, model.config.members, generator), len(torch.unique(real.block))
    if method == "last_layer":
        return regress_last_layer(model, real, weights, settings.anchor * len(real.block) / seconds)
    moving = KINDS[method](model, generator)
    alike = torch.ones(model.config.members, 1)

    def loss(moved: EnsembleDynamics) -> Tensor:
        value = real.loss(moved, weights, settings.batch, generator)
        if replay is not None and settings.replay_weight > 0:
            value = value + settings.replay_weight * replay.loss(moved, alike, settings.batch, generator)
        return value

    pull = 0.0 if method == "full" else settings.anchor / seconds
    iterations = settings.iterations
    return move(
        moving, loss, pull, iterations, settings.rate,
        lambda i, v: progress(f"fine-tune {i + 1}/{iterations}: loss {v:.3f}"),
    )  # fmt: skip


def _block_weights(block: Tensor, members: int, generator: torch.Generator) -> Tensor:
    """(M, N) exponential weights, one a block of time and member, of mean one."""
    numbers, index = torch.unique(block, return_inverse=True)
    weights = torch.empty(members, len(numbers)).exponential_(generator=generator)[:, index]
    return weights / weights.mean(1, keepdim=True)
