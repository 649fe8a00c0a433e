"""Every format: what its own library writes is what is read, with clocks, units and the borders of episodes."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import mujoco
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from mujoco import sysid

from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs
from sim2real.logs.sources import open_source
from sim2real.logs.sources.json_file import _Stream

DATA = Path(__file__).parents[3] / "shared" / "data"
SECOND, RADIAN, TORQUE = {"unit": "s"}, {"unit": "rad"}, {"unit": "N·m"}


def schema(**changes):
    return {
        "time": {"column": "t", "unit": "s"},
        "observations": {"q": {"column": "q", "unit": "deg"}},
        "actions": {"u": {"column": "u", "unit": "mN·m"}},
        "action_source": "commanded",
        **changes,
    }


def signals(n=40, width=3, seed=0):
    """A clock (n,), positions (n, width) and torques (n, width)."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.uniform(0.001, 0.02, n)), rng.normal(size=(n, width)), rng.normal(size=(n, width))


def check(episode, t, q, u):
    np.testing.assert_array_equal(episode.observed_at, t)
    np.testing.assert_allclose(episode.observations, np.deg2rad(q), rtol=1e-15)
    np.testing.assert_array_equal(episode.commanded_at, t[:-1])
    np.testing.assert_allclose(episode.actions, 1e-3 * u[: len(t) - 1], rtol=1e-15)


# records


def records(t, q, u):
    return [
        {"t": a, "arm": {"q": b.tolist()}, "u": c.tolist(), "on": True, "note": "x"}
        for a, b, c in zip(t.tolist(), q, u, strict=True)
    ]


NESTED = schema(
    observations={"q*": {"column": "arm.q[*]", "unit": "deg"}}, actions={"u*": {"column": "u[*]", "unit": "mN·m"}}
)


def test_json_records(tmp_path):
    t, q, u = signals()
    (tmp_path / "a.json").write_text(json.dumps(records(t, q, u)))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records(t, q, u))) + "\n\n")
    a, b = read_logs(tmp_path, NESTED)
    assert (a.name, b.name) == ("a", "b")
    check(a, t, q, u)
    check(b, t, q, u)
    assert a.channels.observations == (("q0", "rad"), ("q1", "rad"), ("q2", "rad"))


def test_json_records_under_a_key(tmp_path):
    t, q, u = signals()
    (tmp_path / "a.json").write_text(json.dumps({"mass": 0.5, "e.g.": records(t, q, u), "motor": "xl330"}, indent=1))
    under = json.loads(json.dumps(NESTED).replace('"column": "', '"column": "e.g..'))
    check(read_logs(tmp_path, under)[0], t, q, u)


def test_json_of_arrays_whose_actions_are_one_short(tmp_path):
    t, q, u = signals()
    (tmp_path / "a.json").write_text(
        json.dumps({"u": u[:-1].tolist(), "t": t.tolist(), "arm": {"q": 1}, "q": q.tolist()})
    )
    check(
        read_logs(
            tmp_path,
            schema(
                observations={"*": {"column": "q[*]", **RADIAN, "unit": "deg"}},
                actions={"*": {"column": "u[*]", "unit": "mN·m"}},
            ),
        )[0],
        t,
        q,
        u,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    ),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
)
def test_json_is_decoded_the_same_whatever_the_blocks(value, block, indent):
    """Records and arrays come out as `json.loads` has them, even where a block of the file ends within one."""
    document = {"first": value, "records": [{"a": value}, {"a": 12345.678}], "numbers": [1, 22, 333], "last": 1}
    text = json.dumps(document, indent=indent)
    expected = []
    for key, inner in document.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            if not all(isinstance(r, dict) for r in inner):
                with pytest.raises(LogError, match="expected an object of fields"):
                    list(_Stream(io.StringIO(text), Path("a.json"), block).parts())
                return
            expected += [(key, r) for r in inner]
        elif isinstance(inner, list):
            expected.append((key, inner))
    assert list(_Stream(io.StringIO(text), Path("a.json"), block).parts()) == expected


def test_a_field_that_some_records_lack_is_empty_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": 0, "q": 1, "u": 1}\n{"t": 1, "q": 2, "u": null}\n{"t": 2, "q": 3}\n')
    with pytest.raises(LogError, match=r"'u' \(actions.u\) must hold finite numbers, found nan in row 1"):
        read_logs(tmp_path, schema())
    with open_source(tmp_path / "a.jsonl") as source:
        np.testing.assert_array_equal(source.read({"u": "u"})["u"], [1, np.nan, np.nan])


# columns


def test_lists_and_structs_of_parquet_and_arrow(tmp_path):
    t, q, u = signals()
    lists = pa.FixedSizeListArray.from_arrays(q.ravel(), 3)
    table = pa.table(
        {"t": t, "arm": pa.StructArray.from_arrays([lists], ["q"]), "u": pa.array(u.tolist(), pa.list_(pa.float64()))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    pyarrow.feather.write_feather(table, tmp_path / "b.feather", chunksize=7)
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    for episode in read_logs(tmp_path, NESTED):
        check(episode, t, q, u)


def test_a_unit_that_the_file_states_is_held_against_the_schema(tmp_path):
    q = pa.field("q", pa.float64(), metadata={"unit": "rad"})
    fields = [pa.field("t", pa.timestamp("us")), q, pa.field("u", pa.float64())]
    pyarrow.parquet.write_table(
        pa.table([np.array([10, 30], "M8[us]"), [0.5, 1.0], [1.0, 2.0]], schema=pa.schema(fields)),
        tmp_path / "a.parquet",
    )
    radians = {"q": {"column": "q", **RADIAN}}
    episode = read_logs(tmp_path, schema(time={"column": "t", "unit": "us"}, observations=radians))[0]
    np.testing.assert_allclose(episode.observed_at, [10e-6, 30e-6])
    with pytest.raises(LogError, match=r"'t' \(time\) is in 'us' by the file itself, the schema says 's'"):
        read_logs(tmp_path, schema(observations=radians))
    with pytest.raises(LogError, match=r"'q' \(observations.q\) is in 'rad' by the file itself, the schema says 'deg'"):
        read_logs(tmp_path, schema(time={"column": "t", "unit": "us"}))


@pytest.mark.parametrize("order", ["C", "F"])
def test_columns_of_large_arrays_are_read_in_blocks(tmp_path, order):
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=(300_000, 40)), order=order)  # 96 MB
    np.savez(tmp_path / "a.npz", t=np.arange(300_000.0), x=x, u=np.zeros(300_000))
    tracemalloc.start()
    episode = read_logs(tmp_path, schema(observations={"q": {"column": "x[17]", **RADIAN}}))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(episode.observations[:, 0], x[:, 17])
    assert peak < 60e6


def test_csv_without_names_and_with_another_delimiter(tmp_path):
    t, q, u = signals()
    np.savetxt(tmp_path / "a.csv", np.column_stack([t, q, u]), delimiter=";", fmt="%.17g")
    episode = read_logs(
        tmp_path,
        schema(
            csv={"header": False, "delimiter": ";"},
            joints={"hip": {"at": 1}, "knee": {"at": 2, "sign": -1}},
            time={"column": "[0]", **SECOND},
            observations={"*": {"column": "[*]", "unit": "deg", "offset": 0.5}},
            actions={"u": {"column": "[4]", "unit": "mN·m"}},
        ),
    )[0]
    np.testing.assert_allclose(episode.observations, np.deg2rad(q[:, :2]) * [1, -1] + [0.5, -0.5])
    assert [name for name, _ in episode.channels.observations] == ["hip", "knee"]
    np.savetxt(tmp_path / "a.csv", np.column_stack([t, q, u]), delimiter=",")
    with pytest.raises(LogError, match=r"say `csv: \{header: false\}`"):
        read_logs(tmp_path, schema())


def test_twos_complement(tmp_path):
    (tmp_path / "a.csv").write_text("t,q,u\n0,65535,0\n1,32768,0\n2,32767,0\n")
    column = {"column": "q", "unit": "1", "signed_bits": 16, "scale": 2}
    episode = read_logs(tmp_path, schema(observations={"duty": column}))[0]
    np.testing.assert_array_equal(episode.observations[:, 0], [-2, -65536, 65534])


# data sets of many recordings


def test_robomimic(tmp_path):
    demos = [signals(n, seed=n) for n in (30, 20, 25)]
    with h5py.File(tmp_path / "low_dim.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 20}})
        for k, (_, q, u) in enumerate(demos):
            demo = data.create_group(f"demo_{(0, 10, 2)[k]}")
            demo["obs/robot0_joint_pos"], demo["actions"], demo["dones"] = q, u, np.zeros(len(q))
            demo.create_dataset("rewards", data=np.arange(len(q)), chunks=(7,), compression="gzip")
    episodes = read_logs(
        tmp_path / "low_dim.hdf5",
        schema(
            time={"rate": 20},
            observations={"*": {"column": "obs/robot0_joint_pos[*]", "unit": "deg"}},
            actions={"*": {"column": "actions[*]", "unit": "mN·m"}},
            reward={"column": "rewards", "unit": "1"},
        ),
    )
    assert [e.name for e in episodes] == ["demo_0", "demo_10", "demo_2"]
    for episode, (_, q, u) in zip(episodes, demos, strict=True):
        check(episode, np.arange(len(q)) / 20, q, u)
        np.testing.assert_array_equal(episode.rewards, np.arange(len(q) - 1))
    assert [
        e.name
        for e in read_logs(
            tmp_path,
            LogSchema.load(
                {
                    **schema(),
                    "file": "{name}.hdf5",
                    "time": {"rate": 20},
                    "observations": {"q": {"column": "obs/robot0_joint_pos[0]", **RADIAN}},
                    "actions": {"u": {"column": "actions[0]", **TORQUE}},
                }
            ),
            names=["low_dim/demo_2"],
        )
    ] == ["low_dim/demo_2"]


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_minari(tmp_path, monkeypatch, data_format):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env, buffers = gym.make("CartPole-v1"), []
    env.action_space.seed(0)
    for seed in range(2):
        buffer = EpisodeBuffer(id=seed, observations=[env.reset(seed=seed)[0]], actions=[])
        while not (buffer.terminations and buffer.terminations[-1]):
            buffer.actions.append(env.action_space.sample())
            observation, reward, terminated, truncated, _ = env.step(buffer.actions[-1])
            buffer.observations.append(observation)
            for some, value in (
                (buffer.rewards, reward),
                (buffer.terminations, terminated),
                (buffer.truncations, truncated),
            ):
                some.append(value)
        buffers.append(buffer)
    minari.create_dataset_from_buffers("cart/test-v0", buffers, env=env, data_format=data_format)
    data_set = minari.load_dataset("cart/test-v0")
    episodes = read_logs(
        tmp_path / "cart" / "test-v0",
        schema(
            time={"period": 0.02},
            observations={"x*": {"column": "observations[*]", "unit": "1"}},
            actions={"push": {"column": "actions", "unit": "1"}},
            reward={"column": "rewards", "unit": "1"},
        ),
    )
    assert [e.name for e in episodes] == ["episode_0", "episode_1"]
    for episode, expected in zip(episodes, data_set.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(episode.observations, expected.observations)
        np.testing.assert_array_equal(episode.actions[:, 0], expected.actions)
        np.testing.assert_array_equal(episode.rewards, expected.rewards)
        np.testing.assert_allclose(episode.observed_at, 0.02 * np.arange(len(expected.observations)))
        assert episode.terminated


LEROBOT = schema(
    time={"column": "timestamp", "unit": "s"},
    observations={"*": {"column": "observation.state[*]", "unit": "deg"}},
    actions={"*": {"column": "action[*]", "unit": "mN·m"}},
)


def lerobot(folder, version, lengths=(12, 9, 15)):
    """A data set as LeRobot lays it out, of that many frames an episode."""
    joints = ["hip", "knee", "ankle"]
    vector = {"dtype": "float32", "shape": [3], "names": joints if version == "v2.1" else {"motors": joints}}
    path = (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        if version == "v2.1"
        else "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    )
    info = {"codebase_version": version, "fps": 30, "chunks_size": 2, "data_path": path}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(
        json.dumps({**info, "features": {"observation.state": vector, "action": vector}})
    )
    tables, episodes = [], []
    for index, n in enumerate(lengths):
        _, q, u = signals(n, seed=index)
        q, u = q.astype(np.float32), u.astype(np.float32)
        vectors = [pa.FixedSizeListArray.from_arrays(x.ravel(), 3) for x in (q, u)]
        tables.append(
            pa.table(
                {
                    "observation.state": vectors[0],
                    "action": vectors[1],
                    "timestamp": (np.arange(n) / 30).astype(np.float32),
                    "episode_index": np.full(n, index),
                }
            )
        )
        episodes.append((q, u))
    if version == "v2.1":
        (folder / "meta/episodes.jsonl").write_text("".join(json.dumps({"episode_index": i}) + "\n" for i in range(3)))
        for i, table in enumerate(tables):
            file = folder / path.format(episode_chunk=i // 2, episode_index=i)
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(table, file)
    else:
        (folder / "data/chunk-000").mkdir(parents=True)
        pyarrow.parquet.write_table(pa.concat_tables(tables[:2]), folder / "data/chunk-000/file-000.parquet")
        pyarrow.parquet.write_table(tables[2], folder / "data/chunk-000/file-001.parquet")
        ends = np.cumsum([0, *lengths])
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        pyarrow.parquet.write_table(
            pa.table(
                {
                    "episode_index": [0, 1, 2],
                    "data/chunk_index": [0, 0, 0],
                    "data/file_index": [0, 0, 1],
                    "dataset_from_index": ends[:-1],
                    "dataset_to_index": ends[1:],
                }
            ),
            folder / "meta/episodes/chunk-000/file-000.parquet",
        )
    return episodes


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot(tmp_path, version):
    expected = lerobot(tmp_path / "set", version)
    episodes = read_logs(tmp_path / "set", LEROBOT)
    assert [e.name for e in episodes] == ["episode_000000", "episode_000001", "episode_000002"]
    for episode, (q, u) in zip(episodes, expected, strict=True):
        check(episode, (np.arange(len(q)) / 30).astype(np.float32).astype(float), q.astype(float), u.astype(float))
        assert [name for name, _ in episode.channels.actions] == ["hip", "knee", "ankle"]
        assert "frame_index / fps" in episode.provenance["synthetic_clock"]
    # one joint by its number, in a folder of data sets
    one = {**LEROBOT, "observations": {"knee": {"column": "observation.state[1]", "unit": "deg"}}}
    second = read_logs(tmp_path, one, names=["set/episode_000001"])[0]
    np.testing.assert_array_equal(second.observations[:, 0], episodes[1].observations[:, 1])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_data_sets_that_are_not_whole(tmp_path, version):
    lerobot(tmp_path, version)
    info = tmp_path / "meta/info.json"
    text = info.read_text()
    info.write_text(text.replace("data/chunk", "../data/chunk"))
    with pytest.raises(LogError, match="leads out of the data set"):
        read_logs(tmp_path, LEROBOT)
    info.write_text(text.replace(version, "v1.6"))
    with pytest.raises(LogError, match=r"version v1\.6 of the LeRobot format, expected v2\.0, v2\.1 or v3\.0"):
        read_logs(tmp_path, LEROBOT)
    info.write_text(text)
    last = sorted((tmp_path / "data").rglob("*.parquet"))[-1]
    last.unlink()
    with pytest.raises(LogError, match=f"{last.name}: no such file, but episode 'episode_000002' is in it"):
        read_logs(tmp_path, LEROBOT)
    with pytest.warns(UserWarning, match="1 recordings were skipped"):
        read = read_logs(tmp_path, LEROBOT, on_error="skip")
    assert [s.name for s in read.skipped] == ["episode_000002"]
    assert len(read) == 2


# MuJoCo's system identification


@pytest.mark.filterwarnings("ignore:.*held onto the observations")
def test_files_of_mujocos_system_identification(tmp_path):
    xml = """<mujoco><worldbody><body><joint name="hip" axis="0 1 0"/><geom size=".1" pos="0 0 -.5"/></body></worldbody>
    <actuator><motor name="hip" joint="hip"/></actuator><sensor><jointpos joint="hip" name="angle"/>
    <jointvel joint="hip" name="speed"/></sensor></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    t = 0.002 * np.arange(200)
    sensors = np.stack([np.sin(5 * t), 5 * np.cos(5 * t)], 1)
    control_t = 0.006 * np.arange(60) + 0.001
    control = np.cos(3 * control_t)[:, None]
    trajectory = sysid.SystemTrajectory(
        model=model,
        control=sysid.TimeSeries.from_control_names(control_t, control, model),
        sensordata=sysid.TimeSeries.from_names(t, sensors, model),
        initial_state=np.zeros(3),
        state=None,
    )
    trajectory.save_to_disk(tmp_path / "swing.npz")
    (episode,) = read_logs(
        tmp_path,
        {
            "time": {"column": "sensordata_times", **SECOND},
            "observations": {
                "angle": {"column": "sensordata_data[angle]", **RADIAN},
                "speed": {"column": "sensordata_data[speed]", "unit": "rad/s"},
            },
            "actions": {"hip": {"column": "control_data[hip_ctrl]", **TORQUE}},
            "action_source": "commanded",
        },
    )
    np.testing.assert_array_equal(episode.observed_at, t)
    np.testing.assert_array_equal(episode.observations, sensors)
    k = np.searchsorted(control_t, t[:-1] + 1e-9, side="right") - 1  # the last command by then, none at first
    np.testing.assert_array_equal(episode.actions[:, 0], np.where(k < 0, 0, control[np.maximum(k, 0), 0]))


# folders, globs, compressed files, archives

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_files(tmp_path, suffix):
    rows = "\n".join(f"{k},{k * k},{-k}" for k in range(5000))
    packed = PACK[suffix](f"t,q,u\n{rows}\n".encode())
    (tmp_path / f"a.csv{suffix}").write_bytes(packed)
    for what, pattern in (
        (tmp_path, {}),
        (tmp_path / f"a.csv{suffix}", {}),
        (tmp_path, {"file": "{name}.csv" + suffix}),
    ):
        (episode,) = read_logs(what, schema(**pattern))
        assert (episode.name, len(episode)) == ("a", 4999)
    (tmp_path / f"a.csv{suffix}").write_bytes(packed[:-20])
    with pytest.raises(LogError, match=rf"a\.csv\{suffix}: cannot be unpacked"):
        read_logs(tmp_path, schema())
    (tmp_path / f"a.csv{suffix}").write_bytes(b"t,q,u\n0,0,0\n")
    with pytest.raises(LogError, match=rf"a\.csv\{suffix}: cannot be unpacked"):
        read_logs(tmp_path, schema())


def test_globs_and_the_two_of_a_name(tmp_path):
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        (tmp_path / day / f"{day}.csv").write_text("t,q,u\n0,0,0\n1,0,0\n")
    assert [e.name for e in read_logs(tmp_path / "*day" / "*.csv", schema())] == ["monday", "tuesday"]
    assert [e.name for e in read_logs(f"{tmp_path}/**/m*.csv", schema())] == ["monday"]
    with pytest.raises(LogError, match="no file or folder fits this pattern"):
        read_logs(tmp_path / "*.json", schema())
    (tmp_path / "tuesday" / "monday.csv").write_text("t,q,u\n0,0,0\n1,0,0\n")
    with pytest.raises(LogError, match="two of the logs are called 'monday'"):
        read_logs(tmp_path / "*day" / "*.csv", schema())
    (tmp_path / "tuesday" / "monday.jsonl").write_text('{"t": 0}')
    with pytest.raises(LogError, match=r"two logs are called 'monday'; say which files to read"):
        read_logs(tmp_path / "tuesday", schema())


def test_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as packed:
        packed.writestr("logs/a.csv", "t,q,u\n0,0,0\n1,0,0\n")
        packed.writestr("logs/b.csv", "t,q,u\n0,0,0\n1,0,0\n")
    with tarfile.open(tmp_path / "logs.tar.gz", "w:gz") as packed:
        (tmp_path / "a.csv").write_text("t,q,u\n0,0,0\n1,0,0\n")
        packed.add(tmp_path / "a.csv", "a.csv")
    assert [e.name for e in read_logs(tmp_path / "logs.zip", schema())] == ["a", "b"]
    assert [e.name for e in read_logs(tmp_path / "logs.tar.gz", schema())] == ["a"]


@pytest.mark.parametrize("name", ["../a.csv", "/tmp/a.csv", "x/../../a.csv", "..\\a.csv", "C:\\a.csv"])
def test_archives_that_reach_out_of_themselves(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as packed:
        packed.writestr(name, "t,q,u\n0,0,0\n1,0,0\n")
    with tarfile.open(tmp_path / "logs.tar", "w") as packed:
        info = tarfile.TarInfo(name)
        packed.addfile(info, io.BytesIO())
    for archive in ("logs.zip", "logs.tar"):
        with pytest.raises(LogError, match="leads out of the archive; do not trust it"):
            read_logs(tmp_path / archive, schema())


def test_links_in_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "logs.tar", "w") as packed:
        link = tarfile.TarInfo("a.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    with pytest.raises(LogError, match="is a link or a device"):
        read_logs(tmp_path / "logs.tar", schema())


def test_what_cannot_be_read_is_skipped_and_listed(tmp_path):
    for name, text in {
        "a": "t,q,u\n0,0,0\n1,0,0\n",
        "b": "t,q,u\n0,0\n",
        "c": "",
        "d": "t,q,u\n0,x,0\n1,0,0\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "e.npz").write_bytes(b"\x80\x04pickle")
    with pytest.warns(UserWarning, match="4 recordings were skipped; the first: b: "):
        logs = read_logs(tmp_path, schema(), on_error="skip")
    assert [e.name for e in logs] == ["a"]
    assert [(s.name, s.reason.split(": ")[1].split(",")[0]) for s in logs.skipped] == [
        ("b", "CSV parse error"),
        ("c", "the file is empty; record it again"),
        ("d", "column 'q' (observations.q) must hold numbers"),
        ("e", "is not an NPZ file; write it with numpy.savez"),
    ]
    (tmp_path / "a.csv").unlink()
    with pytest.raises(LogError, match="none of 4 recordings can be read; the first: b: "):
        read_logs(tmp_path, schema(), on_error="skip")


# the recorded robots

ROBOTS = {
    "lerobot_g1": (
        """
time: {column: timestamp, unit: s}
observations: {"*": {column: "observation.state[*]", unit: rad}}
actions: {"*": {column: "action[*]", unit: rad}}
action_source: commanded
""",
        100,
    ),
    "xl330": (
        """
time: {column: entries.timestamp, unit: s}
observations:
  angle: {column: entries.position, unit: rad}
  speed: {column: entries.speed, unit: rad/s}
actions:
  goal: {column: entries.goal_position, unit: rad}
action_source: commanded
exogenous:
  supply: {column: entries.input_volts, unit: V}
  duty: {column: entries.load, unit: "1", signed_bits: 16}
""",
        12,
    ),
    "double_pendulum": (
        """
joints: {shoulder: {at: 1}, elbow: {at: 2}}
time: {column: time, unit: s}
observations:
  "*_position": {column: "pos_meas*", unit: rad}
  "*_velocity": {column: "vel_meas*", unit: rad/s}
actions: {"*": {column: "tau_con*", unit: N·m}}
action_source: commanded
measured_actions: {"*": {column: "tau_meas*", unit: N·m}}
""",
        9,
    ),
    "schunk": (
        """
files: {time: "{name}/time.csv", motion: "{name}/trajectory.csv", torque: "{name}/input.csv"}
csv: {header: false}
time: {column: "time[0]", unit: s}
observations: {"x*": {column: "motion[*]", unit: "1"}}
actions: {"torque*": {column: "torque[*]", unit: N·m}}
action_source: measured
""",
        80,
    ),
}


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded robots (../shared/data) are not here")
@pytest.mark.filterwarnings("ignore:.*joined row by row")
@pytest.mark.parametrize("robot", ROBOTS)
def test_the_recorded_robots_take_a_short_schema(robot, tmp_path):
    text, count = ROBOTS[robot]
    assert len(text.strip().splitlines()) <= 20
    (tmp_path / "schema.yaml").write_text(text)
    episodes = read_logs(DATA / robot, tmp_path / "schema.yaml")
    assert len(episodes) == count
    import importlib.util

    spec = importlib.util.spec_from_file_location("loaders", DATA / "loaders.py")
    loaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    if robot == "lerobot_g1":
        first = pyarrow.parquet.read_table(DATA / robot / "data/chunk-000/episode_000000.parquet")
        np.testing.assert_array_equal(episodes[0].observations, np.stack(first["observation.state"].to_pylist()))
        return
    for episode in episodes[:3]:
        recording = loaders.load(str(DATA), robot, episode.name)
        np.testing.assert_array_equal(episode.observed_at, recording.t)
        np.testing.assert_allclose(episode.observations[:, : recording.q.shape[1]], recording.q, rtol=1e-15)
        if robot == "xl330":
            np.testing.assert_allclose(episode.exogenous[:, 1] / 885, recording.u_meas[:, 0], rtol=1e-12)
