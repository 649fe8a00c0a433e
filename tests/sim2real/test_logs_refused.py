"""Logs: what cannot be read is refused with one message that says what is wrong, where, and how to mend it."""

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs

SINGLE = {
    "file": "{name}.csv",
    "time": {"column": "t", "unit": "s"},
    "observations": {"position": {"column": "q", "unit": "rad"}, "velocity": {"column": "v", "unit": "rad/s"}},
    "actions": {"torque": {"column": "u", "unit": "N·m"}},
    "action_source": "commanded",
}
TWO_FILES = {
    "files": {"seen": "{name}_seen.csv", "sent": "{name}_sent.csv"},
    "time": {"column": "seen.t", "unit": "s"},
    "observations": {"position": {"column": "seen.q", "unit": "rad"}},
    "actions": {"torque": {"column": "sent.u", "unit": "N·m"}},
    "action_source": "commanded",
}
OWN_CLOCK = {**TWO_FILES, "command_time": {"column": "sent.t", "unit": "s"}}
GOOD = "t,q,v,u\n0,1,2,3\n1,4,5,6\n2,7,8,9\n"
OBSERVED = "t,q,v\n0,0,0\n1,0,0\n2,0,0\n3,0,0\n"


def schema(base=SINGLE, **changes):
    return LogSchema.load({**copy.deepcopy(base), **changes})


def write(folder, **files):
    for name, text in files.items():
        Path(folder, f"{name}.csv").write_text(text, encoding="utf-8")


def read_one(folder, base=SINGLE, **changes):
    (episode,) = read_logs(folder, schema(base, **changes))
    return episode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv: the file is empty"),
        ("t,q,v,u", r"a\.csv: column 't' has no rows"),
        ("t,q,v,u\n", r"a\.csv: column 't' has no rows"),
        ("t,q,v,u\n0,1,2,3\n", r"a\.csv: column 't' has 1 row; an episode needs two"),
        (
            "t,q,vel,u\n0,1,2,3\n",
            r"no column 'v' \(observations\.velocity\); did you mean vel\? \(the file has t, q, vel",
        ),
        ("0,1,2,3\n1,4,5,6\n", r"no column 't' \(time\); available: .*first line must be the names of the columns"),
        ("t,q,q,v,u\n0,1,2,3,4\n", r"2 columns are called 'q'"),
        (
            "t,q,v,u\n0,1,2,3\n0,4,5,6\n",
            r"column 't' \(time\) must increase.* 0 s in row 0 and 0 s in row 1.*sort the rows",
        ),
        ("t,q,v,u\n1,1,2,3\n0.5,4,5,6\n", r"must increase.* 1 s in row 0 and 0\.5 s in row 1"),
        ("t,q,v,u\n0,1,2,3\nnan,4,5,6\n", r"column 't' \(time\) must hold finite numbers, found nan in row 1"),
        ("t,q,v,u\n0,1,2,3\n1,4,,6\n", r"'v' \(observations\.velocity\) must hold finite.*nan in row 1.*start or stop"),
        ("t,q,v,u\n0,1,2,inf\n1,4,5,6\n", r"'u' \(actions\.torque\) must hold finite numbers, found inf in row 0"),
        ("t,q,v,u\n0,1,NA,3\n1,4,fast,6\n", r"'v' \(observations\.velocity\) must hold numbers, .*'fast' in row 1"),
        ("t,q,v,u\n0,1,2,3\n1,4\n", r"a\.csv: .*Expected 4 columns, got 2.*repair or cut"),
        ("t,q,v,u\n0,1,2,3\n1,4,5,6\xff".encode("latin-1"), r"a\.csv: cannot be read as CSV|must hold numbers"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    Path(tmp_path, "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LogError, match=message):
        read_one(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"v": ["fast", "1"]}, r"'v' \(observations\.velocity\) must hold numbers, found the text 'fast' in row 0"),
        ({"v": [[1.0], [2.0]]}, r"no column 'v' \(observations\.velocity\); available: q, t, u, v\[0\]"),
        ({"t": np.array([1, 2], "M8[ns]")}, r"'t' \(time\) is in 'ns' by the file itself, the schema says 's'"),
        ({"v": [None, 1.0]}, r"must hold finite numbers, found nan in row 0"),
        ({"w": [0, 0], "v": None}, r"no column 'v' .*available: q, t, u, w"),
    ],
)
def test_bad_parquet(tmp_path, columns, message):
    good = {"t": [0.0, 1.0], "q": [0.0, 1.0], "v": [0.0, 1.0], "u": [0.0, 1.0]}
    table = {name: values for name, values in {**good, **columns}.items() if values is not None}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=message):
        read_one(tmp_path, file="{name}.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"v": np.array(["fast", "slow"])}, r"'v' \(observations\.velocity\) must hold numbers, found the text 'fast'"),
        ({"v": np.array([{}, {}])}, r"'v' .* holds Python objects, which take pickle to read"),
        ({"v": np.array([1j, 2j])}, r"is of type complex128, expected numbers"),
        ({"v": np.zeros((2, 2))}, r"no column 'v' .*available: q, t, u, v\[0\], v\[1\]"),
        ({"w": np.array([{}, {}])}, r"no column 'v' .*available: q, t, u$"),
        ({"v": np.zeros(3)}, r"column 't' has 2 rows, others of the file have 3"),
        ({"u": np.zeros(4)}, r"column 't' has 2 rows, others of the file have 4"),
    ],
)
def test_bad_npz(tmp_path, columns, message):
    good = {"t": [0.0, 1.0], "q": [0.0, 1.0], "v": [0.0, 1.0], "u": [0.0, 1.0]}
    good |= columns
    if "w" in good:
        del good["v"]
    np.savez(tmp_path / "a.npz", **good)
    with pytest.raises(LogError, match=message):
        read_one(tmp_path, file="{name}.npz")


@pytest.mark.parametrize(
    ("suffix", "message"), [("parquet", "cannot be read as Parquet"), ("npz", "is not an NPZ file")]
)
def test_files_that_are_not_what_their_suffix_says(tmp_path, suffix, message):
    Path(tmp_path, f"a.{suffix}").write_text(GOOD)
    with pytest.raises(LogError, match=rf"a\.{suffix}: {message}"):
        read_one(tmp_path, file="{name}." + suffix)


def test_what_is_not_there(tmp_path):
    with pytest.raises(LogError, match=r"expected files like '\{name\}\.csv', found an empty folder"):
        read_logs(tmp_path, schema())
    write(tmp_path, slow=GOOD, fast_seen=OBSERVED)
    with pytest.raises(LogError, match=r"no recording 'slwo'; did you mean slow\? \(there are fast_seen, slow\)"):
        read_logs(tmp_path, schema(), ["slwo"])
    parts = {"part": {"recording": "slwo", "stop": 1}}
    with pytest.raises(LogError, match=r"no recording 'slwo', of which 'part' is a part; did you mean slow\?"):
        read_logs(tmp_path, schema(recordings=parts), ["part"])
    with pytest.raises(LogError, match=r"no such folder or file; did you mean slow\.csv\?"):
        read_logs(tmp_path / "slwo.csv", schema())
    with pytest.raises(LogError, match=r"fast_sent\.csv: no such file; recording 'fast' needs it as file 'sent'"):
        read_logs(tmp_path, schema(TWO_FILES))
    with pytest.raises(LogError, match=r"'slow' is a recording and, in the schema, another name for 'fast_seen'"):
        read_logs(tmp_path, schema(recordings={"slow": {"recording": "fast_seen"}}))
    Path(tmp_path, "notes.txt").write_text(GOOD)
    with pytest.raises(LogError, match=r"notes\.txt: expected a file that ends in \.csv, \.parquet, .*\.mcap"):
        read_logs(tmp_path / "notes.txt", schema())
    with pytest.raises(LogError, match=r"notes\.txt: expected a file like '\{name\}_seen\.csv' or"):
        read_logs(tmp_path / "notes.txt", schema(TWO_FILES))


def test_parts_and_clocks_that_do_not_meet(tmp_path):
    write(tmp_path, a=GOOD)
    with pytest.raises(LogError, match=r"'a' has fewer than two.*start = 50 s to stop = inf s.* from 0 s to 2 s"):
        read_one(tmp_path, recordings={"a": {"start": 50}})
    write(tmp_path, b_seen=OBSERVED, b_sent="t,u\n1000,1\n1001,1\n")
    with pytest.raises(
        LogError, match=r"\(command_time\) runs from 1000 s to 1001 s, the observations from 0 s to 3 s"
    ):
        read_one(tmp_path, OWN_CLOCK)


SENT = {"column": "sent.u", "unit": "Nm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": {}}, r"log schema: unknown key 'observation'; did you mean observations"),
        ({"time": {"column": "t", "unti": "s"}}, r"time: unknown key 'unti'; did you mean unit\?"),
        ({"time": "t"}, r"time: expected a mapping with the keys column, unit, scale, offset, .*found 't'"),
        ({"time": {"column": 0, "unit": "s"}}, r"time\.column: should be a valid string, found 0 \(in YAML, .*quotes"),
        (
            {"time": {"column": "t", "unit": "dge"}},
            r"time\.unit: unknown unit 'dge'; did you mean deg.*such as rad,",
        ),
        ({"time": {"column": "t", "unit": "rad"}}, r"time: expected a unit of time .*found 'rad'"),
        ({"action_source": "comanded"}, r"action_source: should be 'commanded' or 'measured', found 'comanded'"),
        ({"actions": {}}, r"actions: "),
        ({"time": {"unit": "s"}}, r"time: give one of column .*, rate .* and period"),
        ({"time": {"column": "t", "rate": 50}}, r"time: give one of column .*, rate .* and period"),
        ({"time": {"rate": 0}}, r"time\.rate: should be greater than 0, found 0"),
        (
            {"observations": {"*": SENT}},
            r"observations\.\*: expected one \* in the channel's name and one in its column",
        ),
        ({"observations": {"q": {"column": "x[*]", "unit": "rad"}}}, r"'x\[\*\]' stands for several columns"),
        (
            {"observations": {"q": {**SENT, "clock": "imu"}}},
            r"observations\.q: no clock 'imu' in clocks; available: none",
        ),
        ({"joints": {"hip": {"sign": 2}}}, r"joints\.hip\.sign: should be 1 or -1, found 2"),
        ({"files": {"a": "{name}.csv"}}, r"either 'file' .* or 'files'"),
        ({"file": "log.csv"}, r"file: 'log\.csv' must hold \{name\}"),
        ({"file": "../{name}.csv"}, r"must be a path inside the folder"),
        ({"file": "{name}.xlsx"}, r"must end in one of \.csv, \.parquet, .*, or be a folder"),
        ({"measured_actions": {"current": {"column": "m", "unit": "A"}}}, r"measured_actions are current; .*: torque"),
        ({"measured_actions": {"torque": {"column": "m", "unit": "A"}}}, r"torque is in A, the action itself in N·m"),
        ({"recordings": {"a": {"stopp": 3}}}, r"recordings\.a: unknown key 'stopp'; did you mean stop"),
        (
            {"recordings": {"a": {"start": 3, "stop": 2}}},
            r"recordings\.a: a stretch must end after it starts.* 3 s to 2 s",
        ),
        ({"recordings": {"a": {"excluded": [[3, 2]]}}}, r"recordings\.a: a stretch must end after it starts"),
        (
            {"recordings": {"a": {"recording": "b"}, "b": {"recording": "c"}}},
            r"recordings\.a: 'b' is itself another name",
        ),
        ({"recordings": {"a": {"actions": {"torqe": SENT}}}}, r"recordings\.a: actions\.torqe is not .* mean torque\?"),
    ],
)
def test_bad_schemas(changes, message):
    with pytest.raises(LogError, match=message):
        schema(**changes)


def test_columns_of_several_files_name_their_file():
    with pytest.raises(LogError, match=r"actions\.torque: column 'u' must name its file first, as in 'seen\.<column>'"):
        schema(TWO_FILES, actions={"torque": {"column": "u", "unit": "Nm"}})
    with pytest.raises(LogError, match=r"time: column 'sen\.t' must name its file first.*did you mean .*seen"):
        schema(TWO_FILES, time={"column": "sen.t", "unit": "s"})


def test_schema_files(tmp_path):
    path = tmp_path / "schema.yaml"
    with pytest.raises(LogError, match=r"schema\.yaml: no such file"):
        LogSchema.load(path)
    path.write_text("file: [")
    with pytest.raises(LogError, match=r"schema\.yaml: cannot be read as YAML"):
        LogSchema.load(path)
    path.write_text("- file")
    with pytest.raises(LogError, match=r"schema\.yaml: expected a mapping with the keys file"):
        LogSchema.load(path)
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(LogError, match=r"cannot be read as YAML"):
        LogSchema.load(path)
    path.write_text("file: a.csv\n")
    with pytest.raises(LogError, match=r"schema\.yaml: time: is missing"):
        LogSchema.load(str(path))
    path.write_text(yaml.safe_dump(SINGLE), encoding="utf-8")
    assert LogSchema.load(path) == schema()


def test_measured_actions_are_not_stamped_by_the_clock_of_the_commands():
    actions = {"torque": {"column": "seen.q", "unit": "N·m"}}
    with pytest.raises(LogError, match=r"recordings\.a: actions\.torque is in file 'seen'.*command_time is in file"):
        schema(OWN_CLOCK, recordings={"a": {"actions": actions}})
