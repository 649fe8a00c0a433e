"""The Genesis simulator: n plants of one robot as a `Simulator`, numbers of numpy in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError
from sim2real.randomization.genesis.models import GenesisModels
from sim2real.randomization.genesis.scene import borrow
from sim2real.randomization.mujoco_parameters import MujocoParameters, ParameterizedPlants
from sim2real.randomization.parameters import Array

if TYPE_CHECKING:
    from sim2real.randomization.genesis.model import GenesisModel


class GenesisSimulator(ParameterizedPlants):
    """A `Simulator` of n plants in Genesis, in single precision.

    Args:
        model: the robot.
        n: number of plants.
        timestep: length of a substep [s].

    Raises:
        MissingExtraError: Genesis is not installed.
        RobotError: Genesis cannot read the robot, or reads it otherwise than MuJoCo.

    Example:
        >>> from sim2real.randomization.genesis import GenesisModel
        >>> simulator = GenesisModel("pendulum").simulate(n=3, timestep=0.001)
        >>> simulator.write({"dynamics.payload.mass": np.array([0.5, 0.6, 0.7])})
        >>> simulator.step(np.zeros((3, 10, 1))).shape
        (3, 10, 2)
    """

    def __init__(self, model: GenesisModel, n: int, timestep: float = 0.001) -> None:
        self.model = model
        lease = borrow(model.spec, n, timestep)
        self.scene = lease.scene
        self._parameters = MujocoParameters(model.fields, GenesisModels(lease, model.fields))
        self.set_state(np.tile([*model.mj.qpos0, *np.zeros(model.mj.nv)], (n, 1)))

    @property
    def n(self) -> int:
        return self.scene.n

    @property
    def timestep(self) -> float:
        return self.scene.timestep

    @property
    def degrees_of_freedom(self) -> int:
        return int(self.scene.model.nv)

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        dof = self.degrees_of_freedom
        if np.shape(state) != (self.n, 2 * dof):
            raise ParameterError(f"expected states ({self.n}, {2 * dof}), found {np.shape(state)}")
        rows = np.arange(self.n) if mask is None else np.flatnonzero(mask)
        if len(rows):
            self.scene.set_state(state[rows, :dof], state[rows, dof:], None if len(rows) == self.n else rows)

    def state(self) -> Array:
        positions, velocities = self.scene.state()
        return np.concatenate([positions.cpu().numpy(), velocities.cpu().numpy()], 1).astype(float)

    def step(self, effort: Array) -> Array:
        self._require_finite("effort", effort)
        self._require_finite("state", self.state())
        controls = self.scene.tensor(effort)
        states = []
        for k in range(effort.shape[1]):
            self.scene.step(self.scene.within_range(controls[:, k]))
            states.append(self.state())
        if not states:
            return np.zeros((self.n, 0, 2 * self.degrees_of_freedom))
        self._require_kept(np.flatnonzero(self.scene.lost()))
        return np.stack(states, 1)

    def effective_inertia(self) -> Array:
        return np.asarray(self.scene.resistance()[0].cpu().numpy(), float)

    def bias_effort(self) -> Array:
        return np.asarray(self.scene.resistance()[1].cpu().numpy(), float)
