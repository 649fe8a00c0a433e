"""Costs, as values: what a planner minimises at each step of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


def upright_reward(positions: Tensor, joint: int = 0, target: float = torch.pi) -> Tensor:
    """Return how upright a joint is, from 0 (opposite) to 1 (there): `positions` (..., D) -> (...)."""
    return 0.5 * (1 + torch.cos(positions[..., joint] - target))
