"""Planners beside the population methods: predictive sampling, and gradients through the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.planning.costs import Cost
from sim2real.planning.foresight import Model
from sim2real.planning.planner import Judge, Planner, finite_costs


class PredictiveSampling(Planner):
    """The best of a handful of noisy plans (Howell et al. 2022): for the simulator itself, `OfSimulator`.

    Plans are straight lines between a few knots; the noise is on these.

    Args:
        model, cost, limit: as in `Planner`.
        noise: standard deviation at the knots, as a share of the limit.
        knots: of a plan.
        settings: what else `Planner` takes.
    """

    def __init__(
        self,
        model: Model,
        cost: Cost,
        limit: Array,
        *,
        noise: float = 0.3,
        knots: int = 6,
        **settings: Any,
    ) -> None:
        super().__init__(model, cost, limit, **{"candidates": 30, **settings})
        self.noise, self.knots = noise, knots

    def improve(self, plan: Tensor, judge: Judge, iteration: int) -> Tensor:
        n, actions = len(plan), len(self.limit)
        white = torch.randn(self.candidates, n * actions, self.knots, generator=self.generator)
        between = torch.nn.functional.interpolate(white, self.steps, mode="linear", align_corners=True)
        noise = between.reshape(-1, n, actions, self.steps).transpose(-1, -2) * (self.noise * self.limit)
        noise[0] = 0.0
        candidates = self.clipped(plan + noise)
        best = finite_costs(judge(candidates)).argmin(0)
        return torch.take_along_dim(candidates, best[None, :, None, None], 0)[0]


class GradientShooting(Planner):
    """Descends the cost of plans by gradients through the model, from several of them at once (Adam).

    Args:
        model, cost, limit: as in `Planner`; the simulator has no gradients. Candidates are 10 and iterations 10 where
            they are not given.
        noise: standard deviation of what plans begin with beyond the one before, as a share of the limit.
        rate: of a step, as a share of the limit.
        settings: what else `Planner` takes.

    Raises:
        ModelError: the model has no gradients.
    """

    def __init__(
        self,
        model: Model,
        cost: Cost,
        limit: Array,
        *,
        noise: float = 0.3,
        rate: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(model, cost, limit, **{"candidates": 10, "iterations": 10, "risk": "mean", **settings})
        if not self.objective.foresight.differentiable:
            raise ModelError("gradient shooting needs a differentiable model; plan on a simulator by sampling")
        self.noise, self.rate = noise, rate

    def improve(self, plan: Tensor, judge: Judge, iteration: int) -> Tensor:
        if iteration == 0:
            white = torch.randn(self.candidates, *plan.shape, generator=self.generator)
            white[0] = 0.0
            # in units of the limit, so that a step is as long for every actuator
            self._free = (plan / self.limit + self.noise * white).clamp(-1, 1).requires_grad_()
            self._adam = torch.optim.Adam([self._free], self.rate)
        with torch.enable_grad():
            cost = judge(self._free * self.limit)
            # of the plans alone: the model's own gradients are not touched
            (self._free.grad,) = torch.autograd.grad(torch.where(torch.isfinite(cost), cost, 0.0).sum(), self._free)
        now = self._free.detach() * self.limit
        lowest, best = finite_costs(cost.detach()).min(0)
        found = torch.take_along_dim(now, best[None, :, None, None], 0)[0]
        self._adam.step()
        self._free.data = torch.nan_to_num(self._free.data).clamp(-1, 1)
        return self.best_of(plan, found, lowest)
