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
        for name, value in values.items():
            address = self.model.address(name)
            if name.endswith((".mass", ".armature", ".damping", ".frictionloss")) and (value[rows] < 0).any():
                raise ParameterError(f"{name}: cannot be negative, found {value[rows].min():g} {address.unit}")
            self._batch.expand(address.field)[(rows, *address.index)] = address.sign * value[rows]
            if address.follower:
                # always against the nominal row, so that writing twice is writing once
                nominal = self.model.nominal[name]
                if nominal <= 0:
                    raise ParameterError(f"{name}: its inertia cannot follow a nominal mass of {nominal:g} kg")
                row = self.model.nominal_row(address.follower)[address.index]
                self._batch.expand(address.follower)[(rows, *address.index)] = row * (value[rows] / nominal)[:, None]
            self._written.add(name)
        if values:
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
        rows = slice(None) if mask is None else np.asarray(mask, bool)
        dof = self.degrees_of_freedom
        self._qpos[rows], self._qvel[rows] = state[..., :dof], state[..., dof:]

    def state(self) -> Array:
        return np.concatenate([self._qpos, self._qvel], 1)

    def step(self, effort: Array) -> Array:
        out: Array = self._batch.rollout(effort.shape[1], effort, record=(self._state_spec,))[self._state_spec]
        if not np.isfinite(out[:, -1]).all():
            plant = int(np.flatnonzero(~np.isfinite(out[:, -1]).all(-1))[0])
            raise NonFiniteError(
                f"plant {plant} left the finite numbers; its parameters: "
                + ", ".join(f"{k}={v[plant]:g}" for k, v in self.read().items() if k in self._written)
            )
        return out

    def effective_inertia(self) -> Array:
        import mujoco

        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        diagonal = self._compiled.M_rowadr + self._compiled.M_rownnz - 1
        return np.array(self._batch.bind("M")[:, diagonal])

    def bias_effort(self) -> Array:
        import mujoco

        self._batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_VEL))
        return np.array(self._batch.bind("qfrc_bias") - self._batch.bind("qfrc_passive"))
