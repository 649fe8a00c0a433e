"""Reading recordings: files -> columns -> rows of one clock -> an episode in SI units."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sim2real.align import band_limited, held
from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import LogError, did_you_mean
from sim2real.logs.find import Opened, Place, Skipped, find_recordings, unpacked
from sim2real.logs.load import Loaded, load, measured_beside, raw_recording
from sim2real.logs.raw import RawRecording
from sim2real.logs.rows import Rows, pair
from sim2real.logs.schema import Clock, Column, LogSchema
from sim2real.logs.write import read_episode

OnError = Literal["raise", "skip"]


class Logs(list[Episode]):
    """The episodes that were read; `skipped` lists what could not be, where errors were to be skipped."""

    skipped: tuple[Skipped, ...] = ()


def read_logs(
    path: str | Path,
    schema: LogSchema | str | Path | Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> Logs:
    """Read recordings, in SI units, on the clocks that they were recorded with.

    With N rows there are N observations and T = N - 1 transitions: the action of row k is in force from row k to row
    k + 1, and that of the last row is dropped. Actions may also have N - 1 rows. What is rounded or cut on the way is
    said in one warning each:

    - Files of different length are joined row by row and cut to the shortest.
    - Commands with a clock of their own (`command_time`) keep it as long as each is in force at some time of its own
      row, from one observation to the next. Otherwise they are held onto the rows of the observations: a row gets the
      last command stamped before it, or zero before the first one.
    - Other columns with a clock of their own (another topic, or a `clock`) are brought onto the observations: states
      band-limited, actions and rewards held. The recording is cut to the stretch that all of the states cover.

    Args:
        path: a folder of recordings; one file, to read just what is in it; a folder that is a data set (LeRobot,
            Minari, a ROS 2 bag); a glob (`logs/*/run_*.csv`); or a zip or tar archive. Files may be compressed.
        schema: which files make up a recording, and which of their columns are what: a schema, its YAML file or the
            same as a mapping. Episodes that this toolkit has written (`write_parquet`) need none.
        names: recordings to read, in this order; also other names of the schema for parts of them. None reads all
            recordings of the folder, sorted by name, and no other names for parts of them.
        on_error: "skip" leaves out what cannot be read, and lists it in `skipped` of the result and in a warning.

    Returns:
        One episode a recording.

    Raises:
        LogError: a recording, file or column does not exist, or what it holds cannot be used; with "skip", only where
            nothing at all can be read.
        MissingExtraError: the format takes a package that is not installed.
    """
    if on_error not in ("raise", "skip"):
        raise LogError(f"on_error must be 'raise' or 'skip', found {on_error!r}")
    logs = Logs()
    skipped: list[Skipped] | None = [] if on_error == "skip" else None
    if schema is None:
        with unpacked(path) as places:
            for file in _our_files(places):
                with _skipping(file.stem, skipped):
                    logs.append(read_episode(file))
        logs = Logs(_picked(path, {e.name: e for e in logs}, names))
    else:
        schema = schema if isinstance(schema, LogSchema) else LogSchema.load(schema)
        for loaded in load_recordings(path, schema, names, skipped):
            with _skipping(loaded.name, skipped):
                episode, notes = _episode(loaded, schema)
                for note in notes:
                    warnings.warn(f"{loaded.name}: {note}", stacklevel=2)
                logs.append(episode)
    if skipped:
        logs.skipped = tuple(skipped)
        first = f"{skipped[0].name}: {skipped[0].reason}"
        if not logs:
            raise LogError(f"{path}: none of {len(skipped)} recordings can be read; the first: {first}")
        warnings.warn(f"{path}: {len(skipped)} recordings were skipped; the first: {first}", stacklevel=2)
    return logs


def load_recordings(
    path: str | Path, schema: LogSchema, names: Sequence[str] | None = None, skipped: list[Skipped] | None = None
) -> Iterator[Loaded]:
    """Yield the columns of each recording, as they stand in its files; see `read_logs`.

    Args:
        path: what to read.
        schema: which column is what.
        names: recordings to read; None for all.
        skipped: takes what cannot be read; without it, that is an error.
    """
    with unpacked(path) as places, Opened(schema.options) as opened:
        found: dict[str, Place] = {}
        for place in places:
            some = find_recordings(place, schema, opened, skipped)
            for twice in some.keys() & found.keys():
                raise LogError(f"{path}: two of the logs are called {twice!r}; read them one after the other")
            found |= some
        is_folder = len(places) == 1 and places[0].is_dir()
        for name in _chosen(path, schema, names, found, is_folder):
            with _skipping(name, skipped):
                yield load(name, found[schema.layout(name).recording], schema, opened)


def read_raw(
    path: str | Path,
    schema: LogSchema,
    names: Sequence[str] | None = None,
    skipped: list[Skipped] | None = None,
) -> list[RawRecording]:
    """Read recordings as they stand in their files, with nothing checked or repaired; arguments as `load_recordings`.

    Raises:
        LogError: a file or a column is not there or cannot be read, and `skipped` is None.
    """
    return [raw_recording(loaded) for loaded in load_recordings(path, schema, names, skipped)]


@contextmanager
def _skipping(name: str, skipped: list[Skipped] | None) -> Iterator[None]:
    try:
        yield
    except LogError as error:
        if skipped is None:
            raise
        skipped.append(Skipped(name, str(error)))


def _chosen(
    path: str | Path, schema: LogSchema, names: Sequence[str] | None, found: Mapping[str, Place], is_folder: bool
) -> list[str]:
    """Return the names of the recordings to read, all of which exist."""
    aliases = {name: part.recording for name, part in schema.recordings.items() if part.recording}
    for name in sorted(found.keys() & aliases.keys()):
        raise LogError(f"{path}: {name!r} is a recording and, in the schema, another name for {aliases[name]!r}")
    if names is None and is_folder:
        for name in sorted(schema.recordings.keys() - aliases.keys() - found.keys()):
            known = did_you_mean(name, found)
            warnings.warn(f"{path}: the schema speaks of recording {name!r}, which is not there{known}", stacklevel=4)
    readable = [*found, *(name for name, of in aliases.items() if of in found)]
    for name in names or ():
        if name not in readable:
            of = aliases.get(name, name)
            part = "" if of == name else f", of which {name!r} is a part"
            raise _no_recording(path, of, part, readable)
    return sorted(found) if names is None else list(names)


def _no_recording(path: str | Path, name: str, part: str, readable: Sequence[str]) -> LogError:
    near = did_you_mean(name, readable)
    listed = f" (there are {', '.join(readable)})" if "did you mean" in near else ""
    return LogError(f"{path}: no recording {name!r}{part}{near}{listed}")


def _our_files(places: Sequence[Path]) -> list[Path]:
    files = [f for p in places for f in (sorted(p.glob("*.parquet")) if p.is_dir() else [p])]
    wrong = [f for f in files if f.suffix.lower() != ".parquet"] or ([] if files else list(places[:1]))
    if wrong:
        raise LogError(
            f"{wrong[0]}: needs a schema that says which column is what; draft one: sim2real logs schema {wrong[0]}"
        )
    return files


def _picked(path: str | Path, found: Mapping[str, Episode], names: Sequence[str] | None) -> list[Episode]:
    for name in names or ():
        if name not in found:
            raise _no_recording(path, name, "", list(found))
    return [found[name] for name in (sorted(found) if names is None else names)]


def _episode(loaded: Loaded, schema: LogSchema) -> tuple[Episode, list[str]]:
    """Return the episode in the columns of a recording, and what there is to say about it."""
    name, layout, table = loaded.name, loaded.layout, loaded.table
    own_clock, measured = layout.command_time, layout.measured_actions
    rewards = {} if layout.reward is None else {"reward": layout.reward}
    apart = [c for role, c in layout.columns() if not isinstance(c, Clock) and loaded.clock_of(c) is not None]
    stamped = [] if own_clock is None else [*layout.actions.values(), *measured_beside(loaded, own_clock)]
    stamped = [column for column in stamped if column not in apart]
    steps = [*layout.actions.values(), *measured.values(), *rewards.values()]
    states = [layout.time, *layout.observations.values(), *layout.exogenous.values()]
    n, note = table.join(
        [column for column in states if column not in apart],
        [column for column in steps if column not in stamped and column not in apart],
    )
    notes = [note]
    if n < 2:
        raise LogError(f"{table.where(layout.time)} has {n} row; an episode needs two at least")
    observed_at = table.clock("time", layout.time, n)
    held_rows, commanded_at = None, observed_at[:-1]
    if own_clock is not None and stamped:
        m, note = table.join([own_clock], stamped)
        stamps = table.clock("command_time", own_clock, min(m, *(len(table.raw(column)) for column in stamped)))
        if stamps[-1] < observed_at[0] or stamps[0] >= observed_at[-1]:
            raise LogError(
                f"{table.where(own_clock)} (command_time) runs from {stamps[0]:.9g} s to {stamps[-1]:.9g} s, the "
                f"observations from {observed_at[0]:.9g} s to {observed_at[-1]:.9g} s; put both on one clock (offset)"
            )
        held_rows, commanded_at, more = pair(observed_at, stamps)
        notes += [note, more]

    others = {c.column: _Apart(loaded, c) for c in apart}
    first = max([layout.start, *(o.t[0] for c, o in others.items() if _is_state(c, states))])
    last = min([layout.stop, *(o.t[-1] for c, o in others.items() if _is_state(c, states))])
    a, b = np.searchsorted(observed_at, [first - 1e-9, last + 1e-9]).tolist()
    if b - a < 2:
        raise LogError(
            f"{table.where(layout.time)}: {name!r} has fewer than two observations from {first:.9g} s to {last:.9g} s "
            f"(start = {layout.start:g} s to stop = {layout.stop:g} s, and what other clocks cover); the clock "
            f"of the log runs from {observed_at[0]:.9g} s to {observed_at[-1]:.9g} s"
        )
    start, stop = np.searchsorted(observed_at, [layout.start - 1e-9, layout.stop + 1e-9]).tolist()
    if stop - start > b - a:
        notes.append(
            f"{stop - start - b + a} observations lie outside of what the other clocks cover, and were cut off"
        )
    rows, step = range(a, b), range(a, b - 1)
    held_step = step if held_rows is None else held_rows[a : b - 1]

    # group -> its columns, and their rows: on the clock of the observations, and on that of the commands
    groups: dict[str, tuple[Mapping[str, Column], range, Rows | range]] = {
        "observations": (layout.observations, rows, rows),
        "actions": (layout.actions, step, held_step),
        # Before the first stamp nothing was asked for, but what the actuator did is not known: its first report holds.
        "measured_actions": (measured, step, held_step if isinstance(held_step, range) else np.maximum(held_step, 0)),
        "exogenous": (layout.exogenous, rows, rows),
        "reward": (rewards, step, held_step),
    }

    def stack(group: str) -> Array | None:
        columns, at, at_stamped = groups[group]
        some = list(columns.values())
        if not some:
            return None
        mixed = any(c in apart for c in some) or len({c in stamped for c in some}) > 1
        together = at_stamped if some[0] in stamped else at
        if not mixed and (isinstance(together, range) or (together[0] >= 0 and (np.diff(together) == 1).all())):
            return table.matrix(some, int(together[0]), int(together[-1]) + 1)
        parts = []
        for name, column in columns.items():
            if column in apart:
                values = others[column.column]
                parts.append(
                    values.state(observed_at[at.start : at.stop])
                    if group in _STATES
                    else values.command(commanded_at[at.start : at.stop])
                )
            else:
                parts.append(table.si(f"{group}.{name}", column, at_stamped if column in stamped else at))
        return np.stack(parts, 1)

    observations, actions, rewarded = stack("observations"), stack("actions"), stack("reward")
    assert observations is not None
    assert actions is not None
    try:
        episode = Episode(
            name=name,
            observed_at=observed_at[a:b],
            observations=observations,
            commanded_at=commanded_at[a : b - 1],
            actions=actions,
            action_source=layout.action_source,
            channels=Channels(*(_channels(groups[g][0]) for g in ("observations", "actions", "exogenous"))),
            measured_actions=stack("measured_actions"),
            exogenous=stack("exogenous"),
            rewards=None if rewarded is None else rewarded[:, 0],
            terminated=loaded.facts.terminated and b == n,
            excluded=(*layout.excluded, *_gaps(observed_at[a:b], schema.max_gap)),
            provenance=_provenance(loaded, schema, sorted(o.how for o in others.values())),
        )
    except LogError:
        for group, (columns, at, at_stamped) in groups.items():  # the cell that is at fault, if one is
            for name, column in columns.items():
                if column not in apart:
                    table.si(f"{group}.{name}", column, at_stamped if column in stamped else at)
        raise
    return episode, [note for note in notes if note]


def _channels(columns: Mapping[str, Column]) -> tuple[tuple[str, str], ...]:
    return tuple((name, column.si) for name, column in columns.items())


_STATES = ("observations", "exogenous", "measured_actions")


def _is_state(column: str, states: Sequence[Column]) -> bool:
    return any(c.column == column for c in states)


class _Apart:
    """A column on a clock of its own."""

    def __init__(self, loaded: Loaded, column: Column) -> None:
        table, clock = loaded.table, loaded.clock_of(column)
        assert clock is not None
        n = len(table.raw(column))
        if clock.column:
            n = min(n, len(table.raw(clock)))
        self.t = table.clock("clock", clock, n)
        self.values = table.si("on its own clock", column, np.arange(n))
        self.how = f"{column.column}: from the clock {clock.column or f'of {n} rows'}"

    def state(self, at: Array) -> Array:
        return band_limited(self.t, self.values, at)

    def command(self, at: Array) -> Array:
        return held(self.t, self.values, at)


def _gaps(observed_at: Array, longest: float | None) -> list[tuple[float, float]]:
    if longest is None:
        return []
    after = np.flatnonzero(np.diff(observed_at) > longest)
    return [(float(observed_at[k]), float(observed_at[k + 1])) for k in after]


def _provenance(loaded: Loaded, schema: LogSchema, aligned: Sequence[str]) -> dict[str, Any]:
    files = [
        {"path": str(path), "size": path.stat().st_size, "modified": path.stat().st_mtime_ns}
        for path in dict.fromkeys(loaded.table.paths.values())
        if path.is_file()
    ]
    what: dict[str, Any] = {"files": files, "schema": schema.model_dump(mode="json", exclude_unset=True)}
    if loaded.facts.synthetic:
        what["synthetic_clock"] = loaded.facts.synthetic
    if aligned:
        what["aligned"] = list(aligned)
    return what
