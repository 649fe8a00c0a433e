"""Model predictive path integral control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.planning.costs import Cost
from sim2real.planning.foresight import Model
from sim2real.planning.planner import Judge, Planner, finite_costs


class MPPI(Planner):
    """Sampling MPC (Williams et al. 2017) with correlated noise and a warm start.

    The plan is the mean of the candidates, those that cost less weighing more, and is carried over to the next step.

    Args:
        model, cost, limit: as in `Planner`.
        noise: standard deviation of the exploration, as a share of the limit.
        correlation: of the noise from one step to the next.
        temperature: of the weights, in standard deviations of the candidates' costs.
        settings: what else `Planner` takes.
    """

    def __init__(
        self,
        model: Model,
        cost: Cost,
        limit: Array,
        *,
        noise: float = 0.6,
        correlation: float = 0.85,
        temperature: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(model, cost, limit, **settings)
        self.noise, self.correlation, self.temperature = noise, correlation, temperature

    def improve(self, plan: Tensor, judge: Judge, iteration: int) -> Tensor:
        candidates = plan + self._exploration(len(plan))
        candidates[0] = plan  # the present plan is always a candidate
        candidates = self.clipped(candidates)
        cost = finite_costs(judge(candidates))
        finite = torch.where(torch.isfinite(cost), cost, cost.min(0).values)
        scale = self.temperature * finite.std(0).clamp_min(1e-6)
        weight = torch.softmax(-(cost - cost.min(0).values) / scale, 0)
        return torch.einsum("cn,cnta->nta", weight, candidates)

    def _exploration(self, n: int) -> Tensor:
        """(C, n, T, A) first-order correlated noise of constant variance."""
        white = torch.randn(self.steps, self.candidates, n, len(self.limit), generator=self.generator)
        rho, out = self.correlation, [white[0]]
        for k in range(1, self.steps):
            out.append(rho * out[-1] + (1 - rho**2) ** 0.5 * white[k])
        return torch.stack(out, 2) * (self.noise * self.limit)
