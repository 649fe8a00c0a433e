"""Perception stages: what happens to a state before the controller sees it. Signals are joint positions in SI units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sim2real.adapters.stage import Context, Field, Signal, Stage, State


@dataclass(frozen=True, kw_only=True)
class Quantization(Stage):
    """An encoder: rounds to whole steps.

    Attributes:
        step: resolution [rad or m]; zero passes the signal through.
    """

    step: float = 0.0
    gap: ClassVar[str] = "perception"
    kind: ClassVar[str] = "encoder"
    FIELDS: ClassVar[dict[str, Field]] = {"step": Field("rad")}

    def init(self, n: int, width: int, context: Context) -> State:
        return ()

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp, step = context.xp, context.parameters["step"][:, None, :]
        safe = xp.where(step > 0, step, xp.ones_like(step))
        return state, xp.where(step > 0, xp.round(signal / safe) * safe, signal)


@dataclass(frozen=True, kw_only=True)
class FilteredDifference(Stage):
    """Velocity as drives report it: the difference of the position readings through a low pass, lag included.

    Its output is the positions followed by the velocities: (n, K, 2 width).

    Attributes:
        time_constant: of the low pass [s].
    """

    time_constant: float = 0.0
    gap: ClassVar[str] = "perception"
    kind: ClassVar[str] = "velocity_filter"
    FIELDS: ClassVar[dict[str, Field]] = {"time_constant": Field("s")}

    def output_width(self, width: int) -> int:
        return 2 * width

    def init(self, n: int, width: int, context: Context) -> State:
        xp, like = context.xp, context.parameters["time_constant"]
        zeros = xp.zeros_like(xp.broadcast_to(like, (n, width)))
        # the last position, the filtered velocity, and whether there was a last position
        return (zeros, zeros, zeros)

    def apply(self, state: State, signal: Signal, context: Context) -> tuple[State, Signal]:
        xp = context.xp
        last, velocity, seen = state
        gain = 1.0 - xp.exp(-context.dt / xp.clip(context.parameters["time_constant"], 1e-12, None))
        out = []
        for k in range(signal.shape[1]):
            difference = (signal[:, k] - last) / context.dt * seen
            velocity = velocity + gain * (difference - velocity)
            # a copy: the caller may use the memory of the signal again
            last, seen = 1.0 * signal[:, k], xp.ones_like(seen)
            out.append(velocity)
        return (last, velocity, seen), xp.concat([signal, xp.stack(out, axis=1)], axis=-1)
