"""The MuJoCo simulator: n plants of one model on `mujoco.batch.Batch`, each with its own parameters."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import NonFiniteError, ParameterError
from sim2real.randomization.mujoco_model import RobotModel
from sim2real.randomization.parameters import Array, Values, check_values


def available_threads() -> int:
    """Number of CPU cores that this process may use; `SIM2REAL_THREADS` overrides it."""
    return int(os.environ.get("SIM2REAL_THREADS") or len(os.sched_getaffinity(0)))


class MujocoSimulator:
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
        self._written: set[str] = set()

    @property
    def n(self) -> int:
        return int(self._batch.nsim)

    @property
    def timestep(self) -> float:
        return float(self._compiled.opt.timestep)

    @property
    def degrees_of_freedom(self) -> int:
        return int(self._compiled.nv)

    def nominal(self) -> dict[str, float]:
        return dict(self.model.nominal)

    def units(self) -> dict[str, str]:
        return {name: address.unit for name, address in self.model.addresses.items()}

    def write(self, values: Values, mask: NDArray[np.bool_] | None = None) -> None:
        """Write values (name -> (n,)), let inertias follow masses, recompute derived constants, and read back."""
        check_values(values, self.model.addresses, self.n)
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        values = {name: np.asarray(value, float) for name, value in values.items()}
        for name, value in values.items():  # all are checked before the first is written
            address, nominal = self.model.address(name), self.model.nominal[name]
            if name.endswith((".mass", ".armature", ".damping", ".frictionloss")) and (value[rows] < 0).any():
                raise ParameterError(f"{name}: cannot be negative, found {value[rows].min():g} {address.unit}")
            if address.follower and nominal <= 0:
                raise ParameterError(f"{name}: its inertia cannot follow a nominal mass of {nominal:g} kg")
        for name, value in values.items():
            address = self.model.address(name)
            self._batch.expand(address.field)[(rows, *address.index)] = address.sign * value[rows]
            if address.follower:
                # always against the nominal row, so that writing twice is writing once
                row = self.model.nominal_row(address.follower)[address.index]
                factor = value[rows] / self.model.nominal[name]
                self._batch.expand(address.follower)[(rows, *address.index)] = row * factor[:, None]
            self._written.add(name)
        if values and rows.any():
            self._batch.set_const(np.flatnonzero(rows).astype(np.int32))
        in_force = self.read()
        for name, value in values.items():
            if not np.array_equal(in_force[name][rows], value[rows]):
                raise ParameterError(f"{name}: wrote {value[rows][0]:g}, but {in_force[name][rows][0]:g} is in force")

    def read(self) -> dict[str, Array]:
        out = {name: np.full(self.n, value) for name, value in self.model.nominal.items()}
        for name in self._written:
            address = self.model.address(name)
            field = self._batch.expanded(address.field)
            assert field is not None
            out[name] = address.sign * field[(slice(None), *address.index)].astype(float)
        return out

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        dof = self.degrees_of_freedom
        self._qpos[rows], self._qvel[rows] = state[rows, :dof], state[rows, dof:]

    def state(self) -> Array:
        return np.concatenate([self._qpos, self._qvel], 1)

    def step(self, effort: Array) -> Array:
        self._require_finite("effort", effort)
        self._require_finite("state", self.state())
        warned = self._batch.warning[..., 1].sum(1)  # how often each kind was raised
        out: Array = self._batch.rollout(effort.shape[1], effort, record=(self._state_spec,))[self._state_spec]
        # MuJoCo puts a plant that diverges back to rest, which looks finite: only its warnings tell
        diverged = np.flatnonzero(self._batch.warning[..., 1].sum(1) > warned)
        if len(diverged):
            raise NonFiniteError(f"plant {diverged[0]} left the finite numbers{self._written_values(diverged[0])}")
        return out

    def _require_finite(self, what: str, value: Array) -> None:
        import mujoco

        # MuJoCo takes what is larger than its mjMAXVAL for infinite, and replaces it by zero
        bad = ~(np.abs(value) <= mujoco.mjMAXVAL).reshape(self.n, -1).all(1)
        if bad.any():
            plant = int(bad.argmax())
            raise NonFiniteError(f"plant {plant} has a {what} that is not finite{self._written_values(plant)}")

    def _written_values(self, plant: int) -> str:
        values = [f"{k}={v[plant]:g}" for k, v in self.read().items() if k in self._written]
        return f"; its parameters: {', '.join(values)}" if values else ""

    def effective_inertia(self) -> Array:
        import mujoco

        stored = self._batch.bind("M")  # before `forward`, which fills what is bound
        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        dof = self.degrees_of_freedom
        rows, columns = np.repeat(np.arange(dof), self._compiled.M_rownnz), self._compiled.M_colind
        inertia = np.zeros((self.n, dof, dof))
        inertia[:, rows, columns] = inertia[:, columns, rows] = stored
        return np.asarray(1.0 / np.diagonal(np.linalg.inv(inertia), axis1=1, axis2=2))

    def bias_effort(self) -> Array:
        import mujoco

        bias, passive = self._batch.bind("qfrc_bias"), self._batch.bind("qfrc_passive")
        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_VEL))
        return np.array(bias - passive)
