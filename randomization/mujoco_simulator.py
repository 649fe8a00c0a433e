"""The MuJoCo simulator: n plants of one model on `mujoco.batch.Batch`, each with its own parameters."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError
from sim2real.randomization.mujoco_model import RobotModel
from sim2real.randomization.mujoco_parameters import BatchModels, MujocoParameters, ParameterizedPlants
from sim2real.randomization.parameters import Array


def available_threads() -> int:
    """Number of CPU cores that this process may use; `SIM2REAL_THREADS` overrides it."""
    return int(os.environ.get("SIM2REAL_THREADS") or len(os.sched_getaffinity(0)))


class MujocoSimulator(ParameterizedPlants):
    """A `Simulator` of n plants, stepped on threads.

    Semi-implicit Euler at `timestep`, whatever the file says, so that every plant of the toolkit integrates alike.

    Args:
        model: the robot.
        n: number of plants.
        timestep: length of a substep [s].
        threads: threads to step on; 0 means all the cores of this process.

    Example:
        >>> simulator = MujocoSimulator(RobotModel("pendulum"), n=3)
        >>> simulator.write({"dynamics.payload.mass": np.array([0.5, 0.6, 0.7])})
        >>> simulator.step(np.zeros((3, 10, 1))).shape
        (3, 10, 2)
    """

    def __init__(self, model: RobotModel, n: int, timestep: float = 0.001, threads: int = 0) -> None:
        import copy

        import mujoco
        from mujoco.batch import Batch

        self.model = model
        compiled = copy.copy(model.mj)
        compiled.opt.timestep = timestep
        compiled.opt.integrator = int(mujoco.mjtIntegrator.mjINT_EULER)
        self._batch = Batch(compiled, n, nthread=threads or available_threads())
        self._qpos, self._qvel = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._state_spec = int(mujoco.mjtState.mjSTATE_QPOS | mujoco.mjtState.mjSTATE_QVEL)
        self._compiled = compiled
        self._parameters = MujocoParameters(model.fields, BatchModels(self._batch))

    @property
    def n(self) -> int:
        return int(self._batch.nsim)

    @property
    def timestep(self) -> float:
        return float(self._compiled.opt.timestep)

    @property
    def degrees_of_freedom(self) -> int:
        return int(self._compiled.nv)

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        if state.shape != (self.n, 2 * self.degrees_of_freedom):
            raise ParameterError(f"expected states ({self.n}, {2 * self.degrees_of_freedom}), found {state.shape}")
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        dof = self.degrees_of_freedom
        self._qpos[rows], self._qvel[rows] = state[rows, :dof], state[rows, dof:]

    def fill_delays(self, before: Array) -> None:
        """Fill the delay lines of the actuators, where there are any, with the efforts `before` (n, B, A) this instant.

        One a substep, the last one just before now; before the first, and in plants that are only put into a state,
        zeros.
        """
        m = self._compiled
        if not m.nhistory:
            return
        history, time = self._batch.bind("history"), self._batch.bind("time")
        for k in np.flatnonzero(m.actuator_history[:, 0]):
            # a number of the user's, where the newest is, times, efforts
            size, start = int(m.actuator_history[k, 0]), int(m.actuator_historyadr[k])
            line = np.zeros((self.n, size))
            if before.shape[1]:
                line[:, max(size - before.shape[1], 0) :] = before[:, -size:, k]
            history[:, start + 1] = size - 1
            times = np.reshape(time, (self.n, 1)) + np.arange(-size, 0) * self.timestep
            history[:, start + 2 : start + 2 + size] = times
            history[:, start + 2 + size : start + 2 + 2 * size] = line

    def state(self) -> Array:
        return np.concatenate([self._qpos, self._qvel], 1)

    def step(self, effort: Array) -> Array:
        self._require_finite("effort", effort)
        self._require_finite("state", self.state())
        warned = self._batch.warning[..., 1].sum(1)  # how often each kind was raised
        out: Array = self._batch.rollout(effort.shape[1], effort, record=(self._state_spec,))[self._state_spec]
        # MuJoCo puts a plant that diverges back to rest, which looks finite: only its warnings tell
        self._require_kept(np.flatnonzero(self._batch.warning[..., 1].sum(1) > warned))
        return out

    def effective_inertia(self) -> Array:
        import mujoco

        stored = self._batch.bind("M")  # before `forward`, which fills what is bound
        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        return effective_inertia(self._compiled, stored)

    def bias_effort(self) -> Array:
        import mujoco

        bias, passive = self._batch.bind("qfrc_bias"), self._batch.bind("qfrc_passive")
        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_VEL))
        return np.array(bias - passive)


def effective_inertia(model: Any, stored: Array) -> Array:
    """Return the inertia that each degree of freedom shows to an effort of its own: (n, V).

    Args:
        model: MuJoCo's.
        stored: (n, nC) joint space inertias, as MuJoCo's `M` holds them.
    """
    dof = int(model.nv)
    rows, columns = np.repeat(np.arange(dof), model.M_rownnz), model.M_colind
    inertia = np.zeros((len(stored), dof, dof))
    inertia[:, rows, columns] = inertia[:, columns, rows] = stored
    return np.asarray(1.0 / np.diagonal(np.linalg.inv(inertia), axis1=1, axis2=2))
