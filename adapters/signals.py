"""Stages that act on any signal: gains, limits, steps, noise, rates, values that get stuck or lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sim2real.adapters.stage import Field, Kernel, Signal, Stage, State, plain
from sim2real.errors import ParameterError

ANY = ("execution", "perception")
INFINITY = float("inf")
UNITS = ("V", "A", "N·m", "N", "rad", "m", "rad/s", "m/s", "1")


@dataclass(frozen=True, kw_only=True)
class Gain(Stage):
    """gain · u + offset: a wrong calibration, a bias, or the way from one unit to another.

    Attributes:
        gain: [1].
        offset: [of the output].
        to: unit of the output, one of `UNITS`, where it is another than that of the input.
    """

    gain: float = 1.0
    offset: float = 0.0
    to: str = ""
    kind: ClassVar[str] = "gain"
    GAPS: ClassVar[tuple[str, ...]] = ANY
    FIELDS: ClassVar[dict[str, Field]] = {"gain": Field("1", -INFINITY), "offset": Field("1", -INFINITY)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to not in ("", *UNITS):
            raise ParameterError(f"{self.gap}.{self.name}: `to` is one of {', '.join(UNITS)}, found {self.to!r}")

    @property
    def gives(self) -> str | None:  # type: ignore[override]
        return self.to or None

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            gain, offset = p
            return gain * u + offset, s

        return step


@dataclass(frozen=True, kw_only=True)
class Saturation(Stage):
    """Clips to [low, high].

    Attributes:
        low: [of the signal].
        high: [of the signal].

    Raises:
        ParameterError: `low` above `high`.
    """

    low: float = -INFINITY
    high: float = INFINITY
    kind: ClassVar[str] = "saturation"
    GAPS: ClassVar[tuple[str, ...]] = ANY
    FIELDS: ClassVar[dict[str, Field]] = {"low": Field("1", -INFINITY), "high": Field("1", -INFINITY)}

    def check(self, values: Mapping[str, Any]) -> None:
        if plain(values["low"] > values["high"]).any():
            raise ParameterError(f"{self.gap}.{self.name}: expected low at most as large as high, found it above")

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            low, high = p
            return xp.minimum(xp.maximum(u, low), high), s

        return step


@dataclass(frozen=True, kw_only=True)
class Noise(Stage):
    """White noise: (1 + multiplicative · N) · u + additive · N', new at each substep.

    Attributes:
        additive: standard deviation [of the signal].
        multiplicative: standard deviation [1].
    """

    additive: float = 0.0
    multiplicative: float = 0.0
    kind: ClassVar[str] = "noise"
    GAPS: ClassVar[tuple[str, ...]] = ANY
    FIELDS: ClassVar[dict[str, Field]] = {"additive": Field("1"), "multiplicative": Field("1")}
    DRAWS: ClassVar[tuple[Literal["normals", "uniform"], ...]] = ("normals",)

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            additive, multiplicative = p
            return u + multiplicative * e[1] * u + additive * e[0], s

        return step


@dataclass(frozen=True, kw_only=True)
class Hold(Stage):
    """Samples and holds: a lower command rate, or a sensor that is read less often.

    Attributes:
        period: between samples [s]; where it is no whole number of substeps, each sample is taken at the first substep
            that is due, and the rate is kept on average.
    """

    period: float = 0.0
    kind: ClassVar[str] = "hold"
    GAPS: ClassVar[tuple[str, ...]] = ANY
    FIELDS: ClassVar[dict[str, Field]] = {"period": Field("s", 0.0, 1e6)}
    MEMORY: ClassVar[int] = 2

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return (ticks(xp, values["period"], dt),)

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            held, wait = s
            (every,) = p
            due = wait < DUE
            held = xp.where(due, u, held)
            return held, (held, xp.where(due, wait + every, wait) - 1.0)

        return step


# A sample is due when less than this is left to wait [substeps]: rounding must not put it off.
DUE = 1e-3


def ticks(xp: Any, period: Signal, dt: float) -> Signal:
    """Return a period in substeps, one at least."""
    return xp.clip(period / dt, 1.0, None)


@dataclass(frozen=True, kw_only=True)
class Stuck(Stage):
    """A value that stays as it was, or is not there, for a while.

    At each tick, where it is not down already, it goes down with some probability and stays down for `duration`. A
    command that is repeated, a reading that is stuck (fill: hold), a reading that is dropped (fill: zeros or nan).

    Attributes:
        probability: at a tick.
        duration: [s], one tick at least.
        period: of the ticks [s]; 0 for one a substep.
        fill: what is there meanwhile: "hold" for the last good value, "zeros" or "nan".
        shared: whether all channels go down together.
    """

    probability: float = 0.0
    duration: float = 0.0
    period: float = 0.0
    fill: Literal["hold", "zeros", "nan"] = "hold"
    shared: bool = False
    kind: ClassVar[str] = "stuck"
    GAPS: ClassVar[tuple[str, ...]] = ANY
    FIELDS: ClassVar[dict[str, Field]] = {"probability": Field("1", 0.0, 1.0), "duration": Field("s", 0.0, 1e6)}
    MEMORY: ClassVar[int] = 3
    DRAWS: ClassVar[tuple[Literal["normals", "uniform"], ...]] = ("uniform",)

    def __post_init__(self) -> None:
        if self.fill not in ("hold", "zeros", "nan") or not 0 <= self.period < math.inf:
            raise ParameterError(
                f"{self.kind}: fill is hold, zeros or nan and the period finite, 0 s at least; found {self.fill!r} and "
                f"{self.period!r} s"
            )
        super().__post_init__()

    @property
    def together(self) -> bool:
        return self.shared

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        every = xp.ones_like(values["duration"]) * max(self.period / dt, 1.0)
        return values["probability"], xp.maximum(xp.round(values["duration"] / dt), xp.round(every)), every

    def kernel(self, xp: Any) -> Kernel:
        holds, filler = self.fill == "hold", math.nan if self.fill == "nan" else 0.0

        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            good, left, wait = s
            probability, long, every = p
            due = wait < DUE
            left = xp.where(due & (left < 0.5) & (e[0] < probability), long, left)
            down = left > 0.5
            good = xp.where(down, good, u)
            y = good if holds else xp.where(down, 0.0 * u + filler, u)
            return y, (good, xp.maximum(left - 1.0, 0.0 * left), xp.where(due, wait + every, wait) - 1.0)

        return step


class _Steps(Stage):
    """Rounds to whole steps."""

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        step = values["step"]
        return step, xp.where(step > 0, step, xp.ones_like(step))

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            size, safe = p
            return xp.where(size > 0, xp.round(u / safe) * safe, u), s

        return step


@dataclass(frozen=True, kw_only=True)
class Resolution(_Steps):
    """A command in whole steps, as a bus carries it. The gradient is zero.

    Attributes:
        step: [of the signal]; zero passes the signal through.
    """

    step: float = 0.0
    kind: ClassVar[str] = "resolution"
    FIELDS: ClassVar[dict[str, Field]] = {"step": Field("1")}


@dataclass(frozen=True, kw_only=True)
class Quantization(_Steps):
    """An encoder: rounds to whole steps. The gradient is zero.

    Attributes:
        step: resolution [rad or m]; zero passes the signal through.
    """

    step: float = 0.0
    kind: ClassVar[str] = "encoder"
    GAPS: ClassVar[tuple[str, ...]] = ("perception",)
    FIELDS: ClassVar[dict[str, Field]] = {"step": Field("rad")}


@dataclass(frozen=True, kw_only=True)
class DeadZone(Stage):
    """No response to small commands, from -(1 - asymmetry) width to (1 + asymmetry) width.

    Attributes:
        width: half width of the zone [of the signal].
        asymmetry: -1 for a zone on the negative side alone, 1 for one on the positive side [1].
        shape: "offset" subtracts the edge from what exceeds it (continuous; its gradient is 0 inside and 1 outside);
            "hard" passes it whole.

    Raises:
        ParameterError: another shape.
    """

    width: float = 0.0
    asymmetry: float = 0.0
    shape: Literal["offset", "hard"] = "offset"
    kind: ClassVar[str] = "dead_zone"
    FIELDS: ClassVar[dict[str, Field]] = {"width": Field("N·m"), "asymmetry": Field("1", -1.0, 1.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("offset", "hard"):
            raise ParameterError(f"{self.name}: the shape of a dead zone is offset or hard, found {self.shape!r}")

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        width, asymmetry = values["width"], values["asymmetry"]
        return -width * (1.0 - asymmetry), width * (1.0 + asymmetry)

    def kernel(self, xp: Any) -> Kernel:
        hard = self.shape == "hard"

        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            low, high = p
            if hard:
                return xp.where((u < low) | (u > high), u, 0.0 * u), s
            return u - xp.minimum(xp.maximum(u, low), high), s

        return step


@dataclass(frozen=True, kw_only=True)
class Backlash(Stage):
    """Gear play: the output rests until the input has crossed the play, then is pushed along (the play operator).

    It starts in the middle of the play. Its gradient is 1 where it is pushed and 0 where it rests.

    Attributes:
        play: from one flank to the other [rad].
    """

    play: float = 0.0
    kind: ClassVar[str] = "backlash"
    FIELDS: ClassVar[dict[str, Field]] = {"play": Field("rad", 0.0, 1e6)}
    MEMORY: ClassVar[int] = 1
    takes: ClassVar[str | None] = "rad"

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            (y,) = s
            (play,) = p
            y = xp.minimum(xp.maximum(y, u - 0.5 * play), u + 0.5 * play)
            return y, (y,)

        return step
