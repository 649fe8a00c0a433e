"""The state in which episodes start, as named numbers that can be randomized like parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sim2real.errors import ParameterError
from sim2real.randomization.addressing import match_names
from sim2real.randomization.env_parameters import Env, is_mujoco
from sim2real.randomization.mujoco_table import joint_name
from sim2real.randomization.parameters import Array, Parameter, ParameterSet, apply_operation

# The states of the environments that keep theirs in `state`, and how they observe it.
CLASSIC: dict[str, tuple[dict[str, str], Callable[[Any], Any]]] = {
    "CartPoleEnv": (
        {
            "dynamics.cart.initial_position": "m",
            "dynamics.cart.initial_velocity": "m/s",
            "dynamics.pole.initial_position": "rad",
            "dynamics.pole.initial_velocity": "rad/s",
        },
        lambda env: np.array(env.state, dtype=np.float32),
    ),
    "PendulumEnv": (
        {"dynamics.pole.initial_position": "rad", "dynamics.pole.initial_velocity": "rad/s"},
        lambda env: env._get_obs(),
    ),
    "AcrobotEnv": (
        {
            "dynamics.link1.initial_position": "rad",
            "dynamics.link2.initial_position": "rad",
            "dynamics.link1.initial_velocity": "rad/s",
            "dynamics.link2.initial_velocity": "rad/s",
        },
        lambda env: env._get_ob(),
    ),
    "MountainCarEnv": (
        {"dynamics.car.initial_position": "", "dynamics.car.initial_velocity": ""},
        lambda env: np.array(env.state, dtype=np.float32),
    ),
    "Continuous_MountainCarEnv": (
        {"dynamics.car.initial_position": "", "dynamics.car.initial_velocity": ""},
        lambda env: np.array(env.state, dtype=np.float32),
    ),
}


class StateAccess(Protocol):
    """The state of one environment, `env`, as a row of named numbers."""

    env: Any

    @property
    def units(self) -> dict[str, str]:
        """Name -> SI unit, in the order of the row."""
        ...

    def read(self) -> Array:
        """Return the state (X,)."""
        ...

    def write(self, state: Array, observation: Any) -> Any:
        """Put the environment into a state (X,) just after a reset; return the observation there."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what a reset tells of the present state."""
        ...


class _Classic:
    def __init__(self, env: Any, units: dict[str, str], observe: Callable[[Any], Any]) -> None:
        self.env, self.units, self._observe = env, units, observe

    def read(self) -> Array:
        return np.array(self.env.state, float)

    def write(self, state: Array, observation: Any) -> Any:
        kind = self.env.state.dtype if isinstance(self.env.state, np.ndarray) else float
        self.env.state = state.astype(kind)
        return self._observe(self.env)

    def info(self) -> dict[str, Any]:
        return {}


def mujoco_state_units(model: Any) -> dict[str, str]:
    """Return the names of the positions, then of the velocities, of a model: name -> SI unit."""
    import mujoco

    positions = {"mjJNT_FREE": 7, "mjJNT_BALL": 4, "mjJNT_SLIDE": 1, "mjJNT_HINGE": 1}
    units: dict[str, str] = {}
    for what in ("position", "velocity"):
        for i in range(model.njnt):
            kind = mujoco.mjtJoint(int(model.jnt_type[i])).name
            width = positions[kind] - (what == "velocity" and positions[kind] > 1)
            for k in range(width):
                translates = kind == "mjJNT_SLIDE" or (kind == "mjJNT_FREE" and k < 3)
                quaternion = what == "position" and width > 1 and not translates
                unit = "" if quaternion else ("m" if translates else "rad") + ("/s" if what == "velocity" else "")
                suffix = f"[{k}]" if width > 1 else ""
                units[f"dynamics.{joint_name(model, i)}.initial_{what}{suffix}"] = unit
    return units


class _Mujoco:
    def __init__(self, env: Any) -> None:
        self.env = env
        self.units = mujoco_state_units(env.model)

    def read(self) -> Array:
        return np.concatenate([self.env.data.qpos, self.env.data.qvel])

    def write(self, state: Array, observation: Any) -> Any:
        import mujoco

        env = self.env
        env.data.qpos[:], env.data.qvel[:] = np.split(state, [env.model.nq])
        mujoco.mj_normalizeQuat(env.model, env.data.qpos)
        mujoco.mj_forward(env.model, env.data)
        return env._get_obs()

    def info(self) -> dict[str, Any]:
        return dict(self.env._get_reset_info())


def state_access(env: Env) -> StateAccess:
    """Return the access to an environment's state.

    Raises:
        ParameterError: it is neither on MuJoCo with an observation that can be taken anew, nor one of classic control.
    """
    base: Any = env.unwrapped
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if layer.observation_space != base.observation_space or isinstance(layer, gym.ObservationWrapper):
            raise ParameterError(
                f"put RandomizeInitialState inside {type(layer).__name__}: it takes the observation anew"
            )
        layer = layer.env
    for cls in type(base).__mro__:
        if cls.__name__ in CLASSIC and cls.__module__.startswith("gymnasium.envs.classic_control"):
            return _Classic(base, *CLASSIC[cls.__name__])
    if is_mujoco(env):
        from gymnasium.envs.mujoco import MujocoEnv

        if isinstance(base, MujocoEnv) and hasattr(base, "_get_obs"):
            return _Mujoco(base)
    raise ParameterError(
        f"the state of {type(base).__name__} is not known: RandomizeInitialState takes MuJoCo environments of "
        f"Gymnasium (with `_get_obs`) and {', '.join(CLASSIC)}"
    )


class InitialState:
    """What the states of episodes are drawn from.

    Args:
        notations: `{name or pattern: notation}`; each name that a pattern matches has its own draw.
        access: to the state.

    Raises:
        ParameterError: an unknown name, or a notation that cannot be read.
    """

    def __init__(self, notations: Mapping[str, str], access: StateAccess | Mapping[str, str]) -> None:
        units = access if isinstance(access, Mapping) else access.units
        names = list(units)
        self._parameters: list[tuple[int, Parameter]] = []
        for parameter in ParameterSet.parse(notations):
            for name in match_names(parameter.name, names):
                if parameter.unit not in ("", units[name]):
                    raise ParameterError(f"{name}: the unit is {units[name]!r}, found {parameter.unit!r}")
                if any(column == names.index(name) for column, _ in self._parameters):
                    raise ParameterError(f"two parameters of one initial state mean {name}; keep one of them")
                self._parameters.append((names.index(name), parameter))

    @property
    def dimension(self) -> int:
        """How many uniform numbers a draw is made from."""
        return len(self._parameters)

    def apply(self, states: Array, u: Array) -> Array:
        """Return the states (k, X) that take the place of `states` (k, X), from uniform numbers (k, dimension)."""
        out = states.copy()
        for k, (column, p) in enumerate(self._parameters):
            out[:, column] = apply_operation(p.operation, p.distribution.quantile(u[:, k]), states[:, column])
        return out
