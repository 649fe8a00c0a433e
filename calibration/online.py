"""Fine-tuning inside the control loop: the last layer, reading by reading, with a memory that fades."""

from __future__ import annotations

import math

import torch

from sim2real.calibration.last_layer import design, prior_sizes, shift
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError, ParameterError
from sim2real.estimation import Estimate
from sim2real.planning import Policy
from sim2real.world_model.ensemble import EnsembleDynamics


class OnlineLastLayer:
    """Bayesian linear regression of the last layer of a model, updated with every step that was seen.

    With each step, what was seen before counts less, by the factor `forgetting`; the prior, the weights that the model
    had, does not: where nothing new is seen, they come back. Time and memory of an update do not grow. With a factor
    of 1 it is `regress_last_layer` of all steps.

    Args:
        model: whose last layer changes in place; give it a copy to keep the old one.
        forgetting: factor on what was seen, each step; 0.99 at 20 Hz remembers five seconds.
        anchor: what the prior is worth, as a number of steps.

    Raises:
        ParameterError: forgetting that is not above 0 and at most 1, or no anchor.
    """

    def __init__(self, model: EnsembleDynamics, forgetting: float = 0.99, anchor: float = 10.0) -> None:
        if not 0 < forgetting <= 1 or not anchor > 0:
            raise ParameterError(
                f"expected a forgetting above 0 and at most 1 and a positive anchor, found {forgetting:g}, {anchor:g}"
            )
        self.model, self.forgetting, self.anchor = model, forgetting, anchor
        model.recalibration = None
        layer = self._last = (model.dynamics.weights[-1], model.dynamics.biases[-1])
        self._layer = [p.detach().clone() for p in layer]
        self._scale = prior_sizes(model)
        members, rows, outputs = len(layer[0]), len(self._scale), 2 * model.config.joints
        self._seen = torch.zeros(members, rows, rows, dtype=torch.float64)
        self._told = torch.zeros(members, rows, outputs, dtype=torch.float64)
        self._squares = torch.zeros(members, outputs, dtype=torch.float64)
        self._many = 0.0

    @torch.no_grad()
    def update(self, before: Estimate, command: Array, after: Estimate) -> None:
        """Take a step that n plants made.

        Args:
            before: what was known of them, with the commands sent before.
            command: (n, A) that was sent then.
            after: what was known a step of the model later.

        Raises:
            NonFiniteError: an estimate or a command is not finite; nothing is learned from it.
        """
        model = self.model
        back = model.config.history - 1
        state, following = model.begin(before), model.begin(after)[..., : self._told.shape[-1]]
        past = torch.as_tensor(before.commands[:, before.commands.shape[1] - back :], dtype=torch.float32)
        commands = torch.cat([past, torch.as_tensor(command, dtype=torch.float32)[:, None]], 1)
        commands = commands.expand(len(state), *commands.shape)
        if not all(bool(torch.isfinite(t).all()) for t in (state, following, commands)):
            raise NonFiniteError("a step to learn from is not finite")
        # what the model got wrong before it learned anything
        for p, old in zip(self._last, self._layer, strict=True):
            p.copy_(old)
        x, y = design(model, state, commands, following)
        x = x * self._scale
        keep = self.forgetting
        self._seen = keep * self._seen + x.mT @ x
        self._told = keep * self._told + x.mT @ y
        self._squares = keep * self._squares + y.square().sum(1)
        self._many = keep * self._many + x.shape[1]
        noise = (self._squares / self._many).clamp_min(1e-12)
        rows = len(self._scale)
        precision = self._seen[:, None] + self.anchor * noise[..., None, None] * torch.eye(rows, dtype=torch.float64)
        factor = torch.linalg.cholesky(precision)
        change = torch.cholesky_solve(self._told.mT[..., None], factor)[..., 0].mT * self._scale[:, None]
        shift(model, change)


class Adapting:
    """A policy whose model learns from every step before it is asked for the next command.

    Args:
        policy: that plans with `online.model`.
        online: what learns.
    """

    def __init__(self, policy: Policy, online: OnlineLastLayer) -> None:
        self.policy, self.online = policy, online
        self._last: tuple[Estimate, float] | None = None

    def reset(self) -> None:
        """Begin anew; what was learned stays."""
        self.policy.reset()
        self._last = None

    def act(self, estimate: Estimate, t: float) -> Array:
        """Learn from the step that has ended, then ask the policy; after a gap there is no such step."""
        if self._last is not None:
            before, then = self._last
            if math.isclose(t - then, self.online.model.config.timestep, rel_tol=0.1):
                self.online.update(before, estimate.commands[:, -1], estimate)
        self._last = estimate, t
        return self.policy.act(estimate, t)
