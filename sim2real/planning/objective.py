"""What a plan costs: the cost of where it leads, the value of where it ends, and what its members' doubts weigh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sim2real.errors import ModelError
from sim2real.planning.costs import Cost, beginning
from sim2real.planning.foresight import Foresight, Outlook

Risk = Literal["turns", "mean", "worst", "cvar"]


@dataclass(frozen=True)
class Objective:
    """The cost of plans, a mean over steps.

    Attributes:
        foresight: where plans lead.
        cost: of states and commands.
        value: of the states (..., X) that plans end in: what is still to be paid from there, as a sum of costs a step.
        risk: `turns`: every plan is judged by one member, members taking turns, which costs least. Otherwise every
            member judges every plan, and what counts is their `mean`, the `worst`, or the mean of the worst `tail`
            (conditional value at risk).
        tail: share of the members whose mean is the conditional value at risk.

    Raises:
        ModelError: no such risk, a tail outside 0 to 1, or a cost or value that is none.
    """

    foresight: Foresight
    cost: Cost
    value: Callable[[Tensor], Tensor] | None = None
    risk: Risk = "turns"
    tail: float = 0.4

    def __post_init__(self) -> None:
        for what, given in (("cost", self.cost), ("value", self.value)):
            if isinstance(given, type) or not (callable(given) or (what == "value" and given is None)):
                raise ModelError(f"expected a {what} that can be called, such as Upright() or a Sum, found {given!r}")
        if self.risk not in get_args(Risk):
            raise ModelError(f"expected a risk of {', '.join(get_args(Risk))}, found {self.risk!r}")
        if not 0 < self.tail <= 1:
            raise ModelError(f"expected a tail above 0 and up to 1, found {self.tail:g}")

    def rounded(self, candidates: int) -> int:
        """Return how many candidates are judged when so many are asked for: as many by each member."""
        members = self.foresight.members if self.risk == "turns" else 1
        return -(-candidates // members) * members

    def __call__(self, outlook: Outlook, plans: Tensor, t: float = 0.0, ahead: Tensor | None = None) -> Tensor:
        """Return the cost of plans (C, n, T, A): (C, n).

        Args:
            outlook: from where the robots are.
            plans: to judge.
            t: when they begin [s].
            ahead: (n,) how many steps count, 1 to T; all of them if not given.
        """
        members = self.foresight.members
        turns = self.risk == "turns"
        asked = plans.reshape(members, -1, *plans.shape[1:]) if turns else plans.expand(members, *plans.shape)
        many = torch.tensor(plans.shape[-2]) if ahead is None else ahead.clamp(1, plans.shape[-2])
        # what lies beyond all of them may diverge, and so would its gradients
        asked = asked[..., : int(many.max()), :]
        states = outlook.follow(asked)
        cost = beginning(self.cost, t, self.foresight.timestep)(states, asked)
        _require("cost", cost, states.shape[:-1])
        if ahead is None:
            total, end = cost.sum(-1), states[..., -1, :]
        else:
            # not a product: what lies beyond may have diverged
            total = torch.where(torch.arange(asked.shape[-2]) < many[:, None], cost, 0.0).sum(-1)
            end = states[..., torch.arange(len(many)), many - 1, :]
        if self.value is not None:
            paid = self.value(end)
            _require("value", paid, end.shape[:-1])
            total = total + paid
        total = total / many
        if turns:
            return total.flatten(0, 1)
        if self.risk == "mean":
            return total.mean(0)
        worst = 1 if self.risk == "worst" else max(math.ceil(self.tail * members), 1)
        return total.sort(0, descending=True).values[:worst].mean(0)


def _require(what: str, found: object, shape: torch.Size) -> None:
    """Raise a ModelError where a cost or value is no tensor of a shape."""
    if not isinstance(found, Tensor) or found.shape != shape:
        said = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise ModelError(f"the {what} has to return a tensor of shape {tuple(shape)}, one for each state, found {said}")
