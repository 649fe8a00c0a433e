"""What dynamics are fine-tuned on: windows of recordings, and how wrong a model is about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Episode
from sim2real.errors import ModelError
from sim2real.world_model.dataset import Stretches
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.recorded import step_pairs
from sim2real.world_model.rehearsal import Rehearsal
from sim2real.world_model.training import batches, change_scale, rollout_loss, step_loss
from sim2real.world_model.windows import Recorded

# What the error of a rollout counts relative to the likelihood of a step.
ROLLOUT, STEP = 30.0, 0.1


class Evidence(Protocol):
    """N windows that a model is tuned on.

    Attributes:
        block: (N,) the block of time that each comes from, numbered in order of time.
    """

    @property
    def block(self) -> Tensor: ...

    def loss(self, model: EnsembleDynamics, weight: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Return the loss on windows drawn for each member, weighed by (M, N), or (M, 1) for all alike."""
        ...

    def steps(self, model: EnsembleDynamics) -> tuple[Tensor, Tensor, Tensor]:
        """Return single steps: starts (M, N, X), commands (M, N, L, A), and the states after (M, N, X)."""
        ...

    def errors(self, model: EnsembleDynamics) -> Tensor:
        """Return (N,) squared errors relative to how far the robot gets in a time: of the mean of all members.

        Where every member has windows of its own, of each member.
        """
        ...

    def where(self, keep: Tensor) -> Evidence:
        """Return some of the windows, by a mask (N,)."""
        ...

    def first(self, members: int) -> Evidence:
        """Return the windows of the first members: all of them where members share them."""
        ...


@dataclass(frozen=True)
class OfStates:
    """Stretches of states, for models that start from an observer's estimate.

    Attributes:
        data: (M, N, ...) or (1, N, ...).
        whole: what they are a part of; itself if not given.
    """

    data: Stretches
    whole: Stretches | None = None

    @property
    def block(self) -> Tensor:
        return self.data.block

    @cached_property
    def scale(self) -> Tensor:
        """(T, X) how far states get in 1 .. T steps, in all of them."""
        return change_scale(self.whole or self.data)

    def loss(self, model: EnsembleDynamics, weight: Tensor, size: int, generator: torch.Generator) -> Tensor:
        members, history = model.config.members, model.config.history
        states, commands, rows = batches(self.data, members, size, generator)
        w = torch.gather(weight, 1, rows) if weight.shape[1] > 1 else weight.expand(members, size)
        k = int(torch.randint(self.data.steps, (1,), generator=generator))
        single = step_loss(model, states[:, :, k : k + 2], commands[:, :, k : k + history], w)
        return ROLLOUT * rollout_loss(model, states, commands, self.scale, w) + STEP * single

    def steps(self, model: EnsembleDynamics) -> tuple[Tensor, Tensor, Tensor]:
        m, data, history = model.config.members, self.data, model.config.history
        states, commands = (x.expand(m, *x.shape[1:]) for x in (data.states, data.commands))
        return states[:, :, 0], commands[:, :, :history], states[:, :, 1]

    @torch.no_grad()
    def errors(self, model: EnsembleDynamics) -> Tensor:
        m, data = model.config.members, self.data
        states, commands = (x.expand(m, *x.shape[1:]) for x in (data.states, data.commands))
        path = model.rollout(states[:, :, 0], commands)[..., : states.shape[-1]]
        return _squares((path - states[:, :, 1:]) / self.scale, shared=len(data.states) == 1)

    def where(self, keep: Tensor) -> OfStates:
        d = self.data
        return OfStates(Stretches(d.states[:, keep], d.commands[:, keep], d.block[keep]), self.whole or d)

    def first(self, members: int) -> OfStates:
        d = self.data
        return OfStates(Stretches(d.states[:members], d.commands[:members], d.block), self.whole or d)


@dataclass(frozen=True)
class OfReadings:
    """Windows of readings, for models that look back.

    Attributes:
        data: (N, ...), or (M, N, ...) of simulations.
        later: the windows that begin a step later, aligned; None where only rollouts are known.
        block: (N,).
        whole: what they are a part of; itself if not given.
    """

    data: Recorded
    later: Recorded | None
    block: Tensor
    whole: Recorded | None = None

    @classmethod
    def of(
        cls, model: EnsembleDynamics, episodes: Sequence[Episode], channels: Sequence[str], seconds: float = 0.5
    ) -> OfReadings:
        """Cut windows from recordings, behind the model's own filter.

        Args:
            model: with a lookback.
            episodes: with commanded actions; excluded stretches are left out.
            channels: the observations that are joint positions.
            seconds: that rollouts last [s].

        Raises:
            ModelError: the model does not look back.
            LogError: no window fits.
        """
        if model.encoder is None:
            raise ModelError("the model does not look back: tune it on stretches of states, `from_episodes`")
        steps = max(round(seconds / model.config.timestep), 2)
        now, later, block = step_pairs(episodes, channels, model.config, model.encoder.estimator(), steps)
        return cls(now, later, block)

    @classmethod
    def simulated(
        cls, model: EnsembleDynamics, rehearsal: Rehearsal, period: float, seconds: float = 0.5, seed: int = 0
    ) -> OfReadings:
        """Simulate windows, each member's its own, read through the model's filter: what it may forget.

        Args:
            model: with a lookback.
            rehearsal: simulations, with a draw of the parameters for each member.
            period: between readings [s].
            seconds: that rollouts last [s].
            seed: of states, commands and noise.

        Raises:
            ModelError: the model does not look back, or draws for another number of members.
            NonFiniteError: a simulation diverges.
        """
        if model.encoder is None:
            raise ModelError("the model does not look back: replay stretches of states, `simulate`")
        steps = max(round(seconds / model.config.timestep), 2)
        found = rehearsal.record(
            model.config, model.encoder.estimator(), period, steps=steps, rng=np.random.default_rng(seed)
        )
        return cls(found, None, torch.arange(rehearsal.windows))

    @cached_property
    def scale(self) -> Tensor:
        """(T, D) how far the robot gets in 1 .. T steps, in all of them."""
        return (self.whole or self.data).spread()

    def loss(self, model: EnsembleDynamics, weight: Tensor, size: int, generator: torch.Generator) -> Tensor:
        members = model.config.members
        rows = torch.randint(len(self.block), (members, size), generator=generator)
        w = torch.gather(weight, 1, rows) if weight.shape[1] > 1 else weight.expand(members, size)
        error = self._apart(model, self.data.taken(rows)) / self.scale
        huber = torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")
        return ROLLOUT * (w[..., None, None] * huber).mean()

    def steps(self, model: EnsembleDynamics) -> tuple[Tensor, Tensor, Tensor]:
        if self.later is None:
            raise ModelError("of simulated readings only rollouts are known, not where a step ends")
        history = model.config.history
        size = 2 * model.config.joints
        now, later = (begin(model, w.expanded(model.config.members)) for w in (self.data, self.later))
        return now, self.data.expanded(model.config.members).commands[:, :, :history], later[..., :size]

    @torch.no_grad()
    def errors(self, model: EnsembleDynamics) -> Tensor:
        apart = self._apart(model, self.data.expanded(model.config.members))
        return _squares(apart / self.scale, shared=self.data.state.dim() == 2)

    def where(self, keep: Tensor) -> OfReadings:
        later = None if self.later is None else self.later.where(keep)
        return OfReadings(self.data.where(keep), later, self.block[keep], self.whole or self.data)

    def first(self, members: int) -> OfReadings:
        return OfReadings(self.data.first(members), self.later, self.block, self.whole or self.data)

    @staticmethod
    def _apart(model: EnsembleDynamics, w: Recorded) -> Tensor:
        """Return how far rollouts (M, N, T, D) are from what was measured."""
        return model.rollout(begin(model, w), w.commands)[..., : model.config.joints] - w.positions


def _squares(apart: Tensor, shared: bool) -> Tensor:
    """Return (N,) squared errors of (M, N, T, O): of the members' mean where they share windows, else of each alone."""
    squares = apart.mean(0).square() if shared else apart.square().mean(0)
    return squares.mean((1, 2))


@torch.no_grad()
def begin(model: EnsembleDynamics, w: Recorded) -> Tensor:
    """Return what the frozen encoder makes of windows (M, N, ...)."""
    assert model.encoder is not None
    start: Tensor = model.encoder(w.state, w.past, w.commands[:, :, : model.config.history - 1], model.config.timestep)
    return start
