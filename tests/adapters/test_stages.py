"""Each stage against a closed form, and what every stage must do alike."""

from __future__ import annotations

import io
import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim2real.adapters import (
    STAGES,
    Backlash,
    Bias,
    BoundChain,
    Chain,
    DCMotor,
    DeadZone,
    Drift,
    Drive,
    FilteredDifference,
    FirstOrderLag,
    Friction,
    Gain,
    Hold,
    Latency,
    Noise,
    PacketLatency,
    PlantView,
    Quantization,
    RateLimit,
    Resolution,
    Saturation,
    SecondOrderLag,
    ServoFriction,
    Stage,
    Stuck,
    ThermalDerating,
    TorqueLimit,
    TorqueSpeed,
    VoltageSag,
)
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel

Array = NDArray[np.float64]
DT = 0.001
torch.set_num_threads(1)

# Every kind and variant of stage, each with what its parameters may be at most (a pair: between which values).
SERVO = {f: 1.0 for f in ServoFriction.FIELDS} | {"stribeck_velocity": (0.05, 1.0), "stribeck_exponent": (1.0, 3.0)}
VARIANTS: list[tuple[Stage, dict[str, Any]]] = [
    (Latency(longest=0.02), {"delay": 0.02}),
    (Latency(longest=0.02, start="hold"), {"delay": 0.02}),
    (PacketLatency(longest=0.02, period=0.004), {"delay": 0.01, "jitter": 0.01, "loss": 0.4}),
    (
        PacketLatency(longest=0.02, period=0.003, reorder=True, gap="perception"),
        {"delay": 0.005, "jitter": 0.015, "loss": 0.4},
    ),
    (Hold(), {"period": 0.01}),
    (Stuck(), {"probability": 0.5, "duration": 0.005}),
    (Stuck(fill="zeros", shared=True, period=0.002), {"probability": 0.5, "duration": 0.005}),
    (Resolution(), {"step": 0.3}),
    (Noise(), {"additive": 0.5, "multiplicative": 0.5}),
    (Gain(), {"gain": (-2.0, 2.0), "offset": (-1.0, 1.0)}),
    (Saturation(), {"low": (-2.0, -0.1), "high": (0.1, 2.0)}),
    (DeadZone(), {"width": 1.0, "asymmetry": (-1.0, 1.0)}),
    (DeadZone(shape="hard"), {"width": 1.0, "asymmetry": (-1.0, 1.0)}),
    (DeadZone(name="half", channels=(0,)), {"width": 1.0, "asymmetry": 0.0}),
    (Backlash(), {"play": 1.0}),
    (RateLimit(), {"rate": 300.0, "acceleration": (1e3, 1e5)}),
    (RateLimit(start="hold"), {"rate": 300.0, "acceleration": (1e3, 1e5)}),
    (FirstOrderLag(), {"time_constant": 0.01}),
    (FirstOrderLag(start="hold"), {"time_constant": 0.01}),
    (SecondOrderLag(), {"frequency": (1.0, 100.0), "damping_ratio": 2.0}),
    (SecondOrderLag(start="hold"), {"frequency": (1.0, 100.0), "damping_ratio": 2.0}),
    (Drive(), {"kp": 5.0, "kd": 1.0, "limit": 3.0, "period": 0.01}),
    (VoltageSag(), {"supply_voltage": 2.0, "internal_resistance": 1.0, "resistance": (0.5, 2.0), "back_emf": 1.0}),
    (
        DCMotor(),
        {"resistance": (0.5, 2.0), "torque_constant": 1.0, "supply_voltage": 2.0, "current_limit": 1.0, "gear": 3.0},
    ),
    (TorqueSpeed(), {"stall_torque": 2.0, "no_load_speed": (0.5, 2.0)}),
    (ThermalDerating(), {"heating": 50.0, "time_constant": (0.005, 0.05), "start": (1.0, 5.0), "stop": (6.0, 50.0)}),
    (TorqueLimit(), {"limit": 2.0}),
    (Friction(), {"coulomb": 1.0, "viscous": 0.5}),
    (ServoFriction(), SERVO),
    (Quantization(), {"step": 0.3}),
    (Bias(), {"offset": (-1.0, 1.0)}),
    (Drift(), {"random_walk": 3.0, "instability": 1.0, "correlation_time": (0.01, 1.0)}),
    (FilteredDifference(), {"time_constant": 0.01}),
]
WITHOUT_FEEDBACK = [v for v in VARIANTS if not v[0].feedback]


def name_of(variant: tuple[Stage, dict[str, Any]]) -> str:
    stage = variant[0]
    given = [
        str(getattr(stage, f))
        for f in ("start", "shape", "fill", "period", "channels")
        if f not in stage.FIELDS and getattr(stage, f, None)
    ]
    return "-".join([stage.kind, *given])


every = pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
without_feedback = pytest.mark.parametrize("variant", WITHOUT_FEEDBACK, ids=name_of)


def line_for(stage: Stage, n: int, channels: int, dt: float = DT, like: Any = None, **values: Any) -> BoundChain:
    """One stage at work, with the given values for its fields (a number for all, or an array)."""
    line = Chain([stage]).bind(n, channels, dt, like)
    line.write({stage.parameter(k): np.broadcast_to(v, (n,)) if np.ndim(v) == 0 else v for k, v in values.items()})
    return line


def drawn(variant: tuple[Stage, dict[str, Any]], rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Array]:
    ranges = {f: span if isinstance(span, tuple) else (0.0, span) for f, span in variant[1].items()}
    return {f: rng.uniform(low, high, shape) for f, (low, high) in ranges.items()}


def view(rng: np.random.Generator, n: int, width: int) -> dict[str, Array]:
    names = [f.name for f in fields(PlantView)]
    return {
        k: rng.uniform(0.1, 1, (n, width)) if k == "effective_inertia" else rng.normal(size=(n, width)) for k in names
    }


def test_the_variants_are_all_stages() -> None:
    assert {type(stage) for stage, _ in VARIANTS} == set(STAGES.values())
    for stage, values in VARIANTS:
        assert set(values) == set(stage.FIELDS)


# What every stage must do


@without_feedback
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(1, 39), max_size=5), per_channel=st.booleans())
def test_blocks_do_not_matter(variant: Any, seed: int, cuts: set[int], per_channel: bool) -> None:
    rng, (n, steps, width) = np.random.default_rng(seed), (2, 40, 3)
    values = drawn(variant, rng, (n, width) if per_channel else (n,))
    signal = 2 * rng.normal(size=(n, steps, width))
    whole = line_for(variant[0], n, width, **values).apply(signal)
    singles, blocks = (line_for(variant[0], n, width, **values) for _ in range(2))
    one_by_one = np.concatenate([singles.apply(signal[:, k : k + 1]) for k in range(steps)], 1)
    edges = [0, *sorted(cuts), steps]
    in_blocks = np.concatenate([blocks.apply(signal[:, a:b]) for a, b in itertools.pairwise(edges)], 1)
    np.testing.assert_array_equal(one_by_one, whole)
    np.testing.assert_array_equal(in_blocks, whole)


@every
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_torch_gives_the_numbers_that_numpy_gives(variant: Any, seed: int) -> None:
    stage, rng, (n, steps, width) = variant[0], np.random.default_rng(seed), (3, 20, 2)
    values = drawn(variant, rng, (n, width))
    signal, motion = 2 * rng.normal(size=(n, steps, width)), view(rng, n, width)
    ours = line_for(stage, n, width, **values)
    theirs = line_for(stage, n, width, like=torch.zeros(0, dtype=torch.float64), **values)
    length = 1 if stage.feedback else steps
    for k in range(0, steps, length):
        part = signal[:, k : k + length]
        expected = ours.apply(part, PlantView(**motion))
        got = theirs.apply(torch.tensor(part), PlantView(**{k: torch.tensor(v) for k, v in motion.items()}))
        assert isinstance(got, torch.Tensor)
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


@every
def test_the_type_of_the_signal_is_kept(variant: Any) -> None:
    rng = np.random.default_rng(0)
    motion = {k: v.astype(np.float32) for k, v in view(rng, 2, 1).items()}
    line = line_for(variant[0], 2, 1, like=np.zeros(0, np.float32), **drawn(variant, rng, (2,)))
    assert line.apply(np.ones((2, 1, 1), np.float32), PlantView(**motion)).dtype == np.float32
    line = line_for(variant[0], 2, 1, like=torch.zeros(0), **drawn(variant, rng, (2,)))
    tensors = PlantView(**{k: torch.tensor(v) for k, v in motion.items()})
    assert line.apply(torch.ones((2, 1, 1)), tensors).dtype == torch.float32


@without_feedback
def test_a_reset_row_starts_afresh_and_the_others_go_on(variant: Any) -> None:
    rng, (n, steps, width) = np.random.default_rng(3), (4, 30, 2)
    values, signal = drawn(variant, rng, (n,)), 2 * rng.normal(size=(n, steps, width))
    mask = np.array([True, False, True, False])
    undisturbed, line = (line_for(variant[0], n, width, **values) for _ in range(2))
    expected = undisturbed.apply(signal)
    line.apply(signal[:, :15])
    line.reset(mask)
    count = line.state[0]
    after = line.apply(signal[:, 15:])
    fresh = line_for(variant[0], n, width, **values)
    fresh.state = (count, fresh.state[1])  # what is random goes on
    np.testing.assert_array_equal(after[~mask], expected[~mask, 15:])
    np.testing.assert_array_equal(after[mask], fresh.apply(signal[:, 15:])[mask])
    line.reset()
    line.seed(range(n))
    np.testing.assert_array_equal(line.apply(signal), expected)


@every
def test_a_stage_is_pure(variant: Any) -> None:
    stage, rng = variant[0], np.random.default_rng(4)
    line = line_for(stage, 2, 1, **drawn(variant, rng, (2,)))
    context = line._context(stage, PlantView(**view(rng, 2, 1)))
    signal = rng.normal(size=(2, 1, 1))
    kept = signal.copy()
    state = stage.apply(stage.init(2, 1, context), kept, context)[0]
    before = [x.copy() for x in state]
    first, second = stage.apply(state, signal, context), stage.apply(state, signal, context)
    np.testing.assert_array_equal(signal, kept)
    np.testing.assert_array_equal(first[1], second[1])
    for x, y in zip(state, before, strict=True):
        np.testing.assert_array_equal(x, y)


@without_feedback
def test_the_caller_may_use_his_buffer_again(variant: Any) -> None:
    rng = np.random.default_rng(5)
    values, signal = drawn(variant, rng, (2,)), rng.normal(size=(2, 20, 1))
    expected = line_for(variant[0], 2, 1, **values).apply(signal)
    line, buffer = line_for(variant[0], 2, 1, **values), np.empty((2, 1, 1))
    for k in range(20):
        buffer[:] = signal[:, k : k + 1]
        np.testing.assert_array_equal(line.apply(buffer), expected[:, k : k + 1])


@every
@pytest.mark.parametrize("bad", [-0.1, float("nan"), "much"])
def test_a_nominal_value_outside_its_range_is_refused(variant: Any, bad: object) -> None:
    stage, field = variant[0], next(iter(variant[1]))
    if bad == -0.1 and stage.FIELDS[field].low < 0:
        bad = "-0.1"
    with pytest.raises(ParameterError, match=rf"{type(stage)().parameter(field)}.*{bad}"):
        type(stage)(**{field: bad})


# Saved, and fused


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_chain_goes_on_where_it_was_saved(variant: Any) -> None:
    rng, chain = np.random.default_rng(0), Chain([variant[0]])
    first, second = chain.bind(3, 2, DT), chain.bind(3, 2, DT, seed=99)
    first.write({variant[0].parameter(f): v for f, v in drawn(variant, rng, (3, 2)).items()})
    signal, plant = rng.normal(size=(3, 30, 2)), PlantView(**view(rng, 3, 2))
    for k in range(15):
        first.apply(signal[:, k : k + 1], plant)
    file = io.BytesIO()
    np.savez(file, **first.save())
    file.seek(0)
    second.load(dict(np.load(file)))
    for k in range(15, 30):
        expected = first.apply(signal[:, k : k + 1], plant)
        np.testing.assert_array_equal(second.apply(signal[:, k : k + 1], plant), expected)
    with pytest.raises(ParameterError, match="of another chain"):
        Chain([Latency(), Hold()]).bind(3, 2, DT).load(first.save())


def halves() -> list[list[tuple[Stage, dict[str, Any]]]]:
    """The variants that can be fused, in chains of some length."""
    fusible = [v for v in VARIANTS if v[0].kind != "packets" and not v[0].appends]
    some = [v for v in fusible if not v[0].feedback and v[0].gap == "execution"]
    plant = [v for v in fusible if v[0].kind in ("drive", "voltage_sag", "dc_motor", "torque_speed", "servo_friction")]
    sensors = [v for v in VARIANTS if v[0].gap == "perception" and v[0].kind != "packets"]
    backlash = [v for v in some if v[0].kind == "backlash"]
    plant[0] = Drive(output="V"), plant[0][1]
    from_rad: tuple[Stage, dict[str, Any]] = (Gain(to="N·m"), {"gain": (-2.0, 2.0), "offset": 0.1})
    return [[*backlash, from_rad, *(v for v in some if v[0].kind != "backlash")], plant, sensors]


@pytest.mark.parametrize("chosen", halves(), ids=["signals", "plant", "sensors"])
def test_a_fused_chain_gives_the_same_numbers(chosen: Any) -> None:
    rng, (n, width) = np.random.default_rng(1), (3, 2)
    stages = [replace(v[0], name=f"s{i}") for i, v in enumerate(chosen)]
    chain = Chain(stages)
    plain, fused = chain.bind(n, width, DT), chain.bind(n, width, DT, fused=True)
    values = {}
    for stage, variant in zip(stages, chosen, strict=True):
        values |= {stage.parameter(f): v for f, v in drawn(variant, rng, (n, width)).items()}
    steps = 1 if chain.feedback else 7
    for lines in (plain, fused):
        lines.write({k: v for k, v in values.items() if k in lines.nominal()})
    for k in range(30):
        signal, plant = 2 * rng.normal(size=(n, steps, width)), PlantView(**view(rng, n, width))
        mask = np.array([True, k % 3 == 0, True])
        np.testing.assert_allclose(
            fused.apply(signal, plant, mask=mask)[mask],
            plain.apply(signal, plant, mask=mask)[mask],
            rtol=1e-9,
            atol=1e-9,
        )
        if k == 10:
            for lines in (plain, fused):
                lines.reset(np.array([False, True, False]))
                lines.seed([5, 6, 7], np.array([False, False, True]))
        if k == 20:
            fused.load(plain.save())
    assert fused.save().keys() == plain.save().keys()


# Latency


@pytest.mark.parametrize("whole", [0, 1, 3, 20])
def test_a_delay_of_whole_substeps_shifts(whole: int) -> None:
    signal = np.random.default_rng(0).normal(size=(1, 50, 2))
    got = line_for(Latency(longest=0.02), 1, 2, delay=whole * DT).apply(signal)
    np.testing.assert_array_equal(got[:, whole:], signal[:, : 50 - whole])
    assert not got[:, :whole].any()  # nothing had been sent before


@pytest.mark.parametrize("dt", [0.001, 0.002, 0.0004, 1 / 240])
@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_delay_between_substeps_is_that_of_the_held_command(dt: float, share: float, seed: int) -> None:
    delay, steps = share * 0.02, 80
    signal = np.random.default_rng(seed).normal(size=(1, steps, 1))
    got = line_for(Latency(longest=0.02), 1, 1, dt=dt, delay=delay).apply(signal)[0, :, 0]
    # the impulse that reaches the joint in a substep is that of u(t - delay), by differences of its integral
    edges = dt * np.arange(steps + 1)
    impulse = np.concatenate([[0.0], np.cumsum(signal[0, :, 0]) * dt])
    np.testing.assert_allclose(got * dt, np.diff(np.interp(edges - delay, edges, impulse)), atol=1e-8 * dt)


def test_half_a_substep_mixes_halves() -> None:
    step = np.repeat([0.0, 1.0], [5, 10])[None, :, None]
    got = line_for(Latency(), 1, 1, delay=0.0025).apply(step)[0, :, 0]
    assert got[6:9] == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)


def test_rounding_does_not_make_a_whole_delay_fractional() -> None:
    signal = np.random.default_rng(0).normal(size=(1, 400, 1))
    for dt in (0.001, 0.002, 0.0001, 0.003):
        for whole in range(0, 60):
            line = line_for(Latency(longest=60 * dt), 1, 1, dt=dt, delay=whole * dt)
            np.testing.assert_allclose(line.apply(signal)[0, whole:], signal[0, : 400 - whole], atol=1e-7)


def test_each_channel_and_each_row_has_its_delay() -> None:
    signal = np.random.default_rng(1).normal(size=(2, 30, 2))
    delays = np.array([[0.0, 0.003], [0.0015, 0.01]])
    got = line_for(Latency(), 2, 2, delay=delays).apply(signal)
    for i in range(2):
        for j in range(2):
            alone = line_for(Latency(), 1, 1, delay=delays[i, j]).apply(signal[i : i + 1, :, j : j + 1])
            np.testing.assert_array_equal(got[i, :, j], alone[0, :, 0])


def test_the_line_has_a_length() -> None:
    signal = np.ones((2, 30, 1))
    exact = line_for(Latency(longest=0.0105), 2, 1, delay=0.0105).apply(signal)
    assert exact[0, 9:12, 0] == pytest.approx([0, 0.5, 1], abs=1e-9)
    with pytest.raises(ParameterError, match=r"execution.latency.delay: at most 0.01 s .* found 0.0105 s.*longest"):
        line_for(Latency(longest=0.01), 2, 1, delay=np.array([0.01, 0.0105]))


# Dead zone and torque limit


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0, 2))
def test_a_dead_zone_swallows_small_commands(command: float, width: float) -> None:
    signal = np.full((1, 1, 1), command)
    offset = line_for(DeadZone(), 1, 1, width=width).apply(signal).item()
    hard = line_for(DeadZone(shape="hard"), 1, 1, width=width).apply(signal).item()
    outside = abs(command) > width
    assert offset == pytest.approx(np.sign(command) * (abs(command) - width) if outside else 0.0)
    assert hard == (command if outside else 0.0)


def test_a_dead_zone_has_two_shapes() -> None:
    with pytest.raises(ParameterError, match="offset or hard, found 'soft'"):
        DeadZone(shape="soft")  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0, 2))
def test_a_torque_limit_clips(command: float, limit: float) -> None:
    got = line_for(TorqueLimit(), 1, 1, limit=limit).apply(np.full((1, 1, 1), command)).item()
    assert got == np.clip(command, -limit, limit)


def test_there_is_no_limit_by_default() -> None:
    signal = np.array([[[1e9]], [[-1e9]]])
    np.testing.assert_array_equal(Chain([TorqueLimit()]).bind(2, 1, DT).apply(signal), signal)


# First-order lag


@pytest.mark.parametrize("time_constant", [1e-4, 0.003, 0.05])
@pytest.mark.parametrize("dt", [0.001, 0.004])
def test_a_lag_answers_a_step_with_an_exponential(time_constant: float, dt: float) -> None:
    got = line_for(FirstOrderLag(), 1, 1, dt=dt, time_constant=time_constant).apply(np.full((1, 60, 1), 2.0))
    t = dt * np.arange(1, 61)
    np.testing.assert_allclose(got[0, :, 0], 2 * (1 - np.exp(-t / time_constant)), rtol=1e-12)


def test_a_lag_of_no_time_passes_the_command() -> None:
    signal = np.random.default_rng(0).normal(size=(2, 20, 1))
    lag = line_for(FirstOrderLag(), 2, 1, time_constant=0.0)
    np.testing.assert_allclose(lag.apply(signal), signal, rtol=0, atol=1e-15)


# Encoder and velocity filter


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(1e-3, 1))
def test_an_encoder_rounds_to_its_steps(position: float, step: float) -> None:
    encoder = line_for(Quantization(), 1, 1, step=step)
    got = encoder.apply(np.full((1, 1, 1), position))
    assert got.item() / step == pytest.approx(round(got.item() / step), abs=1e-9)
    assert abs(got.item() - position) <= step / 2 * (1 + 1e-9)
    np.testing.assert_array_equal(encoder.apply(got), got)


def test_an_encoder_without_steps_passes_the_position() -> None:
    signal = np.random.default_rng(0).normal(size=(2, 20, 1))
    np.testing.assert_array_equal(line_for(Quantization(), 2, 1, step=0.0).apply(signal), signal)


@pytest.mark.parametrize("time_constant", [0.0, 0.002, 0.01])
def test_the_velocity_of_a_ramp_reaches_its_slope(time_constant: float) -> None:
    steps, slope = 200, 3.0
    k = np.arange(steps)
    position = 100.0 + slope * DT * k
    got = line_for(FilteredDifference(), 1, 1, time_constant=time_constant).apply(position[None, :, None])[0]
    np.testing.assert_array_equal(got[:, 0], position)
    assert got[0, 1] == 0.0  # no spike from nowhere to the first position
    decay = np.exp(-k * DT / time_constant) if time_constant else (k == 0)
    np.testing.assert_allclose(got[:, 1], slope * (1 - decay), atol=1e-9)
    assert got[-1, 1] == pytest.approx(slope, rel=1e-6)


def test_velocities_follow_all_positions() -> None:
    positions = DT * np.arange(50)[None, :, None] * np.array([1.0, -2.0])
    got = line_for(FilteredDifference(), 1, 2).apply(positions)
    assert got.shape == (1, 50, 4)
    np.testing.assert_allclose(got[0, -1, 2:], [1, -2])


# Friction, on the pendulum: alone, without MuJoCo's own friction


@pytest.fixture(scope="module")
def pendulum() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Friction()]))


FREE = {"dynamics.hinge.damping": 0.0, "dynamics.hinge.frictionloss": 0.0, "dynamics.world.gravity": 0.0}
INERTIA = 0.546 * 0.5**2 + 1.365e-4 + 0.13 * 0.24**2 + 0.0027 + 0.0022
COULOMB, VISCOUS = "execution.friction.coulomb", "execution.friction.viscous"


def swing(plant: Plant, start: tuple[float, float], efforts: Array, **values: float) -> Array:
    """States (K + 1, 2) of one pendulum, the start among them."""
    names = {"coulomb": COULOMB, "viscous": VISCOUS, "gravity": "dynamics.world.gravity"}
    running = plant.start(
        1, {k: np.full(1, v) for k, v in {**FREE, **{names[k]: v for k, v in values.items()}}.items()}
    )
    running.reset(np.array([start]))
    return np.concatenate([[start], running.step(np.asarray(efforts, float)[None, :, None])[0]])


@pytest.mark.parametrize("drive", [0.0, 0.1, -0.29])
def test_a_joint_at_rest_stays_there_below_the_coulomb_effort(pendulum: Plant, drive: float) -> None:
    states = swing(pendulum, (0.4, 0.0), np.full(300, drive), coulomb=0.3)
    np.testing.assert_array_equal(states, np.tile([0.4, 0.0], (301, 1)))


def test_a_joint_sticks_against_gravity_too(pendulum: Plant) -> None:
    weight = 9.81 * (0.546 * 0.5 + 0.13 * 0.24)
    states = swing(pendulum, (0.4, 0.0), np.zeros(300), coulomb=1.01 * weight * np.sin(0.4), gravity=9.81)
    np.testing.assert_allclose(states, np.tile([0.4, 0.0], (301, 1)), atol=1e-12)
    states = swing(pendulum, (0.4, 0.0), np.zeros(300), coulomb=0.99 * weight * np.sin(0.4), gravity=9.81)
    assert states[-1, 0] < 0.399


def test_a_joint_breaks_loose_above_the_coulomb_effort(pendulum: Plant) -> None:
    velocity = swing(pendulum, (0.0, 0.0), np.full(100, 0.5), coulomb=0.3)[:, 1]
    np.testing.assert_allclose(velocity, (0.5 - 0.3) / INERTIA * DT * np.arange(101), rtol=1e-9)


@pytest.mark.parametrize("speed", [2.0, -2.0])
def test_a_sliding_joint_slows_down_by_coulomb_over_inertia(pendulum: Plant, speed: float) -> None:
    coulomb = 0.3
    velocity = swing(pendulum, (0.0, speed), np.zeros(1500), coulomb=coulomb)[:, 1]
    expected = np.sign(speed) * np.maximum(abs(speed) - coulomb / INERTIA * DT * np.arange(1501), 0.0)
    np.testing.assert_allclose(velocity, expected, atol=1e-9)
    assert expected[-1] == 0.0


def test_viscous_friction_decays_exponentially(pendulum: Plant) -> None:
    viscous = 0.4
    velocity = swing(pendulum, (0.0, 3.0), np.zeros(500), viscous=viscous)[:, 1]
    np.testing.assert_allclose(velocity, 3 * (1 - viscous * DT / INERTIA) ** np.arange(501), rtol=1e-9)
    np.testing.assert_allclose(velocity, 3 * np.exp(-viscous / INERTIA * DT * np.arange(501)), rtol=3e-3)


@settings(max_examples=25, deadline=None)
@given(st.floats(-5, 5), st.floats(0, 20), st.floats(0, 500))
def test_friction_never_turns_a_joint_round(pendulum: Plant, speed: float, coulomb: float, viscous: float) -> None:
    velocity = swing(pendulum, (0.0, speed), np.zeros(30), coulomb=coulomb, viscous=viscous)[:, 1]
    assert (velocity * np.sign(speed) >= -1e-12).all()
    assert (np.diff(np.abs(velocity)) <= 1e-12).all()


def test_friction_needs_the_motion() -> None:
    line = line_for(Friction(), 1, 1, coulomb=0.1)
    with pytest.raises(ParameterError, match="needs the plant's motion, one substep at a time"):
        line.apply(np.ones((1, 1, 1)))
    motion = PlantView(**view(np.random.default_rng(0), 1, 1))
    with pytest.raises(ParameterError, match="one substep at a time"):
        line.apply(np.ones((1, 2, 1)), motion)
