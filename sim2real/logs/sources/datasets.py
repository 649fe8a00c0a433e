"""Data sets that are folders: LeRobot's (versions 2.0, 2.1 and 3.0) and Minari's. Neither library is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import Facts, Info, Source
from sim2real.logs.sources.columnar import ArrowSource, Damage, ParquetSource
from sim2real.logs.sources.hdf5 import Hdf5Source

_FIELD = re.compile(r"\{(\w+)(?::0?(\d*)d)?\}")


class LerobotSource(Source):
    """A LeRobot data set: a folder with `meta/info.json`. Its episodes are called `episode_000000`, ...

    Elements of vectors go by the names of the features: `observation.state[kLeftElbow]`, or by their number. A row is a
    frame: its action is in force until the next one, and that of the last frame is not used.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._info = _json(path / "meta" / "info.json")
        version = str(self._info.get("codebase_version", ""))
        if version.removeprefix("v").split(".")[0] not in ("2", "3"):
            raise LogError(
                f"{path}: is of version {version or 'unknown'} of the LeRobot format, expected v2.0, v2.1 or v3.0; "
                "convert it"
            )
        self._third = version.startswith("v3")
        features = self._info.get("features")
        if not isinstance(features, dict) or not isinstance(self._info.get("data_path"), str):
            raise LogError(f"{path}/meta/info.json: has no features or no data_path; is it whole?")
        self._labels = {name: labels for name, f in features.items() if (labels := _labels(f))}
        with self._clear():
            self._places = dict(self._third_places() if self._third else self._second_places())
        self._cached: tuple[Path, tuple[str, ...], dict[str, Array]] | None = None

    def _clear(self) -> Damage:
        return Damage(self.path, "a LeRobot data set", "copy the data set anew")

    def _second_places(self) -> Iterator[tuple[str, dict[str, int]]]:
        size = int(self._info.get("chunks_size", 1000))
        with (self.path / "meta" / "episodes.jsonl").open(encoding="utf-8") as file:
            for line in filter(str.strip, file):
                index = int(json.loads(line)["episode_index"])
                yield f"episode_{index:06d}", {"episode_index": index, "episode_chunk": index // size}

    def _third_places(self) -> Iterator[tuple[str, dict[str, int]]]:
        keys = ("episode_index", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
        for file in sorted((self.path / "meta" / "episodes").rglob("*.parquet")):
            for row in pyarrow.parquet.read_table(file, columns=list(keys), partitioning=None).to_pylist():
                place = {key.removeprefix("data/"): int(row[key]) for key in keys}
                yield f"episode_{place['episode_index']:06d}", place

    def recordings(self) -> list[str]:
        return list(self._places)

    def _file(self, recording: str) -> Path:
        place = self._places[recording]

        def number(match: re.Match[str]) -> str:
            if match[1] not in place:
                raise LogError(f"{self.path}/meta/info.json: data_path speaks of {match[1]!r}, which is not known")
            return f"{place[match[1]]:0{int(match[2] or 0)}d}"

        inner = PurePosixPath(_FIELD.sub(number, self._info["data_path"]))
        if inner.is_absolute() or ".." in inner.parts or "\\" in str(inner):
            raise LogError(f"{self.path}/meta/info.json: data_path leads out of the data set: {str(inner)!r}")
        file = self.path / inner
        if not file.is_file():
            raise LogError(f"{file}: no such file, but episode {recording!r} is in it; copy the data set anew")
        return file

    def columns(self, recording: str = "") -> dict[str, Info]:
        with ParquetSource(self._file(recording), self._labels) as file:
            rows = self._rows(recording)
            return {n: Info(rows=rows, unit=i.unit, kind=i.kind) for n, i in file.columns().items()}

    def _rows(self, recording: str) -> int | None:
        place = self._places[recording]
        return place["dataset_to_index"] - place["dataset_from_index"] if self._third else None

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        path = self._file(recording)
        if not self._third:
            with ParquetSource(path, self._labels) as file:
                return file.read(wanted)
        columns = self._columns_of(path, {**wanted, "episode_index": "which episode a frame belongs to"})
        mine = np.flatnonzero(columns["episode_index"] == self._places[recording]["episode_index"])
        expected = self._rows(recording)
        if len(mine) != expected:
            raise LogError(
                f"{path}: has {len(mine)} frames of {recording!r}, expected {expected} by meta/episodes; copy the data "
                "set anew"
            )
        rows = slice(mine[0], mine[-1] + 1) if len(mine) and mine[-1] - mine[0] == len(mine) - 1 else mine
        return {name: columns[name][rows] for name in wanted}

    def _columns_of(self, path: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
        """Return whole columns of a file that holds many episodes; those of the last file are kept."""
        if self._cached is None or self._cached[:2] != (path, tuple(wanted)):
            with ParquetSource(path, self._labels) as file:
                self._cached = (path, tuple(wanted), file.read(wanted))
        return self._cached[2]

    def facts(self, recording: str = "") -> Facts:
        rate = self._info.get("fps")
        return Facts(
            synthetic="stamps of LeRobot data sets are frame_index / fps, not measured",
            rate=float(rate) if isinstance(rate, int | float) else None,
        )


def _labels(feature: Any) -> Sequence[str] | None:
    """Return the names of the elements of a feature: a list, a list in a list, or the only list of a mapping."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and names and all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
        return names
    return None


class MinariSource(Source):
    """A Minari data set: a folder with `data/`, in HDF5, Arrow or Parquet. Its episodes are `episode_0`, ...

    Columns: `observations[0]`, of dictionaries `observations/goal[0]` (HDF5) or `observations.goal[0]` (Arrow),
    `actions[0]`, `rewards`.
    There are N + 1 observations and N actions, and no clock.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._data = path / "data"
        self._hdf5 = Hdf5Source(self._data / "main_data.hdf5") if (self._data / "main_data.hdf5").is_file() else None
        self._folders = (
            {}
            if self._hdf5
            else {
                f"episode_{folder.name}": folder
                for folder in sorted(self._data.iterdir(), key=lambda f: (len(f.name), f.name))
                if folder.is_dir() and folder.name.isdecimal()
            }
        )
        if not self._hdf5 and not self._folders:
            raise LogError(
                f"{path}: data/ holds neither main_data.hdf5 nor a folder an episode; copy the data set anew"
            )

    def recordings(self) -> list[str]:
        return self._hdf5.recordings() if self._hdf5 else list(self._folders)

    def _files(self, recording: str) -> list[ParquetSource]:
        folder = self._folders[recording]
        files: list[ParquetSource] = [ParquetSource(file) for file in sorted(folder.glob("*.parquet"))]
        files += [ArrowSource(file) for file in sorted([*folder.glob("*.arrow"), *folder.glob("*.feather")])]
        if not files:
            raise LogError(f"{folder}: holds no Parquet or Arrow file; copy the data set anew")
        return files

    def columns(self, recording: str = "") -> dict[str, Info]:
        if self._hdf5:
            return self._hdf5.columns(recording)
        files = self._files(recording)
        rows = sum(file.rows for file in files)
        return {name: Info(rows=rows, kind=info.kind) for name, info in files[0].columns().items()}

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        if self._hdf5:
            return self._hdf5.read(wanted, recording)
        parts = [file.read(wanted) for file in self._files(recording)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        # the last row of what happens between observations is padding
        return {n: v if n.startswith(("observations", "infos")) else v[:-1] for n, v in columns.items()}

    def facts(self, recording: str = "") -> Facts:
        why = "Minari data sets have no clock"
        if self._hdf5:
            return Facts(synthetic=why, terminated=self._hdf5.facts(recording).terminated)
        ends = self.read({"terminations": "whether the episode has ended"}, recording)["terminations"]
        return Facts(synthetic=why, terminated=bool(len(ends) and ends[-1]))

    def close(self) -> None:
        if self._hdf5:
            self._hdf5.close()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LogError(f"{path}: no such file; copy the data set anew") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LogError(
            f"{path}: cannot be read as JSON: {' '.join(str(error).split())}; copy the data set anew"
        ) from error
    if not isinstance(found, dict):
        raise LogError(f"{path}: expected an object, found {str(found)[:40]!r}; copy the data set anew")
    return found
