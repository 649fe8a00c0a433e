"""Stages between a command and a joint: drives, motors, their limits, friction. Efforts in N·m (or N)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sim2real.adapters.signals import DUE, ticks
from sim2real.adapters.stage import Field, Kernel, Signal, Stage, Starting, State, plain
from sim2real.errors import ParameterError

INFINITY = float("inf")


@dataclass(frozen=True, kw_only=True)
class TorqueLimit(Stage):
    """Clips the effort to [-limit, limit]. The gradient is 1 inside and 0 outside.

    Attributes:
        limit: [effort].
    """

    limit: float = INFINITY
    kind: ClassVar[str] = "torque_limit"
    FIELDS: ClassVar[dict[str, Field]] = {"limit": Field("N·m")}
    ENGINE: ClassVar[int | None] = 1
    takes: ClassVar[str | None] = "N·m"

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            (limit,) = p
            return xp.minimum(xp.maximum(u, -limit), limit), s

        return step


@dataclass(frozen=True, kw_only=True)
class TorqueSpeed(Stage):
    """The effort that is left at a speed: with the motion at most stall_torque · (1 - speed / no_load_speed).

    Against the motion the stall torque is the limit. Beyond the no-load speed the motor brakes.

    Attributes:
        stall_torque: [effort].
        no_load_speed: [rad/s].
    """

    stall_torque: float = INFINITY
    no_load_speed: float = INFINITY
    kind: ClassVar[str] = "torque_speed"
    FIELDS: ClassVar[dict[str, Field]] = {"stall_torque": Field("N·m"), "no_load_speed": Field("rad/s", 1e-9)}
    feedback: ClassVar[bool] = True
    takes: ClassVar[str | None] = "N·m"

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            stall, no_load = p
            share = m[1] / no_load
            high = xp.where(share > 0, stall * (1.0 - share), stall)
            low = xp.where(share < 0, -stall * (1.0 + share), -stall)
            return xp.minimum(xp.maximum(u, low), high), s

        return step


@dataclass(frozen=True, kw_only=True)
class DCMotor(Stage):
    """A DC motor without inductance: volts in, effort at the joint out.

    current = (volts - torque_constant · gear · speed) / resistance, effort = gear · torque_constant · current. Its
    stall torque is gear · torque_constant · supply_voltage / resistance, its no-load speed supply_voltage /
    (gear · torque_constant).

    Attributes:
        resistance: of the winding [Ω].
        torque_constant: also that of the back-EMF [N·m/A = V·s/rad].
        supply_voltage: the most that the drive applies [V].
        current_limit: [A].
        gear: turns of the motor for one of the joint [1].
    """

    resistance: float = 1.0
    torque_constant: float = 1.0
    supply_voltage: float = INFINITY
    current_limit: float = INFINITY
    gear: float = 1.0
    kind: ClassVar[str] = "dc_motor"
    FIELDS: ClassVar[dict[str, Field]] = {
        "resistance": Field("Ω", 1e-9),
        "torque_constant": Field("N·m/A"),
        "supply_voltage": Field("V"),
        "current_limit": Field("A"),
        "gear": Field("1"),
    }
    feedback: ClassVar[bool] = True
    takes: ClassVar[str | None] = "V"
    gives: ClassVar[str | None] = "N·m"

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            resistance, constant, supply, most, gear = p
            volts = xp.minimum(xp.maximum(u, -supply), supply)
            current = (volts - constant * gear * m[1]) / resistance
            return gear * constant * xp.minimum(xp.maximum(current, -most), most), s

        return step


@dataclass(frozen=True, kw_only=True)
class VoltageSag(Stage):
    """A supply whose voltage falls as current is drawn, each drive behind its own line: volts in, volts out.

    The volts that a motor of `resistance` and `back_emf` gets are at most supply_voltage - internal_resistance ·
    current, where they drive a current; what flows back does not raise the voltage.

    Attributes:
        supply_voltage: without load [V].
        internal_resistance: of the supply and its line [Ω].
        resistance: of the motor [Ω].
        back_emf: of the motor, at the joint [V·s/rad].
    """

    supply_voltage: float = INFINITY
    internal_resistance: float = 0.0
    resistance: float = 1.0
    back_emf: float = 0.0
    kind: ClassVar[str] = "voltage_sag"
    FIELDS: ClassVar[dict[str, Field]] = {
        "supply_voltage": Field("V"),
        "internal_resistance": Field("Ω", 0.0, 1e9),
        "resistance": Field("Ω", 1e-9),
        "back_emf": Field("V·s/rad"),
    }
    feedback: ClassVar[bool] = True
    takes: ClassVar[str | None] = "V"

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return values["supply_voltage"], values["internal_resistance"] / values["resistance"], values["back_emf"]

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            supply, ratio, constant = p
            emf = constant * m[1]
            zero = 0.0 * emf  # a supply breaks down where a motor that turns the other way would draw more than it has
            high = xp.maximum(xp.where(supply > emf, (supply + ratio * emf) / (1.0 + ratio), supply), zero)
            low = xp.minimum(xp.where(supply > -emf, (ratio * emf - supply) / (1.0 + ratio), -supply), zero)
            return xp.minimum(xp.maximum(u, low), high), s

        return step


class _Follower(Starting):
    """What follows its command; where it starts from the first one, it also remembers whether there was one."""

    @property
    def memory(self) -> int:
        return self.MEMORY + (self.start == "hold")


@dataclass(frozen=True, kw_only=True)
class RateLimit(_Follower):
    """A signal that cannot change faster than `rate`, nor its rate faster than `acceleration`.

    With both it brakes in time to stop where the command is.

    Attributes:
        rate: [of the signal, per second].
        acceleration: [of the signal, per second squared].
        start: what it starts from: "zeros", or "hold" for the first command.
    """

    rate: float = INFINITY
    acceleration: float = INFINITY
    kind: ClassVar[str] = "rate_limit"
    FIELDS: ClassVar[dict[str, Field]] = {"rate": Field("1/s"), "acceleration": Field("1/s^2", 1e-9)}
    MEMORY: ClassVar[int] = 2

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        rate, acceleration = values["rate"], values["acceleration"]
        # where there is no limit of the acceleration, one that no signal reaches, so that all stays finite
        finite = xp.clip(acceleration, None, 1e15)
        free = (rate == INFINITY) & (acceleration == INFINITY)
        return (
            xp.astype(free, rate.dtype),
            xp.clip(rate, None, 1e15),
            finite * dt,
            0.5 * finite * dt,
            2.0 * finite,
            xp.ones_like(rate) * dt,
        )

    def kernel(self, xp: Any) -> Kernel:
        holds = self.start == "hold"

        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            y, speed = s[0], s[1]
            free, rate, most, half, twice, dt = p
            if holds:
                y = xp.where(s[2] > 0, y, u)
            error = u - y
            far = xp.abs(error)
            # the fastest from which steps of `most` come to rest at the command
            stops = twice * far / (half + xp.sqrt(half * half + twice * far))
            wanted = xp.sign(error) * xp.minimum(xp.minimum(rate, stops), far / dt)
            speed = speed + xp.minimum(xp.maximum(wanted - speed, -most), most)
            speed = xp.where(free > 0, error / dt, speed)
            y = xp.where(free > 0, u, y + speed * dt)
            return y, (y, speed, 1.0 + 0.0 * y) if holds else (y, speed)

        return step


@dataclass(frozen=True, kw_only=True)
class FirstOrderLag(_Follower):
    """A motor that follows its command exponentially: y' = (u - y) / time_constant, exact for held commands.

    The output in a substep is the value reached at its end. A time constant of zero passes the command through.

    Attributes:
        time_constant: [s].
        start: what it starts from: "zeros", or "hold" for the first command.
    """

    time_constant: float = 0.0
    kind: ClassVar[str] = "lag"
    FIELDS: ClassVar[dict[str, Field]] = {"time_constant": Field("s")}
    MEMORY: ClassVar[int] = 1

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return (rise(xp, values["time_constant"], dt),)

    def kernel(self, xp: Any) -> Kernel:
        holds = self.start == "hold"

        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            y = s[0]
            (gain,) = p
            if holds:
                y = xp.where(s[1] > 0, y, u)
            y = y + gain * (u - y)
            return y, (y, 1.0 + 0.0 * y) if holds else (y,)

        return step


def rise(xp: Any, time_constant: Signal, dt: float) -> Signal:
    """Return the share of the way that an exponential of that time constant goes within a substep."""
    return 1.0 - xp.exp(-dt / xp.clip(time_constant, 1e-12, None))


@dataclass(frozen=True, kw_only=True)
class SecondOrderLag(_Follower):
    """A current or speed loop that may overshoot: y'' = w² (u - y) - 2 ζ w y', exact for held commands.

    Attributes:
        frequency: undamped natural frequency w / 2 pi [Hz]; without bound it passes the command through.
        damping_ratio: ζ [1].
        start: what it starts from: "zeros", or "hold" for the first command.
    """

    frequency: float = INFINITY
    damping_ratio: float = 1.0
    kind: ClassVar[str] = "second_order_lag"
    FIELDS: ClassVar[dict[str, Field]] = {"frequency": Field("Hz", 1e-9), "damping_ratio": Field("1", 0.0, 1e6)}
    MEMORY: ClassVar[int] = 2

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        frequency, ratio = values["frequency"], values["damping_ratio"]
        passes = 2.0 * math.pi * frequency * dt > 1e3  # settles within a thousandth of a substep
        w = xp.where(passes, 0.0 * ratio + 1.0 / dt, 2.0 * math.pi * frequency)
        decay = ratio * w
        # exp(-decay t) times cos and sin, or cosh and sinh, by exponentials that do not overflow
        square = w * w * (1.0 - ratio * ratio)
        root = xp.sqrt(xp.clip(xp.abs(square), 1e-12, None))
        slow, fast = xp.exp(-(decay - root) * dt), xp.exp(-(decay + root) * dt)
        shrink = xp.exp(-decay * dt)
        c = xp.where(square > 0, shrink * xp.cos(root * dt), 0.5 * (slow + fast))
        s = xp.where(square > 0, shrink * xp.sin(root * dt) / root, 0.5 * (slow - fast) / root)
        critical = xp.abs(square) < 1e-9 * w * w
        c, s = xp.where(critical, shrink, c), xp.where(critical, dt * shrink, s)
        return xp.astype(passes, ratio.dtype), c + decay * s, s, -w * w * s, c - decay * s

    def kernel(self, xp: Any) -> Kernel:
        holds = self.start == "hold"

        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            y, speed = s[0], s[1]
            passes, a, b, c, d = p
            if holds:
                y = xp.where(s[2] > 0, y, u)
            away = y - u
            y = xp.where(passes > 0, u, u + a * away + b * speed)
            speed = xp.where(passes > 0, 0.0 * speed, c * away + d * speed)
            return y, (y, speed, 1.0 + 0.0 * y) if holds else (y, speed)

        return step


@dataclass(frozen=True, kw_only=True)
class Drive(Stage):
    """The inner loop of a servo, at its own rate: kp · (command - position) - kd · velocity, clipped, held.

    Attributes:
        kp: [effort or volts, per rad].
        kd: [effort or volts, per rad/s].
        limit: of the output; a duty limit is one in volts [effort or volts].
        period: of the loop [s]; 0 for one a substep.
        output: "N·m" or "V".
    """

    kp: float = 0.0
    kd: float = 0.0
    limit: float = INFINITY
    period: float = 0.0
    output: Literal["N·m", "V"] = "N·m"
    kind: ClassVar[str] = "drive"
    FIELDS: ClassVar[dict[str, Field]] = {
        "kp": Field("N·m/rad", 0.0, 1e12),
        "kd": Field("N·m·s/rad", 0.0, 1e12),
        "limit": Field("N·m"),
        "period": Field("s", 0.0, 1e6),
    }
    MEMORY: ClassVar[int] = 2
    feedback: ClassVar[bool] = True
    takes: ClassVar[str | None] = "rad"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output not in ("N·m", "V"):
            raise ParameterError(f"{self.name}: the output of a drive is in N·m or V, found {self.output!r}")

    @property
    def gives(self) -> str | None:  # type: ignore[override]
        return self.output

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return values["kp"], values["kd"], values["limit"], ticks(xp, values["period"], dt)

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            held, wait = s
            kp, kd, limit, every = p
            due = wait < DUE
            held = xp.where(due, xp.minimum(xp.maximum(kp * (u - m[0]) - kd * m[1], -limit), limit), held)
            return held, (held, xp.where(due, wait + every, wait) - 1.0)

        return step


@dataclass(frozen=True, kw_only=True)
class ThermalDerating(Stage):
    """A motor that warms up with the square of its effort, and gives less when hot. A reset cools it down.

    Attributes:
        heating: rise of the temperature that an effort of one leads to in the end [K/(N·m)²].
        time_constant: of warming up [s].
        start: rise at which derating begins [K].
        stop: rise at which nothing is left [K].

    Raises:
        ParameterError: `stop` not above `start`.
    """

    heating: float = 0.0
    time_constant: float = 60.0
    start: float = 60.0
    stop: float = 80.0
    kind: ClassVar[str] = "thermal_derating"
    FIELDS: ClassVar[dict[str, Field]] = {
        "heating": Field("K/(N·m)^2", 0.0, 1e12),
        "time_constant": Field("s", 1e-9),
        "start": Field("K", 0.0, 1e6),
        "stop": Field("K", 0.0, 1e6),
    }
    MEMORY: ClassVar[int] = 1
    takes: ClassVar[str | None] = "N·m"

    def check(self, values: Mapping[str, Any]) -> None:
        if plain(values["start"] >= values["stop"]).any():
            raise ParameterError(f"{self.gap}.{self.name}: expected stop above start")

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        gain = rise(xp, values["time_constant"], dt)
        return values["heating"] * gain, gain, values["stop"], values["stop"] - values["start"]

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            (warm,) = s
            heating, gain, stop, span = p
            left = (stop - warm) / span
            y = u * xp.minimum(xp.maximum(left, 0.0 * left), 1.0 + 0.0 * left)
            return y, (warm + heating * y * y - gain * warm,)

        return step


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
    FIELDS: ClassVar[dict[str, Field]] = {"coulomb": Field("N·m"), "viscous": Field("N·m·s/rad")}
    ENGINE: ClassVar[int | None] = 2
    feedback: ClassVar[bool] = True
    last: ClassVar[bool] = True
    takes: ClassVar[str | None] = "N·m"

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return values["coulomb"], values["viscous"], xp.ones_like(values["coulomb"]) / dt

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            coulomb, viscous, rate = p
            most = coulomb + viscous * xp.abs(m[1])
            stop = m[2] * m[1] * rate + u - m[3]
            return u - xp.minimum(xp.maximum(stop, -most), most), s

        return step


@dataclass(frozen=True, kw_only=True)
class ServoFriction(Friction):
    """Friction of a geared servo: as `Friction`, and more at rest (Stribeck) and under load.

    The most that friction can be is, with the effort M of the motor and the effort E of all else on the joint,

        coulomb + viscous |v| + |load_external E - load_motor M|
        + exp(-|v / stribeck_velocity|^stribeck_exponent)
          (stribeck + |stribeck_load_external E - stribeck_load_motor M| + quadratic)

    where quadratic is quadratic_load_external E² if M is the larger and quadratic_load_motor M² if E is, both only
    where they oppose each other. With these fields the models of BAM (Duclusaud et al., "Extended Friction Models for
    the Physics Simulation of Servo Actuators", 2024) are: M1 coulomb, viscous; M2 adds stribeck; M3 is M1 with
    load_motor = load_external; M4 is M2 with both pairs alike; M5 leaves each its own; M6 adds the quadratic ones.

    Attributes:
        stribeck: what friction is more at rest than in motion [effort].
        stribeck_velocity: [rad/s].
        stribeck_exponent: [1].
        load_motor: [1].
        load_external: [1].
        stribeck_load_motor: [1].
        stribeck_load_external: [1].
        quadratic_load_motor: [1/effort].
        quadratic_load_external: [1/effort].
    """

    stribeck: float = 0.0
    stribeck_velocity: float = 0.1
    stribeck_exponent: float = 1.0
    load_motor: float = 0.0
    load_external: float = 0.0
    stribeck_load_motor: float = 0.0
    stribeck_load_external: float = 0.0
    quadratic_load_motor: float = 0.0
    quadratic_load_external: float = 0.0
    kind: ClassVar[str] = "servo_friction"
    ENGINE: ClassVar[int | None] = None
    FIELDS: ClassVar[dict[str, Field]] = {
        **Friction.FIELDS,
        "stribeck": Field("N·m"),
        "stribeck_velocity": Field("rad/s", 1e-9),
        "stribeck_exponent": Field("1", 1.0, 100.0),
        "load_motor": Field("1"),
        "load_external": Field("1"),
        "stribeck_load_motor": Field("1"),
        "stribeck_load_external": Field("1"),
        "quadratic_load_motor": Field("1/(N·m)"),
        "quadratic_load_external": Field("1/(N·m)"),
    }

    def coefficients(self, xp: Any, dt: float, values: Mapping[str, Signal]) -> State:
        return (*(values[f] for f in self.FIELDS), xp.ones_like(values["coulomb"]) / dt)

    def kernel(self, xp: Any) -> Kernel:
        def step(u: Signal, s: State, p: State, e: State, m: State) -> tuple[Signal, State]:
            coulomb, viscous, stribeck, speed, exponent, motor, external, more_motor, more_external, q_m, q_e, rate = p
            velocity, inertia, load = m[1], m[2], m[3]
            slow = xp.exp(-(xp.abs(velocity / speed) ** exponent))
            square = xp.where(xp.abs(u) > xp.abs(load), q_e * load * load, q_m * u * u)
            opposed = (u * load > 0) & (xp.abs(u) != xp.abs(load))  # the load is minus the effort of all else
            at_rest = stribeck + xp.abs(more_external * load + more_motor * u) + xp.where(opposed, square, 0.0 * square)
            most = coulomb + viscous * xp.abs(velocity) + xp.abs(external * load + motor * u) + slow * at_rest
            stop = inertia * velocity * rate + u - load
            return u - xp.minimum(xp.maximum(stop, -most), most), s

        return step
