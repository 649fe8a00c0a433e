"""The stage: one effect on the way from a command to a joint, or from a plant to a reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from sim2real.errors import ParameterError

# A numpy array or a torch tensor: stages are written against the array API standard and serve both.
Signal = Any
State = tuple[Signal, ...]


@dataclass(frozen=True)
class PlantView:
    """What a stage may know of the plant at the present substep, one column an actuator: each (n, width), SI units."""

    position: Signal
    velocity: Signal
    effective_inertia: Signal
    load: Signal


@dataclass(frozen=True)
class Context:
    """What surrounds a stage.

    Attributes:
        dt: length of a substep [s].
        parameters: field -> (n, 1) or (n, width), in SI units.
        xp: the array namespace of the signal (numpy or torch).
        plant: the plant at this substep, for stages that feed back from it, otherwise None.
    """

    dt: float
    parameters: Mapping[str, Signal]
    xp: Any
    plant: PlantView | None = None


@dataclass(frozen=True)
class Field:
    """A parameter of a stage: its unit and the values it may take."""

    unit: str
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One effect. Pure: state in, state out; its numbers are parameters named `<gap>.<name>.<field>`.

    A subclass is a frozen dataclass whose float fields listed in `FIELDS` are the nominal values of its parameters.

    Attributes:
        name: of the stage in parameter names; two stages of one kind need two names.

    Raises:
        ParameterError: a nominal value outside the range of its field.
    """

    name: str = ""
    gap: ClassVar[str] = "execution"
    kind: ClassVar[str]
    FIELDS: ClassVar[dict[str, Field]]
    # Whether the effect depends on the plant's motion, so that it must be applied one substep at a time.
    feedback: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        for name, field in self.FIELDS.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not field.low <= float(value) <= field.high:
                raise ParameterError(
                    f"{self.parameter(name)}: expected a number in [{field.low:g}, {field.high:g}] {field.unit}, "
                    f"found {value!r}"
                )

    def nominal(self) -> dict[str, float]:
        """Return `{parameter name: nominal value}`."""
        return {self.parameter(f): float(getattr(self, f)) for f in self.FIELDS}

    def parameter(self, field: str) -> str:
        """Return the full name of one of its parameters."""
        return f"{self.gap}.{self.name}.{field}"

    def output_width(self, width: int) -> int:
        """Return the width of its output for an input of `width` channels."""
        return width

    @abstractmethod
    def init(self, n: int, width: int, context: Context) -> State:
        """Return the state at rest for n signals of `width` channels; each array has n rows."""

    @abstractmethod
    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        """Transform `signal` (n, K, width), one row a substep; return the new state and the output (n, K, width')."""

    def reset(self, state: State, mask: Signal, context: Context) -> State:
        """Return the state with the rows that `mask` (n,) selects put back to rest."""
        if not state:
            return state
        n, width = state[0].shape[0], state[0].shape[-1]
        rest = self.init(n, width, context)
        return tuple(
            context.xp.where(context.xp.reshape(mask, (n,) + (1,) * (new.ndim - 1)), new, old)
            for new, old in zip(rest, state, strict=True)
        )
