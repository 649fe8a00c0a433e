"""What is known of every robot, as penalties on rollouts: it stops at its stops, moves smoothly, makes no energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sim2real.errors import ModelError

# Energy (...) [J] of positions and velocities (..., D).
Energy = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PhysicsPriors:
    """Penalties on the rollouts that a model is trained with; a weight of zero is none.

    Attributes:
        limits: weight of the squared distance beyond the stops, in units of the range between them.
        stops: (D, 2) of each joint [rad or m], infinite where there is none.
        smoothness: weight of the squared change of the acceleration from one step to the next, in units of how much
            accelerations vary in the data.
        energy: weight of the squared energy that a step creates, in units of how much energy varies along the rollouts.
        mechanical: the robot's energy, up to a constant.
        effort: (D,) the largest effort that actuators may have at each joint [N·m or N]: a step may add as much energy
            as that does, whatever the delay of commands.

    Raises:
        ModelError: a negative weight, or a penalty without what it needs.
    """

    limits: float = 0.0
    stops: tuple[tuple[float, float], ...] = ()
    smoothness: float = 0.0
    energy: float = 0.0
    mechanical: Energy | None = None
    effort: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if min(self.limits, self.smoothness, self.energy) < 0:
            raise ModelError("weights of physics priors are zero or above")
        if self.limits and not self.stops:
            raise ModelError("a penalty beyond stops needs `stops`, two for each joint")
        if self.energy and (self.mechanical is None or not self.effort):
            raise ModelError("a penalty on energy needs `mechanical`, the robot's energy, and `effort`, of each joint")

    def __call__(self, start: Tensor, path: Tensor, accelerations: Tensor, timestep: float) -> Tensor:
        """Return the penalty of rollouts.

        Args:
            start: (..., X or more) states that they start from.
            path: (..., T, X or more) states after each step.
            accelerations: (D,) standard deviation of the change of velocity over a step, in the data.
            timestep: [s].
        """
        d = len(accelerations)
        states = torch.cat([start[..., None, :], path], -2)
        q, v = states[..., :d], states[..., d : 2 * d]
        total = q.new_zeros(())
        if self.limits:
            total = total + self.limits * self._beyond(q).square().mean()
        if self.smoothness and path.shape[-2] > 1:
            jerk = v.diff(n=2, dim=-2) / accelerations
            total = total + self.smoothness * jerk.square().mean()
        if self.energy:
            total = total + self.energy * self._created(q, v, timestep).square().mean()
        return total

    def _beyond(self, q: Tensor) -> Tensor:
        """(..., D) how far positions are beyond their stops, as a share of the range; zero where there is no stop."""
        low, high = torch.as_tensor(self.stops, dtype=q.dtype).T
        width = high - low
        return torch.relu(torch.maximum(low - q, q - high)) / torch.where(width.isfinite(), width, 1.0)

    def _created(self, q: Tensor, v: Tensor, timestep: float) -> Tensor:
        """(..., T) energy that steps create out of nothing, as a share of how much it varies."""
        assert self.mechanical is not None
        found = self.mechanical(q, v)
        speed = 0.5 * (v[..., 1:, :].abs() + v[..., :-1, :].abs())
        work = timestep * (speed * torch.as_tensor(self.effort, dtype=q.dtype)).sum(-1)
        return torch.relu(found.diff(dim=-1) - work) / found.detach().std().clamp_min(1e-9)
