"""The parameters in force as part of the observation of a vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat
import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from sim2real.errors import ParameterError
from sim2real.randomization.parameters import Array
from sim2real.randomization.vector.conventions import PlantsVectorEnv
from sim2real.randomization.wrappers import appended_space, names_to_append


class AppendParametersVector(gym.vector.VectorWrapper[Any, Any, Any]):
    """`AppendParameters` for the batches of `make_vec`, on MuJoCo or Genesis: privileged observations for n at once.

    Args:
        envs: with randomized parameters.
        names: of the parameters to append, in this order; empty for all that are randomized.

    Raises:
        ParameterError: another vector environment, or an unknown name.

    Example:
        >>> from sim2real.randomization.vector import make_vec
        >>> envs = make_vec("Hopper-v5", 4, parameters={"dynamics.torso.mass": "*U(0.8, 1.2)"})
        >>> AppendParametersVector(envs).reset(seed=0)[0].shape
        (4, 12)
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any], names: Sequence[str] = ()) -> None:
        super().__init__(envs)
        base = envs.unwrapped
        if not isinstance(base, PlantsVectorEnv):
            raise ParameterError(
                f"{envs} is not a batch of plants: wrap each of its environments in AppendParameters instead"
            )
        self._randomizer = base.randomizer
        self.names = names_to_append((names,) if isinstance(names, str) else names, self._randomizer.names)
        self.single_observation_space = appended_space(envs.single_observation_space, len(self.names))
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._append(observations), infos

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            # the parameters of the episode that has ended, not of the one that has begun
            last = infos["final_info"]["parameters"]
            for i in np.flatnonzero(infos["_final_obs"]):
                values = [last[name][i] for name in self.names]
                infos["final_obs"][i] = _joined(infos["final_obs"][i], np.array(values))
        return self._append(observations), rewards, terminated, truncated, infos

    def _append(self, observations: Any) -> Any:
        return _joined(observations, np.stack([self._randomizer.in_force[name] for name in self.names], -1))


def _joined(observation: Any, values: Array) -> Any:
    """Return an array or tensor (..., O) and values (..., P) beside each other."""
    xp = array_api_compat.array_namespace(observation)
    device = array_api_compat.device(observation)
    return xp.concat([observation, xp.asarray(values, dtype=observation.dtype, device=device)], axis=-1)
