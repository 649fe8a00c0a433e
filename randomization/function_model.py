"""Plants that no robot file describes: a function of a whole batch of states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import NonFiniteError, ParameterError, RobotError
from sim2real.importing import imported
from sim2real.randomization.parameters import Array, Values, check_values

# (states (n, X), actions (n, A), parameters {name: (n, 1)}, timestep [s]) -> states (n, X) after the timestep.
StepFunction = Callable[[Any, Any, Mapping[str, Any], float], Any]


@dataclass(frozen=True)
class FunctionParameter:
    """A parameter of a plant that is a function.

    Attributes:
        nominal: value where nothing else is said.
        unit: SI unit.
        low, high: the values that make sense.
    """

    nominal: float
    unit: str = ""
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True)
class FunctionModel:
    """A plant as a function that takes a batch of states one substep further.

    Attributes:
        function: `x' = function(x, u, parameters, timestep)` with x (n, X) positions, then velocities, u (n, A) what
            comes out of the execution chain, and the parameters by the name of their entity and field
            (`"hinge.friction"`), (n, 1) each. It may be written with numpy, or with torch, see `torch`.
        parameters: full name (`dynamics.hinge.friction`) -> nominal value, unit and range.
        joint_names: one a position.
        actuator_names: one an action.
        joint_units, effort_units: of positions and actions.
        wraps: whether each position matters only modulo 2 pi; none does by default.
        torch: whether the function takes and returns torch tensors (float64); it is then not differentiated.
        name: in errors.
        source: where `load_function` found it, so that it can be sent to other processes.

    Example:
        >>> def pendulum(x, u, p, dt):
        ...     q, v = x[:, :1], x[:, 1:]
        ...     v = v + dt * (u - p["link.weight"] * np.sin(q)) / p["link.inertia"]
        ...     return np.concatenate([q + dt * v, v], 1)
        >>> weight, inertia = FunctionParameter(3.0, "N·m"), FunctionParameter(0.2, "kg·m²", low=1e-6)
        >>> parameters = {"dynamics.link.weight": weight, "dynamics.link.inertia": inertia}
        >>> model = FunctionModel(pendulum, parameters, ("hinge",), ("motor",))
        >>> model.simulate(4, 0.001).step(np.ones((4, 10, 1))).shape
        (4, 10, 2)
    """

    function: StepFunction
    parameters: Mapping[str, FunctionParameter]
    joint_names: tuple[str, ...]
    actuator_names: tuple[str, ...]
    joint_units: tuple[str, ...] = ()
    effort_units: tuple[str, ...] = ()
    wraps: tuple[bool, ...] = ()
    torch: bool = False
    name: str = "the function"
    source: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source:
            return load_function, (self.source,)
        return FunctionModel, tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def __post_init__(self) -> None:
        for name in self.parameters:
            if name.split(".")[0] != "dynamics" or name.count(".") < 2:
                raise ParameterError(f"a parameter of a plant is named dynamics.<entity>.<field>, found {name!r}")
        for key, one, many in (
            ("joint_units", "rad", len(self.joint_names)),
            ("effort_units", "N·m", len(self.actuator_names)),
            ("wraps", False, len(self.joint_names)),
        ):
            given = tuple(getattr(self, key)) or (one,) * many
            if len(given) != many:
                raise ParameterError(f"{self.name}: expected {many} {key}, found {len(given)}")
            object.__setattr__(self, key, given)

    @property
    def nominal(self) -> dict[str, float]:
        """Every parameter's nominal value: name -> number."""
        return {name: p.nominal for name, p in self.parameters.items()}

    @property
    def units(self) -> dict[str, str]:
        """Every parameter's unit."""
        return {name: p.unit for name, p in self.parameters.items()}

    @property
    def driven(self) -> NDArray[np.int_]:
        """(A,) the position that each action acts on, where stages need to know: the first ones."""
        return np.arange(len(self.actuator_names)) % len(self.joint_names)

    def simulate(self, n: int, timestep: float, threads: int = 0) -> FunctionSimulator:
        """Return n plants to step."""
        return FunctionSimulator(self, n, timestep)


class FunctionSimulator:
    """A `Simulator` of n plants that are a function.

    Args:
        model: the function and its parameters.
        n: number of plants.
        timestep: length of a substep [s].
    """

    def __init__(self, model: FunctionModel, n: int, timestep: float) -> None:
        self.model, self._n, self._timestep = model, n, timestep
        self._values = {name: np.full(n, p.nominal) for name, p in model.parameters.items()}
        self._state = np.zeros((n, 2 * len(model.joint_names)))

    @property
    def n(self) -> int:
        return self._n

    @property
    def timestep(self) -> float:
        return self._timestep

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.model.joint_names)

    def nominal(self) -> dict[str, float]:
        return self.model.nominal

    def units(self) -> dict[str, str]:
        return self.model.units

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take."""
        return {name: (p.low, p.high) for name, p in self.model.parameters.items()}

    def write(self, values: Values, mask: NDArray[np.bool_] | None = None) -> None:
        check_values(values, self.model.parameters, self.n)
        for name, value in values.items():
            p, value = self.model.parameters[name], np.asarray(value, float)
            if ((value < p.low) | (value > p.high)).any():
                raise ParameterError(f"{name}: must lie between {p.low:g} and {p.high:g} {p.unit}".rstrip())
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        for name, value in values.items():
            self._values[name] = np.where(rows, value, self._values[name])

    def read(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self._values.items()}

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Iterable[str] | None = None) -> None:
        chosen = self._values if names is None else set(names) & set(self._values)
        self.write({name: np.full(self.n, self.model.parameters[name].nominal) for name in chosen}, mask)

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        self._state = np.where(rows[:, None], state, self._state)

    def state(self) -> Array:
        return self._state.copy()

    def step(self, effort: Array) -> Array:
        values: dict[str, Any] = {name.partition(".")[2]: v[:, None] for name, v in self._values.items()}
        state: Any = self._state
        out = np.empty((self.n, effort.shape[1], state.shape[1]))
        commands: Any = effort
        if self.model.torch:
            import torch

            values = {name: torch.from_numpy(v.copy()) for name, v in values.items()}
            state, commands = torch.from_numpy(state), torch.from_numpy(np.ascontiguousarray(effort))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what diverges is named below
            for k in range(effort.shape[1]):
                state = self.model.function(state, commands[:, k], values, self._timestep)
                out[:, k] = state
        if effort.shape[1]:
            bad = ~np.isfinite(out).all((1, 2))
            if bad.any():
                plant = int(bad.argmax())
                held = ", ".join(f"{name}={v[plant]:g}" for name, v in self._values.items())
                raise NonFiniteError(f"plant {plant} left the finite numbers; its parameters: {held}")
            self._state = out[:, -1].copy()
        return out

    def effective_inertia(self) -> Array:
        raise ParameterError(
            f"{self.model.name} does not say what it resists an effort with: put the stage that asks (friction, drive) "
            "into the function"
        )

    def bias_effort(self) -> Array:
        return self.effective_inertia()


def load_function(source: str) -> FunctionModel:
    """Import a `FunctionModel` from `file.py:name`, or from `package.module:name`.

    This runs the file: it is code, like that of an environment which a recipe names.

    Raises:
        RobotError: there is no such file, module or model.
    """
    try:
        model = imported(source)
    except ImportError as error:
        raise RobotError(f"robot {source} cannot be imported: {error}") from None
    if not isinstance(model, FunctionModel):
        raise RobotError(f"robot {source}: expected a FunctionModel, found {type(model).__name__}")
    return replace(model, source=source)
