"""What planners ask: where plans lead from here, by a world model of either kind or by the simulator itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.plant import Plant, RunningPlant
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.transition_ensemble import TransitionEnsemble


class Outlook(Protocol):
    """Foresight from one estimate of n plants."""

    def follow(self, plans: Tensor) -> Tensor:
        """Return where plans lead: (M, C, n, T, A) commands, member m on row m, to (M, C, n, T, X) states."""
        ...


@runtime_checkable
class Foresight(Protocol):
    """Foretells what plans lead to.

    Attributes:
        timestep: of plans [s].
        members: M, that may disagree.
        actions: A, width of a command.
        differentiable: whether gradients pass from states to plans.
    """

    timestep: float
    members: int
    actions: int
    differentiable: bool

    def look(self, estimate: Estimate) -> Outlook:
        """Begin at an estimate of n plants."""
        ...


# What planners plan with.
Model = Foresight | EnsembleDynamics | TransitionEnsemble


def foresight(model: Model) -> Foresight:
    """Return the foresight of a world model; what is one already comes back as it is.

    Raises:
        ModelError: it is something else.
    """
    if isinstance(model, EnsembleDynamics):
        return OfStates(model)
    if isinstance(model, TransitionEnsemble):
        return OfObservations(model)
    if isinstance(model, Foresight):
        return model
    raise ModelError(
        f"expected a world model, or a simulator as `OfSimulator(plant, draws, timestep)`, found {type(model).__name__}"
    )


class OfStates:
    """An `EnsembleDynamics`: states are joint positions and velocities."""

    differentiable = True

    def __init__(self, model: EnsembleDynamics) -> None:
        self.model = model
        self.timestep, self.members = model.config.timestep, model.config.members
        self.actions = model.config.actions

    def look(self, estimate: Estimate) -> Outlook:
        config = self.model.config
        start = self.model.begin(estimate).detach()
        sent = estimate.commands[:, estimate.commands.shape[1] - config.history + 1 :]
        return _FromState(self.model, start, torch.as_tensor(sent, dtype=torch.float32))


class _FromState:
    def __init__(self, model: EnsembleDynamics, start: Tensor, sent: Tensor) -> None:
        self.model, self.start, self.sent = model, start, sent

    def follow(self, plans: Tensor) -> Tensor:
        members, many, n, steps, actions = plans.shape
        start = self.start[:, None].expand(members, many, n, -1).reshape(members, many * n, -1)
        sent = self.sent.expand(members, many, *self.sent.shape).reshape(members, many * n, *self.sent.shape[1:])
        path = self.model.rollout(start, torch.cat([sent, plans.reshape(members, many * n, steps, actions)], 2))
        return path[..., : 2 * self.model.config.joints].reshape(members, many, n, steps, -1)


class OfObservations:
    """The elites of a `TransitionEnsemble`: states are observations, and so is `Estimate.state`."""

    differentiable = True

    def __init__(self, model: TransitionEnsemble) -> None:
        self.timestep = model.config.timestep
        # a copy of the elites alone: the others are not to be asked
        self.model, elites = copy.deepcopy(model), model.elites
        for parameters in (self.model.network.weights, self.model.network.biases):
            for parameter in parameters:
                parameter.data = parameter.data[elites].clone()
        self.members, self.actions = len(elites), model.config.actions

    def look(self, estimate: Estimate) -> Outlook:
        return _FromObservation(self.model, torch.as_tensor(estimate.state, dtype=torch.float32), self.members)


class _FromObservation:
    def __init__(self, model: TransitionEnsemble, start: Tensor, members: int) -> None:
        self.model, self.start, self.members = model, start, members

    def follow(self, plans: Tensor) -> Tensor:
        members, many, n, steps, _ = plans.shape
        state = self.start.expand(members, many, n, -1).reshape(members, many * n, -1)
        sent, path = plans.reshape(members, many * n, steps, -1), []
        for k in range(steps):
            state, _ = self.model.step(state, sent[:, :, k])
            path.append(state)
        return torch.stack(path, -2).reshape(members, many, n, steps, -1)


class OfSimulator:
    """The simulator itself, behind its execution chain, for each of M draws of its parameters.

    Args:
        plant: what is simulated.
        draws: name -> (M,) parameters; those of a posterior, or the best ones alone.
        timestep: of plans [s]; a whole number of the plant's.

    Raises:
        ModelError: the timestep is not whole, or draws are not of one number.
    """

    differentiable = False

    def __init__(self, plant: Plant, draws: Mapping[str, Array], timestep: float) -> None:
        self.plant, self.draws, self.timestep = plant, dict(draws), timestep
        self.substeps = round(timestep / plant.timestep)
        if not math.isclose(self.substeps * plant.timestep, timestep, rel_tol=1e-6):
            raise ModelError(f"plans of {timestep:g} s a step are not whole steps of the plant's {plant.timestep:g} s")
        sizes = {len(v) for v in self.draws.values()} or {1}
        if len(sizes) > 1:
            raise ModelError(f"expected as many draws of every parameter, found {sorted(sizes)}")
        self.members, self.actions = sizes.pop(), plant.actions
        self._running: RunningPlant | None = None

    def look(self, estimate: Estimate) -> Outlook:
        return _FromPlant(self, estimate)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}  # plants at work cannot be sent to another process

    def running(self, each: int) -> RunningPlant:
        """Return plants at work, so many for each draw; the same ones as long as the number stays."""
        if self._running is None or self._running.n != each * self.members:
            draws = {name: np.repeat(np.asarray(v, float), each) for name, v in self.draws.items()}
            self._running = self.plant.start(each * self.members, draws)
        return self._running


class _FromPlant:
    def __init__(self, of: OfSimulator, estimate: Estimate) -> None:
        self.of, self.estimate = of, estimate

    def follow(self, plans: Tensor) -> Tensor:
        members, many, n, steps, actions = plans.shape
        running, times = self.of.running(many * n), members * many
        before = np.repeat(self.estimate.commands, self.of.substeps, 1)
        running.reset(np.tile(self.estimate.state, (times, 1)), np.tile(before, (times, 1, 1)))
        sent = np.repeat(plans.detach().double().numpy().reshape(-1, steps, actions), self.of.substeps, 1)
        states = running.step(sent)[:, self.of.substeps - 1 :: self.of.substeps]
        return torch.as_tensor(states, dtype=torch.float32).reshape(members, many, n, steps, -1)
