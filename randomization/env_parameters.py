"""The parameters of Gymnasium environments: MuJoCo models, registered attributes, and what environments bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim2real.errors import NonFiniteError, ParameterError
from sim2real.randomization.addressing import silent_names
from sim2real.randomization.mujoco_address import Address
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_parameters import LiveModel, MujocoParameters
from sim2real.randomization.parameters import GAPS, Array, ParameterStore, Values, check_values

Env = gym.Env[Any, Any]
Mask = NDArray[np.bool_]


@runtime_checkable
class Randomizable(Protocol):
    """An environment or a wrapper that brings the parameters which it lets change."""

    def parameter_store(self) -> ParameterStore:
        """Return the store of n = 1 plants; the same object at every call."""
        ...


@dataclass(frozen=True)
class Setter:
    """How one parameter of an environment is read and written.

    Attributes:
        unit: SI unit.
        read: the environment -> the value in force.
        write: the environment and a value -> nothing; what follows from the value must follow.
        affects: what a change of it changes, in a few words.
        low, high: the values that make sense.
        rebuilt: whether `reset` builds the object that holds the value anew, so that it is written after it too.
        nominal: the nominal value, where it cannot be read before the first reset.
        ignored: an environment -> why it ignores the parameter as it was made, or "" where it does not.
    """

    unit: str
    read: Callable[[Any], float]
    write: Callable[[Any, float], None]
    affects: str = ""
    low: float = -np.inf
    high: float = np.inf
    rebuilt: bool = False
    nominal: float | None = None
    ignored: Callable[[Any], str] | None = None


def attribute(
    path: str,
    unit: str,
    affects: str = "",
    then: Callable[[Any], None] | None = None,
    **limits: Any,
) -> Setter:
    """Return the setter of an attribute, or of one inside it: "masscart", "fd_edge.friction".

    Args:
        path: dotted names, from the environment on.
        unit: SI unit.
        affects: what a change of it changes.
        then: called after a write, to compute what the environment derives from the attribute.
        limits: `low`, `high`, `rebuilt` and `nominal` of the `Setter`.
    """
    *owners, last = path.split(".")

    def owner(env: Any) -> Any:
        for name in owners:
            env = getattr(env, name)
        return env

    def write(env: Any, value: float) -> None:
        setattr(owner(env), last, value)
        if then is not None:
            then(env)

    return Setter(unit, lambda env: float(getattr(owner(env), last)), write, affects, **limits)


_registered: dict[str, Mapping[str, Setter]] = {}


def register_parameters(environment: type[Env] | str, setters: Mapping[str, Setter]) -> None:
    """Say which parameters a class of environments has; subclasses have them too.

    Args:
        environment: the class, or "module:Class" where importing it can wait.
        setters: `{"dynamics.pole.mass": attribute("masspole", "kg", then=...)}`.

    Example:
        >>> class Cart(gym.Env):
        ...     mass = 1.0
        >>> register_parameters(Cart, {"dynamics.cart.mass": attribute("mass", "kg", "inertia")})
        >>> parameter_store(Cart()).nominal()
        {'dynamics.cart.mass': 1.0}
    """
    for name, setter in setters.items():
        if name.split(".")[0] not in GAPS or name.count(".") < 2 or not isinstance(setter, Setter):
            raise ParameterError(
                f"register {{'<gap>.<entity>.<field>': Setter}} with the gap one of {', '.join(GAPS)}; "
                f"found {name!r}: {setter!r}"
            )
    key = environment if isinstance(environment, str) else f"{environment.__module__}:{environment.__qualname__}"
    _registered[key] = dict(setters)


def _setters(env: Env) -> Mapping[str, Setter]:
    from sim2real.randomization import gymnasium_parameters  # noqa: F401 (registers what is built in)

    for cls in type(env).__mro__:
        key = f"{cls.__module__}:{cls.__qualname__}"
        if key in _registered:
            return _registered[key]
    return {}


@dataclass
class SetterStore:
    """A `ParameterStore` over the attributes of one environment.

    Attributes:
        env: unwrapped.
        setters: name -> how it is read and written.
    """

    env: Env
    setters: Mapping[str, Setter]
    n: int = 1
    _silent: dict[str, str] = field(default_factory=dict)
    _nominal: dict[str, float] = field(default_factory=dict)
    _written: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        why = {name: s.ignored(self.env) for name, s in self.setters.items() if s.ignored is not None}
        self._silent = {name: reason for name, reason in why.items() if reason}
        self.setters = {name: s for name, s in self.setters.items() if name not in self._silent}
        for name, s in self.setters.items():
            self._nominal[name] = s.read(self.env) if s.nominal is None else s.nominal

    def nominal(self) -> dict[str, float]:
        return dict(self._nominal)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"setters": None}  # functions, which are found again by the class of the environment

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = _setters(state["env"])
        self.__dict__ |= state | {"setters": {name: known[name] for name in state["_nominal"]}}

    def silent(self) -> dict[str, str]:
        """Return the names that the environment ignores as it was made, and why; they cannot be written."""
        return dict(self._silent)

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take."""
        return {name: (s.low, s.high) for name, s in self.setters.items()}

    def units(self) -> dict[str, str]:
        return {name: s.unit for name, s in self.setters.items()}

    def affects(self) -> dict[str, str]:
        """Return what each parameter changes, in a few words."""
        return {name: s.affects for name, s in self.setters.items()}

    def write(self, values: Values, mask: Mask | None = None) -> None:
        check_values(values, self.setters, 1)
        if mask is not None and not mask[0]:
            return
        new = {name: float(np.asarray(value)[0]) for name, value in values.items()}
        for name, value in new.items():
            s = self.setters[name]
            if not s.low <= value <= s.high:
                raise ParameterError(f"{name}: must lie between {s.low:g} and {s.high:g} {s.unit}, found {value:g}")
        before = {name: float(value[0]) for name, value in self.read().items() if name in new}
        try:
            self._put(new)
        except Exception:
            for name, value in before.items():
                if self._built(self.setters[name]) and self.setters[name].read(self.env) != value:
                    self.setters[name].write(self.env, value)
            raise
        self._written.update(new)

    def _put(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            s = self.setters[name]
            if s.rebuilt and not self._built(s):
                continue
            s.write(self.env, value)
            if not np.isclose(s.read(self.env), value, rtol=1e-5):
                raise ParameterError(f"{name}: wrote {value:g}, but {s.read(self.env):g} is in force")

    def _built(self, setter: Setter) -> bool:
        """Whether the object that a rebuilt value lives in is there: it is not before the first reset."""
        try:
            setter.read(self.env)
        except (AttributeError, IndexError, TypeError):
            return False
        return True

    def after_reset(self) -> None:
        """Write again what the reset has built anew."""
        self._put({name: value for name, value in self._written.items() if self.setters[name].rebuilt})

    def read(self) -> dict[str, Array]:
        return {
            name: np.array([s.read(self.env) if self._built(s) else self._nominal[name]])
            for name, s in self.setters.items()
        }

    def restore(self, mask: Mask | None = None, names: Iterable[str] | None = None) -> None:
        if mask is not None and not mask[0]:
            return
        leaving = set(self._written) if names is None else set(self._written) & set(names)
        self._put({name: self._nominal[name] for name in leaving})
        for name in leaving:
            del self._written[name]


class JoinedStore:
    """Several stores under one roof: an environment's dynamics and the stages before it, for instance."""

    def __init__(self, stores: tuple[ParameterStore, ...]) -> None:
        self.stores = stores
        self._owner = {name: store for store in stores for name in store.nominal()}

    def nominal(self) -> dict[str, float]:
        return {name: value for store in self.stores for name, value in store.nominal().items()}

    def units(self) -> dict[str, str]:
        return {name: unit for store in self.stores for name, unit in store.units().items()}

    def affects(self) -> dict[str, str]:
        """Return what each parameter changes, in a few words."""
        return {name: text for store in self.stores for name, text in affects(store).items()}

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take, where a store knows."""
        known: list[dict[str, tuple[float, float]]] = [getattr(store, "limits", dict)() for store in self.stores]
        return {name: ends for found in known for name, ends in found.items()}

    def silent(self) -> dict[str, str]:
        """Return the names that are refused, and why."""
        return {name: why for store in self.stores for name, why in silent_names(store).items()}

    def write(self, values: Values, mask: Mask | None = None) -> None:
        n = len(next(iter(values.values()))) if values else 1
        for store in self.stores:
            mine = {name: value for name, value in values.items() if self._owner.get(name) is store}
            if mine:
                store.write(mine, mask)
        check_values({name: v for name, v in values.items() if name not in self._owner}, self._owner, n)

    def after_reset(self) -> None:
        """Let each store write again what a reset has undone."""
        for store in self.stores:
            after_reset(store)

    def read(self) -> dict[str, Array]:
        return {name: value for store in self.stores for name, value in store.read().items()}

    def restore(self, mask: Mask | None = None, names: Iterable[str] | None = None) -> None:
        chosen = None if names is None else list(names)
        for store in self.stores:
            store.restore(mask, chosen)


def after_reset(store: ParameterStore) -> None:
    """Let a store write again what a reset of its environment has undone, if it has anything of the kind."""
    again = getattr(store, "after_reset", None)
    if again is not None:
        again()


def affects(store: ParameterStore) -> dict[str, str]:
    """Return what each parameter of a store changes, in a few words, where the store knows."""
    found = getattr(store, "affects", None)
    return dict(found()) if found is not None else dict.fromkeys(store.nominal(), "")


def is_mujoco(env: Env) -> bool:
    """Whether an environment lives on a MuJoCo model that it shows as `model` and `data`."""
    import mujoco

    base = env.unwrapped
    return isinstance(getattr(base, "model", None), mujoco.MjModel) and isinstance(
        getattr(base, "data", None), mujoco.MjData
    )


def parameter_store(env: Env) -> ParameterStore:
    """Return the store of everything in an environment that can be randomized.

    That is, from the inside out: the environment's MuJoCo model, its registered attributes, or the store that it brings
    (`Randomizable`), and the stores of its wrappers.

    Raises:
        ParameterError: a batch of environments, or an environment without parameters; the message says how to mend it.
    """
    refuse_batch(env)
    stores: list[ParameterStore] = []
    layer = env
    while True:
        own = getattr(type(layer), "parameter_store", None)
        if isinstance(layer, gym.Wrapper) and own is not None:
            stores.insert(0, own(layer))
        if not isinstance(layer, gym.Wrapper):
            break
        layer = layer.env
    base = _base_store(env.unwrapped)
    if base is not None:
        stores.insert(0, base)
    if not stores:
        raise ParameterError(
            f"{type(env.unwrapped).__name__} has no parameters that are known: it is not on MuJoCo (`model` and "
            "`data`), nothing is registered for it, and it is not Randomizable. Say what can change: "
            "register_parameters(type(env.unwrapped), {'dynamics.body.mass': attribute('mass', 'kg')})"
        )
    if len(stores) == 1:
        return stores[0]
    kept = env.unwrapped.__dict__.get("_sim2real_joined")
    if not isinstance(kept, JoinedStore) or kept.stores != tuple(stores):
        kept = env.unwrapped.__dict__["_sim2real_joined"] = JoinedStore(tuple(stores))
    return kept


def _base_store(base: Env) -> ParameterStore | None:
    # kept on the environment itself, so that two wrappers agree on what is nominal
    kept = base.__dict__.get("_sim2real_parameters")
    if kept is not None:
        return kept  # type: ignore[no-any-return]
    store: ParameterStore | None = None
    if isinstance(base, Randomizable):
        store = base.parameter_store()
    elif setters := _setters(base):
        store = SetterStore(base, setters)
    elif is_mujoco(base):
        store = _mujoco_store(base, {})
    if store is not None:
        base.__dict__["_sim2real_parameters"] = store
    return store


def _mujoco_store(base: Any, stages: Mapping[str, Address]) -> ParameterStore:
    name = base.spec.id if base.spec is not None else type(base).__name__
    return MujocoParameters(MujocoFields(base.model, name, stages), LiveModel(base.model))


def add_engine_stages(base: Env, stages: Mapping[str, Address]) -> None:
    """Let the parameters of stages that the model of an environment stands for be among those of the environment.

    Raises:
        ParameterError: the parameters of the environment are in use already, or are none of MuJoCo's.
    """
    if isinstance(base, Randomizable) or _setters(base) or not is_mujoco(base):
        raise ParameterError(
            f"{type(base).__name__} brings parameters of its own, beside which native stages have no place; leave "
            "native out"
        )
    if "_sim2real_parameters" in base.__dict__:
        raise ParameterError("stages that are native change the model: put their wrapper inside what randomizes it")
    base.__dict__["_sim2real_parameters"] = _mujoco_store(base, stages)


def refuse_batch(env: Any, wrapper: str = "this wrapper") -> None:
    """Raise a ParameterError for a batch of environments, which says which wrapper is for those."""
    if isinstance(env, gym.vector.VectorEnv):
        raise ParameterError(
            f"{env} is a vector environment, and this wrapper is for a single one; make a randomized vector "
            "environment with sim2real.make_vec(id, num_envs=..., parameters=...)"
        )
    if not isinstance(env, gym.Env):
        raise ParameterError(f"expected a gymnasium.Env, found {type(env).__name__}")
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.Autoreset):
            raise ParameterError(f"put {wrapper} inside Autoreset, whose resets do not reach the wrappers around it")
        layer = layer.env
    count = getattr(env.unwrapped, "num_envs", None)
    if isinstance(count, int) and not isinstance(count, bool):
        raise ParameterError(
            f"{type(env.unwrapped).__name__} is a gymnasium.Env that holds a batch of {count} environments (as Isaac "
            "Lab's do), and this wrapper is for a single one: randomize it with the event manager of its own "
            "framework, or rebuild it with sim2real.make_vec(FunctionTask(...))"
        )


# What a goal environment has beside the methods of `gymnasium.Env`: relabelling asks the outermost wrapper for it.
GOAL = ("compute_reward", "compute_terminated", "compute_truncated")


class GoalWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that passes the interface of goal environments on, which Gymnasium's wrappers do not."""

    def __getattr__(self, name: str) -> Any:
        if name in GOAL:
            return self.env.get_wrapper_attr(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def require_finite_actions(actions: Any) -> None:
    """Raise a NonFiniteError for actions that are not finite: stages would remember them."""
    if not np.isfinite(actions).all():
        raise NonFiniteError(f"an action that is not finite would stay in the stages, found {actions}")


def check_period(dt: float | None) -> None:
    """Raise a ParameterError unless a control period is None or positive."""
    if dt is not None and not (np.isfinite(dt) and dt > 0):
        raise ParameterError(f"dt, the control period, must be positive [s], found {dt!r}")


def control_period(env: Env) -> float:
    """Return the time between two steps of an environment [s].

    Raises:
        ParameterError: it does not say; a `dt` must be given.
    """
    base = env.unwrapped
    for name in ("dt", "tau"):
        value = getattr(base, name, None)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    rate = base.metadata.get("render_fps")
    if rate:
        return 1.0 / float(rate)
    raise ParameterError(
        f"{type(base).__name__} does not say how much time a step takes (`dt`, `tau` or metadata['render_fps']); "
        "give the wrapper dt=... [s]"
    )
