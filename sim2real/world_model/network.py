"""The network of the world model: M probabilistic MLPs as one batched network."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class BatchedMLP(nn.Module):
    """M independent MLPs evaluated as batched matrix products.

    Args:
        members: M.
        inputs: width of the input.
        outputs: width of the output.
        hidden: widths of the hidden layers.
        generator: of the initial weights.
    """

    def __init__(
        self, members: int, inputs: int, outputs: int, hidden: tuple[int, ...], generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = (inputs, *hidden, outputs)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(sizes):
            scale = math.sqrt(1.0 / a) * (0.1 if b == outputs else 1.0)
            self.weights.append(nn.Parameter(scale * torch.randn(members, a, b, generator=generator)))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, b)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (M, B, inputs) to (M, B, outputs)."""
        return torch.baddbmm(self.biases[-1], self.last_hidden(x), self.weights[-1])

    def last_hidden(self, x: Tensor) -> Tensor:
        """Map (M, B, inputs) to what the last layer sees: (M, B, H)."""
        # by number: a slice of a ParameterList copies, and no gradient would reach what stands in for its weights
        for i in range(len(self.weights) - 1):
            x = nn.functional.silu(torch.baddbmm(self.biases[i], x, self.weights[i]))
        return x


def input_scale(raw: Tensor) -> Tensor:
    """Return what inputs (N, F) are divided by: their standard deviation; infinity for one that never changed.

    So nothing depends on such an input: what it does cannot be learned, and divided by next to nothing it would be
    enormous as soon as it did change.
    """
    spread = raw.std(0)
    return torch.where(spread <= 1e-6 * raw.mean(0).abs(), torch.inf, spread.clamp_min(1e-6))


def bounded(log_variance: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Keep log variances within soft bounds (Chua et al. 2018, appendix A.1)."""
    log_variance = high - nn.functional.softplus(high - log_variance)
    return low + nn.functional.softplus(log_variance - low)


def gaussian_nll(error: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log likelihood of errors, without its constant."""
    return 0.5 * (error.square() * torch.exp(-log_variance) + log_variance)


def hardness(log_variance: Tensor, beta: float) -> Tensor:
    """Weights of the likelihood: the variance to a power, so that what is hard is not explained away as noise.

    A power of 0.5 as in Seitzer et al. (2022); no gradient goes through it.
    """
    return torch.exp(beta * log_variance.detach())
