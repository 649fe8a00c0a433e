"""Writing: our Parquet gives an episode back to the last bit, a LeRobot data set gives its frames back."""

import dataclasses
import hashlib
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim2real.cli import main
from sim2real.episodes import Channels, Episode, resample
from sim2real.errors import LogError
from sim2real.logs import read_episode, read_logs, write_lerobot, write_parquet
from sim2real.logs.write import _checksum

numbers = st.floats(-1e300, 1e300)


def episode(rng, steps=20, name="swing", everything=True, period=0.01):
    observed_at = 1.7e9 + np.cumsum(rng.uniform(0.5, 1.5, steps + 1)) * period
    channels = Channels((("q", "rad"), ("dq", "rad/s")), (("u", "N·m"),), (("supply", "V"),) if everything else ())
    return Episode(
        name=name,
        observed_at=observed_at,
        observations=rng.normal(size=(steps + 1, 2)),
        commanded_at=observed_at[:-1] + 0.2 * period,
        actions=rng.normal(size=(steps, 1)),
        action_source="commanded",
        channels=channels,
        measured_actions=rng.normal(size=(steps, 1)) if everything else None,
        exogenous=rng.normal(size=(steps + 1, 1)) if everything else None,
        rewards=rng.normal(size=steps) if everything else None,
        terminated=everything,
        excluded=((1.0, 2.5),) if everything else (),
        provenance={"note": "a test"},
    )


def same(a, b):
    for field in dataclasses.fields(Episode):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y, field.name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.booleans(), st.text(min_size=1, max_size=12), numbers)
@example(0, 1, False, "..", 0.0)
def test_what_is_written_is_read_to_the_last_bit(seed, steps, everything, name, value):
    written = episode(np.random.default_rng(seed), steps, name, everything)
    written.actions[0, 0] = value
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_parquet([written], folder)
        assert path.parent == Path(folder)
        same(written, read_episode(path))
        (again,) = read_logs(folder)
        same(written, again)


def test_files_are_not_overwritten_unless_asked(tmp_path):
    rng = np.random.default_rng(0)
    a, b = episode(rng), episode(rng)
    write_parquet([a], tmp_path)
    with pytest.raises(LogError, match=r"swing\.parquet: is there already; write elsewhere, or with overwrite=True"):
        write_parquet([b], tmp_path)
    same(a, read_episode(tmp_path / "swing.parquet"))
    write_parquet([b], tmp_path, overwrite=True)
    same(b, read_episode(tmp_path / "swing.parquet"))
    with pytest.raises(LogError, match=r"two episodes would be written into 'swing\.parquet'"):
        write_parquet([a, b], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (path,) = write_parquet([dataclasses.replace(a, name="../../run/demo 1")], tmp_path)
    assert path.parent == tmp_path


def test_what_is_not_ours_is_refused(tmp_path):
    pyarrow.parquet.write_table(pa.table({"t": [0.0]}), tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet: was not written by this toolkit.*draft one: sim2real logs schema"):
        read_logs(tmp_path)
    with pytest.raises(LogError, match="needs a schema that says which column is what"):
        read_logs(Path(__file__).parent)
    with pytest.raises(LogError, match="no such file"):
        read_episode(tmp_path / "b.parquet")
    (path,) = write_parquet([episode(np.random.default_rng(0))], tmp_path)
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"sim2real"])

    def rewrite(changed, **metadata):
        text = json.dumps({**about, **metadata}).encode()
        new = {b"sim2real": text, b"sim2real_sha256": _checksum(text, changed.schema)}
        pyarrow.parquet.write_table(changed.replace_schema_metadata(new), path)

    for changed, metadata, message in (
        (table, {"version": 99}, "is of version 99, this toolkit reads 1; update the toolkit"),
        (table.drop_columns("actions.u"), {}, "the metadata speaks of column 'actions.u', which is not there"),
        (table.drop_columns("rewards"), {}, "speaks of column 'rewards'"),
        (table.slice(0, 5), {}, "column 'command_time' has empty rows where it must not|has empty rows"),
        (table, {"channels": 3}, "cannot be read as an episode"),
    ):
        rewrite(changed, **metadata)
        with pytest.raises(LogError, match=message):
            read_episode(path)


def test_bytes_that_change_are_noticed(tmp_path):
    (path,) = write_parquet([episode(np.random.default_rng(0), steps=300)], tmp_path)
    whole, expected = path.read_bytes(), read_episode(path)
    rng = np.random.default_rng(1)
    for _ in range(200):
        data = bytearray(whole)
        k = int(rng.integers(len(data)))
        data[k] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            same(expected, read_episode(path))
        except LogError:
            continue


def test_the_sources_are_hashed(tmp_path):
    (tmp_path / "a.csv").write_text("t,q,u\n0,0,0\n1,1,1\n2,0,0\n")
    schema = {
        "time": {"column": "t", "unit": "s"},
        "observations": {"q": {"column": "q", "unit": "rad"}},
        "actions": {"u": {"column": "u", "unit": "N·m"}},
        "action_source": "commanded",
    }
    episodes = read_logs(tmp_path, schema)
    (path,) = write_parquet(episodes, tmp_path / "one")
    (file,) = read_episode(path).provenance["files"]
    assert file["sha256"] == hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    assert read_episode(path).provenance["schema"]["time"] == {"column": "t", "unit": "s"}
    (tmp_path / "a.csv").write_text("something else")
    (path,) = write_parquet(episodes, tmp_path / "two")
    (file,) = read_episode(path).provenance["files"]
    assert file["note"] == "changed after it was read"
    assert "sha256" not in file


@pytest.mark.filterwarnings("ignore:.*LeRobot stamps")
def test_lerobot(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [episode(rng, n, f"e{n}", period=0.02) for n in (40, 25)]
    folder = write_lerobot(episodes, tmp_path / "set", fps=30, task="swing", robot_type="arm")
    read = read_logs(
        folder,
        {
            "time": {"column": "timestamp", "unit": "s"},
            "observations": {"*": {"column": "observation.state[*]", "unit": "rad"}},
            "actions": {"*": {"column": "action[*]", "unit": "N·m"}},
            "measured_actions": {"*": {"column": "action.measured[*]", "unit": "N·m"}},
            "exogenous": {"*": {"column": "observation.exogenous[*]", "unit": "V"}},
            "action_source": "commanded",
        },
    )
    for found, original in zip(read, episodes, strict=True):
        expected = resample(original, 1 / 30)
        np.testing.assert_array_equal(found.observations, expected.observations.astype(np.float32))
        np.testing.assert_array_equal(found.actions, expected.actions.astype(np.float32))
        np.testing.assert_array_equal(found.measured_actions, expected.measured_actions.astype(np.float32))
        np.testing.assert_array_equal(found.exogenous, expected.exogenous.astype(np.float32))
        assert [n for n, _ in found.channels.observations] == ["q", "dq"]
    info = json.loads((folder / "meta/info.json").read_text())
    frames = pd.read_parquet(folder / "data/chunk-000/file-000.parquet")
    assert (info["total_frames"], info["total_episodes"], info["fps"]) == (len(frames), 2, 30)
    np.testing.assert_array_equal(frames["index"], np.arange(len(frames)))
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.loc["swing", "task_index"] == 0
    stats = json.loads((folder / "meta/stats.json").read_text())
    state = np.stack(frames["observation.state"])
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), rtol=1e-5)
    assert stats["observation.state"]["count"] == [len(frames)]
    about = json.loads((folder / "meta/sim2real.json").read_text())
    assert about["units"]["observation.state"] == {"q": "rad", "dq": "rad/s"}
    assert about["episodes"][0]["provenance"]["resampling"]["period"] == pytest.approx(1 / 30)


def test_lerobot_says_what_is_lost_and_refuses_what_does_not_fit(tmp_path):
    rng = np.random.default_rng(0)
    a = episode(rng)
    with pytest.raises(LogError, match=r"run at .* Hz, which is no common whole number .* give fps"):
        write_lerobot([a, episode(rng, period=0.013)], tmp_path / "set")
    with pytest.raises(LogError, match="has other channels than swing"):
        write_lerobot([a, episode(rng, name="b", everything=False)], tmp_path / "set", fps=30)
    with pytest.raises(LogError, match="takes one episode at least"):
        write_lerobot([], tmp_path / "set")
    with pytest.warns(UserWarning, match="the measured clocks are not kept, and no latency can be learnt"):
        write_lerobot([a], tmp_path / "set", fps=100)
    with pytest.raises(LogError, match="is there already and not empty"):
        write_lerobot([a], tmp_path / "set", fps=100)


@pytest.mark.filterwarnings("ignore:.*LeRobot stamps")
def test_from_the_command_line(tmp_path, capsys):
    write_parquet([episode(np.random.default_rng(0))], tmp_path / "ours")
    assert (
        main(
            [
                "logs",
                "convert",
                str(tmp_path / "ours"),
                "--to",
                "lerobot",
                "--fps",
                "50",
                "--output",
                str(tmp_path / "set"),
            ]
        )
        == 0
    )
    assert re.search(r"wrote 1 episodes to .*set", capsys.readouterr().out)
    assert main(["logs", "convert", str(tmp_path / "ours"), "--output", str(tmp_path / "copy")]) == 0
    same(read_episode(tmp_path / "ours/swing.parquet"), read_episode(tmp_path / "copy/swing.parquet"))
