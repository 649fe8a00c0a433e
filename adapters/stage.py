"""The stage: one effect on the way from a command to a joint, or from a plant to a reading."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np

from sim2real.adapters import noise
from sim2real.errors import ParameterError

# A numpy array or a torch tensor: stages are written against the array API standard and serve both.
Signal = Any
State = tuple[Signal, ...]
# (signal, memory, coefficients, random numbers, motion of the plant) -> (output, memory)
Kernel = Callable[[Signal, State, State, State, State], tuple[Signal, State]]

# Substeps whose random numbers are drawn at once for a single signal.
AHEAD = 2048


@dataclass(frozen=True)
class PlantView:
    """What a stage may know of the plant at the present substep, one column an actuator: each (n, width), SI units."""

    position: Signal
    velocity: Signal
    effective_inertia: Signal
    load: Signal


@dataclass(slots=True)
class Context:
    """What surrounds a stage.

    Attributes:
        dt: length of a substep [s].
        parameters: field -> (n, 1) or (n, width), in SI units.
        xp: the array namespace of the signal (numpy or torch).
        kernel: of the stage, for this namespace; None for a delay line.
        coefficients: what the kernel needs of the parameters, each (n, 1) or (n, width).
        rows: the same as (n, 1, 1) or (n, 1, width), for all substeps at once.
        identities: key and lane (n,) of each number that the stage draws.
        channels: (width,) which channels the stage acts on, or None for all.
        plant: the plant at this substep, for stages that feed back from it, otherwise None.
        count: (n,) substeps since the chain was seeded.
        drawn: the numbers of some substeps from a first one on, drawn ahead for a single signal.
        common: delay in whole substeps, where it is the same for all signals and channels.
    """

    dt: float
    parameters: Mapping[str, Signal]
    xp: Any
    kernel: Kernel | None
    coefficients: State = ()
    rows: State = ()
    identities: tuple[tuple[Signal, Signal], ...] = ()
    channels: Signal | None = None
    plant: PlantView | None = None
    count: Signal | None = None
    drawn: tuple[int, State] | None = None
    common: int | None = None

    def update(self, parameters: Mapping[str, Signal], coefficients: State) -> None:
        """Take other parameters, and what follows from them."""
        self.parameters, self.coefficients = parameters, coefficients
        self.rows = tuple(c[:, None] for c in coefficients)
        self.common = None


@dataclass(frozen=True)
class Field:
    """A parameter of a stage: its unit and the values it may take."""

    unit: str
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One effect. Pure: state in, state out; its numbers are parameters named `<gap>.<name>.<field>`.

    A subclass is a frozen dataclass whose float fields listed in `FIELDS` are the nominal values of its parameters, and
    whose `kernel` says what one substep does to one channel. The same kernel is applied to numpy arrays and to torch
    tensors, and compiled to a loop by numba.

    Attributes:
        name: of the stage in parameter names; two stages of one kind need two names.
        gap: "execution" or "perception", where the stage may stand in both; the first of `GAPS` by default.
        channels: columns of the signal that the stage acts on; all by default.
        native: whether MuJoCo is to model the effect, where it simulates what comes after the chain. Elsewhere the
            stage is computed as ever.

    Raises:
        ParameterError: a nominal value outside the range of its field, a gap in which the stage means nothing, or
            `native` for what MuJoCo does not model.
    """

    name: str = ""
    gap: str = ""
    channels: tuple[int, ...] | None = None
    native: bool = False
    kind: ClassVar[str]
    FIELDS: ClassVar[dict[str, Field]]
    GAPS: ClassVar[tuple[str, ...]] = ("execution",)
    # How many numbers the kernel remembers of each channel; all are zero at rest.
    MEMORY: ClassVar[int] = 0
    # The random numbers that the kernel is given at each substep, for each channel: "normals" are two.
    DRAWS: ClassVar[tuple[Literal["normals", "uniform"], ...]] = ()
    # Units of what it is given and of what comes out, where they are not whatever they are.
    takes: ClassVar[str | None] = None
    gives: ClassVar[str | None] = None
    # Whether the effect depends on the plant's motion, so that it must be applied one substep at a time.
    feedback: ClassVar[bool] = False
    # Whether it acts at the joint itself, so that nothing else can come after it.
    last: ClassVar[bool] = False
    # Whether the output is the signal followed by what the kernel makes of it.
    appends: ClassVar[bool] = False
    # Where MuJoCo models the effect: the rank of what it does first to a control.
    ENGINE: ClassVar[int | None] = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if unknown := set(cls.DRAWS) - {"normals", "uniform"}:
            raise ParameterError(f"{cls.__name__}: DRAWS are normals and uniform, found {', '.join(sorted(unknown))}")

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        if not re.fullmatch(r"\w+", self.name):
            raise ParameterError(f"stage {self.kind}: a name is of letters, digits and _, found {self.name!r}")
        if not self.gap:
            object.__setattr__(self, "gap", self.GAPS[0])
        if self.gap not in self.GAPS:
            raise ParameterError(f"stage {self.kind} is one of {' and '.join(self.GAPS)}, not of {self.gap!r}")
        if self.native and (self.ENGINE is None or self.gap != "execution"):
            raise ParameterError(f"{self.gap}.{self.name}: MuJoCo does not model this stage; leave native out")
        if self.channels is not None:
            chosen = tuple(self.channels) if isinstance(self.channels, list | tuple) else ()
            whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in chosen)
            if not chosen or not whole or len(set(chosen)) < len(chosen) or self.appends:
                raise ParameterError(
                    f"{self.gap}.{self.name}: channels are a list of columns that the stage acts on, each once, "
                    f"counted from 0, and not for a stage that appends some; found {self.channels!r}"
                )
            object.__setattr__(self, "channels", chosen)
        for name, field in self.FIELDS.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not field.low <= float(value) <= field.high:
                raise ParameterError(
                    f"{self.parameter(name)}: expected a number in [{field.low:g}, {field.high:g}] {field.unit}, "
                    f"found {value!r}"
                )
        self.check({f: float(getattr(self, f)) for f in self.FIELDS})

    def nominal(self) -> dict[str, float]:
        """Return `{parameter name: nominal value}`."""
        return {self.parameter(f): float(getattr(self, f)) for f in self.FIELDS}

    def parameter(self, field: str) -> str:
        """Return the full name of one of its parameters."""
        return f"{self.gap}.{self.name}.{field}"

    def output_width(self, width: int) -> int:
        """Return the width of its output for an input of `width` channels."""
        return 2 * width if self.appends else width

    def check(self, values: Mapping[str, Any]) -> None:  # noqa: B027 (most stages have nothing to check)
        """Raise a ParameterError where values (field -> a number or an array) do not go together."""

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value of each parameter."""
        return {self.parameter(f): (field.low, field.high) for f, field in self.FIELDS.items()}

    @property
    def memory(self) -> int:
        """How many numbers the kernel remembers of each channel."""
        return self.MEMORY

    @property
    def together(self) -> bool:
        """Whether all channels are given the same random numbers."""
        return False

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        """Return what the kernel needs of the parameters, as often as they change: its `FIELDS` in order by default."""
        return tuple(values[f] for f in self.FIELDS)

    def prepare(self, context: Context) -> None:  # noqa: B027 (most stages have nothing to prepare)
        """Note in the context what else follows from its parameters."""

    @abstractmethod
    def kernel(self, xp: Any) -> Kernel:
        """Return the function of one substep: (signal, memory, coefficients, draws, motion) -> (output, memory).

        It may use arithmetic, comparisons, `&` and `|`, and of the namespace `xp` only `where`, `minimum`, `maximum`,
        `abs`, `exp`, `sqrt`, `round`, `sign`, all element by element. `motion` is (position, velocity, effective
        inertia, load) where the stage feeds back, otherwise empty.
        """

    def init(self, n: int, width: int, context: Context) -> State:
        """Return the state at rest for n signals of `width` channels; each array has n rows."""
        return tuple(zeros(context, (n, width)) for _ in range(self.memory))

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        """Transform `signal` (n, K, width), one row a substep; return the new state and the output (n, K, width')."""
        if self.feedback and (context.plant is None or signal.shape[1] != 1):
            raise ParameterError(f"{self.gap}.{self.name}: needs the plant's motion, one substep at a time")
        xp, kernel, p = context.xp, context.kernel, context.coefficients
        assert kernel is not None
        drawn = self._draw(signal, context) if self.DRAWS else ()
        if not self.memory and not self.feedback:
            out, _ = kernel(signal, (), context.rows, drawn, ())
        else:
            view = context.plant
            motion = () if view is None else (view.position, view.velocity, view.effective_inertia, view.load)
            rows = []
            for k in range(signal.shape[1]):
                numbers = tuple(d[:, k] for d in drawn) if drawn else ()
                y, state = kernel(signal[:, k], state, p, numbers, motion)
                rows.append(y[:, None])
            out = rows[0] if len(rows) == 1 else xp.concat(rows, axis=1)
        if context.channels is not None:
            out = xp.where(context.channels, out, signal)
        return state, xp.concat([signal, out], axis=-1) if self.appends else out

    def _draw(self, signal: Signal, context: Context) -> State:
        """Return the random numbers of some substeps: (n, K, width) each."""
        n, steps, _width = signal.shape
        if n > 1 or steps > AHEAD or not isinstance(context.count, np.ndarray):
            return self._numbers(signal, context, context.count, steps)
        # a single signal takes them from a stretch that is drawn at once, which costs hardly more than one substep
        first = int(context.count[0])
        if context.drawn is None or not 0 <= first - context.drawn[0] <= AHEAD - steps:
            context.drawn = first, self._numbers(signal, context, context.count, AHEAD)
        start = first - context.drawn[0]
        return tuple(d[:, start : start + steps] for d in context.drawn[1])

    def _numbers(self, signal: Signal, context: Context, first: Signal, steps: int) -> State:
        xp, (n, _, width), dtype = context.xp, signal.shape, signal.dtype
        device = array_api_compat.device(signal)
        count = first[:, None, None] + xp.arange(steps, dtype=xp.int64, device=device)[:, None]
        channel = xp.arange(1 if self.together else width, dtype=xp.int64, device=device)
        drawn: list[Signal] = []
        for kind, (key, lane) in zip(self.DRAWS, context.identities, strict=True):
            left, right = noise.words(key[:, None, None], lane[:, None, None] + channel, count)
            if kind == "normals":
                drawn += noise.normals(xp, left, right, dtype)
            else:
                drawn.append(noise.uniform(xp, left, dtype))
        return tuple(xp.broadcast_to(value, (n, steps, width)) for value in drawn)

    def reset(self, state: State, mask: Signal, context: Context) -> State:
        """Return the state with the rows that `mask` (n,) selects put back to rest."""
        if not state:
            return state
        rest = self.init(state[0].shape[0], state[0].shape[-1], context)
        return tuple(choose(context.xp, mask, new, old) for new, old in zip(rest, state, strict=True))


@dataclass(frozen=True, kw_only=True)
class Starting(Stage):
    """A stage that says what it starts from.

    Attributes:
        start: "zeros", or "hold" for the first value that it is given.

    Raises:
        ParameterError: another start.
    """

    start: Literal["zeros", "hold"] = "zeros"

    def __post_init__(self) -> None:
        if self.start not in ("zeros", "hold"):
            raise ParameterError(f"{self.kind}: start is zeros or hold, found {self.start!r}")
        super().__post_init__()


def choose(xp: Any, rows: Signal, yes: Signal, no: Signal) -> Signal:
    """Return `yes` (n, ...) in the rows (n,) that are true, and `no` in the others."""
    return xp.where(xp.reshape(rows, (-1,) + (1,) * (yes.ndim - 1)), yes, no)


def plain(values: Any) -> Any:
    """Return a number, an array or a tensor as numpy's, without a copy where there need be none."""
    return values.detach().cpu().numpy() if array_api_compat.is_torch_array(values) else np.asarray(values)


def zeros(context: Context, shape: tuple[int, ...]) -> Signal:
    """Return zeros of the type and on the device of the signal."""
    like = next(iter(context.parameters.values()))
    return context.xp.zeros(shape, dtype=like.dtype, device=array_api_compat.device(like))
