"""NPZ files: arrays of numbers by name, and the ones that MuJoCo's system identification writes."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import INDEXED, Info, Source, as_numbers, missing, wants_whole
from sim2real.logs.sources.columnar import Damage

PIECE = 1 << 18  # bytes that are decompressed at a time: they stay in the cache of the processor
BLOCK = 1 << 24  # bytes of an array that are in memory at a time, beside the columns that are asked for
SIGNALS = "_signal_mapping"  # which columns of MuJoCo's arrays are which sensor


class NpzSource(Source):
    """An NPZ file: a one-dimensional array is a column, a two-dimensional one `x` has the columns `x[0]`, `x[1]`, ...

    Files of `mujoco.sysid` have tables (`control`, `sensordata`, `state`) with a clock each, and the columns of their
    arrays are named by the sensors too: `sensordata_data[shoulder_pos]`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not zipfile.is_zipfile(path):
            raise LogError(f"{path}: is not an NPZ file; write it with numpy.savez, one name a column")
        with self._clear():
            self._zip = zipfile.ZipFile(path)
            self._members = {n.removesuffix(".npy"): n for n in self._zip.namelist() if n.endswith(".npy")}
            self._labels = {
                name.removesuffix(SIGNALS) + "_data" if name != SIGNALS[1:] else "data": self._signals(name)
                for name in self._members
                if name.endswith(SIGNALS) or name == SIGNALS[1:]
            }

    def _clear(self) -> Damage:
        return Damage(self.path, "NPZ without pickle", "write plain numeric arrays")

    def _signals(self, name: str) -> dict[str, int]:
        """Return sensor -> column of the array, with `sensor_1` and so on for the other elements of a vector."""
        with self._zip.open(self._members[name]) as file:
            text = str(np.lib.format.read_array(file, allow_pickle=False))
        return {
            f"{signal}_{i}" if i else signal: int(column)
            for signal, (_, columns) in json.loads(text).items()
            for i, column in enumerate(columns)
        }

    def _table(self, array: str) -> str:
        prefix, _, last = array.rpartition("_")
        return (
            prefix if last in ("times", "data") and {f"{prefix}_times", f"{prefix}_data"} <= set(self._members) else ""
        )

    def table_of(self, name: str) -> str:
        match = INDEXED.match(name)
        return self._table(match["name"] if match else name)

    def clock_of(self, table: str, like: str) -> str | None:
        return f"{table}_times" if table else None

    def columns(self, recording: str = "") -> dict[str, Info]:
        found: dict[str, Info] = {}
        with self._clear():
            for name, member in self._members.items():
                with self._zip.open(member) as file:
                    shape, _, dtype = _header(file)
                if not shape or dtype.hasobject:
                    continue  # a scalar that says something of the whole, or Python objects, which take pickle to read
                info = Info(
                    self._table(name),
                    shape[0],
                    kind="number" if dtype.kind in "biuf" else "text" if dtype.kind == "U" else "other",
                )
                if len(shape) == 1:
                    found[name] = info
                elif len(shape) == 2:
                    labels = {column: signal for signal, column in self._labels.get(name, {}).items()}
                    found |= {f"{name}[{labels.get(i, i)}]": info for i in range(shape[1])}
        return found

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        picks: dict[str, dict[str, int | None]] = {}
        for name in wanted:
            match = INDEXED.match(name)
            if name in self._members:
                picks.setdefault(name, {})[name] = None
            elif match and match["name"] in self._members:
                index = self._labels.get(match["name"], {}).get(match["index"])
                if index is None and match["index"].isdecimal():
                    index = int(match["index"])
                if index is None:
                    raise missing(self.path, name, wanted[name], list(self.columns()))
                picks.setdefault(match["name"], {})[name] = index
            else:
                raise missing(self.path, name, wanted[name], list(self.columns()))
        columns: dict[str, Array] = {}
        for array, chosen in picks.items():
            with self._clear(), self._zip.open(self._members[array]) as file:
                columns |= self._pick(file, chosen, wanted)
        return {name: columns[name] for name in wanted}

    def _pick(self, file: IO[bytes], chosen: Mapping[str, int | None], wanted: Mapping[str, str]) -> dict[str, Array]:
        """Read the wanted columns of one array, block by block."""
        shape, fortran, dtype = _header(file)
        for name, index in chosen.items():
            width = shape[1] if len(shape) == 2 else None
            if len(shape) != (1 if index is None else 2) or (
                index is not None and width is not None and index >= width
            ):
                raise missing(self.path, name, wanted[name], list(self.columns()))
            if dtype.hasobject:
                raise LogError(
                    f"{self.path}: column {name!r} ({wanted[name]}) holds Python objects, which take pickle to read; "
                    "write plain numeric arrays"
                )
        (first, *_) = chosen
        if len(shape) == 1 or wants_whole(len(chosen), shape[1]):
            whole = as_numbers(self.path, first, wanted[first], _whole(file, shape, fortran, dtype))
            file.read(1)  # the end of a member is where its checksum is looked at
            return {name: whole if index is None else whole[:, index] for name, index in chosen.items()}
        rows, width = shape
        if fortran:
            apart = {
                i: _whole(file, (rows,), False, dtype)
                for i in range(width)
                if i in chosen.values() or not _skip(file, rows * dtype.itemsize)
            }
            return {
                name: as_numbers(self.path, name, wanted[name], apart[index or 0]) for name, index in chosen.items()
            }
        columns: dict[str, list[Array]] = {name: [] for name in chosen}
        for block in _blocks(file, rows, dtype, (width,)):
            for name, index in chosen.items():
                columns[name].append(as_numbers(self.path, name, wanted[name], block[:, index].copy()))
        return {name: np.concatenate(some) if some else np.empty(0) for name, some in columns.items()}

    def close(self) -> None:
        self._zip.close()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether columns are stored one after the other, and the type of an array in a `.npy` stream."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the .npy format is not known")
    return read[version](file)


def _whole(file: IO[bytes], shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array, and raise if there is less of it than the header says."""
    if not dtype.itemsize:
        raise ValueError(f"elements of type {dtype} hold nothing")
    out = np.empty(shape, dtype, order="F" if fortran else "C")
    room = memoryview(out.reshape(-1, order="A").view(np.uint8))  # type: ignore[arg-type]
    at = 0
    while at < len(room):
        n = file.readinto(room[at : at + PIECE])  # type: ignore[attr-defined]
        if not n:
            raise ValueError(f"the array ends after {at} of {len(room)} bytes")
        at += n
    return out


def _skip(file: IO[bytes], size: int) -> bool:
    """Go over so many bytes, which a compressed member cannot be asked to; return True."""
    while size > 0:
        n = len(file.read(min(size, BLOCK)))
        if not n:
            raise ValueError(f"the array ends {size} bytes too early")
        size -= n
    return True


def _blocks(file: IO[bytes], rows: int, dtype: np.dtype[Any], row: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array in blocks, and raise if there are fewer than the header says."""
    size = dtype.itemsize * math.prod(row)
    if not size:
        raise ValueError(f"elements of type {dtype} hold nothing")
    at_once = max(1, BLOCK // max(size, 1))
    for start in range(0, rows, at_once):
        n = min(at_once, rows - start)
        data = file.read(n * size)
        if len(data) != n * size:
            raise ValueError(f"the array ends in row {start + len(data) // max(size, 1)} of {rows}")
        yield np.frombuffer(data, dtype).reshape(n, *row)
