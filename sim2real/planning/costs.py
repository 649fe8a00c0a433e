"""Costs, as values: what a planner minimises at each step of a candidate, and how close to its goal a robot is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import ModelError


class Cost(Protocol):
    """Cost of states (..., T, X) reached under commands (..., T, A): (..., T)."""

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor: ...


@runtime_checkable
class Goal(Protocol):
    """A cost that knows how close to its goal states (..., T, X) are: (..., T), 1 there and falling to 0 away."""

    def closeness(self, states: Tensor) -> Tensor: ...


@runtime_checkable
class Timed(Protocol):
    """A cost that depends on when states are reached."""

    def beginning(self, t: float, timestep: float) -> Cost:
        """Return the cost of states of which the first is reached a timestep after `t` [s]."""
        ...


def beginning(cost: Cost, t: float, timestep: float) -> Cost:
    """Return a cost, `Timed` or not, for states of which the first is reached a timestep after `t` [s]."""
    return cost.beginning(t, timestep) if isinstance(cost, Timed) else cost


def closeness(cost: Cost, states: Array, timestep: float) -> Array:
    """Return how close to its goal each robot was on average, 0 to 1.

    Args:
        cost: with a goal.
        states: (n, T, X), the first of them a timestep after the beginning.
        timestep: between states [s].

    Raises:
        ModelError: no term of the cost is a `Goal`.
    """
    now = beginning(cost, 0.0, timestep)
    if not isinstance(now, Goal):
        raise ModelError(
            f"{type(cost).__name__} has no goal that a robot may be close to: it needs `closeness(states)`"
        )
    return np.asarray(now.closeness(torch.as_tensor(states)).mean(-1).double().numpy())


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

    def closeness(self, states: Tensor) -> Tensor:
        """Return 1 at the target, 0 opposite to it."""
        return upright_reward(states, self.joint, self.target)


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
        total = self._left(states)
        if self.velocity:
            total = total + (states[..., len(self.goal) :].square() * states.new_tensor(self.velocity)).sum(-1)
        return total + self.effort * commands.square().sum(-1)

    def closeness(self, states: Tensor) -> Tensor:
        """Return exp(-weighted squares of what is left): a weight of 1/w² makes w the distance that counts as near."""
        return torch.exp(-self._left(states))

    def _left(self, states: Tensor) -> Tensor:
        d = len(self.goal)
        if states.shape[-1] != 2 * d:
            raise ModelError(f"the cost's goal is of {d} joints, the model has {states.shape[-1] // 2}")
        left = states[..., :d] - states.new_tensor(self.goal)
        return (left.square() * states.new_tensor(self.position)).sum(-1)


@dataclass(frozen=True)
class Track:
    """Follow a path in time: weighted squares of the distance to where the joints should be by now.

    Attributes:
        times: (K,) [s], increasing; between them the path is straight, before and after them it stands still.
        path: (K, D) positions [rad or m].
        position: (D,) weights of the squared distances [1/rad² or 1/m²].
        effort: weight of the squared command [1/effort²].

    Raises:
        ModelError: shapes do not match, or times do not increase.
    """

    times: Array
    path: Array
    position: tuple[float, ...]
    effort: float = 0.0
    _now: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __post_init__(self) -> None:
        times, path = np.asarray(self.times, float), np.asarray(self.path, float)
        if path.shape != (len(times), len(self.position)) or len(times) == 0 or (np.diff(times) <= 0).any():
            raise ModelError(
                f"a path to track has increasing times (K,) and positions (K, D) of the D weights: found {len(times)} "
                f"times, positions {path.shape} and {len(self.position)} weights"
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "path", path)

    def beginning(self, t: float, timestep: float) -> Track:
        """Return the cost of states of which the first is reached a timestep after `t` [s]."""
        return replace(self, _now=(t, timestep))

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        return self._left(states) + self.effort * commands.square().sum(-1)

    def closeness(self, states: Tensor) -> Tensor:
        """Return exp(-weighted squares of the distance to the path): see `Quadratic`."""
        return torch.exp(-self._left(states))

    def _left(self, states: Tensor) -> Tensor:
        t, timestep = self._now
        when = t + timestep * np.arange(1, states.shape[-2] + 1)
        here = np.stack([np.interp(when, self.times, joint) for joint in self.path.T], -1)
        left = states[..., : len(self.position)] - torch.as_tensor(here, dtype=states.dtype)
        return (left.square() * states.new_tensor(self.position)).sum(-1)


@dataclass(frozen=True)
class Bounds:
    """Stay within positions and velocities: weight x (what is beyond / width)² of each joint, nothing inside.

    The limits are soft. What must never happen is for the safety filter.

    Attributes:
        position: (D,) (lowest, highest) [rad or m]; infinite where there is none.
        velocity: (D,) largest [rad/s or m/s]; infinite where there is none, () for none at all.
        weight: of the squares [1].
        width: beyond a limit of a position [rad or m], and of a velocity, a share of it, where a square is one.
    """

    position: tuple[tuple[float, float], ...]
    velocity: tuple[float, ...] = ()
    weight: float = 1.0
    width: float = 0.1

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        d = states.shape[-1] // 2
        where, low = states[..., :d], states.new_tensor([p[0] for p in self.position])
        high = states.new_tensor([p[1] for p in self.position])
        beyond = ((low - where).clamp_min(0.0) + (where - high).clamp_min(0.0)) / self.width
        total = beyond.square().sum(-1)
        if self.velocity:
            most = states.new_tensor(self.velocity)
            total = total + ((states[..., d:].abs() / most - 1.0).clamp_min(0.0) / self.width).square().sum(-1)
        return self.weight * total


@dataclass(frozen=True)
class Effort:
    """Squared commands, and squared changes from one command to the next.

    Attributes:
        weight: of the squared command [1/effort²].
        change: weight of its squared change [1/effort²].
    """

    weight: float = 0.01
    change: float = 0.0

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        total = self.weight * commands.square().sum(-1)
        if self.change and commands.shape[-2] > 1:
            steps = commands.diff(dim=-2).square().sum(-1)
            total = total + self.change * torch.nn.functional.pad(steps, (1, 0))
        return total


@dataclass(frozen=True)
class Rewarded:
    """The negative of a reward, such as that of a Gymnasium environment, written as a function of tensors.

    Attributes:
        reward: of states (..., T, X) reached and commands (..., T, A): (..., T). With a `TransitionEnsemble`, states
            are the environment's observations.
    """

    reward: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        return -self.reward(states, commands)


@dataclass(frozen=True)
class Sum:
    """The weighted sum of costs. Close to its goal is what is close to the goals of all its terms: their product.

    Attributes:
        terms: that are summed.
        weights: of them; ones if not given.
    """

    terms: tuple[Cost, ...]
    weights: tuple[float, ...] = ()

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        weights = self.weights or (1.0,) * len(self.terms)
        return torch.stack([w * term(states, commands) for w, term in zip(weights, self.terms, strict=True)]).sum(0)

    def beginning(self, t: float, timestep: float) -> Sum:
        """Return the cost of states of which the first is reached a timestep after `t` [s]."""
        return replace(self, terms=tuple(beginning(term, t, timestep) for term in self.terms))

    def closeness(self, states: Tensor) -> Tensor:
        """Return the product over the terms that have a goal.

        Raises:
            ModelError: none of them has one.
        """
        found = [term.closeness(states) for term in self.terms if isinstance(term, Goal)]
        if not found:
            raise ModelError("no term of the cost has a goal that a robot may be close to")
        return torch.stack(found).prod(0)


def upright_reward(positions: Tensor, joint: int = 0, target: float = torch.pi) -> Tensor:
    """Return how upright a joint is, from 0 (opposite) to 1 (there): `positions` (..., D) -> (...)."""
    return 0.5 * (1 + torch.cos(positions[..., joint] - target))
