"""Vector environments with randomization, by id or from a task of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from sim2real.errors import ParameterError
from sim2real.randomization.pictures import ObservePixels, Pixels
from sim2real.randomization.pushes import check_push
from sim2real.randomization.randomization import Randomizations
from sim2real.randomization.vector.env import MujocoVectorEnv
from sim2real.randomization.vector.gymnasium_tasks import task_for
from sim2real.randomization.vector.robot_tasks import ROBOT_TASKS, robot_task
from sim2real.randomization.vector.task import Task
from sim2real.randomization.wrappers import Push, RandomizeDynamics, RandomizeInitialState


def make_vec(
    env: str | Task,
    num_envs: int = 1,
    *,
    parameters: Randomizations = (),
    initial_state: Mapping[str, str] | None = None,
    push: Mapping[str, Any] | None = None,
    execution: Sequence[Mapping[str, Any]] = (),
    perception: Sequence[Mapping[str, Any]] = (),
    pixels: Mapping[str, Any] | Pixels | None = None,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    vectorization: Literal["fastest", "batch", "genesis", "sync", "async"] = "fastest",
    threads: int = 0,
    max_episode_steps: int = 0,
    **kwargs: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make a randomized vector environment.

    Gymnasium's MuJoCo v5 environments, robot tasks and tasks of one's own run on `mujoco.batch.Batch`, or, of tasks of
    tensors, on Genesis; all others are wrapped one by one and run in Gymnasium's sync or async vector environment.

    Args:
        env: the id of an environment, the name of a robot task (`pendulum`, `cartpole`, `franka_reach`, `go2_walk`), or
            a `Task` such as a `FunctionTask`.
        num_envs: number of environments.
        parameters: what is randomized, and when; see `parse_randomizations`.
        initial_state: as for `RandomizeInitialState`.
        push: the arguments of `Push`, by name.
        execution: stages between actions and plant, as for `ExecutionGap`.
        perception: stages between plant and observations, as for `PerceptionGap`.
        pixels: what a camera of the robot file sees, `{"camera": name, "height": 84, "width": 84}`, in the place of the
            observations or, with `"state": True`, beside them; see `Pixels`.
        autoreset_mode: of Gymnasium.
        vectorization: "batch", "genesis", "sync" or "async", or "fastest" for batch where there is one and sync
            elsewhere.
        threads: for the batch; 0 means all the cores of this process.
        max_episode_steps: control steps after which an episode is truncated; 0 for what the id is registered with.
        **kwargs: of `gymnasium.make`.

    Raises:
        ParameterError: `vectorization="batch"` for an environment that has no batched task, a `render_mode` for a
            batch, or an unknown parameter.
        RenderError: pictures are asked for, and there is no OpenGL here.

    Example:
        >>> envs = make_vec("Hopper-v5", 4, parameters={"dynamics.torso.mass": "*U(0.8, 1.2)"})
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape, infos["parameters"]["dynamics.torso.mass"].shape
        ((4, 11), (4,))
    """
    arguments: dict[str, Any] = {
        "parameters": parameters,
        "initial_state": initial_state,
        "push": push,
        "execution": execution,
        "perception": perception,
        "pixels": pixels,
    }
    if isinstance(env, str) and env in ROBOT_TASKS:
        env = robot_task(env)
    if isinstance(env, Task):
        if kwargs or vectorization not in ("fastest", "batch", "genesis"):
            given = next(iter(kwargs), f"vectorization={vectorization}")
            raise ParameterError(
                f"a task of one's own runs as a batch or on genesis, and takes no {given!r}; pictures: pixels={{...}}"
            )
        if vectorization == "genesis":
            if threads:
                raise ParameterError("Genesis has threads of its own: set QD_NUM_THREADS before it starts")
            from sim2real.randomization.genesis import GenesisVectorEnv

            return GenesisVectorEnv(
                env,  # type: ignore[arg-type]
                num_envs,
                autoreset_mode=autoreset_mode,
                max_episode_steps=max_episode_steps,
                **arguments,
            )
        return MujocoVectorEnv(
            env,
            num_envs,
            autoreset_mode=autoreset_mode,
            threads=threads,
            max_episode_steps=max_episode_steps,
            **arguments,
        )
    if vectorization == "genesis":
        raise ParameterError(f"{env} has no task for Genesis; those that have: {', '.join(ROBOT_TASKS)}")
    if vectorization not in ("fastest", "batch", "sync", "async"):
        raise ParameterError(f"vectorization is fastest, batch, genesis, sync or async, found {vectorization!r}")
    if max_episode_steps:
        kwargs["max_episode_steps"] = max_episode_steps
    if vectorization in ("fastest", "batch"):
        single = gym.make(env, **kwargs)
        task = task_for(single)
        if task is not None:
            if kwargs.get("render_mode") is not None:
                raise ParameterError("a batch of MuJoCo plants has no render(); for pictures: pixels={...}")
            limit = single.spec.max_episode_steps if single.spec is not None else None
            return MujocoVectorEnv(
                task,
                num_envs,
                autoreset_mode=autoreset_mode,
                threads=threads,
                max_episode_steps=limit or 0,
                name=env,
                **arguments,
            )
        single.close()
        if vectorization == "batch":
            raise ParameterError(
                f"{env} has no batched task: use vectorization='sync' or 'async', or write a FunctionTask for its model"
            )

    def one() -> gym.Env[Any, Any]:
        return randomized(gym.make(env, **kwargs), **arguments)

    each = [one for _ in range(num_envs)]
    if vectorization == "async":
        # a process that is forked from one that draws waits for ever
        context = None if pixels is None else "spawn"
        return gym.vector.AsyncVectorEnv(each, context=context, autoreset_mode=autoreset_mode)
    return gym.vector.SyncVectorEnv(each, autoreset_mode=autoreset_mode)


def randomized(
    env: gym.Env[Any, Any],
    parameters: Randomizations = (),
    initial_state: Mapping[str, str] | None = None,
    push: Mapping[str, Any] | None = None,
    execution: Sequence[Mapping[str, Any]] = (),
    perception: Sequence[Mapping[str, Any]] = (),
    pixels: Mapping[str, Any] | Pixels | None = None,
) -> gym.Env[Any, Any]:
    """Wrap a single environment in what is asked for; the arguments are those of `make_vec`."""
    if initial_state:
        env = RandomizeInitialState(env, initial_state)
    if push:
        check_push(push)
        env = Push(env, **push)
    if execution:
        from sim2real.adapters import ExecutionGap

        env = ExecutionGap(env, execution)
    if perception:
        from sim2real.adapters import PerceptionGap

        env = PerceptionGap(env, perception)
    if parameters:
        env = RandomizeDynamics(env, parameters)
    if pixels is not None:
        env = ObservePixels(env, **asdict(Pixels.of(pixels)))
    return env
