"""What world models learn from: stretches of states and commands on the model's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array, Episode, resample
from sim2real.errors import LogError
from sim2real.estimation import centred_state
from sim2real.plant import Plant, Values, require_finite
from sim2real.windows import joint_positions
from sim2real.world_model.excitation import Excitation

# Commands are averaged over a step of the model from so many instants of it.
FINE = 8


@dataclass(frozen=True)
class Stretches:
    """N stretches of T steps, for M members each (1 where all members share them), float32.

    Attributes:
        states: (M, N, T + 1, X).
        commands: (M, N, L - 1 + T, A): the history before the first state, then one command a step.
        block: (N,) the block of time a stretch comes from, for bootstraps.
    """

    states: Tensor
    commands: Tensor
    block: Tensor

    @property
    def steps(self) -> int:
        return self.states.shape[2] - 1


def simulate(
    plant: Plant,
    draws: Values,
    excitation: Excitation,
    *,
    stretches: int,
    steps: int,
    history: int,
    timestep: float,
    rng: np.random.Generator,
) -> Stretches:
    """Simulate stretches for each of M draws of the plant's parameters: one draw a member.

    So each member learns one plant that the data allow, and the members' disagreement is the posterior's spread.

    Args:
        plant: the simulated robot.
        draws: name -> (M,) parameters.
        excitation: initial states and commands.
        stretches: N, for each member.
        steps: T, of the model's clock.
        history: L.
        timestep: of the model [s].
        rng: generator.
    """
    members = len(next(iter(draws.values())))
    n = members * stretches
    substeps = round(timestep / plant.timestep)
    running = plant.start(n, {k: np.repeat(v, stretches) for k, v in draws.items()})
    commands, start = excitation.draw(rng, n, history - 1 + steps, before=history - 1)
    # the chain wants more than the network's history: what came before that was the first command
    lead = np.repeat(commands[:, :1], 5, 1)
    before = np.repeat(np.concatenate([lead, commands[:, : history - 1]], 1), substeps, 1)
    running.reset(start, before)
    path = [start]
    for k in range(history - 1, commands.shape[1]):
        path.append(running.step(np.repeat(commands[:, k : k + 1], substeps, 1))[:, -1])
    states = require_finite(np.stack(path, 1), "the simulated motion")

    def shaped(values: Array) -> Tensor:
        return torch.as_tensor(values.reshape(members, stretches, *values.shape[1:]), dtype=torch.float32)

    return Stretches(shaped(states), shaped(commands), torch.arange(stretches))


def step_commands(episode: Episode, begin: Array, back: int, steps: int, timestep: float) -> Array:
    """Return the mean command of each step of the model, (N, back + steps, A): `back` steps before N instants, then on.

    Args:
        episode: the recording.
        begin: (N,) on its clock [s].
        back: steps before.
        steps: steps from there.
        timestep: of the model [s].
    """
    clock = timestep * (np.arange(-back * FINE, steps * FINE) + 0.5) / FINE
    fine = episode.commands_at(begin[:, None] + clock)
    return np.asarray(fine.reshape(len(begin), back + steps, FINE, -1).mean(2))


def from_episodes(
    episodes: Sequence[Episode],
    channels: Sequence[str],
    *,
    steps: int,
    history: int,
    timestep: float,
    stride: int = 2,
    block: float = 1.0,
) -> Stretches:
    """Cut recordings into overlapping stretches on the model's clock, shared by all members.

    States are two-sided local parabolas through the positions: allowed for training targets, never for predictions.

    Args:
        episodes: with commanded actions; excluded stretches are left out.
        channels: the observations that are joint positions.
        steps: T.
        history: L.
        timestep: of the model [s].
        stride: between stretch starts [steps].
        block: of time, for bootstraps [s].

    Raises:
        LogError: no stretch fits.
    """
    states, commands, blocks = [], [], []
    first_block = 0
    for episode in episodes:
        clock, state = centred_state(episode.observed_at, joint_positions(episode, channels), timestep)
        u = resample(episode, timestep).actions
        last = min(len(state) - 1, len(u)) - steps
        margin = max(0.02, 3 * episode.period)  # states are fitted through the samples around them
        for k in range(history - 1, last + 1, stride):
            a, b = k - history + 1, k + steps
            if episode.is_excluded(clock[a] - margin, clock[b] + margin):
                continue
            states.append(state[k : b + 1])
            commands.append(u[a:b])
            blocks.append(first_block + int((clock[k] - clock[0]) / block))
        first_block = max(blocks, default=0) + 1
    if not states:
        names = ", ".join(e.name for e in episodes) or "none"
        raise LogError(f"no stretch of {steps * timestep:g} s fits the recordings ({names}) to learn from")
    return Stretches(
        torch.as_tensor(np.stack(states), dtype=torch.float32)[None],
        torch.as_tensor(np.stack(commands), dtype=torch.float32)[None],
        torch.as_tensor(blocks),
    )
