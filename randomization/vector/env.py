"""A Gymnasium vector environment of n MuJoCo plants on threads, each with its own parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sim2real.adapters import BoundChain, Chain
from sim2real.errors import ParameterError
from sim2real.randomization.env_parameters import JoinedStore, require_finite_actions
from sim2real.randomization.initial_state import InitialState, mujoco_state_units
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_parameters import BatchModels, MujocoParameters
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.randomization.parameters import Array, ParameterStore
from sim2real.randomization.pushes import PushSchedule, Wrench, check_push
from sim2real.randomization.randomization import Randomizations, Randomizer, parse_randomizations, stream
from sim2real.randomization.vector.task import Infos, Plants, Task, check_mapping

Mask = NDArray[np.bool_]


class MujocoVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """n environments of one `Task`, stepped by `mujoco.batch.Batch` on threads.

    Environment i behaves as `RandomizeDynamics` around the single environment does when both are seeded alike: the same
    draws, observations, rewards and infos. `info["parameters"]` holds what is in force, as `{name: (n,)}`;
    `reset(options={"parameters": {name: value}})` forces values, a number or (n,) each.

    Args:
        task: what is observed and rewarded.
        num_envs: number of environments.
        parameters: what is randomized, and when; see `parse_randomizations`.
        initial_state: as for `RandomizeInitialState`.
        push: the arguments of `Push`, by name.
        execution: stages between actions and plant, as for `ExecutionGap`, at the substeps.
        perception: stages between plant and observations, as for `PerceptionGap`; rewards are of the true state.
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
        max_episode_steps: int = 0,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        threads: int = 0,
        name: str = "",
    ) -> None:
        from mujoco.batch import Batch

        super().__init__()
        if not isinstance(num_envs, int) or num_envs < 1:
            raise ParameterError(f"num_envs must be at least 1, found {num_envs}")
        self.task, self.num_envs, self.max_episode_steps = task, num_envs, max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": []}
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.action_space = batch_space(task.action_space, num_envs)
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
        self.plants = Plants(self.batch, task.fields, task.contact_forces)
        self._store: ParameterStore = MujocoParameters(
            MujocoFields(model, name or "the model", stages), BatchModels(self.batch)
        )
        self._chain, self._motion, self._takes = None, None, chain.takes
        if execution:
            from sim2real.adapters.motion import BatchMotion
            from sim2real.adapters.wrappers import refuse_other_gap, refuse_other_output

            refuse_other_gap(chain, "execution")
            if motors is not None:
                self._motion = BatchMotion(self.batch, motors)
                refuse_other_output(chain)
            self._force = self.batch.bind("actuator_force")
            self._chain = chain.outside_engine().bind(num_envs, model.nu, float(model.opt.timestep))
            self._store = JoinedStore((self._store, self._chain))
        self._sensors = None
        if perception:
            from sim2real.adapters.wrappers import readings, sensors

            chain = sensors(perception)
            width, self.single_observation_space = readings(task.observation_space, chain)
            self._sensors = chain.bind(num_envs, width, task.dt)
            self._store = JoinedStore((self._store, self._sensors))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._reading: Array = np.zeros(self.observation_space.shape or ())
        self.randomizer = Randomizer(parse_randomizations(parameters), self._store, num_envs, task.dt)
        self._initial = InitialState(initial_state, mujoco_state_units(task.model)) if initial_state else None
        self._push: PushSchedule | None = None
        if push:
            check_push(push)
            wrench = Wrench.from_arguments(task, **push)
            self._push, self._pushed = PushSchedule(wrench, num_envs, task.dt), wrench.body
        self._rngs: list[np.random.Generator] = []
        self._streams: dict[str, list[np.random.Generator]] = {}
        self._seeds: list[int] = []
        self._elapsed = np.zeros(num_envs, int)
        self._done = np.zeros(num_envs, bool)
        self._begun = np.zeros(num_envs, bool)
        self._all = np.ones(num_envs, bool)
        self._report: dict[str, Any] = {}
        self._reported: Mapping[str, Array] | None = None

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the environments."""
        if not self._rngs:
            self._seed(None)
        return tuple(self._rngs)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the environments."""
        if not self._rngs:
            self._seed(None)
        return tuple(self._seeds)

    def parameter_store(self) -> ParameterStore:
        """Return the store of the n plants' parameters."""
        return self._store

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Reset all environments, or those in `options["reset_mask"]`; seed i is `seed + i`, or `seed[i]`.

        Observations and infos of environments that are not reset are those of their present state.
        """
        options = options or {}
        mask = self._reset_mask(options)
        fresh = mask & (self._seed(seed, mask) | ~self._begun)
        forced = check_mapping(options.get("parameters", {}), "options['parameters']")
        infos = self._begin(mask, fresh, forced)
        self._done[mask] = False
        self._begun |= mask
        observation = self._sensed(self.task.observe(self.plants, slice(None)), mask)
        return observation, self._masked(infos, mask, mask)

    def _sensed(self, observation: Array, mask: Mask | None = None) -> Array:
        """Return what the sensors make of observations; outside of `mask` what they read last."""
        if self._sensors is None:
            return observation
        read = self._sensors.apply(np.asarray(observation, float)[:, None], mask=mask)[:, 0]
        read = read.astype(self.single_observation_space.dtype)
        self._reading = read if mask is None else np.where(mask[:, None], read, self._reading)
        return self._reading.copy()

    def _reset_mask(self, options: Mapping[str, Any]) -> Mask:
        mask = options.get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, bool)
        if (
            not isinstance(mask, np.ndarray)
            or mask.shape != (self.num_envs,)
            or mask.dtype != np.bool_
            or not mask.any()
        ):
            raise ParameterError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},) with a True in it, "
                f"found {mask!r}"
            )
        return mask

    def _seed(self, seed: int | Sequence[int | None] | None, mask: Mask | None = None) -> Mask:
        """Make generators anew where there is a seed, or none yet; return where."""
        n = self.num_envs
        seeds = [None] * n if seed is None else [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
        if len(seeds) != n:
            raise ParameterError(f"expected a seed for each of {n} environments, found {len(seeds)}")
        first = not self._rngs
        if first:
            self._rngs, self._seeds = [np.random.default_rng(0)] * n, [0] * n
            self._streams = {role: list(self._rngs) for role in ("dynamics", "initial_state", "push")}
        fresh = np.zeros(n, bool)
        for i, s in enumerate(seeds):
            if first or (s is not None and (mask is None or mask[i])):
                self._rngs[i], self._seeds[i] = np_random(s)
                for role, streams in self._streams.items():
                    streams[i] = stream(self._seeds[i], role)
                fresh[i] = True
        return fresh

    def _begin(self, mask: Mask, fresh: Mask, forced: Mapping[str, Any]) -> Infos:
        """Begin the episodes of the environments in `mask`; return their infos, (n, ...) each."""
        rows = np.flatnonzero(mask)
        ids = None if mask.all() else rows.astype(np.int32)
        self.randomizer.begin(self._streams["dynamics"], mask, fresh, forced)
        for line in (self._chain, self._sensors):
            if line is not None:
                line.reset(mask)
                if fresh.any():
                    line.seed(self._seeds, fresh)
        self.batch.reset(ids, stage=0)
        for i in rows:
            self.plants.qpos[i], self.plants.qvel[i] = self.task.initial(self._rngs[i])
        self.batch.forward(ids)
        if self._initial is not None:
            u = np.stack([self._streams["initial_state"][i].random(self._initial.dimension) for i in rows])
            state = np.concatenate([self.plants.qpos[rows], self.plants.qvel[rows]], 1)
            state = self._initial.apply(state, u)
            nq = self.task.model.nq
            self.plants.qpos[rows] = normalized(self.task.model, state[:, :nq])
            self.plants.qvel[rows] = state[:, nq:]
            self.batch.forward(ids)
        if self._push is not None:
            self._push.begin(self._streams["push"], mask)
        self.plants.after_reset(rows)
        self._elapsed[rows] = 0
        out = {}
        for key, value in self.task.reset_info(self.plants, rows).items():
            out[key] = np.zeros((self.num_envs, *value.shape[1:]), value.dtype)
            out[key][rows] = value
        return out

    def step(self, actions: NDArray[Any]) -> tuple[Array, Array, Mask, Mask, dict[str, Any]]:
        """Step all environments with `actions` (n, A)."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs, self.task.model.nu):
            raise ParameterError(f"expected actions ({self.num_envs}, {self.task.model.nu}), found {actions.shape}")
        if self._chain is not None:
            require_finite_actions(actions)
        if not self._begun.all():
            raise gym.error.ResetNeeded(
                f"{int((~self._begun).sum())} environments were never reset: call reset() first"
            )
        if self._done.any():
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise gym.error.ResetNeeded(
                    f"{int(self._done.sum())} episodes have ended: "
                    "reset(options={'reset_mask': terminated | truncated})"
                )
            if self.autoreset_mode == AutoresetMode.NEXT_STEP:
                return self._step_some(actions, ~self._done)
        observation, reward, terminated, infos = self._advance(actions, None)
        observation = self._sensed(observation)
        truncated = self._truncations()
        self._done = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._done.any():
            return self._restart(observation, reward, terminated, truncated, infos)
        return observation, reward, terminated, truncated, self._masked(infos, self._all, self._all)

    def _truncations(self) -> Mask:
        if not self.max_episode_steps:
            return np.zeros(self.num_envs, bool)
        return np.asarray(self._elapsed >= self.max_episode_steps)

    def _advance(self, actions: NDArray[Any], going: Mask | None) -> tuple[Array, Array, Mask, Infos]:
        """Step the environments in `going`, all if None; what is returned of the others means nothing."""
        mask = np.ones(self.num_envs, bool) if going is None else going
        if self.randomizer.moving:
            self.randomizer.advance(self._streams["dynamics"], mask & (self._elapsed > 0))
        if self._push is not None:
            self.batch.bind("xfrc_applied")[:, self._pushed] = self._push.next(self._streams["push"], mask)
        before = self.task.before(self.plants)
        ids = None if going is None else np.flatnonzero(going).astype(np.int32)
        if self._chain is None:
            self.plants.ctrl[...] = actions
            self.batch.step(ids, nstep=self.task.frame_skip)
        else:
            delivered = self._execute(self._chain, actions.astype(float), going, ids)
        self.plants.after_step(mask)
        self._elapsed += mask
        observation = self.task.observe(self.plants, slice(None))
        reward, terminated, infos = self.task.outcome(self.plants, before, actions, observation)
        if self._chain is not None:
            infos |= {"commanded_action": actions.astype(float), "delivered_action": delivered}
            infos["applied_effort"] = self._force.copy()
        if self._push is not None:
            infos["push"] = self.batch.bind("xfrc_applied")[:, self._pushed].copy()
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

    def _step_some(self, actions: NDArray[Any], going: Mask) -> tuple[Array, Array, Mask, Mask, dict[str, Any]]:
        """NEXT_STEP: the environments that are not `going` begin an episode instead."""
        observation, reward, terminated, infos = self._advance(actions, going)
        truncated = self._truncations() & going
        terminated &= going
        reward = np.where(going, reward, 0.0)
        begun = self._begin(~going, np.zeros(self.num_envs, bool), {})
        rows = np.flatnonzero(~going)
        observation[rows] = self.task.observe(self.plants, rows)
        self._done = terminated | truncated
        return self._sensed(observation), reward, terminated, truncated, self._merged(infos, going, begun, ~going)

    def _restart(
        self, observation: Array, reward: Array, terminated: Mask, truncated: Mask, infos: Infos
    ) -> tuple[Array, Array, Mask, Mask, dict[str, Any]]:
        """SAME_STEP: the environments whose episode has ended begin the next one."""
        ended = self._done
        final = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(ended):
            final[i] = observation[i].copy()
        kept = {key: np.where(_rows(ended, value), value, np.zeros_like(value)) for key, value in infos.items()}
        last = self._masked(kept, ended, ended)
        begun = self._begin(ended, np.zeros(self.num_envs, bool), {})
        observation = self._observed_anew(observation, ended)
        self._done = np.zeros(self.num_envs, bool)
        merged = self._merged(infos, ~ended, begun, ended)
        merged |= {"final_obs": final, "_final_obs": ended.copy(), "final_info": last, "_final_info": ended.copy()}
        return observation, reward, terminated, truncated, merged

    def _observed_anew(self, observation: Array, mask: Mask) -> Array:
        """Return observations with those in `mask` taken, and read, again."""
        rows = np.flatnonzero(mask)
        if self._sensors is None:
            observation[rows] = self.task.observe(self.plants, rows)
            return observation
        return self._sensed(self.task.observe(self.plants, slice(None)), mask)

    def _masked(self, infos: Infos, mask: Mask, shown: Mask) -> dict[str, Any]:
        """Return infos with the mask that Gymnasium pairs them with, and the parameters in force where `shown`."""
        out: dict[str, Any] = {}
        for key, value in infos.items():
            out[key], out[f"_{key}"] = value, mask.copy()
        if self.randomizer.in_force:
            out["parameters"], out["_parameters"] = self._parameters(shown), shown.copy()
        return out

    def _merged(self, infos: Infos, going: Mask, begun: Infos, starting: Mask) -> dict[str, Any]:
        out: Infos = {}
        masks = {}
        for key in [*infos, *(k for k in begun if k not in infos)]:
            masks[key] = np.zeros(self.num_envs, bool)
            parts = [(infos, going), (begun, starting)]
            for source, rows in parts:
                if key in source:
                    out.setdefault(key, np.zeros_like(source[key]))
                    out[key][rows] = source[key][rows]
                    masks[key] |= rows
        found = {key: value for key, value in out.items() if masks[key].any()}
        return self._masked(found, going, self._all) | {f"_{key}": masks[key] for key in found}

    def _parameters(self, shown: Mask) -> dict[str, Any]:
        if not shown.all():
            return self._reported_where(shown)
        if self._reported is not self.randomizer.in_force:
            self._reported, self._report = self.randomizer.in_force, self._reported_where(shown)
        return self._report.copy()

    def _reported_where(self, shown: Mask) -> dict[str, Any]:
        """Return the parameters in force with their masks, zero where the mask is false."""
        out: dict[str, Any] = {}
        for name, value in self.randomizer.in_force.items():
            held = shown & self.randomizer.holds(name)
            if held.any():
                out[name], out[f"_{name}"] = value if held.all() else np.where(held, value, 0.0), held
        return out

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is open."""


def _rows(mask: Mask, value: NDArray[Any]) -> Mask:
    """Return a mask (n,) that broadcasts over the other axes of `value` (n, ...)."""
    return mask.reshape(-1, *[1] * (value.ndim - 1))


def normalized(model: Any, qpos: Array) -> Array:
    """Return positions (k, nq) with unit quaternions."""
    import mujoco

    if model.nq == model.nv:
        return qpos
    out = qpos.copy()
    for row in out:
        mujoco.mj_normalizeQuat(model, row)
    return out
