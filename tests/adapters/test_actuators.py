"""Actuator stages against closed forms: motors, drives, limits of rates, play, heat, friction of servos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim2real.adapters import (
    Backlash,
    Chain,
    DCMotor,
    Drive,
    FirstOrderLag,
    Latency,
    PlantView,
    RateLimit,
    SecondOrderLag,
    ServoFriction,
    Stage,
    ThermalDerating,
    TorqueSpeed,
    VoltageSag,
)
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel

Array = NDArray[np.float64]
DT = 0.001


def out(stage: Stage, signal: Any, dt: float = DT) -> Array:
    """What comes out for one channel."""
    return Chain([stage]).bind(1, 1, dt).apply(np.asarray(signal, float)[None, :, None])[0, :, 0]  # type: ignore[no-any-return]


def moving(stage: Stage, command: float, velocity: float, position: float = 0.0, load: float = 0.0) -> float:
    """What comes out for a joint in motion."""
    view = PlantView(*(np.full((1, 1), x) for x in (position, velocity, 0.1, load)))
    return float(Chain([stage]).bind(1, 1, DT).apply(np.full((1, 1, 1), command), view).item())


# Motors


@settings(deadline=None)
@given(st.floats(-60, 60), st.floats(0.1, 5), st.floats(0.01, 1), st.floats(1, 24), st.floats(1, 100))
def test_a_dc_motor_keeps_to_its_torque_speed_line(
    speed: float, resistance: float, constant: float, supply: float, gear: float
) -> None:
    motor = DCMotor(resistance=resistance, torque_constant=constant, supply_voltage=supply, gear=gear)
    stall, no_load = gear * constant * supply / resistance, supply / (gear * constant)
    assert moving(motor, 1e9, speed) == pytest.approx(stall * (1 - speed / no_load), rel=1e-9, abs=1e-9)
    assert moving(motor, -1e9, speed) == pytest.approx(-stall * (1 + speed / no_load), rel=1e-9, abs=1e-9)
    # shorted, it brakes
    assert moving(motor, 0.0, speed) == pytest.approx(-stall * speed / no_load, rel=1e-9, abs=1e-9)


def test_the_current_of_a_dc_motor_is_limited() -> None:
    motor = DCMotor(resistance=0.5, torque_constant=0.1, current_limit=2.0, gear=10.0)
    assert moving(motor, 100.0, 0.0) == pytest.approx(10 * 0.1 * 2.0)
    assert moving(motor, 0.5, 0.0) == pytest.approx(10 * 0.1 * 1.0)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(-10, 10))
def test_a_torque_speed_curve_is_that_of_the_motor_it_stands_for(speed: float, command: float) -> None:
    curve = TorqueSpeed(stall_torque=4.0, no_load_speed=20.0)
    got = moving(curve, command, speed)
    high = 4.0 * (1 - max(speed, 0.0) / 20.0)
    low = -4.0 * (1 - max(-speed, 0.0) / 20.0)
    assert got == pytest.approx(min(max(command, low), high))
    assert abs(got) <= 4.0 or abs(speed) > 40.0


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(-20, 20), st.floats(0, 3))
def test_a_supply_sags_by_the_current_that_is_drawn(command: float, speed: float, internal: float) -> None:
    resistance, constant, supply = 1.5, 0.4, 12.0
    sag = VoltageSag(supply_voltage=supply, internal_resistance=internal, resistance=resistance, back_emf=constant)
    volts = moving(sag, command, speed)
    current = (volts - constant * speed) / resistance
    drawn = current * np.sign(command)  # what drives the motor the way that was asked for
    left = max(supply - internal * max(drawn, 0.0), 0.0)
    if abs(volts) < abs(command):  # at its limit
        assert abs(volts) == pytest.approx(left, rel=1e-9, abs=1e-9)
        assert volts * command >= 0
    else:
        assert volts == command
        assert abs(volts) <= left + 1e-9


def test_a_drive_is_a_controller_at_its_own_rate() -> None:
    drive = Chain([Drive(kp=8.0, kd=0.5, limit=3.0, period=0.004)]).bind(1, 1, DT)
    given_out = []
    for k in range(12):
        view = PlantView(*(np.full((1, 1), x) for x in (0.1 * k, 0.2 * k, 1.0, 0.0)))
        given_out.append(drive.apply(np.ones((1, 1, 1)), view).item())
    ticks = [np.clip(8.0 * (1 - 0.1 * k) - 0.5 * 0.2 * k, -3, 3) for k in (0, 4, 8)]
    np.testing.assert_allclose(given_out, np.repeat(ticks, 4))


def test_a_motor_that_is_hot_gives_less() -> None:
    stage = ThermalDerating(heating=10.0, time_constant=5.0, start=40.0, stop=60.0)
    got = out(stage, np.full(20_000, 2.0), dt=0.01)
    t = 0.01 * np.arange(20_000)
    rise = 40.0 * (1 - np.exp(-t / 5.0))  # 10 K/(N·m)² times 4: reaches where derating begins, in the end
    assert (got[rise < 39.9] == 2.0).all()
    # twice the effort settles where what is left heats as much as is lost: (60 - T) / 20 * 4 N·m
    hot = out(stage, np.full(20_000, 4.0), dt=0.01)[-1]
    warm = 10.0 * hot**2
    assert hot == pytest.approx(4.0 * (60 - warm) / 20, rel=1e-6)
    with pytest.raises(ParameterError, match="stop above start"):
        ThermalDerating(start=80.0, stop=60.0)


# Rates and lags


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.floats(1, 100),
    st.floats(10, 1e4),
    st.sampled_from(["zeros", "hold"]),
)
def test_a_rate_limit_is_never_exceeded(levels: list[float], rate: float, acceleration: float, start: Any) -> None:
    signal = np.repeat(levels, 30)
    got = out(RateLimit(rate=rate, acceleration=acceleration, start=start), signal)
    first = signal[0] if start == "hold" else 0.0
    speed = np.diff(got, prepend=first) / DT
    assert (np.abs(speed) <= rate * (1 + 1e-6)).all()
    assert (np.abs(np.diff(speed, prepend=0.0)) <= acceleration * DT * (1 + 1e-6) + 1e-7).all()


def test_a_rate_limit_makes_ramps_and_trapezoids() -> None:
    ramp = out(RateLimit(rate=10.0), np.ones(150))
    np.testing.assert_allclose(ramp, np.minimum(10.0 * DT * np.arange(1, 151), 1.0), atol=1e-12)
    smooth = out(RateLimit(rate=10.0, acceleration=200.0), np.ones(400))
    speed = np.diff(smooth, prepend=0.0) / DT
    assert speed.max() == pytest.approx(10.0)
    assert (smooth <= 1.0 + 1e-9).all()  # it brakes in time
    assert smooth[-1] == pytest.approx(1.0, abs=1e-6)
    # accelerating and braking take rate / acceleration each, beside the way at the rate
    assert np.argmax(smooth > 1 - 1e-4) * DT == pytest.approx(1.0 / 10.0 + 10.0 / 200.0, abs=0.003)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.7, 1.0, 1.0 + 1e-7, 1.5, 20.0])
@pytest.mark.parametrize("dt", [0.001, 0.01])
def test_a_second_order_lag_answers_a_step_as_in_the_textbook(ratio: float, dt: float) -> None:
    w, t = 2 * np.pi * 3.0, dt * np.arange(1, 101)
    if ratio < 1:
        d = w * np.sqrt(1 - ratio**2)
        expected = 1 - np.exp(-ratio * w * t) * (np.cos(d * t) + ratio * w / d * np.sin(d * t))
    elif ratio < 1.01:
        expected = 1 - np.exp(-w * t) * (1 + w * t)
    else:
        a, b = w * (ratio - np.sqrt(ratio**2 - 1)), w * (ratio + np.sqrt(ratio**2 - 1))
        expected = 1 - (b * np.exp(-a * t) - a * np.exp(-b * t)) / (b - a)
    got = out(SecondOrderLag(frequency=3.0, damping_ratio=ratio), np.ones(100), dt)
    np.testing.assert_allclose(got, expected, atol=1e-5 if 1 <= ratio < 1.01 else 1e-9)


@pytest.mark.parametrize(
    "stage",
    [
        FirstOrderLag(time_constant=0.05, start="hold"),
        SecondOrderLag(frequency=2.0, start="hold"),
        RateLimit(rate=1.0, start="hold"),
        Latency(delay=0.0105, start="hold"),
    ],
)
def test_what_starts_by_holding_starts_at_the_first_command(stage: Stage) -> None:
    np.testing.assert_allclose(out(stage, np.full(50, 3.0)), 3.0, rtol=1e-12)


NOTHING = [SecondOrderLag(), RateLimit(), Backlash(), TorqueSpeed(), VoltageSag(), ThermalDerating()]


@pytest.mark.parametrize("stage", NOTHING, ids=lambda s: s.kind)
def test_without_parameters_a_stage_does_nothing(stage: Stage) -> None:
    signal = np.random.default_rng(0).normal(size=(1, 40, 3))
    view = PlantView(*(np.full((1, 3), x) for x in (0.3, 5.0, 1.0, 0.2)))
    line = Chain([stage]).bind(1, 3, DT)
    got = np.concatenate([line.apply(signal[:, k : k + 1], view) for k in range(40)], 1)
    np.testing.assert_array_equal(got, signal)


@settings(deadline=None)
@given(st.floats(0.01, 2))
def test_backlash_is_a_play(play: float) -> None:
    t = np.linspace(0, 4 * np.pi, 4000)
    got = out(Backlash(play=play), 3 * np.sin(t))
    assert (np.abs(got - 3 * np.sin(t)) <= play / 2 + 1e-12).all()
    later = slice(2000, None)
    assert got[later].max() == pytest.approx(3 - play / 2, abs=1e-4)
    rests = np.diff(got[later]) == 0  # after each turn, for as long as it takes to cross the play
    crossing = np.arccos(1 - play / 3)
    assert rests.mean() == pytest.approx(crossing / np.pi, abs=0.01)


# Friction of servos


def budget(stage: ServoFriction, motor: float, external: float, velocity: float) -> float:
    """The most that friction can be, written as its authors do: with the effort of all else on the joint."""
    s = stage
    stribeck = np.exp(-(abs(velocity / s.stribeck_velocity) ** s.stribeck_exponent))
    loss = s.coulomb + abs(external * s.load_external - motor * s.load_motor) + stribeck * s.stribeck
    loss += stribeck * abs(external * s.stribeck_load_external - motor * s.stribeck_load_motor)
    if np.sign(external) != np.sign(motor):
        if abs(external) < abs(motor):
            loss += stribeck * s.quadratic_load_external * external**2
        elif abs(external) > abs(motor):
            loss += stribeck * s.quadratic_load_motor * motor**2
    return float(loss + s.viscous * abs(velocity))


@settings(deadline=None, max_examples=200)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 20), st.lists(st.floats(0, 0.3), min_size=9, max_size=9))
def test_servo_friction_is_that_of_model_m6(motor: float, external: float, speed: float, values: list[float]) -> None:
    names = [f for f in ServoFriction.FIELDS if f not in ("stribeck_velocity", "stribeck_exponent")]
    stage = ServoFriction(stribeck_velocity=2.0, stribeck_exponent=1.35, **dict(zip(names, values, strict=True)))
    # an inertia of 0.1 and 0.5 rad/s within a millisecond: nothing here stops it
    friction = motor - moving(stage, motor, speed, load=-external)
    assert friction == pytest.approx(budget(stage, motor, external, speed), rel=1e-9, abs=1e-9)
    back = motor - moving(stage, motor, -speed, load=-external)
    assert back == pytest.approx(-budget(stage, motor, external, speed), rel=1e-9, abs=1e-9)


BELT = """<mujoco><option gravity="0 0 0"/><worldbody><body name="block"><joint name="slide" type="slide" axis="1 0 0"/>
  <geom type="box" size="0.1 0.1 0.1" mass="1"/></body></worldbody>
  <actuator><motor name="spring" joint="slide"/></actuator></mujoco>"""


def test_a_block_on_a_belt_sticks_and_slips(tmp_path: Path) -> None:
    """A block of 1 kg on a spring of 100 N/m, drawn by a belt of 0.1 m/s.

    In the frame of the belt the spring's end moves at the speed of the belt. The block sticks until the spring pulls
    with the friction at rest, Fs = 2 N, then slips against the friction in motion, Fd = 1 N, as a free oscillation:
    with w = 10 /s and D = (Fs - Fd) / k = 0.01 m it sticks again after a slip of (2 pi - 2 arctan(w D / v)) / w.
    """
    file = tmp_path / "belt.xml"
    file.write_text(BELT, encoding="utf-8")
    k, speed, rest, sliding, dt = 100.0, 0.1, 2.0, 1.0, 2e-4
    friction = ServoFriction(coulomb=sliding, stribeck=rest - sliding, stribeck_velocity=1e-4)
    plant = Plant(RobotModel(file), Chain([friction]), timestep=dt, threads=1)
    running = plant.start(1, {"dynamics.slide.damping": np.zeros(1), "dynamics.slide.frictionloss": np.zeros(1)})
    running.reset(np.zeros((1, 2)))
    moves = []
    for i in range(int(3.0 / dt)):
        pull = k * (speed * i * dt - running.state()[0, 0])
        moves.append(running.step(np.full((1, 1, 1), pull))[0, 0, 1])
    velocity = np.array(moves)
    sticks = np.abs(velocity) < 1e-6
    assert np.argmax(~sticks) * dt == pytest.approx(rest / (k * speed), abs=3 * dt)  # the first break: 0.2 s
    edges = np.flatnonzero(np.diff(sticks.astype(int)))
    starts, ends = edges[0::2], edges[1::2]
    w, lag = np.sqrt(k / 1.0), (rest - sliding) / k
    slip = (2 * np.pi - 2 * np.arctan(w * lag / speed)) / w
    slips = (ends - starts[: len(ends)]) * dt
    assert len(slips) >= 3
    np.testing.assert_allclose(slips, slip, rtol=0.02)
    # while it slips it moves at v + sqrt(v² + (w D)²) at most
    assert velocity.max() == pytest.approx(speed + np.hypot(speed, w * lag), rel=0.02)
