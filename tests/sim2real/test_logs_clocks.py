"""Clocks: signals brought onto others, against what they were made of; and how two clocks stand to each other."""

import numpy as np
import pytest

from sim2real.align import band_limited, held, relate_clocks
from sim2real.errors import LogError
from sim2real.logs import read_logs


def irregular(period, duration, jitter=0.3, seed=0):
    """Stamps about `period` apart, up to `jitter` of it off."""
    rng = np.random.default_rng(seed)
    n = int(duration / period)
    return period * (np.arange(n) + jitter * rng.uniform(-1, 1, n))


def test_what_the_new_clock_can_show_is_kept_and_the_rest_is_not_folded_down():
    t, at = irregular(0.001, 4.0), np.arange(0.2, 3.8, 0.01)
    slow, fast = np.sin(2 * np.pi * 10 * t), np.sin(2 * np.pi * 130 * t)  # 130 Hz would read as 30 Hz
    out = band_limited(t, np.stack([slow, fast], 1), at)
    inner = slice(5, -5)
    np.testing.assert_allclose(out[inner, 0], np.sin(2 * np.pi * 10 * at)[inner], atol=0.01)
    assert abs(out[inner, 1]).max() < 0.02
    naive = np.interp(at, t, fast)
    assert abs(naive[inner]).max() > 0.9


def test_a_faster_clock_interpolates():
    t = irregular(0.01, 2.0)
    at = np.linspace(t[0], t[-1], 5000)
    np.testing.assert_allclose(band_limited(t, 3 * t + 1, at), 3 * at + 1)
    np.testing.assert_allclose(band_limited(t, np.sin(2 * t), at), np.sin(2 * at), atol=2e-4)


def test_constants_stay_constant_and_gaps_are_bridged_by_a_line():
    t = np.concatenate([np.arange(0, 1, 0.001), np.arange(2, 3, 0.001)])
    at = np.arange(0.0, 3.0, 0.01)
    np.testing.assert_allclose(band_limited(t, np.full(len(t), 7.0), at), 7.0)
    ramp = band_limited(t, t, at)
    middle = (at > 1.05) & (at < 1.95)
    np.testing.assert_allclose(ramp[middle], at[middle], atol=1e-9)


def test_held_commands():
    t, u = np.array([0.1, 0.2, 0.5]), np.array([[1.0], [2.0], [3.0]])
    np.testing.assert_array_equal(held(t, u, np.array([0.0, 0.1, 0.15, 0.2, 0.9]))[:, 0], [0, 1, 1, 2, 3])


@pytest.mark.parametrize("drift", [0.0, 80e-6, -200e-6])
def test_offset_and_drift_are_found_below_the_delays(drift):
    rng = np.random.default_rng(1)
    stamps = np.arange(0, 60, 0.01) + 1.7e9
    delay = 0.0005 + rng.exponential(0.004, len(stamps))
    received = stamps + 12.5 + drift * (stamps - stamps[0]) + delay
    found = relate_clocks(stamps, received)
    assert found.drift == pytest.approx(drift, abs=3e-6)
    assert found.offset == pytest.approx(12.5005, abs=2e-4)
    assert found.delay == pytest.approx(0.004 * np.log(2), rel=0.1)
    line = found.offset + found.drift * (stamps - stamps[0])
    assert (received - stamps - line).min() > -1e-6  # no message arrives before it was sent


def test_one_message_has_no_drift():
    with pytest.raises(LogError, match="takes two messages at different times, found 1"):
        relate_clocks(np.zeros(1), np.zeros(1))


def write(path, **columns):
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(names), *(",".join(f"{x:.12g}" for x in row) for row in rows)]))


SCHEMA = {
    "files": {"joints": "{name}_joints.csv", "imu": "{name}_imu.csv", "sent": "{name}_sent.csv"},
    "time": {"column": "joints.t", "unit": "s"},
    "clocks": {"imu": {"column": "imu.t", "unit": "ms", "scale": 1.001, "offset": -0.25}},
    "observations": {
        "angle": {"column": "joints.q", "unit": "rad"},
        "rate": {"column": "imu.w", "unit": "rad/s", "clock": "imu"},
    },
    "command_time": {"column": "sent.t", "unit": "s"},
    "actions": {"torque": {"column": "sent.u", "unit": "N·m"}},
    "action_source": "commanded",
}


def test_a_channel_of_another_rate_comes_from_its_own_clock(tmp_path):
    t, t_imu = np.arange(0, 2, 0.01), np.arange(0.2, 1.9, 0.001)
    write(tmp_path / "a_joints.csv", t=t, q=np.sin(t))
    write(tmp_path / "a_imu.csv", t=1e3 * (t_imu + 0.25) / 1.001, w=np.cos(5 * t_imu))
    write(tmp_path / "a_sent.csv", t=t + 0.003, u=np.cos(t))
    with pytest.warns(UserWarning, match=r"30 observations lie outside of what the other clocks cover"):
        (episode,) = read_logs(tmp_path, SCHEMA)
    at = episode.observed_at
    assert (at[0], at[-1]) == pytest.approx((0.2, 1.89))
    np.testing.assert_allclose(episode.observations[:, 0], np.sin(at), atol=1e-9)
    np.testing.assert_allclose(episode.observations[:, 1], np.cos(5 * at), atol=0.01)
    np.testing.assert_allclose(episode.commanded_at, at[:-1] + 0.003)
    assert episode.provenance["aligned"] == ["imu.w: from the clock imu.t"]


def test_gaps_may_be_excluded(tmp_path):
    t = np.concatenate([np.arange(0, 1, 0.01), np.arange(1.5, 2, 0.01)])
    write(tmp_path / "a.csv", t=t, q=t, u=t)
    schema = {
        "time": {"column": "t", "unit": "s"},
        "observations": {"q": {"column": "q", "unit": "rad"}},
        "actions": {"u": {"column": "u", "unit": "N·m"}},
        "action_source": "commanded",
        "max_gap": 0.1,
    }
    assert read_logs(tmp_path, schema)[0].excluded == ((pytest.approx(0.99), pytest.approx(1.5)),)
