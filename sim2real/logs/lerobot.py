"""Episodes into LeRobot data sets, version 3.0; LeRobot itself is not needed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from sim2real.episodes import Episode, resample
from sim2real.errors import LogError
from sim2real.logs.write import VERSION, with_hashes


def write_lerobot(
    episodes: Sequence[Episode],
    folder: str | Path,
    fps: float | None = None,
    task: str = "",
    robot_type: str | None = None,
) -> Path:
    """Write episodes as a LeRobot data set, version 3.0.

    LeRobot keeps one row a frame at a fixed rate, so episodes are resampled (see `resample`), stamps become
    `frame_index / fps`, and the last action is repeated in the last frame. `meta/sim2real.json` keeps what is lost so:
    units, source files, and how far the measured clocks were from regular.

    Args:
        episodes: of the same channels.
        folder: must not exist, or be empty.
        fps: frames a second; None takes the rate of the episodes, where they agree within 1 % of a whole number.
        task: what the robot was to do.
        robot_type: as LeRobot calls it.

    Returns:
        The folder.

    Raises:
        LogError: there are no episodes, their channels differ, they are of no common rate, or the folder is in use.
    """
    folder = Path(folder)
    if not episodes:
        raise LogError("a data set takes one episode at least, found none")
    if folder.exists() and any(folder.iterdir()):
        raise LogError(f"{folder}: is there already and not empty; write elsewhere")
    first = episodes[0]
    for e in episodes:
        if (e.channels, e.action_source) != (first.channels, first.action_source):
            raise LogError(f"{e.name}: has other channels than {first.name}; write data sets of one kind of episodes")
    rate = _rate(episodes, fps)
    warnings.warn(
        f"{folder}: LeRobot stamps are frame_index / fps, so the measured clocks are not kept, and no latency can be "
        "learnt from the data set",
        stacklevel=2,
    )
    channels = {"observation.state": first.channels.observations, "action": first.channels.actions}
    if all(e.measured_actions is not None for e in episodes):
        channels["action.measured"] = first.channels.actions
    if all(e.exogenous is not None for e in episodes):
        channels["observation.exogenous"] = first.channels.exogenous
    frames, rows, start = [], [], 0
    for index, episode in enumerate(episodes):
        columns = _frames(resample(episode, 1.0 / rate), channels)
        n = len(next(iter(columns.values())))
        count = np.arange(n)
        columns |= {
            "timestamp": (count / rate).astype(np.float32),
            "frame_index": count,
            "episode_index": np.full(n, index),
            "index": start + count,
            "task_index": np.zeros(n, np.int64),
        }
        frames.append(columns)
        numbers = {f"stats/{k}/{s}": v for k, x in columns.items() for s, v in _stats(x).items()}
        place = {
            "data/chunk_index": 0,
            "data/file_index": 0,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        ends = {"dataset_from_index": start, "dataset_to_index": start + n}
        rows.append({"episode_index": index, "tasks": [task], "length": n, **place, **ends, **numbers})
        start += n
    whole = {key: np.concatenate([f[key] for f in frames]) for key in frames[0]}
    _write(folder / "data/chunk-000/file-000.parquet", _arrow(whole))
    _write(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    _write(folder / "meta/tasks.parquet", _tasks(task))
    stats = {key: _stats(values) for key, values in whole.items()}
    features = {key: _feature("float32", [len(some)], [n for n, _ in some]) for key, some in channels.items()}
    features |= {"timestamp": _feature("float32", [1], None)}
    features |= {k: _feature("int64", [1], None) for k in ("frame_index", "episode_index", "index", "task_index")}
    info = {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": len(episodes),
        "total_frames": start,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": round(rate) if float(rate).is_integer() else rate,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }
    about = {
        "version": VERSION,
        "action_source": first.action_source,
        "units": {key: dict(some) for key, some in channels.items()},
        "episodes": [
            {
                "name": e.name,
                "provenance": with_hashes(resample(e, 1.0 / rate).provenance),
                "period": {"median": e.period, "longest": float(np.diff(e.observed_at).max())},
                "excluded": e.excluded,
                "terminated": e.terminated,
            }
            for e in episodes
        ],
    }
    for name, data in {
        "stats": stats,
        "sim2real": about,
        "info": info,
    }.items():  # info.json last: it makes the data set
        (folder / "meta" / f"{name}.json").write_text(json.dumps(data, indent=4), encoding="utf-8")
    return folder


def _rate(episodes: Sequence[Episode], fps: float | None) -> float:
    if fps is not None:
        if not (np.isfinite(fps) and fps > 0):
            raise LogError(f"fps must be a positive number, found {fps}")
        return float(fps)
    rates = [1.0 / e.period for e in episodes]
    nearest = round(float(np.median(rates)))
    if nearest < 1 or max(abs(r - nearest) for r in rates) > 0.01 * nearest:
        raise LogError(
            f"the episodes run at {min(rates):.4g} to {max(rates):.4g} Hz, which is no common whole number of frames a "
            "second; give fps, and they are resampled to it"
        )
    return float(nearest)


def _frames(episode: Episode, channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vectors of an episode, one row a frame; the last action is repeated."""
    measured = episode.measured_actions
    of = {
        "observation.state": episode.observations,
        "action": np.concatenate([episode.actions, episode.actions[-1:]]),
        "action.measured": None if measured is None else np.concatenate([measured, measured[-1:]]),
        "observation.exogenous": episode.exogenous,
    }
    return {key: np.asarray(of[key], np.float32) for key in channels}


def _feature(dtype: str, shape: list[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def _stats(values: Any) -> dict[str, list[float]]:
    x = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "count": np.array([len(x)])}
    found |= {f"q{round(100 * q):02d}": np.quantile(x, q, axis=0) for q in (0.01, 0.1, 0.5, 0.9, 0.99)}
    return {name: value.tolist() for name, value in found.items()}


def _arrow(columns: Mapping[str, Any]) -> pa.Table:
    arrays = {
        key: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1]) if x.ndim == 2 else pa.array(x)
        for key, x in columns.items()
    }
    return pa.table(arrays)


def _tasks(task: str) -> pa.Table:
    """Return the table of tasks, whose index column pandas is to find as LeRobot writes it."""
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    return pa.table({"task_index": [0], "task": [task]}).replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
