"""A Gymnasium vector environment of n MuJoCo plants on threads, each with its own parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sim2real.adapters import BoundChain, Chain
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_parameters import BatchModels, MujocoParameters
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.randomization.parameters import Array, ParameterStore
from sim2real.randomization.pictures import Pixels
from sim2real.randomization.randomization import Randomizations
from sim2real.randomization.vector.conventions import Mask, PlantsVectorEnv
from sim2real.randomization.vector.task import Infos, Plants, Rows, Task


class MujocoVectorEnv(PlantsVectorEnv):
    """n environments of one `Task`, stepped by `mujoco.batch.Batch` on threads.

    Environment i behaves as `RandomizeDynamics` around the single environment does when both are seeded alike: the same
    draws, observations, rewards and infos.

    Args:
        task: what is observed and rewarded.
        num_envs: number of environments.
        parameters: what is randomized, and when; see `parse_randomizations`.
        initial_state: as for `RandomizeInitialState`.
        push: the arguments of `Push`, by name.
        execution: stages between actions and plant, as for `ExecutionGap`, at the substeps.
        perception: stages between plant and observations, as for `PerceptionGap`; rewards are of the true state.
        pixels: what cameras see, as for `Pixels`, beside the task's observations or in their place.
        max_episode_steps: control steps after which an episode is truncated; 0 for never.
        autoreset_mode: of Gymnasium; in NEXT_STEP mode the step after an episode's end ignores the action.
        threads: to step on; 0 means all the cores of this process.
        name: of the environment, in errors.

    Raises:
        ParameterError: an unknown parameter.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        *,
        parameters: Randomizations = (),
        initial_state: Mapping[str, str] | None = None,
        push: Mapping[str, Any] | None = None,
        execution: Sequence[Mapping[str, Any]] = (),
        perception: Sequence[Mapping[str, Any]] = (),
        pixels: Mapping[str, Any] | Pixels | None = None,
        max_episode_steps: int = 0,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        threads: int = 0,
        name: str = "",
    ) -> None:
        from mujoco.batch import Batch

        super().__init__(task, num_envs, max_episode_steps, autoreset_mode)
        chain, model, stages = Chain.from_config(execution, gap="execution"), task.model, {}
        motors = None
        if chain.native or chain.in_effort:
            from sim2real.adapters.motion import Motors
            from sim2real.adapters.native import hand_over

            model = copy.copy(model)
            motors = Motors(model) if chain.in_effort else None
            stages = hand_over(chain, model, chain.in_effort)
            if motors is not None:
                motors.lift_range(model)
        self.batch = Batch(model, num_envs, threads or available_threads(), persistent=task.contact_forces)
        self.plants = Plants(self.batch, task.fields, task.contact_forces, task.goals)
        self._store: ParameterStore = MujocoParameters(
            MujocoFields(model, name or "the model", stages), BatchModels(self.batch)
        )
        self._motion, self._takes = None, chain.takes
        if execution:
            from sim2real.adapters.motion import BatchMotion
            from sim2real.adapters.wrappers import refuse_other_gap, refuse_other_output

            refuse_other_gap(chain, "execution")
            if motors is not None:
                self._motion = BatchMotion(self.batch, motors)
                refuse_other_output(chain)
            self._force = self.batch.bind("actuator_force")
            self._chain = chain.outside_engine().bind(num_envs, model.nu, float(model.opt.timestep))
        self._randomized(parameters, initial_state, push, perception, pixels)

    def _place(self, mask: Mask, rows: NDArray[np.intp]) -> None:
        ids = None if mask.all() else rows.astype(np.int32)
        self.batch.reset(ids, stage=0)
        self.plants.qpos[rows], self.plants.qvel[rows] = self._starts(rows)
        self.batch.forward(ids)
        if self._initial is not None:
            self.plants.qpos[rows], self.plants.qvel[rows] = self._drawn(
                rows, self.plants.qpos[rows], self.plants.qvel[rows]
            )
            self.batch.forward(ids)
        self.plants.after_reset(rows)

    def _observe(self, rows: Rows) -> Array:
        return self.task.observe(self.plants, rows)

    def _reset_info(self, rows: NDArray[np.intp]) -> Infos:
        return self.task.reset_info(self.plants, rows)

    def _simulate(
        self, actions: NDArray[Any], going: Mask | None, wrench: Array | None
    ) -> tuple[Array, Array, Mask, Infos]:
        if wrench is not None:
            self.batch.bind("xfrc_applied")[:, self._pushed] = wrench
        before = self.task.before(self.plants)
        ids = None if going is None else np.flatnonzero(going).astype(np.int32)
        if self._chain is None:
            self.plants.ctrl[...] = actions
            self.batch.step(ids, nstep=self.task.frame_skip)
        else:
            delivered = self._execute(self._chain, actions.astype(float), going, ids)
        self.plants.after_step(self._all if going is None else going)
        observation = self.task.observe(self.plants, slice(None))
        reward, terminated, infos = self.task.outcome(self.plants, before, actions, observation)
        if self._chain is not None:
            infos |= {"commanded_action": actions.astype(float), "delivered_action": delivered}
            infos["applied_effort"] = self._force.copy()
        return observation, reward, terminated, infos

    def _execute(self, chain: BoundChain, actions: Array, going: Mask | None, ids: NDArray[np.int32] | None) -> Array:
        """Step the plants through the stages; return what came out of these last: (n, A)."""
        skip, rows = self.task.frame_skip, slice(None) if ids is None else ids
        if self._motion is None:
            commands: Array = chain.apply(np.repeat(actions[:, None], skip, 1), mask=going)
            self.batch.rollout(skip, commands[rows], record=(), ids=ids)
            return np.array(commands[:, -1])
        effort, actions = self._motion.effort, self._motion.motors.commands(actions)
        sent = (actions * effort if self._takes == "N·m" else actions)[:, None]
        together = 1 if chain.chain.feedback else skip
        for _ in range(skip // together):
            view = self._motion.view(ids) if chain.chain.feedback else None
            commands = chain.apply(np.repeat(sent, together, 1), view, mask=going) / effort[:, None]
            self.batch.rollout(together, commands[rows], record=(), ids=ids)
        return np.array(commands[:, -1])
