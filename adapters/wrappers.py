"""Gymnasium wrappers that put execution stages between the actions of a policy and the plant of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from sim2real.adapters.chain import BoundChain, Chain
from sim2real.errors import ParameterError
from sim2real.randomization.env_parameters import (
    Env,
    GoalWrapper,
    check_period,
    control_period,
    is_mujoco,
    refuse_batch,
)
from sim2real.randomization.parameters import ParameterStore


class ExecutionGap(GoalWrapper, RecordConstructorArgs):
    """Passes actions through execution stages: latency, dead zone, limits, lag.

    On Gymnasium's MuJoCo environments the stages run at the physics substeps, so that a delay of 13 ms switches the
    command at the right one; elsewhere they run once a control step, and a delay blends the commands on both sides of
    it. Their parameters, `execution.<stage>.<field>`, are among those that `RandomizeDynamics` around this wrapper
    finds.

    Args:
        env: a single environment with a flat `Box` of actions.
        stages: `[{"stage": "latency", "delay": 0.02}, ...]`, in the order in which a command meets them.
        dt: control period [s], where the environment does not say it.

    Raises:
        ParameterError: other actions, or a stage that needs the motion of the plant.
        RecipeError: an unknown stage or argument.

    Example:
        >>> env = ExecutionGap(gym.make("HalfCheetah-v5"), [{"stage": "latency", "delay": 0.013}])
        >>> env.parameter_store().nominal()
        {'execution.latency.delay': 0.013}
    """

    def __init__(self, env: Env, stages: Sequence[Mapping[str, Any]], dt: float | None = None) -> None:
        refuse_batch(env, type(self).__name__)
        check_period(dt)
        space = env.action_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ParameterError(f"execution stages act on a flat Box of actions, found {space}")
        RecordConstructorArgs.__init__(self, stages=[dict(s) for s in stages], dt=dt)
        gym.Wrapper.__init__(self, env)
        chain = Chain.from_config(stages)
        refuse_feedback(chain)
        base: Any = env.unwrapped
        self._at_substeps = is_mujoco(env) and hasattr(base, "_step_mujoco_simulation")
        substep = float(base.model.opt.timestep) if self._at_substeps else (dt or control_period(env))
        self._line: BoundChain = chain.bind(1, space.shape[0], substep)
        if self._at_substeps:
            if "_step_mujoco_simulation" in vars(base):
                raise ParameterError("the environment already has an ExecutionGap; give that one all the stages")
            base._step_mujoco_simulation = self._simulate

    def parameter_store(self) -> ParameterStore:
        """Return the store of the stages' parameters."""
        return self._line

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._line.reset()
        if self._at_substeps:
            base: Any = self.env.unwrapped
            base._step_mujoco_simulation = self._simulate  # again: a copy of the environment was made anew
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        if not self._at_substeps:
            delivered = self._line.apply(np.asarray(action, float)[None, None])[0, 0]
            action = delivered.astype(self.action_space.dtype)
        return self.env.step(action)

    def _simulate(self, ctrl: Any, n_frames: int) -> None:
        """Take the place of `MujocoEnv._step_mujoco_simulation`: one command a substep."""
        import mujoco

        base: Any = self.env.unwrapped
        commands = np.repeat(np.asarray(ctrl, float)[None, None], n_frames, 1)
        for command in self._line.apply(commands)[0]:
            base.data.ctrl[:] = command
            mujoco.mj_step(base.model, base.data)
        mujoco.mj_rnePostConstraint(base.model, base.data)


def refuse_feedback(chain: Chain) -> None:
    """Raise a ParameterError for stages that need the motion of the plant, which environments do not show."""
    for stage in chain.stages:
        if stage.feedback:
            raise ParameterError(
                f"stage {stage.name} needs the motion of the plant, which a Gymnasium environment does not show; on "
                "MuJoCo randomize dynamics.<joint>.frictionloss and .damping instead"
            )
