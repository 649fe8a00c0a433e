"""Model predictive path integral control on the world model, replanned at every step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import NonFiniteError
from sim2real.estimation import Estimate
from sim2real.planning.costs import Cost
from sim2real.world_model.ensemble import EnsembleDynamics


class MPPI:
    """Sampling MPC (Williams et al. 2017) with correlated noise and a warm start; a `Policy`.

    Every candidate is judged by one member of the ensemble, members taking turns, and the weighted mean of the
    candidates is carried over to the next step. Commands never leave [-limit, limit].

    Args:
        model: the world model.
        cost: of states and commands.
        limit: (A,) largest command.
        horizon: [s].
        candidates: a plant; rounded up to a multiple of the members.
        iterations: of reweighting at each step.
        noise: standard deviation of the exploration, as a share of the limit.
        correlation: of the noise from one step to the next.
        temperature: of the weights, in standard deviations of the candidates' costs.
        seed: of the exploration.
    """

    def __init__(
        self,
        model: EnsembleDynamics,
        cost: Cost,
        limit: Array,
        *,
        horizon: float = 1.0,
        candidates: int = 200,
        iterations: int = 1,
        noise: float = 0.6,
        correlation: float = 0.85,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.model, self.cost = model, cost
        self.limit = torch.as_tensor(np.atleast_1d(limit), dtype=torch.float32)
        self.steps = max(round(horizon / model.config.timestep), 1)
        self.each = -(-candidates // model.config.members)
        self.iterations, self.noise, self.correlation, self.temperature = iterations, noise, correlation, temperature
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed)
        self._plan: Tensor | None = None

    @torch.no_grad()
    def act(self, estimate: Estimate, t: float) -> Array:
        state = self.model.begin(estimate)
        back = self.model.config.history - 1
        past = torch.as_tensor(estimate.commands[:, estimate.commands.shape[1] - back :], dtype=torch.float32)
        n, actions = state.shape[1], len(self.limit)
        if self._plan is None:
            self._plan = torch.zeros(n, self.steps, actions)
        else:
            self._plan = torch.cat([self._plan[:, 1:], self._plan[:, -1:]], 1)
        for _ in range(self.iterations):
            self._plan = self._improve(self._plan, state, past)
        return self._plan[:, 0].double().numpy()

    def _improve(self, plan: Tensor, state: Tensor, past: Tensor) -> Tensor:
        members, each, n = self.model.config.members, self.each, state.shape[1]
        candidates = plan + self._exploration(members * each, n)
        candidates[0] = plan  # the present plan is always a candidate
        candidates = torch.maximum(torch.minimum(candidates, self.limit), -self.limit)
        shaped = candidates.reshape(members, each * n, self.steps, -1)
        history = past.expand(members, each, *past.shape).reshape(members, each * n, *past.shape[1:])
        start = state[:, None].expand(members, each, *state.shape[1:]).reshape(members, each * n, -1)
        path = self.model.rollout(start, torch.cat([history, shaped], 2))[..., : 2 * self.model.config.joints]
        cost = self.cost(path, shaped).mean(-1).reshape(members * each, n)
        if not torch.isfinite(cost).any(0).all():
            raise NonFiniteError("no candidate plan of a plant has a finite cost: the world model diverges")
        cost = torch.where(torch.isfinite(cost), cost, torch.inf)
        finite = torch.where(torch.isfinite(cost), cost, cost.min(0).values)
        scale = self.temperature * finite.std(0).clamp_min(1e-6)
        weight = torch.softmax(-(cost - cost.min(0).values) / scale, 0)
        return torch.einsum("cn,cnta->nta", weight, candidates)

    def _exploration(self, candidates: int, n: int) -> Tensor:
        """(candidates, n, T, A) first-order correlated noise of constant variance."""
        white = torch.randn(self.steps, candidates, n, len(self.limit), generator=self._generator)
        rho, out = self.correlation, [white[0]]
        for k in range(1, self.steps):
            out.append(rho * out[-1] + float(np.sqrt(1 - rho**2)) * white[k])
        return torch.stack(out, 2) * (self.noise * self.limit)
