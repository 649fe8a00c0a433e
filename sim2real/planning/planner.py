"""What planners share: a plan that is carried from step to step, improved until there is no time left."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import ModelError, NonFiniteError
from sim2real.estimation import Estimate
from sim2real.planning.costs import Cost
from sim2real.planning.foresight import Model, foresight
from sim2real.planning.objective import Objective, Risk

Judge = Callable[[Tensor], Tensor]


class Planner(ABC):
    """A `Policy` that plans T steps ahead at every step, from the plan before; for n plants at once.

    Subclasses say how a plan is improved. Commands never leave [-limit, limit].

    Args:
        model: a world model of either kind, or any `Foresight`, such as the simulator itself.
        cost: of states and commands.
        limit: (A,) largest command.
        horizon: of plans [s].
        candidates: that a plan is chosen from, for each plant.
        iterations: of improvement at each step, at most.
        risk: see `Objective`.
        value: see `Objective`.
        deadline: in which `act` should be done [ms]; an iteration that would end after it is not begun, but for the
            first one.
        seed: of the exploration.

    Attributes:
        plan: (n, T, A) of the last call of `act`; None before the first.
        ahead: (n,) how many steps of plans count, for who trusts the model no further; all of them if None.
        overruns: how often `act` took longer than its deadline.
        done: iterations of the last call of `act`.

    Raises:
        ModelError: the model is none, a setting is not positive, or the limits are of another number of commands.
    """

    def __init__(
        self,
        model: Model,
        cost: Cost,
        limit: Array,
        *,
        horizon: float = 1.0,
        candidates: int = 200,
        iterations: int = 1,
        risk: Risk = "turns",
        value: Callable[[Tensor], Tensor] | None = None,
        deadline: float | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.cost = model, cost
        self.objective = Objective(foresight(model), cost, value, risk)
        self.limit = torch.as_tensor(np.atleast_1d(limit), dtype=torch.float32)
        if min(horizon, candidates, iterations) <= 0 or not (self.limit > 0).all():
            raise ModelError("horizon, candidates, iterations and limits of a planner are above zero")
        actions = self.objective.foresight.actions
        if len(self.limit) != actions:
            raise ModelError(f"the model takes {actions} commands, the limits are of {len(self.limit)}")
        self.steps = max(round(horizon / self.objective.foresight.timestep), 1)
        self.candidates = self.objective.rounded(candidates)
        self.iterations, self.deadline, self.seed = iterations, deadline, seed
        self.overruns = self.done = 0
        self.reset()

    def reset(self) -> None:
        """Forget the plan; what was random begins anew."""
        self.generator = torch.Generator().manual_seed(self.seed)
        self.plan: Tensor | None = None
        self.ahead: Tensor | None = None

    def begin(self, n: int) -> None:
        """Prepare a step for n plants: the plan before is moved on by a step; one of another number is forgotten."""
        if self.plan is None or len(self.plan) != n:
            self.plan = torch.zeros(n, self.steps, len(self.limit))
        else:
            self.plan = moved_on(self.plan)
        self._lowest = torch.full((n,), torch.inf)

    @abstractmethod
    def improve(self, plan: Tensor, judge: Judge, iteration: int) -> Tensor:
        """Return a better plan (n, T, A).

        Args:
            plan: so far.
            judge: what plans (C, n, T, A) cost, (C, n).
            iteration: from 0.
        """

    def best_of(self, plan: Tensor, rival: Tensor, cost: Tensor) -> Tensor:
        """Return the best plan of this step: that so far, or a rival where its cost (n,) is below all before."""
        better = cost < self._lowest
        self._lowest = torch.where(better, cost, self._lowest)
        return torch.where(better[:, None, None], rival, plan)

    @torch.no_grad()
    def act(self, estimate: Estimate, t: float) -> Array:
        """Return the first commands of the best plan: (n, A)."""
        clock = time.perf_counter()
        outlook = self.objective.foresight.look(estimate)
        self.begin(len(estimate.state))
        assert self.plan is not None
        plan, slowest, self.done = self.plan, 0.0, 0

        def judge(plans: Tensor) -> Tensor:
            return self.objective(outlook, plans, t, self.ahead)

        for i in range(self.iterations):
            begun = time.perf_counter()
            if self.deadline is not None and i and 1e3 * (begun - clock + slowest) > self.deadline:
                break
            plan = self.improve(plan, judge, i)
            slowest, self.done = max(slowest, time.perf_counter() - begun), i + 1
        self.plan = plan
        command = plan[:, 0].double().numpy()
        if self.deadline is not None:
            self.overruns += 1e3 * (time.perf_counter() - clock) > self.deadline
        return np.asarray(command)

    def clipped(self, plans: Tensor) -> Tensor:
        """Return plans within the limits."""
        return torch.maximum(torch.minimum(plans, self.limit), -self.limit)


def moved_on(plans: Tensor) -> Tensor:
    """Return plans (..., T, A) a step later; the last command is held."""
    return torch.cat([plans[..., 1:, :], plans[..., -1:, :]], -2)


def finite_costs(cost: Tensor) -> Tensor:
    """Return costs (C, n) whose infinite and undefined ones are infinite.

    Raises:
        NonFiniteError: a plant has no plan of finite cost.
    """
    cost = torch.where(torch.isfinite(cost), cost, torch.inf)
    if not torch.isfinite(cost).any(0).all():
        raise NonFiniteError(
            "no candidate plan of a plant has a finite cost: the world model diverges, or the cost is not finite"
        )
    return cost


def coloured(shape: tuple[int, ...], exponent: float, generator: torch.Generator) -> Tensor:
    """Return Gaussian noise of unit variance whose power falls with frequency to an exponent, along the last axis.

    Args:
        shape: of the noise, (..., T).
        exponent: 0 is white noise, 1 pink, 2 brown (Timmer and Koenig 1995).
        generator: of the noise.
    """
    steps = shape[-1]
    if steps < 2 or exponent == 0:
        return torch.randn(shape, generator=generator)
    frequency = torch.fft.rfftfreq(steps)
    frequency[0] = frequency[1]
    amplitude = frequency ** (-0.5 * exponent)
    size = (*shape[:-1], len(amplitude))
    real, imaginary = (torch.randn(size, generator=generator) * amplitude for _ in range(2))
    # what has no partner counts once, and has no imaginary part
    alone = [0] if steps % 2 else [0, -1]
    imaginary[..., alone] = 0.0
    real[..., alone] *= 2**0.5
    weight = amplitude.square()
    weight[alone] *= 0.5
    out: Tensor = torch.fft.irfft(torch.complex(real, imaginary), n=steps)
    scaled: Tensor = out * steps / (2 * weight.sum().sqrt())
    return scaled
