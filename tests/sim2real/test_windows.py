"""Windows: which commands go with which substep, where the samples lie, and which starts there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError
from sim2real.windows import Windows, at_offsets, cut_windows, joint_positions, regular_starts

Array = NDArray[np.float64]
CHANNELS = Channels(observations=(("speed", "rad/s"), ("shoulder", "rad"), ("elbow", "rad")), actions=(("u", "N·m"),))
DT = 0.001


def recorded(observed_at: Array, shift: float = 0.0, name: str = "test", **more: Any) -> Episode:
    """A recording whose commands are stamped `shift` seconds after the observations and number 1, 2, 3, ..."""
    observed_at = np.asarray(observed_at, float)
    return Episode(
        name=name,
        observed_at=observed_at,
        observations=np.stack([0 * observed_at, np.sin(observed_at), 10 * observed_at], 1),
        commanded_at=observed_at[:-1] + shift,
        actions=np.arange(1.0, len(observed_at))[:, None],
        action_source="commanded",
        channels=CHANNELS,
        **more,
    )


def irregular(n: int, seed: int = 0) -> Array:
    return 5.0 + np.cumsum(np.random.default_rng(seed).uniform(0.002, 0.02, n))


def cut(episode: Episode, starts: list[int], **more: Any) -> Windows:
    options = {"channels": ["elbow"], "length": 0.1, "before": 0.02, "timestep": DT, **more}
    return cut_windows([episode], [np.array(starts, int)], **options)


# What each substep gets


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), start=st.integers(0, 50), shift=st.floats(0, 0.0015))
def test_each_substep_gets_the_command_in_force_when_it_begins(seed: int, start: int, shift: float) -> None:
    episode = recorded(irregular(60, seed), shift)
    windows = cut(episode, [start])
    assert (windows.before.shape, windows.commands.shape) == ((1, 20, 1), (1, 100, 1))
    got = np.concatenate([windows.before[0, :, 0], windows.commands[0, :, 0]])
    for k, command in zip(range(-20, 100), got, strict=True):
        now = episode.observed_at[start] + k * DT
        sent = [a for s, a in zip(episode.commanded_at, episode.actions[:, 0], strict=True) if s <= now + 1e-9]
        assert command == (sent[-1] if sent else 0.0)


def test_the_command_of_the_start_is_the_first_of_the_window_and_the_one_before_the_last_before_it() -> None:
    windows = cut(recorded(0.01 * np.arange(50)), [10])
    assert windows.commands[0, [0, 9, 10], 0].tolist() == [11, 11, 12]
    assert windows.before[0, [-1, -10, -11], 0].tolist() == [10, 10, 9]


def test_before_the_first_stamp_nothing_was_sent() -> None:
    windows = cut(recorded(0.01 * np.arange(50)), [0, 1])
    assert not windows.before[0].any()
    assert windows.before[1, :, 0].tolist() == [0] * 10 + [1] * 10


def test_samples_lie_where_they_were_stamped() -> None:
    episode = recorded(irregular(60))
    windows = cut(episode, [3, 50], channels=["elbow", "shoulder"])
    t, q = episode.observed_at, joint_positions(episode, ["elbow", "shoulder"])
    assert windows.start_time.tolist() == t[[3, 50]].tolist()
    for w, i in enumerate((3, 50)):
        inside = np.flatnonzero((t >= t[i]) & (t <= t[i] + 0.1))
        valid = windows.valid[w]
        np.testing.assert_allclose(windows.offset[w, valid] * DT, t[inside] - t[i], atol=1e-12)
        np.testing.assert_array_equal(windows.positions[w, valid], q[inside])
        # the padding is harmless: it repeats the last sample
        np.testing.assert_array_equal(windows.positions[w, ~valid], np.tile(q[inside[-1]], ((~valid).sum(), 1)))
        assert (windows.offset[w, ~valid] == windows.offset[w, valid][-1]).all()
    assert not windows.valid.all()
    assert windows.valid[:, 0].all()


def test_joint_positions_come_in_the_order_asked_for() -> None:
    episode = recorded(0.1 * np.arange(3))
    np.testing.assert_allclose(joint_positions(episode, ["elbow", "shoulder"])[:, 0], [0, 1, 2])
    with pytest.raises(LogError, match="no observation named 'wrist'"):
        joint_positions(episode, ["wrist"])


def test_blocks_are_stretches_of_time_of_one_recording() -> None:
    first, second = recorded(0.01 * np.arange(301), name="a"), recorded(7 + 0.01 * np.arange(301), name="b")
    starts = [np.array([0, 50, 99, 101, 250]), np.array([0, 150])]
    windows = cut_windows([first, second], starts, channels=["elbow"], length=0.1, before=0.0, timestep=DT, block=1.0)
    assert windows.recording.tolist() == [0] * 5 + [1] * 2
    assert windows.block.tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert windows.before.shape == (7, 0, 1)


def test_windows_are_selected_by_row_and_by_mask() -> None:
    windows = cut(recorded(0.01 * np.arange(50)), [5, 10, 15])
    some = windows.select(np.array([2, 0]))
    assert (len(windows), len(some)) == (3, 2)
    assert some.start_time.tolist() == [0.15, 0.05]
    np.testing.assert_array_equal(some.commands, windows.commands[[2, 0]])
    np.testing.assert_array_equal(windows.select(windows.start_time > 0.08).offset, windows.offset[1:])


def test_no_window_is_an_error() -> None:
    with pytest.raises(LogError, match=r"no window of 0.1 s fits the recordings \(test\)"):
        cut(recorded(0.01 * np.arange(50)), [])


# Which starts


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 400), st.sampled_from([0.002, 0.007, 0.01, 1 / 60, 0.1]), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_regular_starts_keep_their_stride(n: int, period: float, stride: float) -> None:
    episode = recorded(3.0 + period * np.arange(n))
    t, length, warmup = episode.observed_at - 3.0, 0.5, 0.1
    starts = regular_starts(episode, stride=stride, length=length, warmup=warmup)
    assert (t[starts] >= warmup - 1e-6).all()
    assert (t[starts] + length <= t[-1] + 1e-6).all()
    wanted = warmup + stride * np.arange(int(max(t[-1], 0) / stride) + 2)
    for at in wanted:  # each wanted instant has its start, the nearest, where the window round it is whole
        i = int(np.abs(t - at).argmin())
        if warmup <= t[i] and t[i] + length <= t[-1] and at + length <= t[-1]:
            assert np.abs(t[starts] - at).min() == pytest.approx(abs(t[i] - at), abs=1e-9)
    assert len(starts) <= len(wanted)
    assert (np.diff(starts) > 0).all()


def test_a_stride_of_whole_samples_is_met_exactly() -> None:
    episode = recorded(0.01 * np.arange(401))
    starts = regular_starts(episode, stride=0.05, length=1.0)
    np.testing.assert_array_equal(starts, np.arange(0, 301, 5))


def test_a_start_whose_window_would_not_be_whole_gives_way_to_the_one_before() -> None:
    episode = recorded(0.007 * np.arange(101))  # lasts 0.7 s; 0.203 s is nearer to 0.2 s, but 0.497 s are left there
    starts = regular_starts(episode, stride=0.05, length=0.5)
    np.testing.assert_allclose(episode.observed_at[starts], [0.0, 0.049, 0.098, 0.147, 0.196])


def test_excluded_stretches_are_kept_out() -> None:
    episode = recorded(0.01 * np.arange(401), excluded=((1.5, 1.6),))
    t = episode.observed_at
    starts = regular_starts(episode, stride=0.1, length=0.5, warmup=0.2)
    assert starts[0] == 20
    touching = (t[starts] - 0.2 < 1.6 - 1e-9) & (t[starts] + 0.5 > 1.5 + 1e-9)
    assert not touching.any()
    free = regular_starts(recorded(t), stride=0.1, length=0.5, warmup=0.2)
    kept_out = t[np.setdiff1d(free, starts)]
    assert ((kept_out > 0.99) & (kept_out < 1.81)).all()
    assert len(kept_out) >= 7


def test_a_recording_that_is_too_short_has_no_starts() -> None:
    assert len(regular_starts(recorded(0.01 * np.arange(20)), stride=0.1, length=0.5)) == 0


# States between substeps


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_states_between_substeps_are_interpolated(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    start, states = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, steps, 4))
    offset = rng.uniform(0, steps, (3, 7))
    offset[:, 0], offset[:, 1], offset[0, 2] = 0, steps, int(offset[0, 2])
    got = at_offsets(states, start, offset)
    assert got.shape == (2, 3, 7, 4)
    for c, w, x in np.ndindex(2, 3, 4):
        path = [start[c, w, x], *states[c, w, :, x]]
        np.testing.assert_allclose(got[c, w, :, x], np.interp(offset[w], np.arange(steps + 1), path), atol=1e-12)


def test_a_straight_line_is_met_everywhere() -> None:
    states = np.arange(1.0, 11.0)[None, :, None]
    offset = np.array([[0.0, 0.25, 1.0, 9.75, 10.0, 10.5]])
    # past the end by part of a substep, the line goes on
    np.testing.assert_allclose(at_offsets(states, np.zeros((1, 1)), offset)[0, :, 0], offset[0])
