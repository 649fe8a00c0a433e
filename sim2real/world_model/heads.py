"""What a step brings beside the next observation: a reward, an end, anything that is recorded with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sim2real.errors import LogError, NonFiniteError
from sim2real.world_model.network import BatchedMLP, bounded, gaussian_nll
from sim2real.world_model.transitions import CHUNK, Numbers, Rows, Transitions

HIDDEN = (64, 64)
# Log variances of normalised numbers lie between these.
LOG_VARIANCE = (-12.0, 2.0)
# Of Adam; epochs without a better held-out likelihood after which a head is done.
RATE, PATIENCE = 3e-3, 8


class OutcomeHeads(nn.Module):
    """Networks of M members that see observation, action and change, normalised, and say what comes with them.

    They share nothing with the dynamics: training or fine-tuning these leaves every bit of the heads as it is.

    Args:
        members: M.
        inputs: how many numbers are seen.
        numbers: how many numbers are foretold, each with its noise.
        events: how many events, each with its probability.
        generator: of the initial weights.
    """

    def __init__(self, members: int, inputs: int, numbers: int, events: int, generator: torch.Generator) -> None:
        super().__init__()
        self.numbers = numbers
        self.network = BatchedMLP(members, inputs, 2 * numbers + events, HIDDEN, generator)
        # normalisers of the numbers: set once, never trained
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    mean: Tensor
    scale: Tensor

    def answer(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and log variances of normalised numbers and logits of events for inputs (M, B, F)."""
        out = self.network(seen)
        mean, log_variance = out[..., : self.numbers], out[..., self.numbers : 2 * self.numbers]
        return mean, bounded(log_variance, *LOG_VARIANCE), out[..., 2 * self.numbers :]

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and variances of numbers, in their units, and probabilities of events for inputs (M, B, F)."""
        mean, log_variance, logits = self.answer(seen)
        return self.mean + self.scale * mean, torch.exp(log_variance) * self.scale**2, torch.sigmoid(logits)

    def loss(self, seen: Tensor, truth: Tensor) -> Tensor:
        """(M,) negative log likelihood of truth (M, B, numbers + events), without its constant."""
        mean, log_variance, logits = self.answer(seen)
        numbers, events = truth[..., : self.numbers], truth[..., self.numbers :]
        said = gaussian_nll((numbers - self.mean) / self.scale - mean, log_variance).sum(-1)
        happened = nn.functional.binary_cross_entropy_with_logits(logits, events, reduction="none").sum(-1)
        return (said + happened).mean(-1)


def require_outcomes(data: Transitions, numbers: Sequence[str], events: Sequence[str]) -> None:
    """Raise a LogError where an outcome was not recorded, or an event is not told by truth values."""
    missing = [name for name in (*numbers, *events) if name not in data.outcomes]
    if missing:
        known = ", ".join(data.outcomes) or "none"
        raise LogError(f"the transitions have no outcome {', '.join(missing)}; recorded: {known}")
    for name in events:
        if data.outcomes[name].dtype != bool:
            raise LogError(
                f"the event {name} has to be told by truth values, found {data.outcomes[name].dtype}; compare it with "
                "a limit, or name it among the numbers"
            )


def recorded(data: Transitions, names: Sequence[str], rows: Rows) -> Tensor:
    """Return outcomes (..., len(names)) of some rows."""
    return torch.as_tensor(np.stack([data.outcomes[n][rows] for n in names], -1), dtype=torch.float32)


def fit_heads(
    heads: OutcomeHeads,
    seen: Callable[[Rows], Tensor],
    truth: Callable[[Rows], Tensor],
    rows: Rows,
    held_out: Rows,
    *,
    epochs: int,
    batch: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Train fresh heads; every member ends with its best weights by held-out likelihood.

    Args:
        heads: whose normalisers and weights are set.
        seen: rows (...) -> inputs (..., F).
        truth: rows (...) -> outcomes (..., numbers + events).
        rows: to learn from.
        held_out: to judge by.
        epochs: at most.
        batch: transitions a member in an update.
        seed: of the orders.
        progress: called with a line an epoch.

    Raises:
        NonFiniteError: the loss diverges.
    """
    rng = np.random.default_rng(seed)
    weights = list(heads.network.parameters())
    members = weights[0].shape[0]
    numbers: Numbers = np.concatenate(
        [truth(rows[k : k + CHUNK]).double().numpy()[:, : heads.numbers] for k in range(0, len(rows), CHUNK)]
    )
    if heads.numbers:
        spread = numbers.std(0)
        heads.mean.copy_(torch.as_tensor(numbers.mean(0)))
        heads.scale.copy_(torch.as_tensor(np.where(spread > 1e-9, spread, 1.0)))
    adam = torch.optim.Adam(weights, RATE)
    device = weights[0].device
    best, kept, waited = torch.full((members,), math.inf, device=device), [w.detach().clone() for w in weights], 0
    for epoch in range(epochs):
        orders = np.stack([rng.permutation(rows) for _ in range(members)])
        for k in range(0, len(rows), batch):
            some = orders[:, k : k + batch]
            loss = heads.loss(seen(some), truth(some)).sum()
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the likelihood of outcomes is not finite in epoch {epoch + 1}; mend the data")
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        found = torch.zeros(members, device=device)
        with torch.no_grad():
            for k in range(0, len(held_out), CHUNK):
                part = held_out[k : k + CHUNK]
                x, y = (v.expand(members, -1, -1) for v in (seen(part), truth(part)))
                found += heads.loss(x, y) * len(part) / len(held_out)
        better = found < best - 1e-4
        best = torch.where(better, found, best)
        for keep, w in zip(kept, weights, strict=True):
            keep[better] = w.detach()[better]
        waited = 0 if better.any() else waited + 1
        progress(f"outcomes, epoch {epoch + 1}: held out {float(found.mean()):.4f} ({float(best.mean()):.4f})")
        if waited >= PATIENCE:
            break
    with torch.no_grad():
        for w, keep in zip(weights, kept, strict=True):
            w.copy_(keep)
