"""Reading recordings: files -> columns -> rows of one clock -> an episode in SI units."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path, PurePosixPath

import numpy as np

from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import LogError, did_you_mean
from sim2real.logs.rows import Rows, Table, pair
from sim2real.logs.schema import Column, Layout, LogSchema
from sim2real.logs.tables import read_columns


def read_logs(path: str | Path, schema: LogSchema, names: Sequence[str] | None = None) -> list[Episode]:
    """Read recordings, in SI units, on the clocks that they were recorded with.

    With N rows there are N observations and T = N - 1 transitions: the action of row k is in force from row k to row
    k + 1, and that of the last row is dropped. Actions may also have N - 1 rows. What is rounded or cut on the way is
    said in one warning each:

    - Files of different length are joined row by row and cut to the shortest.
    - Commands with a clock of their own (`command_time`) keep it as long as each is in force at some time of its own
      row, from one observation to the next. Otherwise they are held onto the rows of the observations: a row gets the
      last command stamped before it, or zero before the first one.

    Args:
        path: the folder of the recordings, or one file to read just the recording that it belongs to.
        schema: which files make up a recording, and which of their columns are what.
        names: recordings to read, in this order; also other names of the schema for parts of them. None reads all
            recordings of the folder, sorted by name, and no other names for parts of them.

    Returns:
        One episode a recording.

    Raises:
        LogError: a recording, file or column does not exist, or what it holds cannot be used.
    """
    found = _recordings(Path(path), schema)
    aliases = {name: part.recording for name, part in schema.recordings.items() if part.recording}
    for name in sorted(found.keys() & aliases.keys()):
        raise LogError(f"{path}: {name!r} is a recording and, in the schema, another name for {aliases[name]!r}")
    if names is None and Path(path).is_dir():
        for name in sorted(schema.recordings.keys() - aliases.keys() - found.keys()):
            known = did_you_mean(name, found)
            warnings.warn(f"{path}: the schema speaks of recording {name!r}, which is not there{known}", stacklevel=2)
    readable = [*found, *(name for name, of in aliases.items() if of in found)]
    episodes = []
    for name in sorted(found) if names is None else names:
        if name not in readable:
            of = aliases.get(name, name)
            part = "" if of == name else f", of which {name!r} is a part"
            near = did_you_mean(of, readable)
            listed = f" (there are {', '.join(readable)})" if "did you mean" in near else ""
            raise LogError(f"{path}: no recording {of!r}{part}{near}{listed}")
        layout = schema.layout(name)
        episode, notes = _read(name, found[layout.recording], schema, layout)
        for note in notes:
            warnings.warn(f"{name}: {note}", stacklevel=2)
        episodes.append(episode)
    return episodes


def _recordings(path: Path, schema: LogSchema) -> dict[str, dict[str, Path]]:
    """Return recording -> key -> file, from the files that match the first pattern of the schema."""
    if path.is_dir():
        first = next(iter(schema.patterns.values()))
        matches = path.glob("*".join(escape(part) for part in first.split("{name}")))
        names = [_name(file.relative_to(path), first) for file in matches if file.is_file()]
        if not any(names):
            there = sorted(file.name for file in path.iterdir())
            shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "")
            raise LogError(f"{path}: expected files like {first!r}, found {shown or 'an empty folder'}")
        return {name: _files(path, schema, name) for name in sorted(filter(None, names))}
    if not path.is_file():
        parent = path.parent
        there = sorted(file.name for file in parent.iterdir()) if parent.is_dir() else []
        raise LogError(f"{path}: no such folder or file{did_you_mean(path.name, there)}")
    for pattern in schema.patterns.values():
        depth = len(Path(pattern).parts)
        if name := _name(Path(*path.parts[-depth:]), pattern):
            return {name: _files(Path(*path.parts[:-depth]), schema, name)}
    if schema.file is None:
        raise LogError(f"{path}: expected a file like {' or '.join(map(repr, schema.files.values()))}")
    return {path.stem: {"": path}}  # named by hand, so the pattern need not fit


def _files(folder: Path, schema: LogSchema, name: str) -> dict[str, Path]:
    return {key: folder / pattern.replace("{name}", name) for key, pattern in schema.patterns.items()}


def _name(file: Path, pattern: str) -> str:
    """Return the recording that a file belongs to by its name, or ''."""
    before, *rest = (re.escape(part) for part in PurePosixPath(pattern).as_posix().split("{name}"))
    match = re.fullmatch(before + r"(?P<name>[^/.][^/]*)" + r"(?P=name)".join(rest), file.as_posix())
    return match["name"] if match else ""


def _read(name: str, paths: Mapping[str, Path], schema: LogSchema, layout: Layout) -> tuple[Episode, list[str]]:
    """Read one recording; also return what there is to say about it."""
    wanted: dict[str, dict[str, str]] = {}
    for role, column in layout.columns():
        key, header = schema.source(column)
        wanted.setdefault(key, {})[header] = role
    for key in wanted:
        if not paths[key].is_file():
            raise LogError(f"{paths[key]}: no such file; recording {layout.recording!r} needs it as file {key!r}")
    table = Table(paths, schema, {key: read_columns(paths[key], columns) for key, columns in wanted.items()})

    own_clock, measured = layout.command_time, layout.measured_actions
    stamped = [] if own_clock is None else [*layout.actions.values(), *_beside(schema, layout, own_clock)]
    steps = [column for column in (*layout.actions.values(), *measured.values()) if column not in stamped]
    n, note = table.join([layout.time, *layout.observations.values(), *layout.exogenous.values()], steps)
    notes = [note]
    if n < 2:
        raise LogError(f"{table.where(layout.time)} has {n} row; an episode needs two at least")
    observed_at = table.clock("time", layout.time, n)
    held, commanded_at = np.arange(n - 1), observed_at[:-1]
    if own_clock is not None:
        m, note = table.join([own_clock], stamped)
        stamps = table.clock("command_time", own_clock, min(m, *(len(table.raw(column)) for column in stamped)))
        if stamps[-1] < observed_at[0] or stamps[0] >= observed_at[-1]:
            raise LogError(
                f"{table.where(own_clock)} (command_time) runs from {stamps[0]:.9g} s to {stamps[-1]:.9g} s, the "
                f"observations from {observed_at[0]:.9g} s to {observed_at[-1]:.9g} s; put both on one clock (offset)"
            )
        held, commanded_at, more = pair(observed_at, stamps)
        notes += [note, more]

    rows = np.flatnonzero((observed_at >= layout.start - 1e-9) & (observed_at <= layout.stop + 1e-9))
    if len(rows) < 2:
        raise LogError(
            f"{paths[schema.source(layout.time)[0]]}: {name!r} has fewer than two observations from start = "
            f"{layout.start:g} s to stop = {layout.stop:g} s; the clock of the log runs from {observed_at[0]:.9g} s to "
            f"{observed_at[-1]:.9g} s"
        )
    step = rows[:-1]

    def stack(group: str, columns: Mapping[str, Column], at: Rows, at_stamped: Rows) -> Array:
        read = ((f"{group}.{k}", column, at_stamped if column in stamped else at) for k, column in columns.items())
        return np.stack([table.si(*part) for part in read], 1)

    groups = (layout.observations, layout.actions, layout.exogenous)
    episode = Episode(
        name=name,
        observed_at=observed_at[rows],
        observations=stack("observations", layout.observations, rows, rows),
        commanded_at=commanded_at[step],
        actions=stack("actions", layout.actions, step, held[step]),
        action_source=layout.action_source,
        channels=Channels(*(tuple((k, column.si) for k, column in group.items()) for group in groups)),
        # Before the first stamp nothing was asked for, but what the actuator did is not known: its first report holds.
        measured_actions=stack("measured_actions", measured, step, np.maximum(held[step], 0)) if measured else None,
        exogenous=stack("exogenous", layout.exogenous, rows, rows) if layout.exogenous else None,
        excluded=layout.excluded,
    )
    return episode, [note for note in notes if note]


def _beside(schema: LogSchema, layout: Layout, own_clock: Column) -> list[Column]:
    """Return the measured actions on the clock of the commands: those in its file, unless the observations share it."""
    file = schema.source(own_clock)[0]
    if file == schema.source(layout.time)[0]:
        return []
    return [column for column in layout.measured_actions.values() if schema.source(column)[0] == file]
