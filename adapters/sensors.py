"""Stages between a plant and a reading that are not on the way of a command: bias, drift, filtered velocities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sim2real.adapters.actuators import rise
from sim2real.adapters.stage import Field, Kernel, Signal, Stage, State


@dataclass(frozen=True, kw_only=True)
class Bias(Stage):
    """A sensor that is wrong by as much all the time.

    Attributes:
        offset: [of the signal].
    """

    offset: float = 0.0
    kind: ClassVar[str] = "bias"
    GAPS: ClassVar[tuple[str, ...]] = ("perception",)
    FIELDS: ClassVar[dict[str, Field]] = {"offset": Field("1", -float("inf"))}

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            return u + p[0], s

        return step


@dataclass(frozen=True, kw_only=True)
class Drift(Stage):
    """A bias that wanders: a random walk, and a Gauss-Markov process, as the instability of the bias of an IMU is.

    The walk starts at zero; the Gauss-Markov process starts from its stationary distribution. Both are exact at the
    substeps, whatever their length.

    Attributes:
        random_walk: standard deviation of the walk after one second [of the signal, per square root of a second].
        instability: standard deviation of the Gauss-Markov process [of the signal].
        correlation_time: of the Gauss-Markov process [s].
    """

    random_walk: float = 0.0
    instability: float = 0.0
    correlation_time: float = 100.0
    kind: ClassVar[str] = "drift"
    GAPS: ClassVar[tuple[str, ...]] = ("perception",)
    FIELDS: ClassVar[dict[str, Field]] = {
        "random_walk": Field("1/s^0.5"),
        "instability": Field("1"),
        "correlation_time": Field("s", 1e-9),
    }
    MEMORY: ClassVar[int] = 3
    DRAWS: ClassVar[tuple[Literal["normals", "uniform"], ...]] = ("normals",)

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        keep = xp.exp(-dt / values["correlation_time"])
        fresh = xp.sqrt(1.0 - keep * keep) * values["instability"]
        return values["random_walk"] * dt**0.5, values["instability"], keep, fresh

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            walk, wander, seen = s
            stride, stationary, keep, fresh = p
            walk = xp.where(seen > 0, walk + stride * e[0], 0.0 * walk)
            wander = xp.where(seen > 0, keep * wander + fresh * e[1], stationary * e[1])
            return u + walk + wander, (walk, wander, 1.0 + 0.0 * seen)

        return step


@dataclass(frozen=True, kw_only=True)
class FilteredDifference(Stage):
    """Velocity as drives report it: the difference of the position readings through a low pass, lag included.

    Its output is the positions followed by the velocities: (n, K, 2 width).

    Attributes:
        time_constant: of the low pass [s].
    """

    time_constant: float = 0.0
    kind: ClassVar[str] = "velocity_filter"
    GAPS: ClassVar[tuple[str, ...]] = ("perception",)
    FIELDS: ClassVar[dict[str, Field]] = {"time_constant": Field("s")}
    MEMORY: ClassVar[int] = 3
    appends: ClassVar[bool] = True
    takes: ClassVar[str | None] = "rad"

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return rise(xp, values["time_constant"], dt), xp.ones_like(values["time_constant"]) / dt

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            last, velocity, seen = s
            gain, rate = p
            velocity = velocity + gain * ((u - last) * rate * seen - velocity)
            # a copy: the caller may use the memory of the signal again
            return velocity, (1.0 * u, velocity, 1.0 + 0.0 * seen)

        return step
