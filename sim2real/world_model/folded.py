"""A step of the ensemble with everything linear around its networks folded into their first and last layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sim2real.world_model.ensemble import EnsembleDynamics

# What an output of one changes a latent number by in a step.
LATENT = 0.3


@dataclass(frozen=True)
class Folded:
    """What `EnsembleDynamics.step` does, in a third of the operations: for rollouts, where they are what takes time.

    The normalisers of the input are part of the first layer here, and what is made of the output is of the last. It is
    made anew for every rollout, so that gradients reach the weights.

    Attributes:
        turning: numbers of the joints that turn freely.
        layers: weights and biases; those of the first see sines and cosines of the joints that turn, then the state and
            the commands as they are; the output of the last adds to the state.
        variances: (M, H, X) weights and (M, 1, X) biases of the log variances, which are not bounded yet.
        drift: (M, X + Z, X + Z): what becomes of a state to which nothing is added.
        increments: (X + Z, X + Z): what normalised targets and latent outputs add to the state.
    """

    turning: Tensor
    layers: list[tuple[Tensor, Tensor]]
    variances: tuple[Tensor, Tensor]
    drift: Tensor
    increments: Tensor

    @classmethod
    def of(cls, model: EnsembleDynamics) -> Folded:
        """Fold the weights of a model, as they are now."""
        config, network = model.config, model.dynamics
        d, dt, size = config.joints, config.timestep, 2 * config.joints + config.latents
        layers = [(network.weights[i], network.biases[i]) for i in range(len(network.weights))]
        turning = [k for k, wraps in enumerate(config.wraps) if wraps]
        weight, bias = layers[0]
        weight = weight / model.feature_scale[:, None]
        bias = bias - (model.feature_mean @ weight)[:, None]
        rows = torch.tensor(_rows(config.wraps, weight.shape[1]), device=weight.device)
        inputs = 2 * len(turning) + size + config.history * config.actions
        layers[0] = weight.new_zeros(len(weight), inputs, weight.shape[2]).index_copy(1, rows, weight), bias
        # targets: the change of velocities, then what positions do beyond the mean velocity
        velocity, beyond = model.target_scale[:d], model.target_scale[d:]
        kind = {"dtype": weight.dtype, "device": weight.device}
        increments = LATENT * torch.eye(size, **kind)
        increments[: 2 * d] = 0.0
        increments[:d, :d], increments[:d, d : 2 * d] = torch.diag(0.5 * dt * velocity), torch.diag(velocity)
        increments[d : 2 * d, :d] = torch.diag(beyond)
        drift = torch.eye(size, **kind)
        drift[d : 2 * d, :d] = dt * torch.eye(d, **kind)
        weight, bias = layers[-1]
        variances = weight[..., 2 * d : 4 * d], bias[..., 2 * d : 4 * d]
        weight, bias = (torch.cat([t[..., : 2 * d], t[..., 4 * d :]], -1) @ increments for t in (weight, bias))
        layers[-1] = weight, bias
        return cls(
            torch.tensor(turning, device=weight.device), layers, variances, drift.expand(len(weight), -1, -1),
            increments,
        )  # fmt: skip

    def path(self, state: Tensor, sent: Tensor) -> Tensor:
        """Follow the means: states (M, B, T, X + Z) from (M, B, X + Z), under histories of commands (M, B, T, L A)."""
        path = []
        for seen in sent.unbind(-2):
            state, _ = self._mean(state, seen)
            path.append(state)
        return torch.stack(path, -2)

    def step(self, state: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        """Advance one model step.

        Args:
            state: (M, B, X + Z).
            sent: (M, B, L A): the history of commands, the last one about to act.

        Returns:
            mean of the next state (M, B, X + Z), and log variances of the normalised targets, not bounded (M, B, X).
        """
        following, x = self._mean(state, sent)
        weight, bias = self.variances
        return following, torch.baddbmm(bias, x, weight)

    def _mean(self, state: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state, and what the last layer saw."""
        seen = [state, sent]
        if len(self.turning):
            angle = state.index_select(-1, self.turning)
            seen = [torch.sin(angle), torch.cos(angle), *seen]
        x = torch.cat(seen, -1)
        for weight, bias in self.layers[:-1]:
            x = nn.functional.silu(torch.baddbmm(bias, x, weight))
        weight, bias = self.layers[-1]
        following = torch.baddbmm(torch.baddbmm(bias, state, self.drift), x, weight)
        return following, x


def _rows(wraps: Sequence[bool], features: int) -> list[int]:
    """Return where each feature stands among sines, cosines, the state and the commands."""
    many, before = sum(wraps), list(accumulate(wraps, initial=0))
    out = []
    for joint, turns in enumerate(wraps):
        out += [before[joint], many + before[joint]] if turns else [2 * many + joint]
    begun = 2 * many + len(wraps)  # of velocities, latents and commands
    return [*out, *range(begun, begun + features - len(out))]
