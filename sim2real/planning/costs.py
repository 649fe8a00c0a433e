"""Costs, as values: what a planner minimises at each step of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sim2real.errors import ModelError


class Cost(Protocol):
    """Cost of states (..., T, X) reached under commands (..., T, A): (..., T)."""

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Upright:
    """Bring a joint to an angle, whichever turn, and keep it there: 1 - cos(angle - target), velocity and effort.

    Attributes:
        joint: number of the joint.
        target: [rad].
        velocity: weight of the squared velocity near the target [s²/rad²].
        effort: weight of the squared command [1/effort²].
    """

    joint: int = 0
    target: float = torch.pi
    velocity: float = 0.02
    effort: float = 0.002

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        d = states.shape[-1] // 2
        angle, speed = states[..., self.joint], states[..., d + self.joint]
        away = 1 - torch.cos(angle - self.target)
        near = torch.exp(-4 * away)
        return away + self.velocity * near * speed.square() + self.effort * commands.square().sum(-1)


@dataclass(frozen=True)
class Quadratic:
    """Bring the joints to a place and keep them there: weighted squares of what is left, of velocities and commands.

    Attributes:
        goal: (D,) positions [rad or m].
        position: (D,) weights of the squared distances [1/rad² or 1/m²].
        velocity: (D,) weights of the squared velocities [s²/rad² or s²/m²]; none if not given.
        effort: weight of the squared command [1/effort²].
    """

    goal: tuple[float, ...]
    position: tuple[float, ...]
    velocity: tuple[float, ...] = ()
    effort: float = 0.0

    def __post_init__(self) -> None:
        if len(self.position) != len(self.goal) or len(self.velocity) not in (0, len(self.goal)):
            raise ModelError(
                f"a quadratic cost takes a goal and weights of each joint: found {len(self.goal)} goals, "
                f"{len(self.position)} weights of positions and {len(self.velocity)} of velocities"
            )

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        d = len(self.goal)
        if states.shape[-1] != 2 * d:
            raise ModelError(f"the cost's goal is of {d} joints, the model has {states.shape[-1] // 2}")
        left = states[..., :d] - states.new_tensor(self.goal)
        total = (left.square() * states.new_tensor(self.position)).sum(-1)
        if self.velocity:
            total = total + (states[..., d:].square() * states.new_tensor(self.velocity)).sum(-1)
        return total + self.effort * commands.square().sum(-1)


@dataclass(frozen=True)
class Sum:
    """The sum of costs.

    Attributes:
        terms: that are summed.
    """

    terms: tuple[Cost, ...]

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        return torch.stack([term(states, commands) for term in self.terms]).sum(0)


def upright_reward(positions: Tensor, joint: int = 0, target: float = torch.pi) -> Tensor:
    """Return how upright a joint is, from 0 (opposite) to 1 (there): `positions` (..., D) -> (...)."""
    return 0.5 * (1 + torch.cos(positions[..., joint] - target))
