"""Costs, as values: what a planner minimises at each step of a candidate, and how close to its goal a robot is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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


def number(what: str, value: object, *, infinite: bool = False) -> float:
    """Return a number of a cost.

    Raises:
        ModelError: it is none, or not finite where it should be.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if math.isnan(found) or (math.isinf(found) and not infinite):
        raise ModelError(f"expected a number for {what}, found {value!r}")
    return found


def numbers(what: str, values: object, *, infinite: bool = False) -> tuple[float, ...]:
    """Return numbers of a cost, one a joint.

    Raises:
        ModelError: they are none.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"expected numbers for {what}, found {values!r}")
    return tuple(number(what, v, infinite=infinite) for v in values)


def has_goal(cost: Cost) -> bool:
    """Return whether a robot may be close to the goal of a cost, or to that of one of its terms."""
    return any(has_goal(term) for term in cost.terms) if isinstance(cost, Sum) else isinstance(cost, Goal)


def depends_on_time(cost: Cost) -> bool:
    """Return whether a cost, or one of its terms, is `Timed`."""
    return any(map(depends_on_time, cost.terms)) if isinstance(cost, Sum) else isinstance(cost, Timed)


def positions_of(states: Tensor, joints: int) -> Tensor:
    """Return the positions (..., D) of states (..., 2 D).

    Raises:
        ModelError: they are of another number of joints.
    """
    if states.shape[-1] != 2 * joints:
        raise ModelError(f"the cost is of {joints} joints, the model has {states.shape[-1] // 2}")
    return states[..., :joints]


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
    if not has_goal(now) or not isinstance(now, Goal):
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

    def __post_init__(self) -> None:
        for name in ("target", "velocity", "effort"):
            object.__setattr__(self, name, number(name, getattr(self, name)))

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
        for name in ("goal", "position", "velocity"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        object.__setattr__(self, "effort", number("effort", self.effort))
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
        left = positions_of(states, len(self.goal)) - states.new_tensor(self.goal)
        return (left.square() * states.new_tensor(self.position)).sum(-1)


@dataclass(frozen=True, eq=False)
class Track:
    """Follow a path in time: weighted squares of the distance to where the joints should be by now.

    Planners and `closeness` say when states are reached; who calls it without them asks for `beginning` first.

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
    _now: tuple[float, float] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            times, path = np.asarray(self.times, float), np.asarray(self.path, float)
        except (TypeError, ValueError) as error:
            raise ModelError(f"expected numbers for the times and the path to track: {error}") from None
        if path.shape != (len(times), len(self.position)) or len(times) == 0 or (np.diff(times) <= 0).any():
            raise ModelError(
                f"a path to track has increasing times (K,) and positions (K, D) of the D weights: found {len(times)} "
                f"times, positions {path.shape} and {len(self.position)} weights"
            )
        if not (np.isfinite(times).all() and np.isfinite(path).all()):
            raise ModelError("expected numbers for the times and the path to track, found what is not finite")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "position", numbers("position", self.position))
        object.__setattr__(self, "effort", number("effort", self.effort))

    def beginning(self, t: float, timestep: float) -> Track:
        """Return the cost of states of which the first is reached a timestep after `t` [s]."""
        return replace(self, _now=(t, timestep))

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        return self._left(states) + self.effort * commands.square().sum(-1)

    def closeness(self, states: Tensor) -> Tensor:
        """Return exp(-weighted squares of the distance to the path): see `Quadratic`."""
        return torch.exp(-self._left(states))

    def _left(self, states: Tensor) -> Tensor:
        if self._now is None:
            raise ModelError("a path is tracked in time: ask for `beginning(t, timestep)` first")
        t, timestep = self._now
        when = t + timestep * np.arange(1, states.shape[-2] + 1)
        here = np.stack([np.interp(when, self.times, joint) for joint in self.path.T], -1)
        left = positions_of(states, len(self.position)) - torch.as_tensor(here, dtype=states.dtype)
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

    def __post_init__(self) -> None:
        limits = tuple(numbers("a limit (lowest, highest) of a position", p, infinite=True) for p in self.position)
        fast = numbers("velocity", self.velocity, infinite=True)
        width, weight = number("width", self.width), number("weight", self.weight)
        if any(len(p) != 2 or p[0] > p[1] for p in limits) or len(fast) not in (0, len(limits)):
            raise ModelError(
                f"bounds take (lowest, highest) of each joint, and a largest velocity of each or none: found {limits} "
                f"and {fast}"
            )
        if width <= 0 or any(v <= 0 for v in fast):
            raise ModelError(f"bounds of velocities, and their width, are above zero: found {fast} and {width:g}")
        for name, value in (("position", limits), ("velocity", fast), ("width", width), ("weight", weight)):
            object.__setattr__(self, name, value)

    def __call__(self, states: Tensor, commands: Tensor) -> Tensor:
        d = len(self.position)
        where, low = positions_of(states, d), states.new_tensor([p[0] for p in self.position])
        high = states.new_tensor([p[1] for p in self.position])
        beyond = ((low - where).clamp_min(0.0) + (where - high).clamp_min(0.0)) / self.width
        total = beyond.square().sum(-1)
        if self.velocity:
            most = states.new_tensor(self.velocity)
            total = total + ((states[..., d:].abs() / most - 1.0).clamp_min(0.0) / self.width).square().sum(-1)
        return self.weight * total


@dataclass(frozen=True)
class Effort:
    """Squared commands, and squared changes from one command of a plan to the next; not from what was sent before it.

    Attributes:
        weight: of the squared command [1/effort²].
        change: weight of its squared change [1/effort²].
    """

    weight: float = 0.01
    change: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "change"):
            object.__setattr__(self, name, number(name, getattr(self, name)))

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

    Raises:
        ModelError: there are more or fewer weights than terms.
    """

    terms: tuple[Cost, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.terms):
            raise ModelError(f"expected a weight for each of {len(self.terms)} terms, found {len(self.weights)}")

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
        found = [term.closeness(states) for term in self.terms if has_goal(term) and isinstance(term, Goal)]
        if not found:
            raise ModelError("no term of the cost has a goal that a robot may be close to")
        return torch.stack(found).prod(0)


def upright_reward(positions: Tensor, joint: int = 0, target: float = torch.pi) -> Tensor:
    """Return how upright a joint is, from 0 (opposite) to 1 (there): `positions` (..., D) -> (...)."""
    return 0.5 * (1 + torch.cos(positions[..., joint] - target))
