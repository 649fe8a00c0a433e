"""What makes a learning problem of n plants of one MuJoCo model: observation, reward, termination, start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.parameters import Array

if TYPE_CHECKING:
    import mujoco
    from mujoco.batch import Batch

Rows = slice | NDArray[np.intp]
EVERY: Rows = slice(None)
Infos = dict[str, NDArray[Any]]


class Plants:
    """The fields of n plants as arrays (n, ...), named as in `MjData`: `plants.qpos`, `plants.site_xpos`.

    Derived fields are those that `mj_step` leaves: one substep behind the state, as in Gymnasium's environments.
    """

    def __init__(self, batch: Batch, fields: Sequence[str], contact_forces: bool) -> None:
        import mujoco

        self.batch = batch
        self._contact_forces = contact_forces
        self._arrays = {name: batch.bind(name) for name in ("qpos", "qvel", "ctrl", *fields)}
        if contact_forces:
            self._arrays["cfrc_ext"] = np.zeros((batch.nsim, batch.model.nbody, 6))
            self._scratch = mujoco.MjData(batch.model)

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            found: Array = self._arrays[name]
            return found
        except KeyError:
            raise AttributeError(
                f"the task did not ask for the field {name!r}; it has {', '.join(self._arrays)}"
            ) from None

    def model_field(self, name: str) -> Array:
        """Return a field of the models, (n, ...), as randomized, or (1, ...) where it is the same for all."""
        own = self.batch.expanded(name)
        return np.asarray(getattr(self.batch.model, name)[None] if own is None else own)

    def after_step(self, mask: NDArray[np.bool_]) -> None:
        """Compute what `mj_step` does not: the contact forces of the plants in `mask` (n,), which were stepped."""
        if self._contact_forces:
            import mujoco

            forces = self._arrays["cfrc_ext"]
            for i in np.flatnonzero(mask).tolist():
                self.batch.get_data(i, self._scratch)
                mujoco.mj_rnePostConstraint(self.batch.model, self._scratch)
                forces[i] = self._scratch.cfrc_ext

    def after_reset(self, rows: NDArray[np.intp]) -> None:
        """Forget the contact forces of plants that start anew."""
        if self._contact_forces:
            self._arrays["cfrc_ext"][rows] = 0.0


class Task(ABC):
    """A problem on n plants; arrays have one row a plant.

    Attributes:
        model: compiled model.
        frame_skip: substeps in a control step.
        observation_space, action_space: of one environment.
        fields: of `MjData` that the functions below look at, beside qpos, qvel and ctrl.
        contact_forces: whether they look at `cfrc_ext`, which costs about 15 %.
    """

    model: mujoco.MjModel
    frame_skip: int
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Box
    fields: tuple[str, ...] = ()
    contact_forces: bool = False

    @cached_property
    def dt(self) -> float:
        """Control period [s]."""
        return float(self.model.opt.timestep) * self.frame_skip

    @abstractmethod
    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the positions (nq,) and velocities (nv,) that an episode starts from."""

    @abstractmethod
    def observe(self, plants: Plants, rows: Rows) -> Array:
        """Return the observations (k, O) of the k plants `rows`."""

    def before(self, plants: Plants) -> Any:
        """Return what must be remembered from before a step: (n, ...)."""
        return None

    @abstractmethod
    def outcome(
        self, plants: Plants, before: Any, action: NDArray[Any], observation: Array
    ) -> tuple[Array, NDArray[np.bool_], Infos]:
        """Return rewards (n,), terminations (n,) and infos (name -> (n, ...)) of a step, for all plants."""

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        """Return the infos (name -> (k, ...)) of plants `rows` whose episodes begin."""
        return {}


class FunctionTask(Task):
    """A user's own robot: an MJCF or URDF file (or a packaged robot) and three batched functions.

    Args:
        robot: file or name of a packaged robot, or a compiled `MjModel`.
        observation: `f(plants) -> (n, O)`.
        reward: `f(plants, action) -> (n,)`.
        terminated: `f(plants) -> (n,)` of booleans.
        frame_skip: substeps in a control step.
        fields: of `MjData` that the functions look at, beside qpos, qvel and ctrl.
        noise: half width of the uniform noise on the initial positions and velocities of joints.
        initial: `f(rng) -> (qpos, qvel)`, instead of the pose in the file with noise.

    Example:
        >>> task = FunctionTask(
        ...     "pendulum",
        ...     observation=lambda p: np.concatenate([np.sin(p.qpos), np.cos(p.qpos), p.qvel], 1),
        ...     reward=lambda p, action: -np.cos(p.qpos[:, 0]),
        ...     terminated=lambda p: np.zeros(len(p.qpos), bool),
        ... )
        >>> task.observation_space.shape
        (3,)
    """

    def __init__(
        self,
        robot: str | Path | mujoco.MjModel,
        *,
        observation: Callable[[Plants], Array],
        reward: Callable[[Plants, NDArray[Any]], Array],
        terminated: Callable[[Plants], NDArray[np.bool_]],
        frame_skip: int = 1,
        fields: Sequence[str] = (),
        noise: float = 0.01,
        initial: Callable[[np.random.Generator], tuple[Array, Array]] | None = None,
    ) -> None:
        import mujoco
        from mujoco.batch import DATA_FIELDS, Batch

        from sim2real.randomization.mujoco_model import load_mujoco

        self.model = robot if isinstance(robot, mujoco.MjModel) else load_mujoco(robot)
        if not isinstance(frame_skip, int) or frame_skip < 1:
            raise ParameterError(f"frame_skip is a whole number of substeps, at least 1; found {frame_skip!r}")
        if not noise >= 0:
            raise ParameterError(f"noise cannot be negative, found {noise!r}")
        self.frame_skip, self.fields = frame_skip, tuple(fields)
        for name in fields:
            if name not in DATA_FIELDS and name != "cfrc_ext":
                raise ParameterError(f"MjData has no field {name!r}{did_you_mean(name, DATA_FIELDS)}")
        self.contact_forces = "cfrc_ext" in fields
        self.fields = tuple(name for name in fields if name != "cfrc_ext")
        self._observation, self._reward, self._terminated = observation, reward, terminated
        self._noise, self._initial = noise, initial
        limits = self.model.actuator_ctrlrange.astype(np.float32)
        free = ~self.model.actuator_ctrllimited.astype(bool)
        limits[free] = (-np.inf, np.inf)
        self.action_space = gym.spaces.Box(limits[:, 0], limits[:, 1], dtype=np.float32)
        tried = Batch(self.model, 2, persistent=self.contact_forces)
        tried.reset()
        plants = Plants(tried, self.fields, self.contact_forces)
        seen = np.asarray(observation(plants))
        if seen.ndim != 2 or len(seen) != 2:
            raise ParameterError(f"observation(plants) must return (n, O), found shape {seen.shape} for n = 2")
        action = np.zeros((2, self.model.nu), np.float32)
        for what, value in (("reward", reward(plants, action)), ("terminated", terminated(plants))):
            if np.shape(value) != (2,):
                raise ParameterError(f"{what} must return (n,), found shape {np.shape(value)} for n = 2")
        if np.asarray(terminated(plants)).dtype != np.bool_:
            raise ParameterError("terminated(plants) must return booleans")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, seen.shape[1:], dtype=np.float64)

    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        if self._initial is not None:
            return self._initial(rng)
        import mujoco

        qpos = self.model.qpos0 + rng.uniform(-self._noise, self._noise, self.model.nq)
        mujoco.mj_normalizeQuat(self.model, qpos)
        return qpos, rng.uniform(-self._noise, self._noise, self.model.nv)

    def observe(self, plants: Plants, rows: Rows) -> Array:
        return np.array(np.asarray(self._observation(plants), float)[rows])  # a copy: it may be a view of the plants

    def outcome(
        self, plants: Plants, before: Any, action: NDArray[Any], observation: Array
    ) -> tuple[Array, NDArray[np.bool_], Infos]:
        return np.array(self._reward(plants, action), float), np.array(self._terminated(plants), bool), {}


def check_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return `value`, or raise a ParameterError unless it is a mapping of names."""
    if not isinstance(value, Mapping):
        raise ParameterError(f"{what} is {{name: value}}, found {value!r}")
    return value
