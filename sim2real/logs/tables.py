"""Files of columns: CSV, Parquet and NPZ, each read into float64 columns by name."""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sim2real.episodes import Array
from sim2real.errors import LogError, did_you_mean

_INDEXED = re.compile(r"\[(\d+)\]$")  # a 2-D array x of an NPZ file has the columns x[0], x[1], ...


def read_columns(path: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
    """Read some columns of a file: name -> (rows,), as they stand there; an empty cell is NaN.

    Args:
        path: a file that exists and whose suffix is one of `FORMATS`.
        wanted: name of each column -> what it is for, as messages put it.

    Raises:
        LogError: the file cannot be read or is empty; a column is missing or holds text.
    """
    if path.suffix.lower() not in FORMATS:
        raise LogError(
            f"{path}: expected a file that ends in {', '.join(FORMATS)}, found {path.suffix or 'no suffix'!r}"
        )
    if path.stat().st_size == 0:
        raise LogError(f"{path}: the file is empty; record it again, or take it out of the folder")
    columns = FORMATS[path.suffix.lower()](path, wanted)
    for name, values in columns.items():
        if len(values) == 0:
            raise LogError(f"{path}: column {name!r} has no rows, only its name; take the file out of the folder")
    return columns


def _csv(path: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LogError(f"{path}: cannot be read as CSV text in UTF-8: {error}") from error
    hint = "; the first line must be the names of the columns" if header and all(map(_is_number, header)) else ""
    _check(path, wanted, header, hint)
    for name in wanted:
        if header.count(name) > 1:
            raise LogError(f"{path}: {header.count(name)} columns are called {name!r}; rename one of them")

    def read(kind: Any) -> Any:
        return pyarrow.csv.read_csv(
            path,
            # Without threads, a message about a row names it.
            read_options=pyarrow.csv.ReadOptions(column_names=header, skip_rows=1, use_threads=False),
            # Types are given, not guessed: a guess is made from the first block, and a later one may not fit it.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, kind), include_columns=list(wanted), strings_can_be_null=True
            ),
        )

    try:
        table = read(pa.float64())
    except pa.ArrowInvalid as error:
        if "Could not skip initial" in str(error):  # a header without so much as an end of line
            return {name: np.empty(0) for name in wanted}
        if "conversion error" in str(error):
            for name, column in zip(wanted, read(pa.string()).columns, strict=True):
                _check_text(path, name, wanted[name], column.to_pylist())
        raise LogError(f"{path}: {error}; repair or cut the row") from error
    return {name: table[name].to_numpy() for name in wanted}


def _parquet(path: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check(path, wanted, file.schema_arrow.names)
            table = file.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise LogError(f"{path}: cannot be read as Parquet: {error}; write the file again") from error
    columns: dict[str, Array] = {}
    for name, what in wanted.items():
        column = table[name]
        try:
            # Not `safe`: a clock in integer nanoseconds does not fit a float64 exactly, and need not.
            columns[name] = column.cast(pa.float64(), safe=False).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                _check_text(path, name, what, column.to_pylist())
            raise LogError(
                f"{path}: column {name!r} ({what}) is of type {column.type}, expected numbers; write it as numbers"
            ) from error
    return columns


def _npz(path: Path, wanted: Mapping[str, str]) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise LogError(f"{path}: is not an NPZ file; write it with numpy.savez, one name a column")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys = {key for name in wanted for key in (name, _INDEXED.sub("", name)) if key in arrays.files}
            loaded = {key: np.asarray(arrays[key]) for key in keys}  # once each: every access reads the file again
            columns: dict[str, Array] = {}
            for name, what in wanted.items():
                array = _npz_column(loaded, name)
                if array is None:
                    raise _missing(path, name, what, _npz_names(arrays))
                if array.dtype.kind == "U":
                    _check_text(path, name, what, array.tolist())
                if array.dtype.kind not in "biuf":
                    raise LogError(f"{path}: column {name!r} ({what}) is of type {array.dtype}, expected numbers")
                columns[name] = array.astype(np.float64)
            return columns
    except LogError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise LogError(f"{path}: cannot be read as NPZ without pickle: {error}; write plain numeric arrays") from error


def _npz_column(arrays: Mapping[str, Any], name: str) -> Any:
    """Return the array called `name`, or the column that `x[1]` names of the array `x`, or None."""
    if name in arrays:
        return arrays[name] if arrays[name].ndim == 1 else None
    index, array = _INDEXED.search(name), arrays.get(_INDEXED.sub("", name))
    if index is None or array is None or array.ndim != 2 or int(index[1]) >= array.shape[1]:
        return None
    return array[:, int(index[1])]


def _npz_names(arrays: Mapping[str, Any]) -> list[str]:
    names = []
    for key in arrays:
        try:
            array = np.asarray(arrays[key])
        except ValueError:  # Python objects, which take pickle to read
            continue
        if array.ndim == 2:
            names += [f"{key}[{column}]" for column in range(array.shape[1])]
        elif array.ndim == 1:
            names.append(key)
    return names


def _check(path: Path, wanted: Mapping[str, str], available: Iterable[str], hint: str = "") -> None:
    names = list(available)
    for name, what in wanted.items():
        if name not in names:
            raise _missing(path, name, what, names, hint)


def _missing(path: Path, name: str, what: str, names: list[str], hint: str = "") -> LogError:
    near = did_you_mean(name, names)
    listed = f" (the file has {', '.join(names[:20])})" if "did you mean" in near else ""
    return LogError(f"{path}: no column {name!r} ({what}){near}{listed}{hint}")


def _check_text(path: Path, name: str, what: str, values: Iterable[str | None]) -> None:
    for row, value in enumerate(values):
        if value is not None and value.strip() and not _is_number(value):
            raise LogError(
                f"{path}: column {name!r} ({what}) must hold numbers, found the text {value!r} in row {row} "
                f"(the first is 0); repair or cut the row"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


FORMATS: dict[str, Callable[[Path, Mapping[str, str]], dict[str, Array]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".npz": _npz,
}
