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
# Arrays, or tensors of an engine of tensors.
Infos = dict[str, Any]


class Plants:
    """The fields of n plants as arrays (n, ...), named as in `MjData`: `plants.qpos`, `plants.site_xpos`.

    `plants.goal` (n, G) is what the present episodes aim at, where the task draws goals. Derived fields are those that
    `mj_step` leaves: one substep behind the state, as in Gymnasium's environments.
    """

    def __init__(self, batch: Batch, fields: Sequence[str], contact_forces: bool, goals: int = 0) -> None:
        import mujoco

        self.batch = batch
        self._contact_forces = contact_forces
        self._arrays = {name: batch.bind(name) for name in ("qpos", "qvel", "ctrl", *fields)}
        if goals:
            self._arrays["goal"] = np.zeros((batch.nsim, goals))
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
                f"the task did not ask for the field {name!r} (fields=({name!r},), or goal= for goals); it has "
                f"{', '.join(self._arrays)}"
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
        goals: how many numbers say what an episode aims at; see `goal`.
    """

    model: mujoco.MjModel
    frame_skip: int
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Box
    fields: tuple[str, ...] = ()
    contact_forces: bool = False
    goals: int = 0

    @cached_property
    def dt(self) -> float:
        """Control period [s]."""
        return float(self.model.opt.timestep) * self.frame_skip

    @abstractmethod
    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the positions (nq,) and velocities (nv,) that an episode starts from."""

    def goal(self, rng: np.random.Generator) -> Array:
        """Return what an episode aims at (goals,), drawn after its start."""
        return np.zeros(0)

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

    With `torch=True` the functions are given tensors and return tensors, and the same task runs on MuJoCo (float64, on
    the CPU) and on Genesis (float32, on its device).

    Args:
        robot: file or name of a packaged robot, an `MjSpec`, or a compiled `MjModel`.
        observation: `f(plants) -> (n, O)`.
        reward: `f(plants, action) -> (n,)`.
        terminated: `f(plants) -> (n,)` of booleans.
        frame_skip: substeps in a control step.
        fields: of `MjData` that the functions look at, beside qpos, qvel and ctrl.
        noise: half width of the uniform noise on the initial positions and velocities of joints.
        initial: `f(rng) -> (qpos, qvel)`, instead of the pose in the file with noise.
        goal: `f(rng) -> (G,)`, what an episode aims at; the functions see it as `plants.goal` (n, G).
        torch: whether the functions take and return tensors.

    Attributes:
        spec: the robot as a description that Genesis can read, too; None for a compiled `MjModel`. Genesis sees nothing
            of changes to `model` after it was compiled.

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
        robot: str | Path | mujoco.MjModel | mujoco.MjSpec,
        *,
        observation: Callable[[Any], Any],
        reward: Callable[[Any, Any], Any],
        terminated: Callable[[Any], Any],
        frame_skip: int = 1,
        fields: Sequence[str] = (),
        noise: float = 0.01,
        initial: Callable[[np.random.Generator], tuple[Array, Array]] | None = None,
        goal: Callable[[np.random.Generator], Array] | None = None,
        torch: bool = False,
    ) -> None:
        import mujoco
        from mujoco.batch import DATA_FIELDS, Batch

        from sim2real.randomization.mujoco_model import compiled, load_spec

        self.spec: mujoco.MjSpec | None = None
        if isinstance(robot, mujoco.MjModel):
            self.model = robot
        else:
            self.spec = robot.copy() if isinstance(robot, mujoco.MjSpec) else load_spec(robot)
            self.model = compiled(self.spec, "the robot" if isinstance(robot, mujoco.MjSpec) else robot)
        self.torch = torch
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
        self._noise, self._initial, self._goal = noise, initial, goal
        self.goals = 0 if goal is None else len(np.atleast_1d(goal(np.random.default_rng(0))))
        limits = self.model.actuator_ctrlrange.astype(np.float32)
        free = ~self.model.actuator_ctrllimited.astype(bool)
        limits[free] = (-np.inf, np.inf)
        self.action_space = gym.spaces.Box(limits[:, 0], limits[:, 1], dtype=np.float32)
        tried = Batch(self.model, 2, persistent=self.contact_forces)
        tried.reset()
        plants = self._shown(Plants(tried, self.fields, self.contact_forces, self.goals))
        seen = self._plain(observation(plants), "observation")
        if seen.ndim != 2 or len(seen) != 2:
            raise ParameterError(f"observation(plants) must return (n, O), found shape {seen.shape} for n = 2")
        action = self._acted(np.zeros((2, self.model.nu), np.float32))
        for what, value in (("reward", reward(plants, action)), ("terminated", terminated(plants))):
            if (shape := self._plain(value, what).shape) != (2,):
                raise ParameterError(f"{what} must return (n,), found shape {shape} for n = 2")
        if self._plain(terminated(plants), "terminated").dtype != np.bool_:
            raise ParameterError("terminated(plants) must return booleans")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, seen.shape[1:], dtype=np.float64)

    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        if self._initial is not None:
            return self._initial(rng)
        import mujoco

        qpos = self.model.qpos0 + rng.uniform(-self._noise, self._noise, self.model.nq)
        mujoco.mj_normalizeQuat(self.model, qpos)
        return qpos, rng.uniform(-self._noise, self._noise, self.model.nv)

    def goal(self, rng: np.random.Generator) -> Array:
        return super().goal(rng) if self._goal is None else np.atleast_1d(self._goal(rng))

    def observe(self, plants: Plants, rows: Rows) -> Array:
        # a copy: it may be a view of the plants
        return np.array(np.asarray(self._plain(self._observation(self._shown(plants)), "observation"), float)[rows])

    def outcome(
        self, plants: Plants, before: Any, action: NDArray[Any], observation: Array
    ) -> tuple[Array, NDArray[np.bool_], Infos]:
        shown, acted = self._shown(plants), self._acted(action)
        reward, ended = self._plain(self._reward(shown, acted), "reward"), self._terminated(shown)
        return np.array(reward, float), np.array(self._plain(ended, "terminated"), bool), {}

    def tensors(self, plants: Any, action: Any = None) -> tuple[Any, ...]:
        """Return the observation alone, or with an action the observation, the reward and the termination, as tensors.

        Args:
            plants: whose fields are tensors.
            action: (n, A), a tensor.
        """
        if action is None:
            return (self._observation(plants),)
        return self._observation(plants), self._reward(plants, action), self._terminated(plants)

    def _shown(self, plants: Plants) -> Any:
        return TensorPlants(plants) if self.torch else plants

    def _acted(self, action: NDArray[Any]) -> Any:
        if not self.torch:
            return action
        import torch

        return torch.as_tensor(action)

    def _plain(self, value: Any, what: str) -> NDArray[Any]:
        if self.torch and not hasattr(value, "detach"):
            raise ParameterError(f"{what} of a task with torch=True must return a tensor, found {type(value).__name__}")
        return value.detach().numpy() if self.torch else np.asarray(value)


class TensorPlants:
    """The fields of n plants as tensors."""

    def __init__(self, plants: Plants) -> None:
        self._plants = plants

    def __getattr__(self, name: str) -> Any:
        import torch

        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._plants, name)
        return torch.from_numpy(found if found.flags.writeable else found.copy())


def check_mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Return `value`, or raise a ParameterError unless it is a mapping of names."""
    if not isinstance(value, Mapping):
        raise ParameterError(f"{what} is {{name: value}}, found {value!r}")
    return value
