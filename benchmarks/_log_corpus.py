"""The same recording in every format that is read, each written by the format's own library, and read by it again.

A recording has a clock, `width` positions and `width` torques. `FORMATS` maps a format to a `Format`: how to write it,
the schema that reads it, and the plain way to read the same columns with the format's library alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
from mcap.reader import make_reader
from mcap.writer import Writer as McapWriter
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

Array = NDArray[np.float64]
TOPIC = "/joint_states"


@dataclass(frozen=True)
class Signals:
    """A recording: `t` (N,) [s], `q` (N, width) [rad], `u` (N, width) [N·m]."""

    t: Array
    q: Array
    u: Array

    @property
    def names(self) -> list[str]:
        """Names of the joints."""
        return [f"j{i}" for i in range(self.q.shape[1])]


def signals(rows: int, width: int, seed: int = 0) -> Signals:
    """Return random signals, with stamps of whole microseconds."""
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.integers(800, 1200, rows)) * 1e-6
    return Signals(t, np.cumsum(rng.normal(size=(rows, width)), 0), rng.normal(size=(rows, width)))


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: signals into a new file or folder -> its path.
        schema: that reads it; `{"*": ...}` stands for the joints.
        library: reads the same columns with the format's library: path -> [t (N,), q (N, width), u (N, width)].
        clock: what the stamps are good to [s].
    """

    write: Callable[[Signals, Path], Path]
    schema: dict[str, Any]
    library: Callable[[Path], list[Array]]
    clock: float = 0.0


def _schema(time: str, position: str, torque: str, unit: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "time": {"column": time, "unit": unit} if time else {"rate": 1000},
        "observations": {"*": {"column": position, "unit": "rad"}},
        "actions": {"*": {"column": torque, "unit": "N·m"}},
        "action_source": "commanded",
        **more,
    }


def _columns(s: Signals) -> dict[str, Array]:
    return {
        "t": s.t,
        **{f"q_{n}": s.q[:, i] for i, n in enumerate(s.names)},
        **{f"u_{n}": s.u[:, i] for i, n in enumerate(s.names)},
    }


def _of_table(table: pa.Table) -> list[Array]:
    q = [c for c in table.column_names if c.startswith("q_")]
    u = [c for c in table.column_names if c.startswith("u_")]
    return [table["t"].to_numpy(), *(np.stack([table[c].to_numpy() for c in some], 1) for some in (q, u))]


def _write_csv(s: Signals, folder: Path) -> Path:
    path, columns = folder / "log.csv", _columns(s)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(c.tolist() for c in columns.values()), strict=True))
    return path


def _read_csv(path: Path) -> list[Array]:
    return _of_table(pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(use_threads=False)))


def _write_parquet(s: Signals, folder: Path) -> Path:
    pyarrow.parquet.write_table(pa.table(_columns(s)), folder / "log.parquet")
    return folder / "log.parquet"


def _read_parquet(path: Path) -> list[Array]:
    return _of_table(pyarrow.parquet.read_table(path, use_threads=False))


def _write_arrow(s: Signals, folder: Path) -> Path:
    pyarrow.feather.write_feather(pa.table(_columns(s)), folder / "log.feather", compression="lz4")
    return folder / "log.feather"


def _read_arrow(path: Path) -> list[Array]:
    return _of_table(pyarrow.feather.read_table(path, use_threads=False))


def _write_npz(s: Signals, folder: Path) -> Path:
    np.savez(folder / "log.npz", t=s.t, q=s.q, u=s.u)
    return folder / "log.npz"


def _read_npz(path: Path) -> list[Array]:
    with np.load(path) as arrays:
        return [arrays["t"], arrays["q"], arrays["u"]]


def _records(s: Signals) -> list[dict[str, Any]]:
    return [
        {"t": t, "q": q, "u": u, "note": "a word", "on": True}
        for t, q, u in zip(s.t.tolist(), s.q.tolist(), s.u.tolist(), strict=True)
    ]


def _of_records(records: list[dict[str, Any]]) -> list[Array]:
    return [np.array([r[key] for r in records]) for key in ("t", "q", "u")]


def _write_json(s: Signals, folder: Path) -> Path:
    (folder / "log.json").write_text(json.dumps({"mass": 0.5, "entries": _records(s)}))
    return folder / "log.json"


def _read_json(path: Path) -> list[Array]:
    with path.open() as file:
        return _of_records(json.load(file)["entries"])


def _write_jsonl(s: Signals, folder: Path) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _records(s)))
    return folder / "log.jsonl"


def _read_jsonl(path: Path) -> list[Array]:
    with path.open() as file:
        return _of_records([json.loads(line) for line in file])


def _write_hdf5(s: Signals, folder: Path) -> Path:
    with h5py.File(folder / "log.hdf5", "w") as file:
        file["t"], file["q"], file["u"] = s.t, s.q, s.u
    return folder / "log.hdf5"


def _read_hdf5(path: Path) -> list[Array]:
    with h5py.File(path) as file:
        return [file[key][:] for key in ("t", "q", "u")]


def _write_robomimic(s: Signals, folder: Path) -> Path:
    with h5py.File(folder / "demo.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo.create_dataset("obs/joint_pos", data=s.q, chunks=True, compression="gzip")
        demo.create_dataset("actions", data=s.u, chunks=True, compression="gzip")
    return folder / "demo.hdf5"


def _read_robomimic(path: Path) -> list[Array]:
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        q, u = demo["obs/joint_pos"][:], demo["actions"][:]
        return [np.arange(len(q)) / 1000, q, u]


def _write_minari(s: Signals, folder: Path) -> Path:
    (folder / "set/data").mkdir(parents=True)
    with h5py.File(folder / "set/data/main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        episode.create_dataset("observations", data=s.q, chunks=True)
        episode.create_dataset("actions", data=s.u[:-1], chunks=True)
        episode["terminations"] = np.zeros(len(s.t) - 1, bool)
    return folder / "set"


def _read_minari(path: Path) -> list[Array]:
    with h5py.File(path / "data/main_data.hdf5") as file:
        q, u = file["episode_0/observations"][:], file["episode_0/actions"][:]
        return [np.arange(len(q)) / 1000, q, u]


def _lerobot_table(s: Signals) -> pa.Table:
    vectors = [pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]) for x in (s.q, s.u)]
    zeros = np.zeros(len(s.t), np.int64)
    return pa.table({"observation.state": vectors[0], "action": vectors[1], "timestamp": s.t, "episode_index": zeros})


def _lerobot_info(s: Signals, folder: Path, version: str, path: str) -> None:
    vector = {"dtype": "float64", "shape": [len(s.names)], "names": s.names}
    features = {"observation.state": vector, "action": vector}
    (folder / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": 1000, "chunks_size": 1000, "data_path": path, "features": features}
    (folder / "meta/info.json").write_text(json.dumps(info))


def _write_lerobot21(s: Signals, folder: Path) -> Path:
    _lerobot_info(s, folder / "set", "v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    (folder / "set/data/chunk-000").mkdir(parents=True)
    pyarrow.parquet.write_table(_lerobot_table(s), folder / "set/data/chunk-000/episode_000000.parquet")
    (folder / "set/meta/episodes.jsonl").write_text('{"episode_index": 0}\n')
    return folder / "set"


def _write_lerobot30(s: Signals, folder: Path) -> Path:
    _lerobot_info(s, folder / "set", "v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    for part in ("data", "meta/episodes"):
        (folder / "set" / part / "chunk-000").mkdir(parents=True)
    pyarrow.parquet.write_table(_lerobot_table(s), folder / "set/data/chunk-000/file-000.parquet")
    place = {"episode_index": [0], "data/chunk_index": [0], "data/file_index": [0]}
    episodes = pa.table({**place, "dataset_from_index": [0], "dataset_to_index": [len(s.t)]})
    pyarrow.parquet.write_table(episodes, folder / "set/meta/episodes/chunk-000/file-000.parquet")
    return folder / "set"


def _read_lerobot(path: Path) -> list[Array]:
    (file,) = (path / "data/chunk-000").iterdir()
    table = pyarrow.parquet.read_table(file, columns=["timestamp", "observation.state", "action"], use_threads=False)
    vectors = [table[c].combine_chunks().flatten().to_numpy().reshape(len(table), -1) for c in table.column_names[1:]]
    return [table["timestamp"].to_numpy(), *vectors]


def _messages(s: Signals, store: Any, header: dict[str, Any]) -> Any:
    stamp, head, state = (
        store.types[f"{n}"]
        for n in ("builtin_interfaces/msg/Time", "std_msgs/msg/Header", "sensor_msgs/msg/JointState")
    )
    empty = np.zeros(0)
    for t, q, u in zip(s.t, s.q, s.u, strict=True):
        ns = round(t * 1e9)
        yield ns, state(head(stamp=stamp(ns // 10**9, ns % 10**9), frame_id="", **header), s.names, q, empty, u)


def _write_bag(s: Signals, folder: Path) -> Path:
    store = get_typestore(Stores.ROS1_NOETIC)
    with Ros1Writer(folder / "log.bag") as bag:
        topic = bag.add_connection(TOPIC, "sensor_msgs/msg/JointState", typestore=store)
        for ns, message in _messages(s, store, {"seq": 0}):
            bag.write(topic, ns, store.serialize_ros1(message, topic.msgtype))
    return folder / "log.bag"


def _write_ros2(s: Signals, folder: Path, storage: StoragePlugin) -> Path:
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Ros2Writer(folder / "bag", version=9, storage_plugin=storage) as bag:
        topic = bag.add_connection(TOPIC, "sensor_msgs/msg/JointState", typestore=store)
        for ns, message in _messages(s, store, {}):
            bag.write(topic, ns, store.serialize_cdr(message, topic.msgtype))
    return folder / "bag"


def _read_bag(path: Path) -> list[Array]:
    t, q, u = [], [], []
    with AnyReader([path]) as bag:
        for topic, _, raw in bag.messages(bag.topics[TOPIC].connections):
            message: Any = bag.deserialize(raw, topic.msgtype)
            t.append(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)
            q.append(message.position)
            u.append(message.effort)
    return [np.array(t), np.array(q), np.array(u)]


def _write_mcap(s: Signals, folder: Path) -> Path:
    with (folder / "log.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema = writer.register_schema("joints", "jsonschema", b'{"type": "object"}')
        channel = writer.register_channel("/joints", "json", schema)
        for t, q, u in zip(s.t, s.q.tolist(), s.u.tolist(), strict=True):
            data = json.dumps({"q": q, "u": u}).encode()
            writer.add_message(channel, round(t * 1e9), data, round(t * 1e9))
        writer.finish()
    return folder / "log.mcap"


def _read_mcap(path: Path) -> list[Array]:
    t, q, u = [], [], []
    with path.open("rb") as file:
        for _, _, message in make_reader(file, validate_crcs=True).iter_messages():
            data = json.loads(message.data)
            t.append(message.log_time * 1e-9)
            q.append(data["q"])
            u.append(data["u"])
    return [np.array(t), np.array(q), np.array(u)]


_NAMED = _schema("t", "q_*", "u_*")
_INDEXED = _schema("t", "q[*]", "u[*]")
_LEROBOT = _schema("timestamp", "observation.state[*]", "action[*]")
_STATES = _schema(f"{TOPIC}:stamp", f"{TOPIC}:position[*]", f"{TOPIC}:effort[*]")

FORMATS: dict[str, Format] = {
    "csv": Format(_write_csv, _NAMED, _read_csv),
    "parquet": Format(_write_parquet, _NAMED, _read_parquet),
    "arrow": Format(_write_arrow, _NAMED, _read_arrow),
    "npz": Format(_write_npz, _INDEXED, _read_npz),
    "json": Format(_write_json, _schema("entries.t", "entries.q[*]", "entries.u[*]"), _read_json),
    "jsonl": Format(_write_jsonl, _INDEXED, _read_jsonl),
    "hdf5": Format(_write_hdf5, _INDEXED, _read_hdf5),
    "robomimic": Format(_write_robomimic, _schema("", "obs/joint_pos[*]", "actions[*]"), _read_robomimic),
    "minari": Format(_write_minari, _schema("", "observations[*]", "actions[*]"), _read_minari),
    "lerobot21": Format(_write_lerobot21, _LEROBOT, _read_lerobot),
    "lerobot30": Format(_write_lerobot30, _LEROBOT, _read_lerobot),
    "ros1": Format(_write_bag, _STATES, _read_bag, 1e-9),
    "ros2_sqlite": Format(lambda s, f: _write_ros2(s, f, StoragePlugin.SQLITE3), _STATES, _read_bag, 1e-9),
    "ros2_mcap": Format(lambda s, f: _write_ros2(s, f, StoragePlugin.MCAP), _STATES, _read_bag, 1e-9),
    "mcap_json": Format(_write_mcap, _schema("/joints:received", "/joints:q[*]", "/joints:u[*]"), _read_mcap, 1e-9),
}
