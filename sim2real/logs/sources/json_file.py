"""JSON and JSON lines: records of fields, decoded one by one."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import INDEXED, Info, Kind, Source, check_text, missing

LONGEST = 1 << 28  # characters of one value, which is decoded at once
PEEK = 100  # records whose fields are listed
_AFTER = tuple(",]}: \t\n\r")
_BETWEEN = re.compile(r"\}\s*,\s*\{")
BACK = 1 << 16  # characters at the end of a block in which the last record but one is looked for
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonSource(Source):
    """Records in JSON: an array of objects, an object that holds such arrays, or an object of arrays of numbers.

    Records are decoded one by one, so that the file may be larger than the memory. The fields of the records under
    the key `entries` are called `entries.position`; those of nested objects and lists `state.q[0]`. Each array of
    records is a table of its own.
    """

    def columns(self, recording: str = "") -> dict[str, Info]:
        return self._look(None)

    def _look(self, before: str | None) -> dict[str, Info]:
        """Return the columns; only until those have been seen that begin so, where that is given."""
        found: dict[str, Info] = {}
        counts: dict[str, int] = {}
        for table, part in self._parts():
            if isinstance(part, list):
                for name, kind in _fields("", part[0]) if part else ():
                    joint = "." if name and name[0] != "[" else ""
                    found[f"{table}{joint}{name}"] = Info(rows=len(part), kind=kind)
                done = before is not None and before.startswith(table)
            elif (seen := counts.get(table, 0)) < PEEK:
                prefix = f"{table}." if table else ""
                for name, kind in _fields("", part):
                    found.setdefault(prefix + name, Info(table, kind=kind))
                counts[table] = seen + 1
                done = False
            else:
                done = before is not None and before.startswith(table)
            if done:
                break
        return found

    def matching(self, before: str, after: str, recording: str = "") -> dict[str, Info]:
        return {n: i for n, i in self._look(before).items() if n.startswith(before) and n.endswith(after)}

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        fields = _in_vectors(self.path, wanted)
        of: dict[str, list[_Field | _Vector]] = {}
        for table, part in self._parts():
            if table not in of:
                dot = "." if table and not isinstance(part, list) else ""
                of[table] = [f for f in fields if f.begin(table + dot)]
            for field in of[table]:
                for row in part if isinstance(part, list) else (part,):
                    field.take(row)
        columns: dict[str, Array] = {}
        for field in fields:
            for name in field.lost():
                raise missing(self.path, name, wanted[name], list(self.columns()))
            columns |= field.columns()
        return {name: columns[name] for name in wanted}

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield each record with the key of its array, and each array of an object of arrays with its key."""
        try:
            with self.file.open(encoding="utf-8-sig") as file:
                yield from _Stream(file, self.path).parts()
        except (ValueError, RecursionError) as error:
            if isinstance(error, LogError):
                raise
            raise LogError(
                f"{self.path}: cannot be read as JSON text in UTF-8: {' '.join(str(error).split())[:200]}; "
                "repair the file, or cut off what is broken"
            ) from error


class JsonLinesSource(JsonSource):
    """JSON lines: one object a line."""

    def _parts(self) -> Iterator[tuple[str, Any]]:
        decode = json.JSONDecoder().decode
        with self.file.open("rb") as file:
            for number in range(1, 1 << 62):
                line = file.readline(LONGEST)
                if not line:
                    return
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    record = decode(text) if text else None
                except (ValueError, RecursionError) as error:
                    cut = "cannot be read as JSON" if line.endswith(b"\n") else "is cut off"
                    raise LogError(
                        f"{self.path}: line {number} {cut}: {' '.join(str(error).split())[:200]}; repair or cut it"
                    ) from error
                if text:
                    yield "", _an_object(self.path, record, f"line {number}: ")


def _an_object(path: Path, record: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        raise LogError(f"{path}: {where}expected an object of fields, found {str(record)[:40]!r}; repair or cut it")
    return record


class _Stream:
    """The records of a JSON document, decoded as they are asked for."""

    def __init__(self, file: TextIO, path: Path, block: int = 1 << 20) -> None:
        self._file, self._path, self._block = file, path, block
        self._text, self._at, self._kept = "", 0, -1
        self._decode = json.JSONDecoder().raw_decode

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Yield (key, record) and (key, array); the key of the records of the document itself is ""."""
        first = self._peek()
        if first == "[":
            for record in self._elements():
                yield "", _an_object(self._path, record)
        elif first == "{":
            yield from self._members()
        else:
            raise LogError(f"{self._path}: expected an array of records or an object, found {first or 'nothing'!r}")
        if rest := self._peek():
            raise LogError(f"{self._path}: found {rest!r} after the end of the document; cut it off")

    def _members(self) -> Iterator[tuple[str, Any]]:
        self._at += 1
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise LogError(f"{self._path}: expected the name of a field, found {str(key)[:40]!r}")
            self._expect(":")
            if self._begins_records():
                for record in self._elements():
                    yield key, _an_object(self._path, record)
            elif isinstance(value := self._value(), list):
                yield key, value
            if self._expect(",}") == "}":
                return

    def _begins_records(self) -> bool:
        if self._peek() != "[":
            return False
        self._kept = self._at
        self._at += 1
        records = self._peek() == "{"
        self._at, self._kept = self._kept, -1
        return records

    def _elements(self) -> Iterator[Any]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield from self._many()
            yield self._value()
            if self._expect(",]") == "]":
                return

    def _many(self) -> Iterator[Any]:
        """Yield the records of the present block but the last, which may go on in the next one, decoded at once."""
        ends = [match.start() for match in islice(_BETWEEN.finditer(self._text[-BACK:]), 1 << 20)]
        end = len(self._text) - min(BACK, len(self._text)) + ends[-1] + 1 if ends else 0
        if end > self._at:
            try:
                records = json.loads(f"[{self._text[self._at : end]}]")
            except ValueError:
                return  # between records that are inside of others, or in a text: they are decoded one by one
            self._at = end
            yield from records
            self._expect(",")

    def _expect(self, which: str) -> str:
        found = self._peek()
        if not found or found not in which:
            raise LogError(
                f"{self._path}: expected {' or '.join(map(repr, which))}, found "
                f"{repr(found) if found else 'the end of the file'}; repair the file, or cut off what is broken"
            )
        self._at += 1
        return found

    def _peek(self) -> str:
        """Go to the next character that is not a space, and return it; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if self._text[end : end + 1] in _AFTER or not self._more():  # `1.` at the end of a block may go on
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, and drop what was decoded; return whether anything came."""
        done = self._at if self._kept < 0 else self._kept
        left = len(self._text) - done
        if left > LONGEST:
            raise LogError(f"{self._path}: a single value is longer than {LONGEST:,} characters; split the file")
        new = self._file.read(max(self._block, left))
        self._text = self._text[done:] + new
        self._at -= done
        self._kept = min(self._kept, 0)
        return bool(new)


def _fields(name: str, value: Any) -> Iterator[tuple[str, Kind]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value[:1000]):
            yield from _fields(f"{name}[{i}]", inner)
    else:
        yield name, "number" if value is None or isinstance(value, int | float) else "text"


class _Field:
    """One wanted field of the records of one table: how it is found in a record, and the values so far."""

    def __init__(self, path: Path, name: str, what: str) -> None:
        self.path, self.name, self.what = path, name, what
        self.rows, self.found = 0, False
        self._values = array("d")
        self._inner: str | None = None
        self._get: Callable[[Any], Any] | None = None

    def begin(self, prefix: str) -> bool:
        """Whether the field is one of the table whose names begin so, and of none before."""
        if self._inner is None and self.name.startswith(prefix):
            self._inner = self.name[len(prefix) :].removeprefix(".")
            return True
        return False

    def take(self, record: Any) -> None:
        if self._get is None:
            self._get = _getter(record, self._inner or "")
        try:
            self._values.append(self._get(record))
            self.found = True
        except (KeyError, IndexError, TypeError, OverflowError):
            self._values.append(self._odd(record))
        self.rows += 1

    def last(self) -> float:
        """Return the value that was taken last."""
        return self._values[-1]

    def _odd(self, record: Any) -> float:
        """Return NaN for a cell that is not there, or raise for one that holds no number."""
        self._get = _getter(record, self._inner or "")
        try:
            value = self._get(record)
        except (KeyError, IndexError, TypeError):
            self._get = None
            return float("nan")
        self.found = True
        if isinstance(value, int | float) and abs(value) < 1e308:
            return float(value)
        if value is None or value == "":
            return float("nan")
        if isinstance(value, str):
            check_text(self.path, self.name, self.what, [value], self.rows)
            return float(value)
        raise LogError(
            f"{self.path}: column {self.name!r} ({self.what}) must hold numbers, found {str(value)[:40]!r} in row "
            f"{self.rows} (the first is 0); name an element or a field of it"
        )

    def lost(self) -> list[str]:
        """Return the name of the field if no record has it."""
        return [] if self.found else [self.name]

    def columns(self) -> dict[str, Array]:
        """Return name -> the values (rows,)."""
        return {self.name: np.frombuffer(self._values, dtype=np.float64) if self._values else np.empty(0)}


class _Vector:
    """A list of numbers of which every element is wanted: taken whole as long as records have it whole."""

    def __init__(self, path: Path, base: str, what: Mapping[str, str]) -> None:
        self._base, self._width = base, len(what)
        self._fields = [_Field(path, name, text) for name, text in what.items()]
        self._flat = array("d")
        self._get: Callable[[Any], Any] | None = None
        self._inner: str | None = None

    def begin(self, prefix: str) -> bool:
        """Whether the list is one of the table whose names begin so, and of none before."""
        if self._inner is None and self._base.startswith(prefix) and all([f.begin(prefix) for f in self._fields]):
            self._inner = self._base[len(prefix) :].removeprefix(".")
            return True
        return False

    def take(self, record: Any) -> None:
        """Take the list of a record."""
        if self._get is None:
            self._get = _getter(record, self._inner or "")
        before = len(self._flat)
        try:
            values = self._get(record)
            if len(values) == self._width:
                self._flat.extend(values)
                return
        except (KeyError, IndexError, TypeError, OverflowError):
            self._get = None
            del self._flat[before:]
        row = before // self._width
        for field in self._fields:  # one by one, to find what is wrong, or empty
            field.rows = row
            field.take(record)
            self._flat.append(field.last())

    def lost(self) -> list[str]:
        """Return the names of the elements that no record has."""
        return [f.name for f in self._fields if f.rows and not f.found] if not np.isfinite(self._flat).any() else []

    def columns(self) -> dict[str, Array]:
        """Return name -> the values (rows,), views of one matrix."""
        whole = np.frombuffer(self._flat, dtype=np.float64) if self._flat else np.empty(0)
        return {f.name: whole.reshape(-1, self._width)[:, k] for k, f in enumerate(self._fields)}


def _in_vectors(path: Path, wanted: Mapping[str, str]) -> list[_Field | _Vector]:
    """Return how the wanted fields are taken: `q[0]`, `q[1]` and so on to the last as one list, others one by one."""
    bases: dict[str, list[str]] = {}
    for name in wanted:
        match = INDEXED.match(name)
        bases.setdefault(match["name"] if match else name, []).append(name)
    found: list[_Field | _Vector] = []
    for base, names in bases.items():
        if base and len(names) > 1 and names == [f"{base}[{k}]" for k in range(len(names))]:
            found.append(_Vector(path, base, {name: wanted[name] for name in names}))
        else:
            found += [_Field(path, name, wanted[name]) for name in names]
    return found


def _getter(record: Any, name: str) -> Callable[[Any], Any]:
    """Return how `state.q[0]` is got out of a record that is like this one."""
    if not name:
        return lambda r: r
    path = _path(record, name)
    if path is None or len(path) == 1:
        key = name if path is None else path[0]
        return lambda r: r[key]
    if len(path) == 2:
        a, b = path
        return lambda r: r[a][b]

    def get(r: Any) -> Any:
        for key in path:
            r = r[key]
        return r

    return get


def _path(value: Any, name: str) -> tuple[Any, ...] | None:
    """Return the keys and indices that lead to a name; keys may hold dots and brackets themselves."""
    if isinstance(value, dict):
        if name in value:
            return (name,)
        for key in sorted(value, key=len, reverse=True):
            rest = name[len(key) :]
            if key and name.startswith(key) and rest[:1] in (".", "["):
                inner = _path(value[key], rest[1:] if rest[0] == "." else rest)
                if inner is not None:
                    return (key, *inner)
    elif isinstance(value, list):
        end = name.find("]")
        if name.startswith("[") and end > 0 and name[1:end].isdecimal():
            index, rest = int(name[1:end]), name[end + 1 :]
            if index < len(value):
                if not rest:
                    return (index,)
                inner = _path(value[index], rest.removeprefix("."))
                return None if inner is None else (index, *inner)
    return None
