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
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                x = nn.functional.silu(x)
        return x
