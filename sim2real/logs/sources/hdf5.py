"""HDF5 files: robomimic's and Minari's data sets of many recordings, and any other with arrays of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import LogError, require
from sim2real.logs.sources.base import INDEXED, Facts, Info, Kind, Source, as_numbers, missing, wants_whole
from sim2real.logs.sources.columnar import Damage

BLOCK = 1 << 24  # bytes of a data set that are in memory at a time, beside the columns that are asked for


class Hdf5Source(Source):
    """An HDF5 file. Columns are called by their path inside the recording: `obs/joint_pos[0]`, `actions[2]`.

    The recordings of robomimic are the groups `data/demo_0`, ... (N observations, N actions); those of Minari
    `episode_0`, ... (N + 1 observations, N actions). Any other file is one recording.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        h5py = require("h5py", "logs")
        with self._clear():
            self._file = h5py.File(path, "r")
            self._dataset, self._group = h5py.Dataset, h5py.Group
            self._root, names = self._find()
            self._names = sorted(names, key=_counting)

    def _clear(self) -> Damage:
        return Damage(self.path, "HDF5")

    def _find(self) -> tuple[str, list[str]]:
        for root, prefix in (("data", "demo"), ("", "episode_")):
            group = self._file.get(root) if root else self._file
            if isinstance(group, self._group) and (names := [n for n in group if n.startswith(prefix)]):
                return root, names
        return "", [""]

    def recordings(self) -> list[str]:
        return list(self._names)

    def _inside(self, recording: str) -> Any:
        return self._file["/".join(filter(None, (self._root, recording))) or "/"]

    def columns(self, recording: str = "") -> dict[str, Info]:
        with self._clear():
            return dict(self._walk("", self._inside(recording)))

    def _walk(self, name: str, group: Any) -> Iterator[tuple[str, Info]]:
        for key in group:
            if group.get(key, getlink=True).__class__.__name__ == "ExternalLink":
                continue  # leads out of the file
            item, path = group[key], f"{name}/{key}" if name else key
            if isinstance(item, self._group):
                yield from self._walk(path, item)
            elif item.shape:
                kind: Kind = "number" if item.dtype.kind in "biuf" else "text" if item.dtype.kind in "OSU" else "other"
                unit = item.attrs.get("unit", item.attrs.get("units", ""))
                info = Info(rows=item.shape[0], kind=kind, unit=unit if isinstance(unit, str) else "")
                if item.ndim == 1:
                    yield path, info
                elif item.ndim == 2 and item.shape[1] <= 4096:
                    for i in range(item.shape[1]):
                        yield f"{path}[{i}]", info

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        picks: dict[str, dict[str, int | None]] = {}
        with self._clear():
            group = self._inside(recording)
            shapes: dict[str, tuple[int, ...] | None] = {}
            for name in wanted:
                match = INDEXED.match(name)
                path, index = (match["name"], match["index"]) if match else (name, None)
                if path not in shapes:
                    shapes[path] = self._shape(group, path)
                shape = shapes[path]
                fits = shape is not None and len(shape) == (1 if index is None else 2)
                if not fits or (index is not None and not (index.isdecimal() and int(index) < shape[1])):  # type: ignore[index]
                    raise missing(self.where(recording), name, wanted[name], list(self.columns(recording)))
                picks.setdefault(path, {})[name] = None if index is None else int(index)
            columns: dict[str, Array] = {}
            for path, chosen in picks.items():
                columns |= self._pick(group[path], chosen, wanted, recording)
        return {name: columns[name] for name in wanted}

    def _shape(self, group: Any, path: str) -> tuple[int, ...] | None:
        """Return the shape of an array of the file, or None where there is none of that name."""
        if ".." in path.split("/") or not self._is_inside(group, path):
            return None
        item = group[path]
        return item.shape if isinstance(item, self._dataset) else None

    def _is_inside(self, group: Any, path: str) -> bool:
        parts = path.strip("/").split("/")
        for k in range(1, len(parts) + 1):
            link = group.get("/".join(parts[:k]), getlink=True)
            if link is None or link.__class__.__name__ == "ExternalLink":
                return False
        return True

    def _pick(
        self, item: Any, chosen: Mapping[str, int | None], wanted: Mapping[str, str], recording: str
    ) -> dict[str, Array]:
        rows = item.shape[0]
        size = item.dtype.itemsize * int(np.prod(item.shape[1:], dtype=np.int64))
        if item.dtype.kind == "O":
            (name, *_) = chosen
            raise LogError(
                f"{self.where(recording)}: column {name!r} ({wanted[name]}) holds text or objects, expected numbers"
            )
        if rows and size and not item.id.get_storage_size():
            raise LogError(
                f"{self.where(recording)}: {item.name} was never written: its {rows} rows are not in the file"
            )
        if item.ndim == 1 or wants_whole(len(chosen), item.shape[1]):
            (first, *_) = chosen
            whole = as_numbers(self.where(recording), first, wanted[first], item[()])
            return {name: whole if index is None else whole[:, index] for name, index in chosen.items()}
        parts: dict[str, list[Array]] = {name: [] for name in chosen}
        at_once = max(1, BLOCK // max(size, 1))
        if item.chunks:  # a chunk is decompressed whole, so that none is twice
            at_once = max(at_once - at_once % item.chunks[0], item.chunks[0])
        for start in range(0, rows, at_once):
            block = item[start : start + at_once]
            for name, index in chosen.items():
                parts[name].append(as_numbers(self.where(recording), name, wanted[name], block[:, index].copy()))
        return {name: np.concatenate(some) if some else np.empty(0) for name, some in parts.items()}

    def facts(self, recording: str = "") -> Facts:
        rate, terminated = None, False
        with self._clear():
            try:
                kwargs = json.loads(self._file["data"].attrs["env_args"])["env_kwargs"]
                rate = float(kwargs["control_freq"])
            except (KeyError, TypeError, ValueError):
                pass
            ends = self._inside(recording).get("terminations")
            if ends is not None and ends.shape and len(ends):
                terminated = bool(ends[-1])
        why = "the file has no clock, only a rate of its rows" if self._names != [""] else ""
        return Facts(synthetic=why, rate=rate, terminated=terminated)

    def close(self) -> None:
        self._file.close()


def _counting(name: str) -> tuple[str, int]:
    """Sort `demo_10` after `demo_9`."""
    digits = len(name) - len(name.rstrip("0123456789"))
    return (name[: len(name) - digits], int(name[-digits:])) if digits else (name, -1)
