"""Stages on any signal, noise, packets; and what chains can do: be saved, compiled, fused, differentiated."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sim2real.adapters import (
    Bias,
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
    Quantization,
    Resolution,
    Saturation,
    Stage,
    Stuck,
    ThermalDerating,
    TorqueLimit,
    noise,
)
from sim2real.adapters.presets import real_world_rl
from sim2real.errors import ParameterError

Array = NDArray[np.float64]
DT = 0.001


def out(stage: Stage, signal: Any, dt: float = DT, seed: int = 0) -> Array:
    """What comes out for one channel."""
    return Chain([stage]).bind(1, 1, dt, seed=seed).apply(np.asarray(signal, float)[None, :, None])[0, :, 0]  # type: ignore[no-any-return]


# Random numbers


def test_the_words_are_those_of_philox() -> None:
    """Against the rounds written with whole numbers, as in the paper."""
    rng = np.random.default_rng(0)
    for key, left, right in rng.integers(0, 2**32, (20, 3)).tolist():
        a, b, k = left, right, key
        for _ in range(noise.ROUNDS):
            product = a * 0xD256D193
            a, b, k = (product >> 32) ^ k ^ b, product & 0xFFFFFFFF, (k + 0x9E3779B9) % 2**32
        got = noise.words(np.int64(key), np.array([right]), np.array([left]))
        assert (int(got[0][0]), int(got[1][0])) == (a, b)
        same = noise.words(torch.tensor(key), torch.tensor([right]), torch.tensor([left]))
        assert (int(same[0]), int(same[1])) == (a, b)


def test_noise_is_normal_and_white_across_time_channels_and_signals() -> None:
    line = Chain([Noise(additive=1.0)]).bind(50, 8, DT)
    x = line.apply(np.zeros((50, 500, 8)))
    assert stats.kstest(x.ravel()[:100_000], "norm").pvalue > 1e-3
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[..., 1:], x[..., :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    scaled = Chain([Noise(multiplicative=0.1)]).bind(1, 1, DT).apply(np.full((1, 50_000, 1), 3.0))
    assert (scaled.mean(), scaled.std()) == (pytest.approx(3.0, abs=0.01), pytest.approx(0.3, rel=0.03))


@pytest.mark.parametrize(
    "like", [np.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.float64)], ids=["numpy", "single", "torch"]
)
def test_noise_depends_on_the_seed_alone(like: Any) -> None:
    chain = Chain([Noise(additive=1.0), Drift(gap="perception", random_walk=1.0)])
    many = chain.bind(7, 3, DT, seed=10).apply(np.zeros((7, 20, 3)))
    one = chain.bind(1, 3, DT, like, seed=14)
    zero = np.zeros((1, 20, 3)) if isinstance(like, np.ndarray) else torch.zeros((1, 20, 3), dtype=like.dtype)
    np.testing.assert_allclose(np.asarray(one.apply(zero))[0], many[4], atol=1e-6)
    one.seed([12])
    one.reset()
    np.testing.assert_allclose(np.asarray(one.apply(zero))[0], many[2], atol=1e-6)
    assert not np.allclose(many[2], many[3])


def test_a_drift_wanders_as_far_as_it_says() -> None:
    walk = Chain([Drift(random_walk=0.5)]).bind(2000, 1, 0.01).apply(np.zeros((2000, 401, 1)))
    assert (walk[:, 0] == 0).all()
    for k in (100, 400):
        assert walk[:, k].std() == pytest.approx(0.5 * np.sqrt(k * 0.01), rel=0.06)
    gauss = Chain([Drift(instability=2.0, correlation_time=0.5)]).bind(2000, 1, 0.01).apply(np.zeros((2000, 101, 1)))
    for k in (0, 10, 100):
        assert gauss[:, k].std() == pytest.approx(2.0, rel=0.06)
    for k in (20, 50, 100):
        lagged = np.corrcoef(gauss[:, 0, 0], gauss[:, k, 0])[0, 1]
        assert lagged == pytest.approx(np.exp(-0.01 * k / 0.5), abs=0.08)


# Signals


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-3, 3), st.floats(-2, 2))
def test_a_gain_a_limit_and_a_bias(u: float, gain: float, offset: float) -> None:
    assert out(Gain(gain=gain, offset=offset), [u]).item() == gain * u + offset
    assert out(Saturation(low=-1.0, high=0.5), [u]).item() == min(max(u, -1.0), 0.5)
    assert out(Bias(offset=offset), [u]).item() == u + offset
    assert out(Resolution(step=0.25), [u]).item() == np.round(u / 0.25) * 0.25
    zone = DeadZone(width=1.0, asymmetry=0.5)
    assert out(zone, [u]).item() == pytest.approx(u - np.clip(u, -0.5, 1.5))


def test_limits_that_cross_are_refused_and_nothing_is_written() -> None:
    with pytest.raises(ParameterError, match="low at most as large as high"):
        Saturation(low=1.0, high=0.0)
    line = Chain([Saturation(low=-1.0, high=1.0)]).bind(2, 1, DT)
    with pytest.raises(ParameterError, match="low at most as large as high"):
        line.write({"execution.saturation.low": np.array([0.0, 2.0])})
    assert line.read()["execution.saturation.low"].tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(("period", "every"), [(0.004, [4] * 5), (0.0, [1] * 20), (0.0025, [3, 2, 3, 2, 3, 2])])
def test_a_hold_samples_at_its_rate(period: float, every: list[int]) -> None:
    got = out(Hold(period=period), np.arange(sum(every)))
    starts = np.concatenate([[0], np.cumsum(every)[:-1]])
    np.testing.assert_array_equal(got, np.repeat(starts, every))


def test_a_stage_can_act_on_some_channels() -> None:
    signal = np.ones((2, 5, 4))
    got = Chain([Gain(gain=3.0, channels=(1, 3)), Latency(delay=0.002, channels=(0,))]).bind(2, 4, DT).apply(signal)
    np.testing.assert_array_equal(got[0, :, 1:], [[3, 1, 3]] * 5)
    np.testing.assert_array_equal(got[0, :, 0], [0, 0, 1, 1, 1])
    with pytest.raises(ParameterError, match=r"acts on channel 4, counted from 0, but the signal has 4"):
        Chain([Gain(channels=(4,))]).bind(1, 4, DT)


@pytest.mark.parametrize("fill", ["hold", "zeros", "nan"])
def test_what_is_stuck_stays_so_for_its_time(fill: Any) -> None:
    signal = 1.0 + np.arange(20_000)
    got = out(Stuck(probability=0.05, duration=0.007, fill=fill), signal)
    down = got != signal
    edges = np.flatnonzero(np.diff(down.astype(int), prepend=0, append=0))
    spells = edges[1::2] - edges[::2]
    assert (spells[:-1] % 7 == 0).all()  # one after the other, sometimes
    # up for 1 / p ticks on average (that it goes down after them included), down for 7
    assert down.mean() == pytest.approx(7 / (7 + 1 / 0.05 - 1), rel=0.1)
    if fill == "hold":
        assert all(
            got[k] == signal[a - 1] for a, b in itertools.pairwise(edges) if down[a] for k in range(a, min(b, a + 7))
        )
    else:
        assert np.array_equal(got[down], np.full(down.sum(), np.nan if fill == "nan" else 0.0), equal_nan=True)


# Packets


def test_packets_without_jitter_are_a_delay_in_whole_substeps() -> None:
    signal = np.random.default_rng(0).normal(size=200)
    np.testing.assert_array_equal(out(PacketLatency(delay=0.013), signal), out(Latency(delay=0.013), signal))
    held = out(PacketLatency(delay=0.013, period=0.02), signal)
    expected = np.concatenate([np.zeros(13), np.repeat(signal[::20], 20)])[:200]
    np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize("reorder", [False, True])
def test_jitter_overtakes_only_where_it_may(reorder: bool) -> None:
    stage = PacketLatency(delay=0.003, jitter=0.03, period=0.005, reorder=reorder)
    got = out(stage, np.arange(20_000))
    sent = got[got > 0]
    assert (np.diff(sent) < 0).any() == reorder
    assert (sent % 5 == 0).all()
    delay = np.arange(20_000)[got > 0] - sent
    assert delay.min() == 4  # what arrives within a substep counts from the next on
    # a packet counts until another has come; in their order the next one does so a period and the jitter later at most
    assert delay.max() <= (33 + 33 if reorder else 33 + 5)
    if reorder:
        first = np.unique(sent, return_index=True)[1]
        travel = delay[first] - 3  # of each packet, when it arrived
        assert stats.chisquare(np.bincount(travel.astype(int), minlength=31)[1:]).pvalue > 1e-3


def test_lost_packets_are_lost_and_the_last_one_counts_however_old() -> None:
    got = out(PacketLatency(delay=0.002, loss=0.7, longest=0.004), np.arange(20_000.0))
    fresh = np.flatnonzero(np.diff(got) != 0)
    assert len(fresh) / 20_000 == pytest.approx(0.3, rel=0.05)
    assert (np.diff(got) >= 0).all()
    assert np.diff(fresh).max() > 10  # longer than the line
    with pytest.raises(ParameterError, match=r"at most 0.004 s fits the delay line, found 0.005 s"):
        PacketLatency(delay=0.002, jitter=0.003, longest=0.004)


def test_the_channels_of_a_packet_share_its_fate() -> None:
    line = Chain([PacketLatency(delay=0.002, jitter=0.01, loss=0.3)]).bind(2, 3, DT)
    got = line.apply(np.broadcast_to(np.arange(300.0)[None, :, None], (2, 300, 3)))
    np.testing.assert_array_equal(got[:, :, 0], got[:, :, 2])
    assert not np.array_equal(got[0], got[1])


@pytest.mark.parametrize(("level", "steps"), [("easy", 3), ("medium", 6), ("hard", 9)])
def test_the_challenges_of_the_real_world_rl_suite(level: Any, steps: int) -> None:
    execution, perception = real_world_rl(level, 0.02)
    line = Chain.from_config(execution).bind(1, 1, 0.02)
    sensors = Chain.from_config(perception, gap="perception").bind(1, 1, 0.02)
    nominal = {**line.nominal(), **sensors.nominal()}
    assert nominal["execution.latency.delay"] == nominal["perception.latency.delay"] == pytest.approx(steps * 0.02)
    line.write({"execution.noise.additive": np.zeros(1)})
    got = line.apply(np.ones((1, 20, 1)))[0, :, 0]
    assert np.argmax(got > 0) == steps
    with pytest.raises(ParameterError, match="easy, medium or hard, found 'harder'"):
        real_world_rl("harder", 0.02)  # type: ignore[arg-type]


# Chains


def test_orders_that_cannot_be_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"torque_limit takes N·m, but what comes out of drive is in V.*gain"):
        Chain([Drive(output="V"), TorqueLimit()])
    with pytest.raises(ParameterError, match=r"dc_motor takes V, but the command is in N·m"):
        Chain([DCMotor()], unit="N·m")
    with pytest.raises(ParameterError, match=r"friction acts at the joint itself.*put latency in front"):
        Chain([Friction(), Latency()])
    with pytest.raises(ParameterError, match=r"latency of the execution comes after encoder of the perception"):
        Chain([Quantization(), Latency()])
    with pytest.raises(ParameterError, match=r"encoder is one of perception, not of 'execution'"):
        Quantization(gap="execution")
    Chain([Drive(output="V"), DCMotor(), TorqueLimit(), Friction()], unit="rad")
    Chain([Gain(to="V"), DCMotor()], unit="N·m")


def test_what_cannot_be_fused_says_so() -> None:
    with pytest.raises(ParameterError, match=r"packets cannot be fused.*without fused=True"):
        Chain([PacketLatency()]).bind(1, 1, DT, fused=True)
    with pytest.raises(ParameterError, match="numpy arrays of float64"):
        Chain([Latency()]).bind(1, 1, DT, torch.zeros(0), fused=True)


SMOOTH = [
    Latency(delay=0.0035),
    Gain(gain=0.9),
    FirstOrderLag(time_constant=0.01),
    DeadZone(width=0.1),
    Noise(additive=0.01),
]


def test_torch_compile_takes_a_chain_whole() -> None:
    line = Chain([*SMOOTH, Hold(period=0.003), ThermalDerating(heating=1.0)]).bind(
        2, 3, DT, torch.zeros(0, dtype=torch.float64)
    )
    signal = torch.randn(2, 6, 3, dtype=torch.float64)
    compiled = torch.compile(line.transform, fullgraph=True, backend="aot_eager")
    state, got = compiled(line.state, signal)
    expected_state, expected = line.transform(line.state, signal)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(compiled(state, signal)[1], line.transform(expected_state, signal)[1])


@pytest.mark.parametrize(
    "stage",
    [*SMOOTH, Latency(delay=0.0042), ThermalDerating(heating=5.0), Drift(random_walk=1.0)],
    ids=lambda s: s.kind,
)
def test_gradients_flow_through_signals_and_parameters(stage: Stage) -> None:
    line = Chain([stage]).bind(2, 1, DT, torch.zeros(0, dtype=torch.float64))
    start = line.state
    fields = [f for f in stage.FIELDS if getattr(stage, f) not in (0.0, 1.0)]
    signal = 1.0 + torch.rand(2, 9, 1, dtype=torch.float64)

    def run(u: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        line.write({stage.parameter(f): v for f, v in zip(fields, values, strict=True)})
        return line.transform(start, u)[1]

    values = [torch.full((2,), float(getattr(stage, f)), dtype=torch.float64, requires_grad=True) for f in fields]
    assert torch.autograd.gradcheck(run, (signal.requires_grad_(), *values), eps=1e-7, atol=1e-5)


def test_velocities_are_appended_behind_other_sensors() -> None:
    chain = Chain(
        [Quantization(step=0.01), FilteredDifference(), Noise(gap="perception", channels=(2, 3), additive=0.1)]
    )
    got = chain.bind(1, 2, DT).apply(np.zeros((1, 50, 2)))
    assert got.shape == (1, 50, 4)
    assert not got[..., :2].any()
    assert got[..., 2:].std() == pytest.approx(0.1, rel=0.2)
