"""What a model is told of a robot before it sees recordings: simulations of it, read as recordings are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.kalman import KalmanFilter
from sim2real.plant import Plant, Values, require_finite
from sim2real.world_model.ensemble import EnsembleConfig
from sim2real.world_model.excitation import Excitation
from sim2real.world_model.windows import WARMUP, Recorded

# The weakest commands are this share of the strongest: logarithmically uniform between.
WEAKEST = 0.05


@dataclass(frozen=True)
class Rehearsal:
    """Simulations of a plant, each member of an ensemble its own, whose parameters are a draw from what is known.

    So the members disagree where the parameters are uncertain, until recordings decide.

    Attributes:
        plant: the simulated robot, with its execution chain.
        draws: name -> (M,) parameters, one a member.
        excitation: commands and states that simulations start from; random commands are scaled down at random.
        windows: N, of each member.
    """

    plant: Plant
    draws: Values
    excitation: Excitation
    windows: int = 2000

    def record(
        self,
        config: EnsembleConfig,
        estimator: KalmanFilter,
        period: float,
        *,
        steps: int,
        rng: np.random.Generator,
    ) -> Recorded:
        """Simulate N windows of T steps a member: (M, N, ...).

        Args:
            config: of the model.
            estimator: that every window starts behind; readings are as noisy as it says.
            period: between readings [s].
            steps: T.
            rng: of states, commands and noise.

        Raises:
            ModelError: draws for another number of members, or a timestep that is not whole substeps.
            NonFiniteError: a simulation diverges.
        """
        members = len(next(iter(self.draws.values()), ()))
        if members != config.members:
            raise ModelError(f"a rehearsal takes a draw a member: expected {config.members}, found {members}")
        substeps = round(config.timestep / self.plant.timestep)
        if not math.isclose(substeps * self.plant.timestep, config.timestep, rel_tol=1e-6):
            raise ModelError(
                f"the model's timestep must be a whole number of the plant's {self.plant.timestep:g} s, "
                f"found {config.timestep:g} s"
            )
        every = max(round(period / self.plant.timestep), 1)
        back = max(
            math.ceil(WARMUP / config.timestep), config.lookback + math.ceil(every / substeps), config.history - 1
        )
        many = members * self.windows
        commands, states = self.excitation.draw(rng, many, back + steps, WEAKEST)
        path = self._simulate(states, commands, substeps)
        start = back * substeps - 1
        readings = path[:, start % every : start + 1 : every]
        readings = readings + estimator.noise * rng.normal(size=readings.shape)
        estimator.reset(readings[:, 0])
        nothing = np.zeros((many, 0))
        for k in range(1, readings.shape[1]):
            state = estimator.update(every * self.plant.timestep, readings[:, k], nothing)
        at = (start - substeps * np.arange(config.lookback, 0, -1) - start % every) / every
        low, between = at.astype(int), (at % 1)[:, None]
        past = (1 - between) * readings[:, low] + between * readings[:, low + 1]
        known = commands[:, back - config.history + 1 :]
        after = path[:, start + substeps :: substeps]

        def shaped(values: Array) -> torch.Tensor:
            return torch.as_tensor(values.reshape(members, self.windows, *values.shape[1:]), dtype=torch.float32)

        return Recorded(*map(shaped, (state, past, known, after)))

    def _simulate(self, states: Array, commands: Array, substeps: int) -> Array:
        """Return positions after each substep (n, K * substeps, D) from states (n, X) under commands (n, K, A)."""
        running = self.plant.start(len(commands), {k: np.repeat(v, self.windows) for k, v in self.draws.items()})
        filling = max(round(self.plant.filling / self.plant.timestep), 1)
        running.reset(states, np.repeat(commands[:, :1], filling, 1))
        joints = states.shape[1] // 2
        path = [running.step(np.repeat(row[:, None], substeps, 1))[..., :joints] for row in commands.swapaxes(0, 1)]
        return require_finite(np.concatenate(path, 1), "the simulated motion")
