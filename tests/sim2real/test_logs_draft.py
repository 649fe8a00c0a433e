"""Drafted schemas: what is guessed from names and values reads the log that it was drafted from."""

import json

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from sim2real.cli import main
from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs
from sim2real.logs.draft import draft_schema
from sim2real.logs.json_schema import json_schema

T = np.arange(50) * 0.01


def draft(path):
    return yaml.safe_load(draft_schema(path))


def test_names_say_what_columns_are(tmp_path):
    names = ["timestamp_ms", "hip_angle_deg", "hipVelocity", "torque_cmd", "torque_measured", "battery", "frame_index"]
    rows = [",".join(names), *(f"{10 * k},{k},{k},{k},{k},24,{k}" for k in range(50))]
    (tmp_path / "walk.csv").write_text("\n".join(rows))
    found = draft(tmp_path)
    assert found == {
        "file": "{name}.csv",
        "time": {"column": "timestamp_ms", "unit": "ms"},
        "observations": {
            "hip_angle_deg": {"column": "hip_angle_deg", "unit": "deg"},
            "hipVelocity": {"column": "hipVelocity", "unit": "rad/s"},
        },
        "actions": {"torque_cmd": {"column": "torque_cmd", "unit": "N·m"}},
        "action_source": "commanded",
        "measured_actions": {"torque_cmd": {"column": "torque_measured", "unit": "N·m"}},
        "exogenous": {"battery": {"column": "battery", "unit": "V"}},
    }
    (episode,) = read_logs(tmp_path, found)
    np.testing.assert_allclose(episode.observed_at, T)


@pytest.mark.parametrize(("scale", "unit"), [(1.0, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")])
def test_the_unit_of_a_clock_is_guessed_from_its_steps(tmp_path, scale, unit):
    table = pa.table({"t": scale * (T + 100.0), "q": np.sin(T), "u": np.cos(T)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert draft(tmp_path / "a.parquet")["time"] == {"column": "t", "unit": unit}


def test_vectors_stand_in_one_line_and_wide_actions_are_targets_of_joints(tmp_path):
    np.savez(tmp_path / "a.npz", time=T, state=np.zeros((50, 7)), action=np.zeros((50, 7)), success=np.zeros(50))
    found = draft(tmp_path / "a.npz")
    assert found["observations"] == {"state_*": {"column": "state[*]", "unit": "rad"}}
    assert found["actions"] == {"action_*": {"column": "action[*]", "unit": "rad"}}


def test_a_log_without_names_and_without_a_clock_is_drafted_to_be_corrected(tmp_path):
    np.savetxt(tmp_path / "a.csv", np.random.default_rng(0).normal(size=(20, 3)), delimiter=";")
    text = draft_schema(tmp_path / "a.csv")
    found = yaml.safe_load(text)
    assert found["csv"] == {"header": False, "delimiter": ";"}
    assert found["time"] == {"rate": 50}
    assert "there is no clock" in text
    assert "which columns are?" in text
    assert len(read_logs(tmp_path / "a.csv", found)[0]) == 19


def test_what_holds_no_numbers_has_no_schema(tmp_path):
    (tmp_path / "a.json").write_text('{"mass": 1}')
    with pytest.raises(LogError, match=r"a\.json: holds no columns of numbers"):
        draft_schema(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(LogError, match="holds no log; expected files that end in"):
        draft_schema(tmp_path)


def test_the_json_schema_takes_what_we_take_and_no_more(tmp_path):
    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    good = {
        "joints": ["hip", "knee"],
        "time": {"rate": 50},
        "observations": {"*": {"column": "q[*]", "unit": "rad", "scale": -1}},
        "actions": {"*": {"column": "u[*]", "unit": "N·m"}},
        "action_source": "commanded",
        "recordings": {"a": {"start": 1.0, "command_time": None}},
    }
    for data in (good, {**good, "joints": {"hip": {"at": 3, "sign": -1}}}):
        validator.validate(data)
        LogSchema.load(data)
    for wrong in ({"obervations": {}}, {"action_source": "asked"}, {"time": {"rate": -1}}, {"observations": {}}):
        assert not validator.is_valid({**good, **wrong})
        with pytest.raises(LogError):
            LogSchema.load({**good, **wrong})
    described = [p for p in schema["$defs"]["Clock"]["properties"].values() if p.get("description")]
    assert len(described) == len(schema["$defs"]["Clock"]["properties"])


def test_from_the_command_line(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("t,q,u\n" + "\n".join(f"{t:.2f},{t * t:.4f},0" for t in T))
    assert main(["logs", "schema", str(tmp_path / "a.csv"), "--output", str(tmp_path / "s.yaml")]) == 0
    assert "then: sim2real logs check" in capsys.readouterr().out
    assert LogSchema.load(tmp_path / "s.yaml").time.column == "t"
    assert main(["logs", "schema", str(tmp_path / "a.csv"), "--output", str(tmp_path / "s.yaml")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["logs", "schema", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "LogSchema"
    assert main(["logs", "schema"]) == 1
    assert "name a log to look at" in capsys.readouterr().err
