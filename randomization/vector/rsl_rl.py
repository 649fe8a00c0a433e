"""Vector environments for rsl_rl."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from sim2real.errors import ParameterError, require
from sim2real.randomization.vector.conventions import PlantsVectorEnv


def to_rsl_rl(envs: PlantsVectorEnv, cfg: dict[str, Any] | None = None) -> RslRlEnv:
    """Return a batch of plants as the `VecEnv` that rsl_rl trains on: tensors, on the device of the batch.

    rsl_rl resets in the step that ends an episode and wants to know how long episodes are, so make the batch with
    `autoreset_mode="SameStep"` and `max_episode_steps`. Its policies begin with actions around zero: -1 and 1 are the
    ends of the action space, where that has ends.

    Args:
        envs: of `make_vec`, on MuJoCo or on Genesis.
        cfg: what rsl_rl is to keep with its logs.

    Raises:
        ParameterError: another vector environment, another autoreset mode, or episodes without an end.
        MissingExtraError: tensordict is not installed.
    """
    base = envs.unwrapped
    if not isinstance(base, PlantsVectorEnv):
        raise ParameterError(f"rsl_rl trains on batches of plants, as make_vec makes them; found {envs}")
    if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP or not base.max_episode_steps:
        raise ParameterError(
            "rsl_rl resets in the step that ends an episode, after so many steps: "
            "make_vec(..., autoreset_mode='SameStep', max_episode_steps=...)"
        )
    return RslRlEnv(envs, base, cfg or {})


class RslRlEnv:
    """A batch of plants behind the interface of rsl_rl's `VecEnv`; made by `to_rsl_rl`.

    Attributes:
        num_envs, num_actions, max_episode_length, device, cfg: as rsl_rl has them.
    """

    def __init__(self, envs: Any, base: PlantsVectorEnv, cfg: dict[str, Any]) -> None:
        self._dict = require("tensordict", "rl").TensorDict
        self.envs, self._base, self.cfg = envs, base, cfg
        self.num_envs, self.max_episode_length = base.num_envs, base.max_episode_steps
        self.num_actions = int(np.prod(base.single_action_space.shape))  # type: ignore[arg-type]
        self.device = base.device
        space: Any = base.single_action_space
        ends = np.isfinite(space.low) & np.isfinite(space.high)
        self._middle = self._tensor(np.where(ends, 0.5 * (space.high + space.low), 0.0))
        self._half = self._tensor(np.where(ends, 0.5 * (space.high - space.low), 1.0))
        self._observation = self._groups(envs.reset()[0])

    @property
    def unwrapped(self) -> Any:
        """The batch itself."""
        return self._base

    @property
    def episode_length_buf(self) -> Any:
        """(n,) steps of the present episodes so far."""
        import torch

        return torch.as_tensor(self._base.elapsed, dtype=torch.long, device=self.device)

    @episode_length_buf.setter
    def episode_length_buf(self, value: Any) -> None:
        self._base.elapsed[:] = value.cpu().numpy()

    def get_observations(self) -> Any:
        """Return the present observations: a TensorDict with the group `policy`, (n, O) float32.

        Pictures beside them are the group `pixels`, (n, height, width, 3) from 0 to 255.
        """
        return self._dict(dict(self._observation), batch_size=[self.num_envs])

    def reset(self) -> tuple[Any, dict[str, Any]]:
        """Begin all episodes anew."""
        self._observation = self._groups(self.envs.reset()[0])
        return self.get_observations(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Step with actions (n, A); return observations, rewards (n,), dones (n,) and extras."""
        import torch

        given = self._middle + self._half * actions.to(self.device)
        observations, rewards, terminated, truncated, _ = self.envs.step(given)
        self._observation = self._groups(observations)
        terminated, truncated = (torch.as_tensor(x, device=self.device) for x in (terminated, truncated))
        extras = {"time_outs": (truncated & ~terminated).float()}
        return self.get_observations(), self._tensor(rewards), (terminated | truncated).long(), extras

    def _groups(self, observations: Any) -> dict[str, Any]:
        if isinstance(observations, dict):
            return {"policy": self._tensor(observations["state"]), "pixels": self._tensor(observations["pixels"])}
        return {"policy": self._tensor(observations)}

    def _tensor(self, value: Any) -> Any:
        import torch

        return torch.as_tensor(value, dtype=torch.float32, device=self.device)
