"""Latency: fractions of a substep, jitter, reordering, commands that are lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np

from sim2real.adapters import noise
from sim2real.adapters.stage import Context, Field, Kernel, Signal, Starting, State, plain, zeros
from sim2real.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class Latency(Starting):
    """A pure delay, in fractions of a substep where it must be.

    A delay between substeps m and m + 1 mixes the two values by area, so that the impulse that gets through in each
    substep is exactly that of the delayed, held signal. MuJoCo does the same, where the stage is `native`, but takes a
    delay that is shorter than a substep for a whole one.

    Attributes:
        delay: [s], between 0 and `longest`.
        longest: length of the delay line [s].
        start: what comes out before the first value is through: "zeros", or "hold" for the first value.

    Raises:
        ParameterError: a delay longer than the line.
    """

    delay: float = 0.0
    longest: float = 0.2
    kind: ClassVar[str] = "latency"
    GAPS: ClassVar[tuple[str, ...]] = ("execution", "perception")
    FIELDS: ClassVar[dict[str, Field]] = {"delay": Field("s")}
    ENGINE: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        if self.native and self.start != "zeros":
            raise ParameterError(f"{self.kind}: MuJoCo's delay lines start from zeros; leave out native or the start")
        if not 0.0 < self.longest < math.inf:
            raise ParameterError(f"{self.kind}: `longest` must be above 0 s and finite, found {self.longest!r} s")
        super().__post_init__()

    def check(self, values: Mapping[str, Any]) -> None:
        most = float(np.max(sum(plain(value) for field, value in values.items() if self.FIELDS[field].unit == "s")))
        if most > self.longest * (1 + 1e-6):
            raise ParameterError(
                f"{self.gap}.{self.name}.delay: at most {self.longest:g} s fits the delay line, found {most:g} s; "
                "give the stage a larger `longest`"
            )

    def limits(self) -> dict[str, tuple[float, float]]:
        times = [f for f, field in self.FIELDS.items() if field.unit == "s"]
        return super().limits() | {self.parameter(f): (0.0, self.longest) for f in times}

    def kernel(self, xp: Any) -> Kernel:
        raise NotImplementedError("a delay line is no function of one substep")

    def length(self, dt: float) -> int:
        """Return how many substeps the line holds."""
        return math.ceil(self.longest / dt - 1e-9) + 1

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        delay = values["delay"] / dt
        # a hair below an integer is that integer: 0.003 / 0.001 must be three substeps
        whole = xp.floor(delay + 1e-9)
        return xp.astype(whole, xp.int64), xp.clip(delay - whole, 0.0, 1.0)

    def prepare(self, context: Context) -> None:
        whole, _ = context.coefficients
        first = int(whole[0, 0])
        context.common = first if bool(context.xp.all(whole == first)) else None

    def init(self, n: int, width: int, context: Context) -> State:
        # the line, and how much of it has been written to
        return zeros(context, (n, self.length(context.dt), width)), zeros(context, (n, 1, width))

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp = context.xp
        line, seen, *held = state
        if self.start == "hold":
            line = xp.where(seen > 0, line, signal[:, :1])
        line = xp.concat([line, signal], axis=1)
        steps = signal.shape[1]
        rest, out = self._received(tuple(held), line, signal, context)
        if context.channels is not None:
            out = xp.where(context.channels, out, signal)
        if self.start == "hold":
            seen = seen + float(steps)
        return (line[:, steps:], seen, *rest), out

    def _received(self, held: State, line: Signal, signal: Signal, context: Context) -> tuple[State, Signal]:
        """Return what else is remembered and what comes out: (n, K, width)."""
        whole, fraction = context.rows
        if context.common is None:
            near, far = (self._past(line, signal, context, whole + k) for k in (0, 1))
        else:  # one delay for all, up to a fraction
            steps, first = signal.shape[1], self.length(context.dt) - context.common
            near, far = line[:, first : first + steps], line[:, first - 1 : first - 1 + steps]
        return held, near + fraction * (far - near)

    def _past(self, line: Signal, signal: Signal, context: Context, age: Signal) -> Signal:
        """Return what was written `age` substeps (broadcasting to (n, K, width)) before each substep."""
        xp, (n, steps, width) = context.xp, signal.shape
        device = array_api_compat.device(signal)
        now = self.length(context.dt) + xp.arange(steps, dtype=xp.int64, device=device)[:, None]
        at = xp.clip(now - age, 0, None)
        rows = xp.arange(n, dtype=xp.int64, device=device)[:, None, None]
        return line[rows, at, xp.arange(width, dtype=xp.int64, device=device)]


@dataclass(frozen=True, kw_only=True)
class PacketLatency(Latency):
    """A delay of packets that jitter, overtake each other and get lost.

    A packet is sent every `period` and travels for `delay` and a uniform part of `jitter`; it is lost with probability
    `loss`. At each substep the newest packet that has arrived counts, so that none is ever replaced by an older one;
    with `reorder` the one that has arrived last does, be it older or not. What arrives within a substep counts from the
    next on. The channels of a packet share its fate.

    Attributes:
        delay: the least that a packet takes [s].
        jitter: the most that it takes longer [s]; both are at most `longest` together.
        loss: probability that a packet does not arrive.
        period: between packets [s]; 0 for one a substep.
        reorder: whether a packet that was overtaken replaces a newer one.
    """

    jitter: float = 0.0
    loss: float = 0.0
    period: float = 0.0
    reorder: bool = False
    kind: ClassVar[str] = "packets"
    ENGINE: ClassVar[int | None] = None
    FIELDS: ClassVar[dict[str, Field]] = {"delay": Field("s"), "jitter": Field("s"), "loss": Field("1", 0.0, 1.0)}
    DRAWS: ClassVar[tuple[Literal["normals", "uniform"], ...]] = ("uniform", "uniform")

    def __post_init__(self) -> None:
        if not 0.0 <= self.period < math.inf:
            raise ParameterError(f"{self.kind}: `period` must be 0 s at least and finite, found {self.period!r} s")
        super().__post_init__()

    def init(self, n: int, width: int, context: Context) -> State:
        # beside the line: the value that counts, and when it was sent (or has arrived) [substeps from now]
        held = zeros(context, (n, 1, width))
        return *super().init(n, width, context), held, held - 1e9

    def _received(self, held: State, line: Signal, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp, p = context.xp, context.parameters
        device, every = array_api_compat.device(signal), max(self.period / context.dt, 1.0)
        assert context.count is not None
        now = context.count[:, None, None] + xp.arange(signal.shape[1], dtype=xp.int64, device=device)[:, None]
        latest = xp.astype(xp.floor((xp.astype(now, xp.float64) + 1e-6) / every), xp.int64)
        oldest = self.length(context.dt) - 1
        found, best = xp.zeros_like(signal), xp.full_like(signal, -1e18)
        for back in range(math.ceil(oldest / every) + 1, -1, -1):
            packet = latest - back
            sent = xp.astype(xp.ceil(xp.astype(packet, xp.float64) * every - 1e-6), xp.int64)
            late, fate = (
                noise.uniform(xp, noise.words(key[:, None, None], lane[:, None, None], packet)[0], signal.dtype)
                for key, lane in context.identities
            )
            travel = (p["delay"][:, None] + late * p["jitter"][:, None]) / context.dt
            age = xp.astype(now - sent, signal.dtype)
            rank = (travel - age) if self.reorder else -age
            counts = (age >= travel - 1e-6) & (age <= oldest) & (fate >= p["loss"][:, None]) & (rank >= best)
            found = xp.where(counts, self._past(line, signal, context, now - sent), found)
            best = xp.where(counts, rank, best)
        value, since = held
        if self.start == "hold":
            value = xp.where(since > -1e8, value, signal[:, :1])
        out = []
        for k in range(signal.shape[1]):
            newer = best[:, k : k + 1] >= since
            value = xp.where(newer, found[:, k : k + 1], value)
            since = xp.where(newer, best[:, k : k + 1], since) - 1.0
            out.append(value)
        return (value, since), xp.concat(out, axis=1)
