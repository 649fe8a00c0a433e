"""Vector environments for stable-baselines3."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from sim2real.adapters.stage import plain
from sim2real.errors import ParameterError, require
from sim2real.randomization.curriculum import Curriculum

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv


def to_stable_baselines(envs: gym.vector.VectorEnv[Any, Any, Any]) -> VecEnv:
    """Return a vector environment as the `VecEnv` that stable-baselines3 trains on.

    stable-baselines3 resets in the step that ends an episode, so make the environments with
    `autoreset_mode="SameStep"`. In the step that ends an episode `infos[i]` has the keys of the single
    environment, "terminal_observation" and "TimeLimit.truncated"; in the others it is empty, since n dictionaries would
    cost more than the physics. Rewards and lengths of episodes come from stable-baselines3's own `VecMonitor`.

    Raises:
        ParameterError: another autoreset mode.
        MissingExtraError: stable-baselines3 is not installed.
    """
    require("stable_baselines3", "rl")
    from stable_baselines3.common.vec_env import VecEnv

    if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise ParameterError(
            "stable-baselines3 resets in the step that ends an episode: make_vec(..., autoreset_mode='SameStep')"
        )

    class Adapter(VecEnv):
        """A Gymnasium vector environment behind the interface of stable-baselines3."""

        def __init__(self) -> None:
            self.envs = envs
            self._seeds_given: int | Sequence[int | None] | None = None
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self) -> Any:
            observations, infos = envs.reset(seed=self._given(), options=self._option())
            self.reset_infos = [_single(infos, i) for i in range(self.num_envs)]
            self._reset_seeds()
            self._reset_options()
            return _plain(observations)

        def _given(self) -> Any:
            seeds = [None if s is None else int(s) for s in self._seeds]
            return seeds if any(s is not None for s in seeds) else None

        def _option(self) -> dict[str, Any] | None:
            """The options of all environments: stable-baselines3 keeps some for each, we take what is the same."""
            first = dict(self._options[0]) if self._options and self._options[0] else {}
            if any((dict(o) if o else {}) != first for o in self._options):
                raise ParameterError("options must be the same for all environments; arrays (n,) may differ inside")
            return first or None

        def step_async(self, actions: Any) -> None:
            self._actions = actions

        def step_wait(self) -> Any:
            observations, rewards, terminated, truncated, infos = envs.step(self._actions)
            terminated, truncated = plain(terminated), plain(truncated)
            done = terminated | truncated
            singles: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            for i in np.flatnonzero(done).tolist():
                singles[i] = _single(infos["final_info"], i)
                singles[i]["terminal_observation"] = _plain(infos["final_obs"][i])
                singles[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                self.reset_infos[i] = _single(infos, i)
            return _plain(observations), np.asarray(plain(rewards), np.float32), done, singles

        def close(self) -> None:
            envs.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            value = getattr(envs, attr_name)
            return [value for _ in self._get_indices(indices)]

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise ParameterError(f"{attr_name} belongs to all environments together: set it on the vector environment")

        def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **named: Any) -> list[Any]:
            value = getattr(envs, method_name)(*arguments, **named)
            return [value for _ in self._get_indices(indices)]

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False for _ in self._get_indices(indices)]

    return Adapter()


def checkpoints(folder: str | Path, curriculum: Curriculum, every: int = 20_000) -> BaseCallback:
    """Return a callback of stable-baselines3 that saves the model and a curriculum together, whole or not at all.

    Args:
        folder: gets a folder a checkpoint, of which the last two are kept.
        curriculum: of the environments that the model trains on.
        every: environment steps between checkpoints.

    Raises:
        MissingExtraError: stable-baselines3 is not installed.
    """
    require("stable_baselines3", "rl")
    from stable_baselines3.common.callbacks import BaseCallback

    place = Path(folder)

    class Checkpoints(BaseCallback):
        def _init_callback(self) -> None:
            self.saved = self.num_timesteps

        def _on_step(self) -> bool:
            if self.num_timesteps - self.saved >= every:
                self.saved = self.num_timesteps
                name = f"checkpoint-{self.num_timesteps:012d}"
                beside = place / f"{name}.part"
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
                self.model.save(beside / "model.zip")
                curriculum.save(beside / "curriculum.json")
                os.replace(beside, place / name)
                for old in _checkpoints(place)[:-2]:
                    shutil.rmtree(old)
            return True

    return Checkpoints()


def resumed(folder: str | Path, curriculum: Curriculum) -> Path | None:
    """Put a curriculum where it was at the last checkpoint; return the model's file there, or None without any.

    Raises:
        ParameterError: the checkpoint is of another curriculum.
    """
    found = _checkpoints(Path(folder))
    if not found:
        return None
    curriculum.load(found[-1] / "curriculum.json")
    return found[-1] / "model.zip"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".part")


def _plain(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: plain(value) for key, value in observations.items()}
    return plain(observations)


def _single(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Return the info of environment i."""
    out: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith(("_", "final_")) or not infos.get(f"_{key}", np.ones(i + 1, bool))[i]:
            continue
        out[key] = _single(value, i) if isinstance(value, dict) else value[i]
    return out
