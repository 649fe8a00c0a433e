"""Reading recordings: files -> columns -> rows of one clock -> an episode in SI units."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sim2real.episodes import Episode
from sim2real.errors import LogError, did_you_mean
from sim2real.logs.assemble import assemble
from sim2real.logs.find import Opened, Place, Skipped, find_recordings, unpacked
from sim2real.logs.load import Loaded, load, raw_recording
from sim2real.logs.raw import RawRecording
from sim2real.logs.schema import LogSchema
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
                episode, notes = assemble(loaded, schema)
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
