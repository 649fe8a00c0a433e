"""The improved cross-entropy method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.planning.costs import Cost
from sim2real.planning.foresight import Model
from sim2real.planning.planner import Judge, Planner, coloured, finite_costs, moved_on


class ICEM(Planner):
    """The cross-entropy method as Pinneri et al. (2020) improved it; what is sent is the first of the best plan found.

    Candidates are a mean and coloured noise. Their best ones give the mean and the spread of the next iteration, some
    of them stay candidates, also in the next step, moved on. Later iterations have fewer candidates, the last one has
    the mean itself among them.

    Args:
        model, cost, limit: as in `Planner`; the iterations are three where they are not given.
        noise: standard deviation of the first iteration, as a share of the limit.
        colour: exponent of the noise: 0 is white, and moves least; 2 and more are slow.
        elites: share of the candidates that the next mean is made of.
        kept: share of the elites that stay candidates.
        momentum: of mean and spread.
        shrink: factor by which each iteration has fewer candidates.
        settings: what else `Planner` takes.
    """

    def __init__(
        self,
        model: Model,
        cost: Cost,
        limit: Array,
        *,
        noise: float = 0.5,
        colour: float = 2.0,
        elites: float = 0.1,
        kept: float = 0.3,
        momentum: float = 0.1,
        shrink: float = 1.25,
        **settings: Any,
    ) -> None:
        self.noise, self.colour, self.momentum, self.shrink = noise, colour, momentum, shrink
        super().__init__(model, cost, limit, **{"iterations": 3, **settings})
        self.elites = max(round(elites * self.candidates), 2)
        self.kept = max(round(kept * self.elites), 1)

    def reset(self) -> None:
        super().reset()
        self._mean: Tensor | None = None
        self._best: Tensor | None = None  # (K, n, T, A), the best one first

    def begin(self, n: int) -> None:
        super().begin(n)
        assert self.plan is not None
        if self._mean is None or len(self._mean) != n:
            self._mean, self._best = torch.zeros_like(self.plan), None
        else:
            self._mean = moved_on(self._mean)
        if self._best is not None:
            self._best = moved_on(self._best)
        self._spread = (self.noise * self.limit).expand_as(self._mean)

    def improve(self, plan: Tensor, judge: Judge, iteration: int) -> Tensor:
        assert self._mean is not None
        fewer = int(self.candidates / self.shrink**iteration)
        many = self.objective.rounded(max(fewer, 2 * self.elites))
        n, actions = len(plan), len(self.limit)
        noise = coloured((many, n, actions, self.steps), self.colour, self.generator).transpose(-1, -2)
        candidates = self.clipped(self._mean + noise * self._spread)
        if self._best is not None:
            candidates[-len(self._best) :] = self._best
        if iteration == self.iterations - 1:
            candidates[0] = self._mean
        # members take turns in judging: whose turn it is must not depend on where a candidate comes from
        candidates = candidates[torch.randperm(many, generator=self.generator)]
        cost = finite_costs(judge(candidates))
        order = cost.argsort(0)[: self.elites]
        found = torch.take_along_dim(candidates, order[:, :, None, None], 0)
        # an elite that diverges counts for nothing: the best one stands in its place
        diverged = torch.isinf(torch.take_along_dim(cost, order, 0))[:, :, None, None]
        found = torch.where(diverged, found[:1], found)
        keep = self.momentum
        self._mean = keep * self._mean + (1 - keep) * found.mean(0)
        self._spread = keep * self._spread + (1 - keep) * found.std(0)
        self._best = found[: self.kept]
        return self.best_of(plan, found[0], torch.take_along_dim(cost, order[:1], 0)[0])
