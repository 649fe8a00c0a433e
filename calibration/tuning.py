"""How the dynamics of a model may move: which numbers are free, and what the weights are for them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sim2real.errors import ModelError, did_you_mean
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.training import optimise

Method = Literal["anchored", "full", "low_rank", "delta", "last_layer"]
METHODS: tuple[Method, ...] = get_args(Method)
# Of the update of a layer, and of the units beside frozen ones.
RANK, UNITS = 4, 24
# A weight may move by its layer's own size before an anchor of one window notices; by this at least.
SMALLEST = 1e-3


def require_method(method: str) -> None:
    """Raise a ModelError where there is no such method, `auto` included."""
    known = (*METHODS, "auto")
    if method not in known:
        raise ModelError(f"no method named {method!r} to fine-tune with{did_you_mean(method, known)}")


class Moving(Protocol):
    """A parametrisation of a model's dynamics.

    Attributes:
        model: whose dynamics they are.
        free: what is optimised.
    """

    model: EnsembleDynamics
    free: list[Tensor]

    def dynamics(self) -> dict[str, Tensor]:
        """Return the tensors of the dynamics, by their names in `model.dynamics`, as functions of `free`."""
        ...

    def distance(self) -> Tensor:
        """Return how far the dynamics have moved: squared, each weight in units of the size of its layer."""
        ...


class Whole:
    """Every weight of every layer."""

    def __init__(self, model: EnsembleDynamics, generator: torch.Generator) -> None:
        self.model = copy.deepcopy(model)
        self._old = {n: p.detach().clone() for n, p in model.dynamics.named_parameters()}
        self._now = {n: p.clone().requires_grad_() for n, p in self._old.items()}
        self.free = list(self._now.values())

    def dynamics(self) -> dict[str, Tensor]:
        return self._now

    def distance(self) -> Tensor:
        return _distance(self._now, self._old)


class LowRank:
    """Of every layer, an update of rank `RANK` (Hu et al. 2022), which is nothing at first; and the biases."""

    def __init__(self, model: EnsembleDynamics, generator: torch.Generator) -> None:
        self.model = copy.deepcopy(model)
        self._old = {n: p.detach().clone() for n, p in model.dynamics.named_parameters()}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._biases: dict[str, Tensor] = {}
        for name, w in self._old.items():
            if name.startswith("biases"):
                self._biases[name] = torch.zeros_like(w).requires_grad_()
                continue
            m, a, b = w.shape
            rank = min(RANK, a, b)
            down = (torch.randn(m, a, rank, generator=generator) / math.sqrt(a)).requires_grad_()
            self._factors[name] = down, torch.zeros(m, rank, b).requires_grad_()
        self.free = [*(t for pair in self._factors.values() for t in pair), *self._biases.values()]

    def dynamics(self) -> dict[str, Tensor]:
        moved = {n: self._old[n] + down @ up for n, (down, up) in self._factors.items()}
        return moved | {n: self._old[n] + b for n, b in self._biases.items()}

    def distance(self) -> Tensor:
        return _distance(self.dynamics(), self._old)


class Delta:
    """A small network beside the frozen one, whose answers add up: `UNITS` more units in every hidden layer."""

    def __init__(self, model: EnsembleDynamics, generator: torch.Generator) -> None:
        config = model.config
        if not config.hidden:
            raise ModelError("a delta stands beside hidden layers; this model has none: choose another method")
        wider = EnsembleDynamics(replace(config, hidden=tuple(h + UNITS for h in config.hidden)))
        same = {n: t for n, t in model.state_dict().items() if not n.startswith("dynamics.")}
        wider.load_state_dict(same, strict=False)
        self.model = wider
        self._old = {n: p.detach().clone() for n, p in model.dynamics.named_parameters()}
        self._layers = len(config.hidden) + 1
        self._new: dict[str, Tensor] = {}
        for i in range(self._layers):
            m, a, b = self._old[f"weights.{i}"].shape
            first, last = i == 0, i == self._layers - 1
            rows, columns = a if first else UNITS, b if last else UNITS
            scale = 0.0 if last else math.sqrt(1.0 / rows)
            self._new[f"weights.{i}"] = (scale * torch.randn(m, rows, columns, generator=generator)).requires_grad_()
            self._new[f"biases.{i}"] = torch.zeros(m, 1, columns).requires_grad_()
        self._begun = {n: t.detach().clone() for n, t in self._new.items()}
        self.free = list(self._new.values())

    def dynamics(self) -> dict[str, Tensor]:
        out = {}
        for i in range(self._layers):
            w, b = f"weights.{i}", f"biases.{i}"
            old, new = self._old[w], self._new[w]
            if i == self._layers - 1:
                out[w], out[b] = torch.cat([old, new], 1), self._old[b] + self._new[b]
                continue
            if i:
                m, a, width = old.shape
                old = torch.cat([old, old.new_zeros(m, a, UNITS)], 2)
                new = torch.cat([new.new_zeros(m, UNITS, width), new], 2)
                out[w] = torch.cat([old, new], 1)
            else:
                out[w] = torch.cat([old, new], 2)
            out[b] = torch.cat([self._old[b], self._new[b]], 2)
        return out

    def distance(self) -> Tensor:
        return _distance(self._new, self._begun, {n: self._old[n] for n in self._new})


KINDS: dict[Method, Callable[[EnsembleDynamics, torch.Generator], Moving]] = {
    "anchored": Whole,
    "full": Whole,
    "low_rank": LowRank,
    "delta": Delta,
}


def _distance(now: dict[str, Tensor], old: dict[str, Tensor], like: dict[str, Tensor] | None = None) -> Tensor:
    sizes = {n: w.square().mean().sqrt().clamp_min(SMALLEST) for n, w in (like or old).items()}
    return torch.stack([((now[n] - old[n]) / sizes[n]).square().sum() for n in now]).sum()


class _Loss(nn.Module):
    """A loss of a model as a module, so that the model's dynamics can be replaced while it is computed."""

    def __init__(self, model: EnsembleDynamics, loss: Callable[[EnsembleDynamics], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self) -> Tensor:
        return self.loss(self.model)


def move(
    moving: Moving,
    loss: Callable[[EnsembleDynamics], Tensor],
    pull: float,
    iterations: int,
    rate: float,
    progress: Callable[[int, float], None],
) -> EnsembleDynamics:
    """Minimise a loss of a model, and `pull` times the squared distance of its dynamics from where they began.

    Raises:
        NonFiniteError: the loss diverges.
    """
    model = _Loss(moving.model, loss)
    members = moving.model.config.members

    def total(_: int) -> Tensor:
        names = {f"model.dynamics.{name}": tensor for name, tensor in moving.dynamics().items()}
        value: Tensor = functional_call(model, names, ())
        return value + pull * moving.distance() / members if pull else value

    optimise(moving.model, total, iterations, rate, progress, moving.free)
    with torch.no_grad():
        final = moving.dynamics()
        for name, parameter in moving.model.dynamics.named_parameters():
            parameter.copy_(final[name])
    return moving.model
