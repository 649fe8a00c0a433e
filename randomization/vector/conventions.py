"""What the vector environments of all engines do alike: seeds, episodes, infos, by Gymnasium's conventions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import array_api_compat
import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sim2real.adapters import Chain
from sim2real.adapters.stage import plain
from sim2real.errors import ParameterError
from sim2real.randomization.env_parameters import JoinedStore, require_finite_actions
from sim2real.randomization.initial_state import InitialState, mujoco_state_units
from sim2real.randomization.mujoco_parameters import MujocoParameters
from sim2real.randomization.parameters import ParameterStore
from sim2real.randomization.pictures import Pixels, PlantPictures
from sim2real.randomization.pushes import PushSchedule, Wrench, check_push
from sim2real.randomization.randomization import Randomizations, Randomizer, parse_randomizations, stream
from sim2real.randomization.vector.task import Infos, Rows, Task, check_mapping

Mask = NDArray[np.bool_]
# An array (n, ...) of the engine: numpy's, or a tensor.
Values = Any


class PlantsVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """n environments of one `Task` on some engine, which a subclass brings.

    `info["parameters"]` holds what is in force, as `{name: (n,)}`; `reset(options={"parameters": {name: value}})`
    forces values, a number or (n,) each. Masks and parameters in infos are arrays of numpy.

    Args:
        task: what is observed and rewarded.
        num_envs: number of environments.
        max_episode_steps: control steps after which an episode is truncated; 0 for never.
        autoreset_mode: of Gymnasium; in NEXT_STEP mode the step after an episode's end ignores the action.

    Attributes:
        randomizer: what draws parameters.
        elapsed: (n,) control steps of the present episodes so far.
        device: of what is returned.
    """

    randomizer: Randomizer
    plants: Any
    device: Any = "cpu"
    _store: ParameterStore
    _pictures: PlantPictures | None = None

    def __init__(self, task: Task, num_envs: int, max_episode_steps: int, autoreset_mode: str | AutoresetMode) -> None:
        super().__init__()
        if not isinstance(num_envs, int) or num_envs < 1:
            raise ParameterError(f"num_envs must be at least 1, found {num_envs}")
        self.task, self.num_envs, self.max_episode_steps = task, num_envs, max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": []}
        self.single_observation_space, self.single_action_space = task.observation_space, task.action_space
        self.action_space = batch_space(task.action_space, num_envs)
        self._chain: Any = None
        self._sensors: Any = None
        self._rngs: list[np.random.Generator] = []
        self._streams: dict[str, list[np.random.Generator]] = {}
        self._seeds: list[int] = []
        self.elapsed = np.zeros(num_envs, int)
        self._returns = np.zeros(num_envs)
        self._done = np.zeros(num_envs, bool)
        self._begun = np.zeros(num_envs, bool)
        self._all = np.ones(num_envs, bool)
        self._report: dict[str, Any] = {}
        self._reported: Mapping[str, Any] | None = None

    def _randomized(
        self,
        parameters: Randomizations,
        initial_state: Mapping[str, str] | None,
        push: Mapping[str, Any] | None,
        perception: Sequence[Mapping[str, Any]],
        pixels: Mapping[str, Any] | Pixels | None,
        like: Values = None,
    ) -> None:
        """Set up what is drawn, and what sensors make of observations; `_store` and `_chain` are there already.

        Args:
            parameters, initial_state, push, perception, pixels: as `make_vec` takes them.
            like: an array of the kind that observations are.
        """
        task, n, plants = self.task, self.num_envs, self._store
        if self._chain is not None:
            self._store = JoinedStore((self._store, self._chain))
        if perception:
            from sim2real.adapters.wrappers import readings, sensors

            chain: Chain = sensors(perception)
            width, self.single_observation_space = readings(self.single_observation_space, chain)
            self._sensors = chain.bind(n, width, task.dt, like=like)
            self._wide = np.float64 if like is None else None
            self._store = JoinedStore((self._store, self._sensors))
        read = self.single_observation_space
        self._reading = self._given(np.zeros((n, *(read.shape or ())), read.dtype))
        if pixels is not None:
            self._pixels = Pixels.of(pixels)
            self.single_observation_space = self._pixels.space(read)
            assert isinstance(plants, MujocoParameters)
            self._pictures = PlantPictures(plants, self._pixels)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.randomizer = Randomizer(parse_randomizations(parameters), self._store, n, task.dt)
        self._initial = InitialState(initial_state, mujoco_state_units(task.model)) if initial_state else None
        self._push: PushSchedule | None = None
        if push:
            check_push(push)
            wrench = Wrench.from_arguments(task, **push)
            self._push, self._pushed = PushSchedule(wrench, n, task.dt), wrench.body

    @abstractmethod
    def _place(self, mask: Mask, rows: NDArray[np.intp]) -> None:
        """Put the plants `rows`, which `mask` selects, where episodes begin; see `_starts`."""

    @abstractmethod
    def _simulate(
        self, actions: Values, going: Mask | None, wrench: NDArray[np.float64] | None
    ) -> tuple[Values, Values, Values, Infos]:
        """Step the plants in `going`, all if None, under a push (n, 6) of the body `_pushed`, if there are pushes.

        Returns:
            observations, rewards and terminations of the task, and infos.
        """

    def _advance(self, actions: Values, going: Mask | None) -> tuple[Values, Values, Values, Infos]:
        """Step the environments in `going`, all if None; what is returned of the others means nothing."""
        mask = self._all if going is None else going
        if self.randomizer.moving:
            self.randomizer.advance(self._streams["dynamics"], mask & (self.elapsed > 0))
        wrench = None if self._push is None else self._push.next(self._streams["push"], mask).copy()
        observation, reward, ended, infos = self._simulate(actions, going, wrench)
        self.elapsed += mask
        if wrench is not None:
            infos["push"] = wrench
        return observation, reward, ended, infos

    @abstractmethod
    def _observe(self, rows: Rows) -> Values:
        """Return the observations of the task (k, O) of plants."""

    @abstractmethod
    def _reset_info(self, rows: NDArray[np.intp]) -> Infos:
        """Return the infos of the task (name -> (k, ...)) of plants whose episodes begin."""

    def _given(self, array: Values) -> Values:
        """Return an array of numpy as this environment gives it away."""
        return array

    def _starts(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the positions (k, nq) and velocities (k, nv) that episodes of plants begin in; draw their goals."""
        both = []
        for i in rows:
            both.append(self.task.initial(self._rngs[i]))
            if self.task.goals:
                self.plants.goal[i] = self._given(self.task.goal(self._rngs[i]))
        return np.stack([q for q, _ in both]), np.stack([v for _, v in both])

    def _drawn(
        self, rows: NDArray[np.intp], qpos: NDArray[np.float64], qvel: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what `initial_state` makes of the states of plants."""
        assert self._initial is not None
        u = np.stack([self._streams["initial_state"][i].random(self._initial.dimension) for i in rows])
        state = self._initial.apply(np.concatenate([qpos, qvel], 1), u)
        return normalized(self.task.model, state[:, : qpos.shape[1]]), state[:, qpos.shape[1] :]

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
    ) -> tuple[Values, dict[str, Any]]:
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
        observation = self._sensed(self._observe(slice(None)), mask)
        return self._seen(observation), self._masked(infos, mask, mask)

    def _seen(self, readings: Values, plants: Rows = slice(None)) -> Values:
        """Return what is observed: readings (k, O) of plants, pictures of these, or both."""
        if self._pictures is None:
            return readings
        positions = plain(self.plants.qpos)[plants]
        drawn = self._pictures.draw(np.arange(self.num_envs)[plants].tolist(), positions)
        return self._pixels.beside(self._given(drawn), readings)

    def _sensed(self, observation: Values, mask: Mask | None = None) -> Values:
        """Return what the sensors make of observations; outside of `mask` what they read last."""
        if self._sensors is None:
            return observation
        xp = array_api_compat.array_namespace(observation)
        kind = observation.dtype
        wide = observation if self._wide is None else xp.asarray(observation, dtype=self._wide)
        read = xp.asarray(self._sensors.apply(wide[:, None], mask=mask)[:, 0], dtype=kind)
        self._reading = read if mask is None else xp.where(self._given(mask)[:, None], read, self._reading)
        return xp.asarray(self._reading, copy=True)

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
        self.randomizer.ended(mask & self._done, self._returns, self.elapsed)
        self._returns[rows] = 0.0
        self.randomizer.begin(self._streams["dynamics"], mask, fresh, forced)
        for line in (self._chain, self._sensors):
            if line is not None:
                line.reset(mask)
                if fresh.any():
                    line.seed(self._seeds, fresh)
        self._place(mask, rows)
        if self._push is not None:
            self._push.begin(self._streams["push"], mask)
        self.elapsed[rows] = 0
        out = {}
        for key, value in self._reset_info(rows).items():
            xp = array_api_compat.array_namespace(value)
            out[key] = xp.zeros((self.num_envs, *value.shape[1:]), dtype=value.dtype)
            out[key][rows] = value
        return out

    def step(self, actions: Any) -> tuple[Values, Values, Values, Values, dict[str, Any]]:
        """Step all environments with `actions` (n, A)."""
        actions = self._taken(actions)
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
        observation, reward, ended, infos = self._advance(actions, None)
        self._add(reward)
        observation = self._sensed(observation)
        terminated, truncated = _host(ended), self._truncations()
        self._done = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._done.any():
            return self._restart(observation, reward, terminated, truncated, infos)
        told = self._masked(infos, self._all, self._all)
        return self._seen(observation), reward, self._given(terminated), self._given(truncated), told

    def _add(self, reward: Values) -> None:
        """Sum up rewards, where a curriculum wants to know."""
        if self.randomizer.curricula:
            self._returns += plain(reward)

    def _taken(self, actions: Any) -> Values:
        """Return actions as the engine takes them; see `_check_actions`."""
        self._check_actions(actions)
        return np.asarray(plain(actions))

    def _check_actions(self, actions: Any) -> None:
        """Check actions before they are taken.

        Raises:
            ParameterError: another shape, or numbers that are not finite where stages would remember them.
        """
        expected = (self.num_envs, *self.single_action_space.shape)  # type: ignore[misc]
        if tuple(np.shape(actions)) != expected:
            raise ParameterError(f"expected actions {expected}, found {tuple(np.shape(actions))}")
        if self._chain is not None:
            require_finite_actions(np.asarray(plain(actions)))

    def _truncations(self) -> Mask:
        if not self.max_episode_steps:
            return np.zeros(self.num_envs, bool)
        return np.asarray(self.elapsed >= self.max_episode_steps)

    def _step_some(self, actions: Values, going: Mask) -> tuple[Values, Values, Values, Values, dict[str, Any]]:
        """NEXT_STEP: the environments that are not `going` begin an episode instead."""
        observation, reward, ended, infos = self._advance(actions, going)
        xp = array_api_compat.array_namespace(reward)
        terminated, truncated = _host(ended) & going, self._truncations() & going
        reward = xp.where(self._given(going), reward, xp.zeros_like(reward))
        self._add(reward)
        begun = self._begin(~going, np.zeros(self.num_envs, bool), {})
        rows = np.flatnonzero(~going)
        observation[rows] = self._observe(rows)
        self._done = terminated | truncated
        told = self._merged(infos, going, begun, ~going)
        return self._seen(self._sensed(observation)), reward, self._given(terminated), self._given(truncated), told

    def _restart(
        self, observation: Values, reward: Values, terminated: Mask, truncated: Mask, infos: Infos
    ) -> tuple[Values, Values, Values, Values, dict[str, Any]]:
        """SAME_STEP: the environments whose episode has ended begin the next one."""
        ended = self._done
        final = np.full(self.num_envs, None, dtype=object)
        rows = np.flatnonzero(ended)
        last_seen = self._seen(observation[rows], rows)
        for k, i in enumerate(rows.tolist()):
            final[i] = _one(last_seen, k)
        kept = {key: self._where(ended, value) for key, value in infos.items()}
        last = self._masked(kept, ended, ended)
        begun = self._begin(ended, np.zeros(self.num_envs, bool), {})
        observation = self._observed_anew(observation, ended)
        self._done = np.zeros(self.num_envs, bool)
        merged = self._merged(infos, ~ended, begun, ended)
        merged |= {"final_obs": final, "_final_obs": ended.copy(), "final_info": last, "_final_info": ended.copy()}
        return self._seen(observation), reward, self._given(terminated), self._given(truncated), merged

    def _observed_anew(self, observation: Values, mask: Mask) -> Values:
        """Return observations with those in `mask` taken, and read, again."""
        rows = np.flatnonzero(mask)
        if self._sensors is None:
            observation[rows] = self._observe(rows)
            return observation
        return self._sensed(self._observe(slice(None)), mask)

    def _where(self, mask: Mask, value: Values) -> Values:
        """Return values (n, ...), zero where the mask (n,) is false."""
        xp = array_api_compat.array_namespace(value)
        chosen = mask.reshape(-1, *[1] * (value.ndim - 1))
        return xp.where(chosen if isinstance(value, np.ndarray) else self._given(chosen), value, xp.zeros_like(value))

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
                    xp = array_api_compat.array_namespace(source[key])
                    out.setdefault(key, xp.zeros_like(source[key]))
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
        """Free what pictures are drawn with."""
        if self._pictures is not None:
            self._pictures.close()


def _one(values: Values, k: int) -> Values:
    """Return a copy of the row k of an array, or of those of a dictionary."""
    if isinstance(values, dict):
        return {key: _one(value, k) for key, value in values.items()}
    return array_api_compat.array_namespace(values).asarray(values[k], copy=True)


def _host(mask: Values) -> Mask:
    """Return a mask of the engine as one of numpy."""
    return np.asarray(plain(mask), bool)


def normalized(model: Any, qpos: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions (k, nq) with unit quaternions."""
    import mujoco

    if model.nq == model.nv:
        return qpos
    out = qpos.copy()
    for row in out:
        mujoco.mj_normalizeQuat(model, row)
    return out
