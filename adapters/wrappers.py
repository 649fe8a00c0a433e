"""Gymnasium wrappers: execution stages before the actions of an environment, perception stages after what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sim2real.adapters.chain import BoundChain, Chain
from sim2real.adapters.motion import JointMotion
from sim2real.adapters.native import hand_over
from sim2real.errors import ParameterError
from sim2real.randomization.env_parameters import (
    Env,
    GoalWrapper,
    add_engine_stages,
    check_period,
    control_period,
    is_mujoco,
    refuse_batch,
    require_finite_actions,
)
from sim2real.randomization.parameters import ParameterStore


class ExecutionGap(GoalWrapper, RecordConstructorArgs):
    """Passes actions through execution stages: latency, dead zone, limits, lag, drives, friction.

    On Gymnasium's MuJoCo environments the stages run at the physics substeps, so that a delay of 13 ms switches the
    command at the right one; elsewhere they run once a control step, and a delay blends the commands on both sides of
    it. Their parameters, `execution.<stage>.<field>`, are among those that `RandomizeDynamics` around this wrapper
    finds.

    The signal is the action, in the units of the environment. On MuJoCo environments with motors, where a stage is one
    of efforts (torque limit, friction, torque-speed curve, drive), the signal is the effort at the joint [N·m], control
    times gain and gear, through all stages; or, where the first stage that asks for a unit asks for another, the action
    in that unit: a position for a drive [rad], a voltage for a DC motor [V]. The range of the controls then holds for
    the actions, and not for what friction makes of them. A torque limit and friction
    that are `native` are left to MuJoCo, and their parameters are then among those of its model.

    `info` holds `commanded_action`, `delivered_action` (what came out of the stages at the last substep) and, on
    MuJoCo, `applied_effort` (what the actuators then exerted, before their gear, within their force limits).

    Args:
        env: a single environment with a flat `Box` of actions.
        stages: `[{"stage": "latency", "delay": 0.02}, ...]`, in the order in which a command meets them.
        dt: control period [s], where the environment does not say it.

    Raises:
        ParameterError: other actions, or a stage that needs the motion of the plant, which the environment does not
            show.
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
        chain = Chain.from_config(stages, gap="execution")
        refuse_other_gap(chain, "execution")
        base: Any = env.unwrapped
        self._at_substeps = is_mujoco(env) and hasattr(base, "_step_mujoco_simulation")
        self._motion: JointMotion | None = None
        self._takes = chain.takes
        if chain.feedback and not self._at_substeps:
            refuse_feedback(chain)
        if chain.in_effort and self._at_substeps:
            self._motion = JointMotion(base.model)
            refuse_other_output(chain)
        if chain.native and self._at_substeps:
            add_engine_stages(base, hand_over(chain, base.model, chain.in_effort))
            chain = chain.outside_engine()
        if self._motion is not None:
            self._motion.lift_range(base.model)
        substep = float(base.model.opt.timestep) if self._at_substeps else (dt or control_period(env))
        self._line: BoundChain = chain.bind(1, space.shape[0], substep)
        self._delivered = np.zeros(space.shape)
        self._seeded = False
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
        out = self.env.reset(seed=seed, options=options)
        self._seeded = seed_line(self._line, self.env, seed, self._seeded)
        return out

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        require_finite_actions(action)
        given = action
        if not self._at_substeps:
            self._delivered = self._line.apply(np.asarray(action, float)[None, None])[0, 0]
            given = self._delivered.astype(self.action_space.dtype)
        observation, reward, terminated, truncated, info = self.env.step(given)
        info = info | {"commanded_action": np.array(action, float), "delivered_action": self._delivered.copy()}
        if self._at_substeps:
            base: Any = self.env.unwrapped
            info["applied_effort"] = base.data.actuator_force.copy()
        return observation, reward, terminated, truncated, info

    def _simulate(self, ctrl: Any, n_frames: int) -> None:
        """Take the place of `MujocoEnv._step_mujoco_simulation`: one command a substep."""
        import mujoco

        base: Any = self.env.unwrapped
        command = np.asarray(ctrl, float)
        effort = np.ones(1)
        if self._motion is not None:
            command, effort = self._motion.commands(command), self._motion.effort(base.model)
        sent = (command * effort if self._takes == "N·m" else command)[None, None]
        if self._motion is None or not self._line.chain.feedback:
            for given in self._line.apply(np.repeat(sent, n_frames, 1))[0]:
                base.data.ctrl[:] = given / effort
                mujoco.mj_step(base.model, base.data)
        else:
            for _ in range(n_frames):
                view = self._motion.view(base.model, base.data)
                base.data.ctrl[:] = self._line.apply(sent, view)[0, 0] / effort
                mujoco.mj_step(base.model, base.data)
        self._delivered = base.data.ctrl.copy()
        mujoco.mj_rnePostConstraint(base.model, base.data)


class PerceptionGap(GoalWrapper, RecordConstructorArgs):
    """Passes observations through perception stages, once a control step: noise, drift, encoders, latency.

    Their parameters are `perception.<stage>.<field>`; `channels` of a stage are the elements of the observation that it
    acts on. The bounds of the observations are lifted, since readings leave them. The first observation of an episode
    finds the sensors at rest; a latency that holds (`start: hold`) shows it until the next one is through.

    Args:
        env: a single environment with a flat `Box` of observations.
        stages: `[{"stage": "noise", "additive": 0.01}, ...]`, in the order in which a reading meets them.
        dt: control period [s], where the environment does not say it.

    Raises:
        ParameterError: other observations, or a stage of the execution.
        RecipeError: an unknown stage or argument.

    Example:
        >>> env = PerceptionGap(gym.make("Pendulum-v1"), [{"stage": "bias", "offset": 0.1, "channels": [2]}])
        >>> env.parameter_store().nominal()
        {'perception.bias.offset': 0.1}
    """

    def __init__(self, env: Env, stages: Sequence[Mapping[str, Any]], dt: float | None = None) -> None:
        refuse_batch(env, type(self).__name__)
        check_period(dt)
        RecordConstructorArgs.__init__(self, stages=[dict(s) for s in stages], dt=dt)
        gym.Wrapper.__init__(self, env)
        chain = sensors(stages)
        width, self.observation_space = readings(env.observation_space, chain)
        self._line: BoundChain = chain.bind(1, width, dt or control_period(env))
        self._seeded = False

    def parameter_store(self) -> ParameterStore:
        """Return the store of the stages' parameters."""
        return self._line

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._line.reset()
        self._seeded = seed_line(self._line, self.env, seed, self._seeded)
        return self._read(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._read(observation), reward, terminated, truncated, info

    def _read(self, observation: Any) -> Any:
        reading = self._line.apply(np.asarray(observation, float)[None, None])[0, 0]
        return reading.astype(self.observation_space.dtype)


class VectorPerceptionGap(gym.vector.VectorWrapper):
    """`PerceptionGap` for a vector environment: environment i reads what the single one does when seeded alike.

    Args:
        env: with a flat `Box` of observations for each environment.
        stages: as for `PerceptionGap`.
        dt: control period [s].

    Raises:
        ParameterError, RecipeError: as for `PerceptionGap`.
    """

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], stages: Sequence[Mapping[str, Any]], dt: float
    ) -> None:
        check_period(dt)
        super().__init__(env)
        chain = sensors(stages)
        width, space = readings(env.single_observation_space, chain)
        self.single_observation_space, self.observation_space = space, batch_space(space, env.num_envs)
        self._line: BoundChain = chain.bind(env.num_envs, width, dt)
        self._done = np.zeros(env.num_envs, bool)
        self._mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))

    def parameter_store(self) -> ParameterStore:
        """Return the store of the stages' parameters."""
        return self._line

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        mask = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool)
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            fresh = mask & np.array([s is not None for s in seeds])
            self._line.seed([0 if s is None else s for s in seeds], fresh)
        self._done &= ~mask
        return self._begin(observation, mask), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        done = np.asarray(terminated | truncated)
        if self._mode == AutoresetMode.SAME_STEP and done.any():
            last = np.array(observation)
            last[done] = np.stack(list(info["final_obs"][done]))
            reading = self._read(last)
            final = info["final_obs"].copy()
            for i in np.flatnonzero(done):
                final[i] = reading[i]
            info = info | {"final_obs": final}
            reading = np.where(done[:, None], self._begin(observation, done), reading)
        elif self._mode == AutoresetMode.NEXT_STEP and self._done.any():
            begun = self._done
            reading = self._read(observation, ~begun)
            reading = np.where(begun[:, None], self._begin(observation, begun), reading)
        else:
            reading = self._read(observation)
        self._done = done
        return reading, reward, terminated, truncated, info

    def _begin(self, observation: Any, mask: NDArray[np.bool_]) -> Any:
        self._line.reset(mask)
        return self._read(observation, mask)

    def _read(self, observation: Any, mask: NDArray[np.bool_] | None = None) -> Any:
        reading = self._line.apply(np.asarray(observation, float)[:, None], mask=mask)[:, 0]
        return reading.astype(self.single_observation_space.dtype)


def sensors(stages: Sequence[Mapping[str, Any]]) -> Chain:
    """Return the chain of perception stages that a recipe lists."""
    chain = Chain.from_config(stages, gap="perception")
    refuse_other_gap(chain, "perception")
    return chain


def readings(space: gym.Space[Any], chain: Chain) -> tuple[int, gym.spaces.Box]:
    """Return the width of the observations in a space, and the space of what a chain makes of them."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ParameterError(
            f"perception stages act on a flat Box of real observations, found {space}; flatten it first "
            "(gymnasium.wrappers.FlattenObservation), or dtype it (DtypeObservation)"
        )
    width = many = space.shape[0]
    for stage in chain.stages:
        many = stage.output_width(many)
    return width, gym.spaces.Box(-np.inf, np.inf, (many,), space.dtype)


def seed_line(line: BoundChain, env: Env, seed: int | None, seeded: bool) -> bool:
    """Seed a chain of one signal as its environment: with `seed`, or at first with that of its own generator."""
    if seed is None and not seeded:
        seed = getattr(env.unwrapped, "np_random_seed", None) or 0
    if seed is not None:
        line.seed([seed])
    return True


def refuse_other_gap(chain: Chain, gap: str) -> None:
    """Raise a ParameterError for stages of the other gap."""
    for stage in chain.stages:
        if stage.gap != gap:
            other = "PerceptionGap" if gap == "execution" else "ExecutionGap"
            raise ParameterError(f"stage {stage.name} is one of the {stage.gap}; give it to {other}")


def refuse_other_output(chain: Chain) -> None:
    """Raise a ParameterError unless an effort comes out of a chain."""
    if (out := chain.gives) != "N·m":
        raise ParameterError(
            f"what comes out of the stages is in {out}, but a motor takes an effort: end with a dc_motor"
        )


def refuse_feedback(chain: Chain) -> None:
    """Raise a ParameterError for stages that need the motion of the plant, which an environment does not show."""
    for stage in chain.stages:
        if stage.feedback:
            raise ParameterError(
                f"stage {stage.name} needs the motion of the plant, which this environment does not show (those "
                "on MuJoCo with motors do); on MuJoCo dynamics.<joint>.frictionloss and .damping can be "
                "randomized instead"
            )
