"""Episodes of a policy under parameters that are asked for, many at once where the environment has a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim2real.environment_recipe import EnvironmentRecipe, episode_limit, gaps, make_envs
from sim2real.episodes import Array
from sim2real.errors import ModelError, RecipeError
from sim2real.policies import PolicyFunction
from sim2real.randomization.addressing import BoundParameters
from sim2real.randomization.parameters import ParameterSet
from sim2real.randomization.randomization import Randomizer, parse_randomizations
from sim2real.randomization.vector.conventions import PlantsVectorEnv

# Environments that are stepped at once: a multiple of the first, and at most the second.
BLOCK, TOGETHER = 32, 256


def returns_of(
    envs: gym.vector.VectorEnv[Any, Any, Any], policy: PolicyFunction, observation: Any, limit: int
) -> Array:
    """Return the returns (n,) of an episode of each environment, which have just been reset to an observation."""
    returns, going = np.zeros(envs.num_envs), np.ones(envs.num_envs, bool)
    for _ in range(limit):
        observation, reward, terminated, truncated, _ = envs.step(policy(observation))
        returns += np.where(going, reward, 0.0)
        going &= ~(terminated | truncated)  # what begins anew counts for nothing
        if not going.any():
            break
    return returns


class Episodes:
    """Runs episodes of a policy in a recipe's environment.

    Args:
        recipe: whose environment and gaps are used; its `parameters` are what is asked for.
        policy: function of observations.
        max_episode_steps: control steps of an episode; 0 for what the id is registered with.

    Attributes:
        bound: the recipe's parameters, found in the environment.
        units: of everything there.
        count: episodes so far.

    Raises:
        ParameterError: the environment does not have a parameter.
        RecipeError: episodes never end, observations are no arrays, or parameters are drawn jointly.
        ModelError: the policy takes other observations, or returns what is no action.
    """

    def __init__(self, recipe: EnvironmentRecipe, policy: PolicyFunction, max_episode_steps: int = 0) -> None:
        self._how = gaps(recipe) | {"max_episode_steps": max_episode_steps}
        self._recipe, self._id, self.policy, self.count = recipe, recipe.env or "", policy, 0
        self._envs: dict[int, Any] = {}
        try:
            self._begin(recipe)
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: EnvironmentRecipe) -> None:
        first = self._of(1)
        self._batched = isinstance(first, PlantsVectorEnv)
        one = first if self._batched else first.envs[0]
        randomizer: Randomizer = one.randomizer if self._batched else one.get_wrapper_attr("randomizer")
        (asked,) = parse_randomizations(recipe.parameters)
        self.units = dict(randomizer.store.units())
        self.bound = BoundParameters(asked.parameters, randomizer.store)
        limit = episode_limit(first, self._id)
        if type(self.bound.parameters) is not ParameterSet:
            raise RecipeError("parameters that are drawn jointly cannot be varied one by one: give each its own range")
        if not isinstance(first.single_observation_space, gym.spaces.Box):
            raise RecipeError(f"observations of {self._id} are no arrays, but {first.single_observation_space}")
        self._limit = limit
        self._check(first)

    def _of(self, n: int) -> Any:
        if n not in self._envs:
            self._envs[n] = make_envs(self._recipe, n, self._how)
        return self._envs[n]

    def _check(self, envs: Any) -> None:
        observation, _ = envs.reset(seed=0)
        expected = (1, *envs.single_action_space.shape)
        try:
            action = np.asarray(self.policy(observation))
        except Exception as error:  # of whatever library the policy is of
            shape = tuple(np.shape(observation))
            raise ModelError(f"the policy does not take observations of shape {shape}: {error}") from error
        if action.shape != expected:
            raise ModelError(
                f"the policy returns shape {action.shape} for one observation, expected {expected} of "
                f"{envs.single_action_space}: was it trained for another environment?"
            )

    def run(self, u: Array, seeds: NDArray[np.int_]) -> Array:
        """Return the returns (k,) of episodes at uniform numbers (k, D), each from a seed (k,)."""
        values, out = self.bound.values(u), np.empty(len(u))
        many = TOGETHER if self._batched else 1
        for start in range(0, len(u), many):
            rows = slice(start, start + many)
            out[rows] = self._together({name: v[rows] for name, v in values.items()}, seeds[rows])
        self.count += len(u)
        return out

    def _together(self, values: Mapping[str, Array], seeds: NDArray[np.int_]) -> Array:
        k = len(seeds)
        # few sizes, so that few batches are made; the last row is repeated, and left out of what is returned
        n = -(-k // BLOCK) * BLOCK if self._batched else 1
        padded = np.minimum(np.arange(n), k - 1)
        forced = {name: v[padded] if self._batched else float(v[0]) for name, v in values.items()}
        envs = self._of(n)
        observation, _ = envs.reset(seed=[int(s) for s in seeds[padded]], options={"parameters": forced})
        return returns_of(envs, self.policy, observation, self._limit)[:k]

    def close(self) -> None:
        """Close the environments."""
        for envs in self._envs.values():
            envs.close()
