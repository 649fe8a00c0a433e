"""Training of a `TransitionEnsemble`: every member sees every transition once an epoch; a kill costs an epoch."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sim2real.errors import LogError, ModelError, NonFiniteError, require
from sim2real.world_model.heads import fit_heads, recorded, require_outcomes
from sim2real.world_model.network import gaussian_nll, hardness
from sim2real.world_model.transition_ensemble import TransitionEnsemble
from sim2real.world_model.transitions import CHUNK, Rows, Transitions

# The share of all updates over which the rate rises, and the share of it that is left at the end.
WARM_UP, LAST = 0.05, 0.01
# A held-out likelihood that is better by less than this [nats an observation] is no better.
BETTER = 1e-3
# Of the normal negative log likelihood.
CONSTANT = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Schedule:
    """How a `TransitionEnsemble` is trained.

    Attributes:
        epochs: at most; every member sees every transition once in each, in an order of its own.
        batch: transitions a member in an update; the last one of an epoch may be smaller.
        rate: peak learning rate of Adam.
        held_out: share of the transitions that the likelihood is judged on.
        patience: epochs without a better held-out likelihood of any member after which training stops.
        beta: power of the variance that weighs the likelihood (Seitzer et al. 2022); 0 for the likelihood as it is.
        anchor: how strongly members are held to their initial weights, 1 for a prior as wide as these scatter (anchored
            ensembles; Pearce et al. 2020): where nothing is recorded, members then differ as the prior does.
        seed: of split and orders.
    """

    epochs: int = 60
    batch: int = 256
    rate: float = 5e-3
    held_out: float = 0.1
    patience: int = 10
    beta: float = 0.25
    anchor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ModelError(f"expected a share of held-out transitions between 0 and 1, found {self.held_out}")
        for what in ("epochs", "batch", "patience"):
            if getattr(self, what) < 1:
                raise ModelError(f"expected {what} of one at least, found {getattr(self, what)}")
        if self.seed < 0:
            raise ModelError(f"expected a seed of zero or more, found {self.seed}")


@dataclass
class Training:
    """What a training has seen so far.

    Attributes:
        history: an entry an epoch: negative log likelihoods of normalised changes [nats an observation], `train` on
            average, `held_out` of each member.
        best: (M,) each member's best held-out negative log likelihood.
        waited: epochs since any member became better.
    """

    history: list[dict[str, Any]]
    best: Tensor
    waited: int = 0


def fit_transitions(
    model: TransitionEnsemble,
    data: Transitions,
    schedule: Schedule | None = None,
    *,
    checkpoint: Path | None = None,
    curves: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Training:
    """Train a fresh model; each member ends with its best weights, the best members become the elites.

    Args:
        model: whose normalisers, weights, elites and recalibration are set.
        data: what to learn from; memory-mapped files stay on disk.
        schedule: how.
        checkpoint: a file that is written every epoch. Where it exists already, training goes on from it, and ends with
            the same weights as one that was never interrupted.
        curves: folder for TensorBoard.
        progress: called with a line an epoch.

    Raises:
        LogError: the data do not fit the model, or are too few.
        ModelError: the checkpoint is damaged, or of another model, schedule or data.
        NonFiniteError: the loss diverges.
    """
    schedule = schedule or Schedule()
    rng = np.random.default_rng(schedule.seed)
    order = rng.permutation(len(data))
    few = round(schedule.held_out * len(data))
    held, rows = np.sort(order[:few]), np.sort(order[few:])
    if not few or not len(rows):
        raise LogError(f"{len(data)} transitions are too few to hold {schedule.held_out:g} of them out")
    model.normalise(data)
    if model.heads is not None:  # what was not recorded is better said before the training than after it
        require_outcomes(data, model.config.numbers, model.config.events)
    state = Updates(model, schedule, len(rows))
    if checkpoint is not None and checkpoint.is_file():
        rng = state.resume(checkpoint)
        progress(f"{len(state.training.history)} epochs were trained before")
    writer = _writer(curves)
    for epoch in range(len(state.training.history), schedule.epochs):
        if state.training.waited >= schedule.patience:
            break
        train = _epoch(state, data, rows, epoch, rng)
        found = held_out_nll(model, data, held)
        state.judge(train, found)
        if checkpoint is not None:
            state.keep(checkpoint, rng)
        best = float(state.training.best.mean())
        progress(
            f"epoch {epoch + 1}/{schedule.epochs}: NLL {train:.4f}, held out {float(found.mean()):.4f} ({best:.4f})"
        )
        if writer is not None:
            writer.add_scalar("nll/train", train, epoch)
            writer.add_scalar("nll/held_out", float(found.mean()), epoch)
            writer.flush()
    if writer is not None:
        writer.close()
    state.finish()
    model.recalibrate(data, held)
    if model.heads is not None:
        _fit_heads(model, data, rows, held, schedule, progress)
    return state.training


def _fit_heads(
    model: TransitionEnsemble,
    data: Transitions,
    rows: Rows,
    held: Rows,
    schedule: Schedule,
    progress: Callable[[str], None],
) -> None:
    assert model.heads is not None
    names = (*model.config.numbers, *model.config.events)
    fit_heads(
        model.heads,
        lambda some: torch.cat(model.normalised(data, some), -1),
        lambda some: recorded(data, names, some).to(model.input_mean.device),
        rows,
        held,
        epochs=schedule.epochs,
        batch=schedule.batch,
        seed=schedule.seed,
        progress=progress,
    )


def held_out_nll(model: TransitionEnsemble, data: Transitions, rows: Rows) -> Tensor:
    """(M,) negative log likelihood of normalised changes that every member gives some rows [nats an observation]."""
    total = torch.zeros(model.config.members)
    with torch.no_grad():
        for first in range(0, len(rows), CHUNK):
            x, y = model.normalised(data, rows[first : first + CHUNK])
            mean, log_variance = model.answer(x.expand(model.config.members, -1, -1))
            total += gaussian_nll(mean - y, log_variance).mean(-1).sum(-1).cpu()
    return total / len(rows) + CONSTANT


def _epoch(state: Updates, data: Transitions, rows: Rows, epoch: int, rng: np.random.Generator) -> float:
    model, schedule = state.model, state.schedule
    orders = np.stack([rng.permutation(rows) for _ in range(model.config.members)])
    updates = math.ceil(len(rows) / schedule.batch)
    total = 0.0
    for k in range(updates):
        some = orders[:, k * schedule.batch : (k + 1) * schedule.batch]
        value = state.take(*model.normalised(data, some), (epoch * updates + k) / (schedule.epochs * updates))
        if not math.isfinite(value):
            raise NonFiniteError(f"the likelihood is not finite in epoch {epoch + 1}; lower the rate or mend the data")
        total += value * some.shape[1]
    return total / len(rows)


class Updates:
    """A training between two updates: what is needed to go on from there.

    Args:
        model: whose networks are trained.
        schedule: how.
        many: transitions to learn from; the more, the less its anchors hold a member.
    """

    def __init__(self, model: TransitionEnsemble, schedule: Schedule, many: int) -> None:
        self.model, self.schedule = model, schedule
        normalisers = (model.input_mean, model.input_scale, model.change_mean, model.change_scale)
        seen = hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in normalisers)).hexdigest()
        settings = {"config": asdict(model.config), "schedule": asdict(schedule)}
        self.identity = json.dumps({**settings, "transitions": many, "normalisers": seen})
        self.weights = list(model.network.parameters())
        self.anchors = [w.detach().clone() for w in self.weights]
        self.best = [w.detach().clone() for w in self.weights]
        # the prior of a weight is as wide as it was drawn: 1 / inputs for weights, 1 for biases
        self.pull = [1.0 if w.shape[1] == 1 else float(w.shape[1]) for w in self.weights]
        # the loss is a mean over transitions and observations, and so the prior's share of it
        self.pull = [schedule.anchor * p / (many * model.config.observations) for p in self.pull]
        # the pull of the anchors is that of weight decay to zero, less a constant
        groups = [{"params": [w], "weight_decay": p} for w, p in zip(self.weights, self.pull, strict=True)]
        self.constant = [p * a for p, a in zip(self.pull, self.anchors, strict=True)]
        self.adam = torch.optim.Adam(groups, schedule.rate, fused=True)
        self.training = Training([], torch.full((model.config.members,), math.inf))

    def take(self, inputs: Tensor, changes: Tensor, share: float) -> float:
        """Take a step of Adam, `share` of all updates being done; return the mean likelihood before it."""
        mean, log_variance = self.model.answer(inputs)
        nll = gaussian_nll(mean - changes, log_variance)
        loss = (nll * hardness(log_variance, self.schedule.beta)).mean((1, 2)).sum()
        rising = share / WARM_UP
        falling = LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.rate * (max(rising, 1e-3) if rising < 1 else falling)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.schedule.anchor:
            for w, constant in zip(self.weights, self.constant, strict=True):
                assert w.grad is not None
                w.grad.sub_(constant)
        self.adam.step()
        return float(nll.detach().mean()) + CONSTANT

    def judge(self, train: float, found: Tensor) -> None:
        """Keep the weights of members that have become better."""
        better = found < self.training.best - BETTER
        self.training.best = torch.where(better, found, self.training.best)
        self.training.waited = 0 if better.any() else self.training.waited + 1
        self.training.history.append({"train": train, "held_out": found.tolist()})
        for best, w in zip(self.best, self.weights, strict=True):
            best[better] = w.detach()[better]

    def finish(self) -> None:
        """Give every member its best weights, and choose the elites by likelihood."""
        with torch.no_grad():
            for w, best in zip(self.weights, self.best, strict=True):
                w.copy_(best)
        self.model.elites.copy_(torch.argsort(self.training.best)[: self.model.config.elites].sort().values)

    def keep(self, path: Path, rng: np.random.Generator) -> None:
        """Write the training in one piece: a kill leaves the old file or the new one."""
        tensors = {"best_nll": self.training.best}
        for i, w in enumerate(self.weights):
            adam = self.adam.state[w]
            tensors |= {f"weight.{i}": w.detach(), f"best.{i}": self.best[i], f"anchor.{i}": self.anchors[i]}
            tensors |= {f"adam.{i}.{k}": v for k, v in adam.items()}
        told = {
            "identity": self.identity,
            "history": json.dumps(self.training.history),
            "waited": str(self.training.waited),
            "rng": json.dumps(rng.bit_generator.state),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(path.suffix + ".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, told)
        os.replace(partial, path)

    def resume(self, path: Path) -> np.random.Generator:
        """Go on from what `keep` wrote; return the generator as it was."""
        try:
            with safe_open(path, "pt") as file:
                told, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"the checkpoint {path} is damaged ({error}); remove it to start over") from None
        if (told or {}).get("identity") != self.identity:
            raise ModelError(
                f"the checkpoint {path} is of another model, schedule or other transitions; remove it to start "
                "over (--again), or name another one"
            )
        self.training = Training(json.loads(told["history"]), tensors["best_nll"], int(told["waited"]))
        with torch.no_grad():
            for i, w in enumerate(self.weights):
                w.copy_(tensors[f"weight.{i}"])
                self.best[i], self.anchors[i] = (tensors[f"{k}.{i}"].to(w.device) for k in ("best", "anchor"))
                first = f"adam.{i}."
                mine = {k.removeprefix(first): v.to(w.device) for k, v in tensors.items() if k.startswith(first)}
                self.adam.state[w] = mine
                self.constant[i] = self.pull[i] * self.anchors[i]
        rng = np.random.default_rng()
        rng.bit_generator.state = json.loads(told["rng"])
        return rng


def _writer(folder: Path | None) -> Any:
    if folder is None:
        return None
    require("tensorboard", "tune")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
