"""Gymnasium wrappers that randomize one environment: its parameters, its initial state, and pushes from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.env_parameters import (
    Env,
    GoalWrapper,
    after_reset,
    check_period,
    control_period,
    parameter_store,
    refuse_batch,
)
from sim2real.randomization.initial_state import InitialState, state_access
from sim2real.randomization.parameters import ParameterStore
from sim2real.randomization.pushes import PushSchedule, Wrench
from sim2real.randomization.randomization import Randomizations, Randomizer, parse_randomizations, stream

ALL = np.ones(1, bool)
StepResult = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class _OwnStream(GoalWrapper):
    """A wrapper with a generator of its own, seeded from the environment's seed."""

    role: str

    def _seeded(self, seed: int | None) -> bool:
        """Make the generator anew for a seed, or for the first time; return whether it was."""
        if seed is None and hasattr(self, "_stream"):
            return False
        copy, layer = 0, self.env
        while isinstance(layer, gym.Wrapper):
            copy += type(layer) is type(self)
            layer = layer.env
        if seed is None:
            known = self.env.unwrapped.np_random_seed
            seed = known if known is not None and known >= 0 else np.random.SeedSequence().entropy  # type: ignore[assignment]
        self._stream = stream(int(seed), self.role, copy)  # type: ignore[arg-type]
        return True


class RandomizeDynamics(_OwnStream, RecordConstructorArgs):
    """Randomizes the parameters of an environment: mass, friction, damping, latency, and whatever else it has.

    Works on MuJoCo environments, on Gymnasium's classic-control and Box2D ones, on any for which `register_parameters`
    was called, and on those that bring their parameters (`Randomizable`). What is in force is in `info["parameters"]`
    after every reset and step, as `{name: value}` in SI units. `reset(options={"parameters": {name: value}})` forces
    values for that episode; names may be patterns, and parameters that are not randomized.

    With the same seed the episodes of the wrapped environment start in the states of the bare one: the draws come from
    a generator of their own, made from the environment's seed. (LunarLander takes a step inside its reset: under
    another gravity its first observation is already another one.)

    Args:
        env: a single environment.
        parameters: `{name: notation}`, a `ParameterSet` such as a posterior, or a list with times and schedules; see
            `parse_randomizations`.
        dt: control period [s] for schedules, where the environment does not say it.

    Raises:
        ParameterError: a batch of environments, an environment without known parameters, or an unknown name.

    Example:
        >>> env = RandomizeDynamics(gym.make("CartPole-v1"), {"dynamics.pole.mass": "*U(0.8, 1.2)"})
        >>> _, info = env.reset(seed=0)
        >>> 0.08 <= info["parameters"]["dynamics.pole.mass"] <= 0.12
        True
        >>> _, info = env.reset(options={"parameters": {"dynamics.pole.mass": 0.3}})
        >>> info["parameters"]["dynamics.pole.mass"]
        0.3
    """

    role = "dynamics"

    def __init__(self, env: Env, parameters: Randomizations, dt: float | None = None) -> None:
        refuse_batch(env, type(self).__name__)
        check_period(dt)
        names_inside = _names_inside(env)
        randomizations = parse_randomizations(parameters)
        RecordConstructorArgs.__init__(self, parameters=[r.to_config() for r in randomizations], dt=dt)
        gym.Wrapper.__init__(self, env)
        self._store: ParameterStore | None = parameter_store(env)
        moving = any(not isinstance(r.when, str) for r in randomizations)
        period = dt if dt is not None else (control_period(env) if moving else 0.0)
        self.randomizer = Randomizer(randomizations, self._store, 1, period)
        self._inside = names_inside
        twice = sorted(names_inside & set(self.randomizer.names))
        if twice:
            raise ParameterError(f"a RandomizeDynamics inside already randomizes {', '.join(twice)}; keep one of them")
        if not names_inside:
            self._store.restore()  # what a wrapper that was thrown away has left behind
        self._report: dict[str, float] = {}
        self._first = True
        self._sum, self._length, self._ended = np.zeros(1), np.zeros(1, int), False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        fresh = self._seeded(seed)
        self._attach()
        forced = (options or {}).get("parameters")
        if forced is not None and not isinstance(forced, Mapping):
            raise ParameterError(f"options['parameters'] is {{name: value}}, found {forced!r}")
        if forced is not None and self._inside:
            # what a wrapper inside draws is forced there, all else here: each value has one owner
            found = self.randomizer.resolve(forced)
            within = {name: float(value[0]) for name, value in found.items() if name in self._inside}
            options = {**(options or {}), "parameters": within}
            forced = {name: value for name, value in found.items() if name not in within}
        self.randomizer.ended(np.array([self._ended]), self._sum, self._length)
        self._sum[0], self._length[0], self._ended = 0.0, 0, False
        self.randomizer.begin([self._stream], ALL, np.array([fresh]), forced)
        observation, info = self.env.reset(seed=seed, options=options)
        after_reset(self.randomizer.store)
        self._first = True
        self._report = {name: float(value[0]) for name, value in self.randomizer.in_force.items()}
        return observation, self._with_report(info)

    def step(self, action: Any) -> StepResult:
        if self.randomizer.moving:
            self._move()
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.randomizer.curricula:
            self._sum += float(reward)
            self._length += 1
            self._ended = bool(terminated or truncated)
        return observation, reward, terminated, truncated, self._with_report(info)

    def _attach(self) -> None:
        """Find the store again after a copy: Gymnasium makes most environments anew when copied or unpickled."""
        if self.randomizer.store is not parameter_store(self.env):
            self._store = self.randomizer.store = parameter_store(self.env)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_store": None}

    def _move(self) -> None:
        if self._first:
            self._first = False
            return
        if self._store is None:
            self._attach()
        before = self.randomizer.in_force
        self.randomizer.advance([self._stream], ALL)
        if self.randomizer.in_force is not before:
            self._report = {name: float(value[0]) for name, value in self.randomizer.in_force.items()}

    def _with_report(self, info: dict[str, Any]) -> dict[str, Any]:
        inner = info.get("parameters")
        info["parameters"] = self._report.copy() if inner is None else {**inner, **self._report}
        return info


def _names_inside(env: Env) -> set[str]:
    """Return what wrappers inside randomize."""
    names: set[str] = set()
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.Autoreset):
            raise ParameterError(
                "put RandomizeDynamics inside Autoreset: its resets do not reach the wrappers around it"
            )
        if isinstance(layer, RandomizeDynamics):
            names |= set(layer.randomizer.names)
        layer = layer.env
    return names


class AppendParameters(gym.ObservationWrapper[Any, Any, Any], GoalWrapper, RecordConstructorArgs):
    """Appends what `RandomizeDynamics` has in force to the observation: privileged information for a teacher or critic.

    A one-dimensional `Box` grows by one number a parameter; a `Dict` gets the key "parameters".

    Args:
        env: an environment with a `RandomizeDynamics` inside.
        names: of the parameters to append, in this order; empty for all that are randomized.

    Raises:
        ParameterError: no `RandomizeDynamics` inside, an unknown name, or another kind of observation.

    Example:
        >>> env = RandomizeDynamics(gym.make("Pendulum-v1"), {"dynamics.pole.mass": "*U(0.8, 1.2)"})
        >>> AppendParameters(env).observation_space.shape
        (4,)
    """

    def __init__(self, env: Env, names: Sequence[str] = ()) -> None:
        names = (names,) if isinstance(names, str) else names
        RecordConstructorArgs.__init__(self, names=list(names))
        gym.ObservationWrapper.__init__(self, env)
        self.names = names_to_append(names, self._find().names)
        self.observation_space = appended_space(env.observation_space, len(self.names))

    def _find(self) -> Randomizer:
        layer: Any = self.env
        while isinstance(layer, gym.Wrapper):
            if isinstance(layer, RandomizeDynamics):
                return layer.randomizer
            layer = layer.env
        raise ParameterError("AppendParameters needs a RandomizeDynamics inside: wrap the environment in that first")

    def observation(self, observation: Any) -> Any:
        in_force = self._find().in_force
        values = np.array([in_force[name][0] for name in self.names])
        if isinstance(observation, dict):
            return {**observation, "parameters": values}
        return np.concatenate([observation, values.astype(observation.dtype)])


def names_to_append(names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters to append, all that are `known` where none are named.

    Raises:
        ParameterError: an unknown name, or nothing to append.
    """
    for name in names:
        if name not in known:
            raise ParameterError(f"{name!r} is not randomized{did_you_mean(name, known)}")
    if not known:
        raise ParameterError("there is nothing to append: no parameter is randomized")
    return tuple(names) or known


def appended_space(space: gym.Space[Any], parameters: int) -> gym.Space[Any]:
    """Return the observation space with so many parameters appended; unbounded, since any value can be forced."""
    low, high = np.full(parameters, -np.inf), np.full(parameters, np.inf)
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({**space.spaces, "parameters": gym.spaces.Box(low, high, dtype=np.float64)})
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        kind: Any = space.dtype
        low, high = np.concatenate([space.low, low.astype(kind)]), np.concatenate([space.high, high.astype(kind)])
        longer: gym.spaces.Box[Any] = gym.spaces.Box(low, high, dtype=kind)
        return longer
    raise ParameterError(f"parameters can be appended to a flat Box of real numbers or to a Dict, not to {space}")


class RandomizeInitialState(_OwnStream, RecordConstructorArgs):
    """Changes the state in which episodes start: an offset from (`+`), a factor on (`*`), or instead of (`=`) the
    environment's own.

    On MuJoCo, joints have `dynamics.<joint>.initial_position` and `.initial_velocity` (with `[k]` for ball and free
    joints); the state of classic-control environments has the names that `sim2real parameters` prints.

    Args:
        env: a single environment.
        state: `{name: notation}`.

    Raises:
        ParameterError: an unknown name, or an environment whose state is not known.

    Example:
        >>> env = RandomizeInitialState(gym.make("Pendulum-v1"), {"dynamics.pole.initial_velocity": "=U(-5, 5)"})
        >>> observation, _ = env.reset(seed=1)
        >>> bool(abs(observation[2]) > 1)
        True
    """

    role = "initial_state"

    def __init__(self, env: Env, state: Mapping[str, str]) -> None:
        refuse_batch(env, type(self).__name__)
        RecordConstructorArgs.__init__(self, state=dict(state))
        gym.Wrapper.__init__(self, env)
        self._access = state_access(env)
        self._initial = InitialState(state, self._access)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seeded(seed)
        if self._access.env is not self.env.unwrapped:
            self._access = state_access(self.env)  # a copy: Gymnasium makes most environments anew
        observation, info = self.env.reset(seed=seed, options=options)
        u = self._stream.random((1, self._initial.dimension))
        state = self._initial.apply(self._access.read()[None], u)[0]
        observation = self._access.write(state, observation)
        return observation, info | self._access.info()


class Push(_OwnStream, RecordConstructorArgs):
    """Pushes a body of a MuJoCo environment now and then, with a force and a torque that hold for `duration`.

    Args:
        env: a single MuJoCo environment.
        body: the name of the body, pushed at its centre of mass.
        force: notation of the strength [N] (the direction is horizontal and random), or one for each axis of the world.
        torque: notation for each axis of the world [N·m]; empty for none.
        every: notation of the time between pushes [s]; a number for a fixed one.
        duration: of a push [s]; the impulse is kept where it is not a whole number of steps.

    Raises:
        ParameterError: not a MuJoCo environment, or no such body.

    Example:
        >>> env = Push(gym.make("Hopper-v5"), "torso", force="U(50, 100)", every="U(0.5, 1)", duration=0.1)
        >>> _ = env.reset(seed=0)
    """

    role = "push"

    def __init__(
        self,
        env: Env,
        body: str,
        force: str | Sequence[str] = (),
        torque: Sequence[str] = (),
        every: str | float = "U(2, 4)",
        duration: float = 0.1,
    ) -> None:
        refuse_batch(env, type(self).__name__)
        RecordConstructorArgs.__init__(self, body=body, force=force, torque=torque, every=every, duration=duration)
        gym.Wrapper.__init__(self, env)
        base: Any = env.unwrapped
        self._wrench = Wrench.from_arguments(base, body, force, torque, every, duration)
        self._schedule = PushSchedule(self._wrench, 1, control_period(env))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seeded(seed)
        self._schedule.begin([self._stream], ALL)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> StepResult:
        if not hasattr(self, "_stream"):
            raise gym.error.ResetNeeded("call reset() before step()")
        applied = self._schedule.next([self._stream], ALL)
        base: Any = self.env.unwrapped
        base.data.xfrc_applied[self._wrench.body] = applied[0]
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["push"] = applied[0].copy()
        return observation, reward, terminated, truncated, info
