"""Where a rollout starts: a causal estimate, corrected by a network that has seen how such motions went on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sim2real.kalman import KalmanFilter
from sim2real.world_model.network import BatchedMLP, input_scale

HIDDEN = (64, 64)
# A correction of one is this share of the change of velocity in a step, and this share of how far that leads.
VELOCITY, POSITION = 1.0, 0.3


class StartEncoder(nn.Module):
    """Start states for M members from what a Kalman filter, the last positions and the last commands say.

    A filter without a model lags where motions are fast, and hears nothing of the commands; how readings scatter around
    its path says by how much. The latent numbers are what neither positions nor velocities show: how far a motor's
    lag has come, which way a joint sticks.

    Args:
        members: M.
        wraps: for each joint, whether its angle matters only modulo 2 pi.
        lookback: positions before the present one that are seen, a model step apart.
        commands: numbers of commands that are seen.
        latents: how many.
        generator: of the initial weights.
    """

    def __init__(
        self,
        members: int,
        wraps: Sequence[bool],
        lookback: int,
        commands: int,
        latents: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        d = len(wraps)
        self.wraps, self.lookback = tuple(wraps), lookback
        width = sum(2 if w else 1 for w in wraps) + d + lookback * d + commands
        self.network = BatchedMLP(members, width, 2 * d + latents, HIDDEN, generator)
        # normalisers: set once by `normalise`, never trained
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("correction", torch.ones(2 * d))
        # of the Kalman filter, so that a saved model knows what it was trained behind
        self.register_buffer("jerk", torch.ones(d, dtype=torch.float64))
        self.register_buffer("noise", torch.ones(d, dtype=torch.float64))

    mean: Tensor
    scale: Tensor
    correction: Tensor
    jerk: Tensor
    noise: Tensor

    def estimator(self) -> KalmanFilter:
        """Return the filter that the encoder corrects."""
        return KalmanFilter(self.jerk.numpy(), self.noise.numpy())

    def features(self, state: Tensor, past: Tensor, commands: Tensor, timestep: float) -> Tensor:
        """Return what the network sees, not normalised.

        Args:
            state: (..., 2 D) causal estimate.
            past: (..., K, D) the last positions before the present one, oldest first.
            commands: (..., L - 1, A).
            timestep: of the model [s].
        """
        d = len(self.wraps)
        q, v = state[..., :d], state[..., d:]
        back = timestep * torch.arange(self.lookback, 0, -1, dtype=state.dtype)[:, None]
        # how far the readings lay from the path that the estimate says they came along
        left = past - q[..., None, :] + back * v[..., None, :]
        return torch.cat([angles(q, self.wraps), v, left.flatten(-2), commands.flatten(-2)], -1)

    def normalise(self, features: Tensor, change: Tensor, timestep: float) -> None:
        """Set the normalisers from features (N, F) and the change of velocity in a model step (D,)."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(input_scale(features))
        self.correction.copy_(torch.cat([POSITION * timestep * change, VELOCITY * change]))

    def forward(self, state: Tensor, past: Tensor, commands: Tensor, timestep: float) -> Tensor:
        """Return start states (M, B, 2 D + Z) from tensors whose first axes are (M, B)."""
        out = self.network((self.features(state, past, commands, timestep) - self.mean) / self.scale)
        size = state.shape[-1]
        return torch.cat([state + out[..., :size] * self.correction, 10 * out[..., size:]], -1)


def angles(q: Tensor, wraps: Sequence[bool]) -> Tensor:
    """Return positions (..., D) as networks see them: angles that turn freely as sine and cosine."""
    parts = []
    for i, turns in enumerate(wraps):
        angle = q[..., i : i + 1]
        parts += [torch.sin(angle), torch.cos(angle)] if turns else [angle]
    return torch.cat(parts, -1)
