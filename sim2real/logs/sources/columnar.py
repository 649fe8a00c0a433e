"""Arrow data as columns of numbers: plain, in lists, in structs; and the Parquet and Arrow files that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import INDEXED, Info, Source, check_text, missing, wants_whole

BLOCK = 262_144  # rows that are in memory at a time, beside the columns that are asked for


def describe(
    schema: pa.Schema, rows: int | None, first: pa.RecordBatch | None, labels: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Info]:
    """Return every column of an Arrow schema.

    Args:
        schema: of the file.
        rows: of the file.
        first: the first rows, which say how long lists of no fixed length are.
        labels: column of lists -> names of the elements, where there are any.
    """
    found: dict[str, Info] = {}
    for field in schema:
        unit = stated_unit(field)
        values = None if first is None else first.column(schema.get_field_index(field.name))
        for name, kind in _leaves(field.name, field.type, values, (labels or {}).get(field.name)):
            found[name] = Info(rows=rows, unit=unit, kind=kind)
    return found


def stated_unit(field: pa.Field) -> str:
    """Return the unit of a column: of a timestamp, or what its metadata says under `unit`."""
    if pa.types.is_timestamp(field.type):
        return str(field.type.unit)
    return str((field.metadata or {}).get(b"unit", b"").decode(errors="replace"))


def _leaves(name: str, kind: pa.DataType, values: Any, labels: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    if pa.types.is_struct(kind):
        for child in kind:
            yield from _leaves(
                f"{name}.{child.name}",
                child.type,
                None if values is None else pc.struct_field(values, child.name),
                None,
            )
    elif _is_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else _length(values)
        inner = _kind(kind.value_type)
        if inner == "other" or not length:
            yield name, "other"
        else:
            for i in range(length):
                yield f"{name}[{labels[i] if labels and len(labels) == length else i}]", inner
    else:
        yield name, _kind(kind)


def _length(values: Any) -> int:
    if values is None or len(values) == 0 or not values[0].is_valid:
        return 0
    return len(values[0])


def _kind(kind: pa.DataType) -> str:
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_timestamp(kind)
    ):
        return "number"
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else "other"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class Picker:
    """Takes the wanted columns out of batches of rows, as float64.

    Args:
        where: the file, as messages put it.
        schema: of the batches.
        wanted: name of each column -> what it is for.
        labels: column of lists -> names of the elements.
        available: all names, for messages.
    """

    def __init__(
        self,
        where: object,
        schema: pa.Schema,
        wanted: Mapping[str, str],
        labels: Mapping[str, Sequence[str]],
        available: Iterable[str],
    ) -> None:
        self.where, self.wanted, self.rows = where, wanted, 0
        self._paths = {name: self._path(schema, name, labels, available) for name in wanted}
        self._blocks: dict[str, list[Array]] = {name: [] for name in wanted}
        self._matrices: dict[tuple[str, tuple[str, ...]], list[Array]] = {}  # of lists that are wanted whole
        self._many = Counter(path[:2] for path in self._paths.values())

    @property
    def roots(self) -> list[str]:
        """The columns of the file that hold what is wanted."""
        return list(dict.fromkeys(path[0] for path in self._paths.values()))

    def _path(
        self, schema: pa.Schema, name: str, labels: Mapping[str, Sequence[str]], available: Iterable[str]
    ) -> tuple[str, tuple[str, ...], int | None]:
        """Return the column of the file, the fields of structs within, and the element of the list."""
        base, index, match = name, None, None
        if name not in schema.names and (match := INDEXED.match(name)):
            base = match["name"]
        parts = base.split(".")
        for cut in range(len(parts), 0, -1):
            root, inner = ".".join(parts[:cut]), tuple(parts[cut:])
            if root in schema.names:
                kind = schema.field(root).type
                for part in inner:
                    kind = (
                        kind.field(part).type if pa.types.is_struct(kind) and kind.get_field_index(part) >= 0 else None
                    )
                    if kind is None:
                        break
                if kind is None or _is_list(kind) != (match is not None):
                    break
                if match is not None:
                    known = list(labels.get(root, ())) if not inner else []
                    text = match["index"]
                    index = known.index(text) if text in known else int(text) if text.isdecimal() else None
                    size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
                    if index is None or (size is not None and index >= size):
                        break
                return root, inner, index
        raise missing(self.where, name, self.wanted[name], list(available))

    def take(self, batch: pa.RecordBatch) -> None:
        """Take the rows of a batch."""
        lists: dict[tuple[str, tuple[str, ...]], Any] = {}
        for name, (root, inner, index) in self._paths.items():
            values = batch.column(batch.schema.get_field_index(root))
            for part in inner:
                values = pc.struct_field(values, part)
            if index is not None:
                key = (root, inner)
                if key not in lists:
                    lists[key] = self._matrix(name, values)
                    if isinstance(lists[key], np.ndarray) and wants_whole(self._many[key], lists[key].shape[1]):
                        self._matrices.setdefault(key, []).append(lists[key])
                values = lists[key]
                if isinstance(values, np.ndarray):
                    if not wants_whole(self._many[key], values.shape[1]):
                        self._blocks[name].append(np.ascontiguousarray(values[:, index], dtype=np.float64))
                    continue
                values = self._elements(name, values, index)
            self._blocks[name].append(self._numbers(name, values))
        self.rows += len(batch)

    def _matrix(self, name: str, values: Any) -> Any:
        """Return lists of one length without gaps as (rows, length), or the lists themselves."""
        kind = values.type
        if not (pa.types.is_fixed_size_list(kind) and _kind(kind.value_type) == "number") or values.null_count:
            return values
        flat = values.flatten()
        return values if flat.null_count else flat.to_numpy(zero_copy_only=False).reshape(len(values), kind.list_size)

    def _elements(self, name: str, values: Any, index: int) -> Any:
        lengths = pc.list_value_length(values)
        short = np.flatnonzero(pc.fill_null(pc.less_equal(lengths, index), False).to_numpy(zero_copy_only=False))
        if len(short):
            raise LogError(
                f"{self.where}: column {name!r} ({self.wanted[name]}): the list in row {self.rows + int(short[0])} has "
                f"{lengths[int(short[0])].as_py()} elements only (the first row is 0); repair or cut the row"
            )
        return pc.list_element(values, index)

    def _numbers(self, name: str, values: Any) -> Array:
        kind, what = values.type, self.wanted[name]
        if pa.types.is_timestamp(kind):  # as the integers that they are, in the unit of their type
            values, kind = values.cast(pa.int64()), pa.int64()
        try:
            # Not `safe`: a clock in integer nanoseconds does not fit a float64 exactly, and need not.
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                raise pa.ArrowInvalid("text")
            return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                check_text(self.where, name, what, values.to_pylist(), self.rows)
            raise LogError(
                f"{self.where}: column {name!r} ({what}) is of type {kind}, expected numbers; write it as numbers"
            ) from error

    def columns(self) -> dict[str, Array]:
        """Return what was taken: name -> (rows,); columns of lists that were wanted whole are views of a matrix."""
        matrices = {key: _joined(some).astype(np.float64, copy=False) for key, some in self._matrices.items()}
        found = {}
        for name, (root, inner, index) in self._paths.items():
            whole = matrices.get((root, inner))
            if index is None or whole is None:
                found[name] = _joined(self._blocks[name])
            elif self._blocks[name]:
                raise LogError(f"{self.where}: column {name!r} has lists of more than one kind; write them all alike")
            else:
                found[name] = whole[:, index]
        return found


def _joined(blocks: list[Array]) -> Array:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty(0)


class ParquetSource(Source):
    """A Parquet file, one row an instant; or an Arrow IPC file (`.arrow`, `.feather`).

    Args:
        path: the file.
        labels: column of lists -> names of the elements, where something else knows them.
    """

    def __init__(self, path: Path, labels: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(path)
        self.labels = labels or {}
        with self._clear():
            self._file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)

    def _clear(self) -> Damage:
        return Damage(self.path, "Parquet")

    @property
    def schema(self) -> pa.Schema:
        """The schema of the file."""
        return self._file.schema_arrow

    def stated_units(self, recording: str = "") -> dict[str, str]:
        return {field.name: unit for field in self.schema if (unit := stated_unit(field))}

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._file.metadata.num_rows)

    def columns(self, recording: str = "") -> dict[str, Info]:
        with self._clear():
            first = next(self.batches(None, 1), None)
            return describe(self.schema, self.rows, first, self.labels)

    def batches(self, roots: list[str] | None, size: int = BLOCK) -> Iterator[pa.RecordBatch]:
        """Yield the rows in blocks."""
        yield from self._file.iter_batches(batch_size=size, columns=roots, use_threads=False)

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        with self._clear():
            picker = Picker(self.path, self.schema, wanted, self.labels, _Lazily(self))
            for batch in self.batches(picker.roots):
                picker.take(batch)
            return picker.columns()

    def close(self) -> None:
        self._file.close()


class ArrowSource(ParquetSource):
    """An Arrow IPC file (Feather version 2)."""

    def __init__(self, path: Path, labels: Mapping[str, Sequence[str]] | None = None) -> None:
        Source.__init__(self, path)
        self.labels = labels or {}
        with self._clear():
            self._mapped = pa.memory_map(str(path))
            self._reader = pa.ipc.open_file(self._mapped)

    def _clear(self) -> Damage:
        return Damage(self.path, "Arrow")

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    @property
    def rows(self) -> int:
        return sum(self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches))

    def batches(self, roots: list[str] | None, size: int = BLOCK) -> Iterator[pa.RecordBatch]:
        for i in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(i)
            batch.validate(full=True)
            yield batch

    def close(self) -> None:
        self._mapped.close()


class _Lazily(Iterable[str]):
    """The names of a source's columns, looked at only when a message needs them."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.columns())


class Damage:
    """A context in which what a library says of a damaged file becomes one LogError."""

    def __init__(self, path: Path, kind: str, remedy: str = "write the file again, or copy it anew") -> None:
        self.path, self.kind, self.remedy = path, kind, remedy

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, LogError):
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise LogError(f"{self.path}: cannot be read as {self.kind}: {said}; {self.remedy}") from error
