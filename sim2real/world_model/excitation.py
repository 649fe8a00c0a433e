"""How simulated robots are excited before a world model learns from them: at random, or as recordings were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim2real.episodes import Array, Episode, resample
from sim2real.errors import ModelError
from sim2real.estimation import centred_state
from sim2real.windows import joint_positions

# Around a recorded state, simulations start within this share of where they start at random.
AROUND = 0.1


@dataclass(frozen=True)
class Driven:
    """How a recording was driven, on a model's clock.

    Attributes:
        states: (K, X) at the beginning of each step.
        commands: (K, A) in each step.
    """

    states: Array
    commands: Array

    @classmethod
    def of(cls, episodes: Sequence[Episode], channels: Sequence[str], timestep: float) -> tuple[Driven, ...]:
        """Return how each of some recordings was driven, between excluded stretches.

        Args:
            episodes: with commanded actions.
            channels: the observations that are joint positions.
            timestep: of the model [s].
        """
        out = []
        for episode in episodes:
            clock, states = centred_state(episode.observed_at, joint_positions(episode, channels), timestep)
            commands = resample(episode, timestep).actions
            steps = min(len(states), len(commands))
            usable = ~episode.is_excluded(clock[:steps], clock[:steps] + timestep)
            begun = np.flatnonzero(usable & ~np.concatenate([[False], usable[:-1]]))
            ended = np.flatnonzero(usable & ~np.concatenate([usable[1:], [False]])) + 1
            out += [cls(states[a:b], commands[a:b]) for a, b in zip(begun, ended, strict=True)]
        return tuple(out)


@dataclass(frozen=True)
class Excitation:
    """Commands and initial states of simulations: a share of them as recordings have it, the others at random.

    Random commands suit a motor's torque. Where commands are modes, gains or the goals of a controller, only recordings
    know which go together.

    Attributes:
        command: (A,) largest command [effort].
        velocity: (D,) standard deviation of the initial velocities [rad/s or m/s].
        position: (D,) half width of the uniform initial positions [rad or m].
        recorded: of recordings.
        share: of the simulations that start near a recorded state, under the commands that followed it.

    Raises:
        ModelError: a share outside 0 to 1, or above zero without a recording.
    """

    command: tuple[float, ...]
    velocity: tuple[float, ...]
    position: tuple[float, ...]
    recorded: tuple[Driven, ...] = ()
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or (self.share > 0 and not self.recorded):
            raise ModelError(
                f"expected a share of recorded commands from 0 to 1, and recordings where it is above 0; found "
                f"{self.share:g} and {len(self.recorded)} recordings"
            )

    def draw(
        self, rng: np.random.Generator, n: int, steps: int, weakest: float = 1.0, before: int = 0
    ) -> tuple[Array, Array]:
        """Draw (n, steps, A) commands and (n, X) initial states.

        Args:
            rng: generator.
            n: how many.
            steps: of the model; a recording that is shorter holds its last command.
            weakest: random commands are scaled by this to 1, logarithmically uniform.
            before: so many commands come before the states.
        """
        commands = self._commands(rng, n, steps)
        if weakest < 1:
            commands *= weakest ** rng.uniform(size=(n, 1, 1))
        position = rng.uniform(-1, 1, (n, len(self.position))) * np.asarray(self.position)
        states = np.concatenate([position, rng.normal(size=position.shape) * np.asarray(self.velocity)], 1)
        if self.share > 0:
            some = np.flatnonzero(rng.uniform(size=n) < self.share)
            commands[some], near = self._recorded(rng, len(some), steps, before)
            states[some] = near + AROUND * states[some]
        return commands, states

    def _commands(self, rng: np.random.Generator, n: int, steps: int) -> Array:
        """Draw held values of random length plus white noise of random strength, clipped."""
        amplitude = np.asarray(self.command)
        out = np.empty((n, steps, len(amplitude)))
        level = rng.uniform(-1.2, 1.2, (n, len(amplitude)))
        rate = rng.uniform(0.02, 0.5, (n, 1))
        rough = rng.choice([0.0, 0.1, 0.6], (n, 1))
        for k in range(steps):
            change = rng.uniform(size=(n, 1)) < rate
            level = np.where(change, rng.uniform(-1.2, 1.2, level.shape), level)
            out[:, k] = np.clip(level + rough * rng.normal(size=level.shape), -1, 1) * amplitude
        return out

    def _recorded(self, rng: np.random.Generator, n: int, steps: int, before: int) -> tuple[Array, Array]:
        """Draw stretches of recordings, each with equal chance: (n, steps, A) and (n, X)."""
        starts = [max(len(d.commands) - steps, 0) + 1 for d in self.recorded]
        chosen = rng.integers(sum(starts), size=n)
        which = np.searchsorted(np.cumsum(starts), chosen, side="right")
        first = chosen - np.concatenate([[0], np.cumsum(starts)])[which]
        commands = np.empty((n, steps, len(self.command)))
        states = np.empty((n, 2 * len(self.position)))
        for k, one in enumerate(self.recorded):
            mine = np.flatnonzero(which == k)
            rows = np.minimum(first[mine, None] + np.arange(steps), len(one.commands) - 1)
            commands[mine], states[mine] = one.commands[rows], one.states[rows[:, before]]
        return commands, states
