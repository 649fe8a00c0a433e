"""Logs: what is written is what is read, in SI units and on its own clock."""

import copy
import importlib.util
import math
import re
import runpy
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs
from sim2real.logs.units import Unit, unit

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

SINGLE = {
    "file": "{name}.csv",
    "time": {"column": "t", "unit": "s"},
    "observations": {"position": {"column": "q", "unit": "rad"}, "velocity": {"column": "v", "unit": "rad/s"}},
    "actions": {"torque": {"column": "u", "unit": "N·m"}},
    "action_source": "commanded",
}
PENDULUM = """
files: {measured: "{name}_measured.csv", desired: "{name}_desired.csv"}
time: {column: measured.time, unit: s}
observations:
  position: {column: measured.position, unit: rad}
  velocity: {column: measured.velocity, unit: rad/s}
actions: {torque: {column: desired.torque, unit: N·m}}
action_source: commanded
measured_actions: {torque: {column: measured.torque, unit: N·m}}
recordings:
  pd_sysid: &measured {action_source: measured, actions: {torque: {column: measured.torque, unit: N·m}}}
  ddp: *measured
  direct_collocation: *measured
  energy_shaping: {excluded: [[15.9, 16.5]]}
  energy_shaping_1kg: {excluded: [[16.9, 17.5]]}
  pd_1nm_failure: {excluded: [[6.7, 7.2], [10.0, 11.8]]}
  energy_shaping_swing: {recording: energy_shaping, stop: 4.3}
  energy_shaping_1kg_swing: {recording: energy_shaping_1kg, stop: 7.0}
"""
GOOD = "t,q,v,u\n0,1,2,3\n1,4,5,6\n2,7,8,9\n"
OBSERVED = "t,q,v\n0,0,0\n1,0,0\n2,0,0\n3,0,0\n"
TWO_FILES = {
    **SINGLE,
    "files": {"seen": "{name}_seen.csv", "sent": "{name}_sent.csv"},
    "time": {"column": "seen.t", "unit": "s"},
    "observations": {"position": {"column": "seen.q", "unit": "rad"}},
    "actions": {"torque": {"column": "sent.u", "unit": "N·m"}},
}
del TWO_FILES["file"]
OWN_CLOCK = {**TWO_FILES, "command_time": {"column": "sent.t", "unit": "s"}}


def schema(base=SINGLE, **changes):
    return LogSchema.load({**copy.deepcopy(base), **changes})


def write(folder, **files):
    for name, text in files.items():
        Path(folder, f"{name}.csv").write_text(text, encoding="utf-8")


def read_one(folder, base=SINGLE, **changes):
    (episode,) = read_logs(folder, schema(base, **changes))
    return episode


def csv_table(columns):
    return "\n".join([" , ".join(columns), *(",".join(map(repr, row)) for row in zip(*columns.values(), strict=True))])


FINITE = st.floats(-1e12, 1e12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30).flatmap(lambda n: arrays(np.float64, (4, n), elements=FINITE)), st.booleans())
def test_what_is_written_is_read(table, one_less):
    """CSV, Parquet and NPZ hold the same numbers, to the last bit; arrays may leave out the last action."""
    table[0] = np.cumsum(np.abs(table[0]) % 1 + 0.01)
    t, q, v, u = table
    columns = {"t": t.tolist(), "q": q.tolist(), "v": v.tolist(), "u": u.tolist()}
    two_columns = {"position": {"column": "x[0]", "unit": "rad"}, "velocity": {"column": "x[1]", "unit": "rad/s"}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.csv").write_text(csv_table(columns))
        pyarrow.parquet.write_table(pa.table(columns), f"{folder}/a.parquet")
        np.savez(f"{folder}/a.npz", t=t, x=table[1:3].T, u=u[:-1] if one_less else u, note=np.array("not a column"))
        for suffix, changes in ((".csv", {}), (".parquet", {}), (".npz", {"observations": two_columns})):
            episode = read_one(folder, file="{name}" + suffix, **changes)
            np.testing.assert_array_equal(episode.observed_at, t)
            np.testing.assert_array_equal(episode.observations, np.stack([q, v], 1))
            np.testing.assert_array_equal(episode.commanded_at, t[:-1])
            np.testing.assert_array_equal(episode.actions, u[:-1, None])
            assert episode.channels.observations == (("position", "rad"), ("velocity", "rad/s"))


@pytest.mark.parametrize(
    ("name", "value", "si", "expected"),
    [
        ("deg", 180.0, "rad", math.pi),
        ("rev", 0.5, "rad", math.pi),
        ("deg/s", 90.0, "rad/s", math.pi / 2),
        ("rpm", 60.0, "rad/s", 2 * math.pi),
        ("Nm", 2.0, "N·m", 2.0),
        ("N*m", 2.0, "N·m", 2.0),
        ("mN·m", 2000.0, "N·m", 2.0),
        ("mV", 12000.0, "V", 12.0),
        ("mA", 500.0, "A", 0.5),
        ("mm", 250.0, "m", 0.25),
        ("m/s", 3.0, "m/s", 3.0),
        (1, 3.0, "1", 3.0),
        ("none", 3.0, "1", 3.0),
    ],
)
def test_units_become_si(tmp_path, name, value, si, expected):
    write(tmp_path, a=f"t,q,u\n0,{value},0\n1,0,0\n")
    episode = read_one(tmp_path, observations={"x": {"column": "q", "unit": name}})
    assert episode.observations[0, 0] == pytest.approx(expected)
    assert episode.channels.observations == (("x", si),)


@pytest.mark.parametrize(("name", "second"), [("s", 1), ("ms", 1000), ("us", 1000000), ("ns", 1000000000)])
def test_clocks_become_seconds(tmp_path, name, second):
    write(tmp_path, a=f"t,q,v,u\n{2 * second},0,0,0\n{5 * second},0,0,0\n")
    episode = read_one(tmp_path, time={"column": "t", "unit": name})
    assert episode.observed_at == pytest.approx([2, 5])


@pytest.mark.parametrize(
    ("name", "si", "factor", "offset"),
    [
        ("degrees", "rad", math.pi / 180, 0),
        ("rev/min", "rad/s", math.pi / 30, 0),
        ("Nm/rad", "N·m/rad", 1, 0),
        ("kgf*cm", "N·m", 0.0980665, 0),
        ("g", "kg", 1e-3, 0),
        ("m/s^2", "m/s²", 1, 0),
        ("°C", "K", 1, 273.15),
        ("%", "1", 0.01, 0),
        ("counts", "1", 1, 0),
    ],
)
def test_any_unit_that_pint_reads_becomes_si(name, si, factor, offset):
    found = unit(name)
    assert (found.si, found.factor, found.offset) == (si, pytest.approx(factor), pytest.approx(offset))
    assert unit(si) == Unit(si, 1.0)


@pytest.mark.parametrize("name", ["radd", "2 rad", "rad+s", "9**9**9", "m**999", "__import__('os')", "kg/", "x" * 99])
def test_what_is_no_unit_is_refused(name):
    with pytest.raises(LogError, match="unknown unit"):
        unit(name)


def test_scale_and_offset_come_after_the_unit(tmp_path):
    write(tmp_path, a=GOOD)
    position = {"column": "q", "unit": "deg", "scale": -2, "offset": 0.5}
    assert read_one(tmp_path, observations={"position": position}).observations[:, 0] == pytest.approx(
        0.5 - 2 * np.deg2rad([1, 4, 7])
    )


def test_the_last_action_is_dropped_and_may_be_empty(tmp_path):
    write(tmp_path, a=GOOD[:-2] + "\n")
    assert read_one(tmp_path).actions[:, 0].tolist() == [3, 6]


def test_measured_and_exogenous_channels(tmp_path):
    write(tmp_path, a="t,q,v,u,m,bat\n0,0,0,1,10,5000\n1,0,0,2,20,6000\n2,0,0,3,30,7000\n")
    episode = read_one(
        tmp_path,
        measured_actions={"torque": {"column": "m", "unit": "mNm"}},
        exogenous={"supply": {"column": "bat", "unit": "mV"}},
    )
    assert episode.measured_actions[:, 0] == pytest.approx([0.01, 0.02])
    assert episode.exogenous[:, 0] == pytest.approx([5, 6, 7])
    assert episode.channels.exogenous == (("supply", "V"),)


def test_integer_nanoseconds_and_booleans_of_parquet(tmp_path):
    stamps = 1_700_000_000_000_000_001 + 5_000_000 * np.arange(3)
    table = pa.table({"t": stamps, "motor.q": pa.array([0, 1, 2], pa.int8()), "u": [True, False, True]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    observations = {"position": {"column": "motor.q", "unit": "rad"}}
    episode = read_one(tmp_path, file="{name}.parquet", time={"column": "t", "unit": "ns"}, observations=observations)
    assert np.diff(episode.observed_at) == pytest.approx(0.005, abs=1e-6)
    assert episode.actions[:, 0].tolist() == [1, 0]


# Which recordings, and which part of them


def test_recordings_are_found_sorted_and_picked(tmp_path):
    write(tmp_path, b_seen=OBSERVED, b_sent=OBSERVED, a_seen=GOOD, a_sent=GOOD, other=GOOD)
    layout = schema(TWO_FILES, actions={"torque": {"column": "sent.q", "unit": "N·m"}})
    assert [e.name for e in read_logs(tmp_path, layout)] == ["a", "b"]
    assert [e.name for e in read_logs(str(tmp_path), layout, ["b"])] == ["b"]
    assert [e.name for e in read_logs(tmp_path / "a_sent.csv", layout)] == ["a"]


@pytest.mark.parametrize(("rows", "kept"), [(2, 2), (4, 4), (6, 4)])
def test_files_are_joined_row_by_row_and_cut_to_the_shortest(tmp_path, rows, kept):
    write(tmp_path, a_seen=OBSERVED, a_sent="u\n" + "".join(f"{k}\n" for k in range(rows)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        episode = read_one(tmp_path, TWO_FILES)
    assert episode.observed_at.tolist() == list(range(kept))
    assert episode.actions[:, 0].tolist() == list(range(kept - 1))
    expected = f"a: a_seen.csv has 4 rows, a_sent.csv has {rows} rows; joined row by row and cut to {kept}"
    assert [str(warning.message) for warning in caught] == ([] if rows == 4 else [expected])


def test_a_single_file_need_not_fit_the_pattern(tmp_path):
    np.savez(tmp_path / "odd.npz", t=[0.0, 1.0], q=[0, 1], v=[0, 1], u=[1])
    assert [e.name for e in read_logs(tmp_path / "odd.npz", schema())] == ["odd"]


def test_a_recording_may_be_a_folder(tmp_path):
    Path(tmp_path, "run1").mkdir()
    write(tmp_path / "run1", log_run1=GOOD)
    assert [e.name for e in read_logs(tmp_path, schema(file="{name}/log_{name}.csv"))] == ["run1"]


def test_parts_are_cut_on_the_clock_of_the_log(tmp_path):
    write(tmp_path, a="t,q,v,u\n100,0,0,0\n101,1,0,1\n102,2,0,2\n103,3,0,3\n104,,0,4\n", b=GOOD)
    parts = {
        "a": {"action_source": "measured", "stop": 103, "excluded": [[101, 101.5]]},
        "middle": {"recording": "a", "start": 101},
    }
    layout = schema(recordings=parts)
    whole, middle = read_logs(tmp_path, layout, ["a", "middle"])  # the empty cell of the last row is cut off
    assert [e.name for e in read_logs(tmp_path, layout)] == ["a", "b"]
    assert middle.name == "middle"
    assert middle.observed_at.tolist() == [101, 102, 103]
    assert middle.actions[:, 0].tolist() == [1, 2]
    assert (middle.action_source, middle.excluded) == ("measured", ((101, 101.5),))
    cut = whole.slice(1, 3)
    for field in ("observed_at", "observations", "commanded_at", "actions"):
        np.testing.assert_array_equal(getattr(middle, field), getattr(cut, field))


def test_an_override_changes_the_channels_that_it_names(tmp_path):
    write(tmp_path, a="t,q,v,w,u\n0,1,2,8,3\n1,4,5,9,6\n")
    parts = {"a": {"observations": {"velocity": {"column": "w", "unit": "rad/s"}}, "action_source": None}}
    assert read_one(tmp_path, recordings=parts).observations.tolist() == [[1, 8], [4, 9]]


def test_an_override_for_a_recording_that_is_not_there_warns(tmp_path):
    write(tmp_path, slow=GOOD)
    with pytest.warns(UserWarning, match=r"'slwo', which is not there; did you mean slow\?"):
        read_logs(tmp_path, schema(recordings={"slwo": {"action_source": "measured"}}))


# Two clocks


def test_commands_one_row_short_are_not_cut(tmp_path):
    write(tmp_path, a_seen=OBSERVED, a_sent=GOOD)
    Path(tmp_path, "a_sent.csv").write_text("u\n1\n2\n3\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_one(tmp_path, TWO_FILES).actions[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("rows", [3, 4])
def test_paired_commands_keep_their_own_stamps(tmp_path, rows):
    sent = "t,u\n" + "".join(f"{k + 0.25},{k}\n" for k in range(rows))
    write(tmp_path, a_seen=OBSERVED, a_sent=sent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        episode = read_one(tmp_path, OWN_CLOCK)
    assert episode.commanded_at.tolist() == [0.25, 1.25, 2.25]
    assert episode.actions[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("stamps", "expected", "note"),
    [
        ([0.5, 0.75, 1.0, 1.5, 1.75], [0, 3, 5], "3 of them fell between two and are lost.* up to 0.25 s late"),
        ([0.0], [1, 1, 1], "0 of them .* up to 0 s late"),
        ([0.0, 0.25, 0.5, 0.75], [1, 4, 4], "2 of them .* up to 0.25 s late"),  # as many rows, but not the same ones
    ],
)
def test_other_commands_are_held_onto_the_observations(tmp_path, stamps, expected, note):
    sent = "t,u\n" + "".join(f"{t},{k + 1}\n" for k, t in enumerate(stamps))
    write(tmp_path, a_seen=OBSERVED, a_sent=sent)
    with pytest.warns(UserWarning, match=note):
        episode = read_one(tmp_path, OWN_CLOCK)
    assert episode.commanded_at.tolist() == [0, 1, 2]
    assert episode.actions[:, 0].tolist() == expected


def test_measured_actions_are_read_on_the_clock_of_their_file(tmp_path):
    sent = "t,u,m\n" + "".join(f"{0.5 * k},{k},{10 * k}\n" for k in range(1, 7))
    write(tmp_path, a_seen=OBSERVED.replace("v\n", "m\n"), a_sent=sent)
    for source, expected in (("sent.m", [10, 20, 40]), ("seen.m", [0, 0, 0])):
        measured = {"torque": {"column": source, "unit": "N·m"}}
        with pytest.warns(UserWarning, match="held onto"):
            assert read_one(tmp_path, OWN_CLOCK, measured_actions=measured).measured_actions[:, 0].tolist() == expected


def test_two_clocks_in_one_file(tmp_path):
    """Arrays of one file have the length of their clock; measured actions go with the observations."""
    sent = 0.5 * np.arange(7)
    np.savez(tmp_path / "a.npz", t=np.arange(4.0), q=np.zeros((4, 2)), m=np.arange(3), tu=sent, u=sent)
    layout = schema(
        file="{name}.npz",
        observations={"position": {"column": "q[1]", "unit": "rad"}},
        command_time={"column": "tu", "unit": "s"},
        measured_actions={"torque": {"column": "m", "unit": "N·m"}},
    )
    with pytest.warns(UserWarning, match="3 of them fell between two and are lost"):
        (episode,) = read_logs(tmp_path, layout)
    assert episode.actions[:, 0].tolist() == episode.measured_actions[:, 0].tolist() == [0, 1, 2]


def test_an_override_may_go_back_to_one_clock(tmp_path):
    write(tmp_path, a_seen=OBSERVED, a_sent=GOOD)
    actions = {"torque": {"column": "seen.q", "unit": "N·m"}}
    parts = {"a": {"actions": actions, "command_time": None}}
    assert read_one(tmp_path, OWN_CLOCK, recordings=parts).commanded_at.tolist() == [0, 1, 2]


# The real thing


def test_the_documentation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "yaml", "sh"]
    exec(compile(blocks[0][1], "logs.md", "exec"), {})
    assert capsys.readouterr().out == re.findall(r"# (swing .*)\n", blocks[0][1])[0] + "\n"
    assert LogSchema.load(yaml.safe_load(blocks[1][1])).layout("energy_shaping_swing").stop == 4.3
    runpy.run_path(str(ROOT / "examples" / "read_logs.py"), run_name="__main__")
    assert "swing_start: 50 transitions in 0.250 s, commanded" in capsys.readouterr().out


@pytest.mark.data
def test_the_recorded_pendulum():
    if not (DATA / "pendulum").is_dir():
        pytest.skip(f"the recorded robots are not there: expected {DATA / 'pendulum'}")
    spec = importlib.util.spec_from_file_location("robot_loaders", DATA / "loaders.py")
    loaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    layout = LogSchema.load(yaml.safe_load(PENDULUM))
    whole = [name for part in loaders.SPLIT["pendulum"].values() for name in part if not name.endswith("_swing")]
    assert [episode.name for episode in read_logs(DATA / "pendulum", layout)] == sorted(whole)
    swings = {"energy_shaping_swing": 4.3, "energy_shaping_1kg_swing": 7.0}
    for episode in read_logs(DATA / "pendulum", layout, names=[*whole, *swings]):
        expected = loaders.load(DATA, "pendulum", episode.name)
        n = int((expected.t <= swings.get(episode.name, math.inf)).sum())
        np.testing.assert_array_equal(episode.observed_at, expected.t[:n])
        np.testing.assert_array_equal(episode.observations, np.c_[expected.q, expected.v_raw][:n])
        np.testing.assert_array_equal(episode.commanded_at, expected.t[: n - 1])
        np.testing.assert_array_equal(episode.actions, expected.u[: n - 1])
        np.testing.assert_array_equal(episode.measured_actions, expected.u_meas[: n - 1])
        assert episode.action_source == {"command": "commanded", "measured": "measured"}[expected.mode]
        known = loaders.EXCLUDE.get(episode.name.removesuffix("_swing"), ())
        assert list(episode.excluded) == list(known)
