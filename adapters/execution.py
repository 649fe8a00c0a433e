"""Execution stages: what happens to a command before it moves a joint. Efforts in N·m (or N), times in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import array_api_compat

from sim2real.adapters.stage import Context, Field, Signal, Stage, State
from sim2real.errors import ParameterError


def _zeros(n: int, width: int, context: Context) -> Signal:
    # made from a parameter, so that it has the signal's type and device
    xp, like = context.xp, next(iter(context.parameters.values()))
    return xp.zeros_like(xp.broadcast_to(like, (n, width)))


@dataclass(frozen=True, kw_only=True)
class Latency(Stage):
    """A pure delay, in fractions of a substep where it must be.

    A delay between substeps m and m + 1 mixes the two commands by area, so that the impulse that reaches the joint in
    each substep is exactly that of the delayed, held command. Before the first command the line holds zeros.

    Attributes:
        delay: [s], between 0 and `longest`.
        longest: length of the delay line [s].

    Raises:
        ParameterError: a delay longer than the line.
    """

    delay: float = 0.0
    longest: float = 0.2
    kind: ClassVar[str] = "latency"
    FIELDS: ClassVar[dict[str, Field]] = {"delay": Field("s")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delay <= self.longest:
            raise self._too_long(self.delay)

    def _too_long(self, delay: float) -> ParameterError:
        return ParameterError(
            f"execution.{self.name}.delay: at most {self.longest:g} s fits the delay line, found {delay:g} s; "
            "give the stage a larger `longest`"
        )

    def _length(self, context: Context) -> int:
        return math.ceil(self.longest / context.dt - 1e-9) + 1

    def init(self, n: int, width: int, context: Context) -> State:
        zeros = _zeros(n, width, context)
        return (context.xp.stack([zeros] * self._length(context), axis=1),)

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp = context.xp
        (line,) = state
        n, steps, width = signal.shape
        delay = xp.broadcast_to(context.parameters["delay"], (n, width)) / context.dt
        if bool(xp.any(delay > self.longest / context.dt + 1e-6)):
            raise self._too_long(float(xp.max(delay)) * context.dt)
        line = xp.concat([line, signal], axis=1)
        # a hair below an integer is that integer: 0.003 / 0.001 must be three substeps
        whole = xp.floor(delay + 1e-9)
        fraction = (delay - whole)[:, None, :]
        device = array_api_compat.device(signal)
        now = xp.arange(steps, dtype=xp.int64, device=device)[None, :, None] + self._length(context)
        late = now - xp.astype(whole, xp.int64)[:, None, :]
        near = xp.take_along_axis(line, late, axis=1)
        far = xp.take_along_axis(line, xp.clip(late - 1, 0, None), axis=1)
        return (line[:, steps:],), near + xp.clip(fraction, 0.0, 1.0) * (far - near)


@dataclass(frozen=True, kw_only=True)
class DeadZone(Stage):
    """No response to small commands.

    Attributes:
        width: half width of the zone [effort].
        shape: "offset" subtracts the width from what exceeds it (continuous); "hard" passes it whole.

    Raises:
        ParameterError: another shape.
    """

    width: float = 0.0
    shape: Literal["offset", "hard"] = "offset"
    kind: ClassVar[str] = "dead_zone"
    FIELDS: ClassVar[dict[str, Field]] = {"width": Field("N·m")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("offset", "hard"):
            raise ParameterError(f"{self.name}: the shape of a dead zone is offset or hard, found {self.shape!r}")

    def init(self, n: int, width: int, context: Context) -> State:
        return ()

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp, width = context.xp, context.parameters["width"][:, None, :]
        if self.shape == "hard":
            return state, xp.where(xp.abs(signal) > width, signal, 0.0 * signal)
        return state, signal - xp.minimum(xp.maximum(signal, -width), width)


@dataclass(frozen=True, kw_only=True)
class TorqueLimit(Stage):
    """Clips the effort to [-limit, limit].

    Attributes:
        limit: [effort].
    """

    limit: float = float("inf")
    kind: ClassVar[str] = "torque_limit"
    FIELDS: ClassVar[dict[str, Field]] = {"limit": Field("N·m")}

    def init(self, n: int, width: int, context: Context) -> State:
        return ()

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp, limit = context.xp, context.parameters["limit"][:, None, :]
        return state, xp.minimum(xp.maximum(signal, -limit), limit)


@dataclass(frozen=True, kw_only=True)
class FirstOrderLag(Stage):
    """A motor that follows its command exponentially: y' = (u - y) / time_constant, exact for held commands.

    The output in a substep is the value reached at its end. A time constant of zero passes the command through.

    Attributes:
        time_constant: [s].
    """

    time_constant: float = 0.0
    kind: ClassVar[str] = "lag"
    FIELDS: ClassVar[dict[str, Field]] = {"time_constant": Field("s")}

    def init(self, n: int, width: int, context: Context) -> State:
        return (_zeros(n, width, context),)

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp = context.xp
        (y,) = state
        constant = context.parameters["time_constant"]
        gain = 1.0 - xp.exp(-context.dt / xp.clip(constant, 1e-12, None))
        out = []
        for k in range(signal.shape[1]):
            y = y + gain * (signal[:, k] - y)
            out.append(y)
        return (y,), xp.stack(out, axis=1)


@dataclass(frozen=True, kw_only=True)
class Friction(Stage):
    """Coulomb and viscous friction as an effort, never more than stops the joint within the substep.

    The stopping effort is what brings the velocity to zero in one substep against the command and the load; a joint at
    rest stays at rest while the drive stays below the Coulomb effort (after BAM, Duclusaud et al. 2024). Each joint is
    stopped as if it were alone with its friction: coupled ones come to rest within some substeps.

    Attributes:
        coulomb: [effort].
        viscous: [effort per unit of velocity].
    """

    coulomb: float = 0.0
    viscous: float = 0.0
    kind: ClassVar[str] = "friction"
    feedback: ClassVar[bool] = True
    FIELDS: ClassVar[dict[str, Field]] = {"coulomb": Field("N·m"), "viscous": Field("N·m·s/rad")}

    def init(self, n: int, width: int, context: Context) -> State:
        return ()

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp, plant = context.xp, context.plant
        if plant is None or signal.shape[1] != 1:
            raise ParameterError(f"execution.{self.name}: needs the plant's motion, one substep at a time")
        stop = plant.effective_inertia * plant.velocity / context.dt + signal[:, 0] - plant.load
        most = context.parameters["coulomb"] + context.parameters["viscous"] * xp.abs(plant.velocity)
        friction = xp.minimum(xp.maximum(stop, -most), most)
        return state, signal - friction[:, None]
