"""Episodes into Parquet of our own, which gives them back as they are.

A file is one episode. Its columns are `time`, `observations.<channel>`, `exogenous.<channel>` (T + 1 rows) and
`command_time`, `actions.<channel>`, `measured_actions.<channel>`, `rewards` (T rows, and an empty last one), each with
its unit in the metadata of the field; the metadata of the schema holds the rest as JSON under the key `sim2real`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import LogError

VERSION = 1
KEY, CHECKSUM = b"sim2real", b"sim2real_sha256"


def write_parquet(episodes: Sequence[Episode], folder: str | Path, overwrite: bool = False) -> list[Path]:
    """Write each episode into `<name>.parquet`; `read_logs(folder)` gives them back, to the last bit.

    Args:
        episodes: with names that differ.
        folder: made where it does not exist.
        overwrite: whether files that are there may be replaced.

    Returns:
        The files.

    Raises:
        LogError: two episodes have one name, or a file is there already.
    """
    folder = Path(folder)
    names = [_file_name(e.name) for e in episodes]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        raise LogError(f"{folder}: two episodes would be written into {twice!r}; give them different names")
    paths = [folder / name for name in names]
    for path in paths:
        if path.exists() and not overwrite:
            raise LogError(f"{path}: is there already; write elsewhere, or with overwrite=True")
    folder.mkdir(parents=True, exist_ok=True)
    for episode, path in zip(episodes, paths, strict=True):
        partial = path.with_suffix(".part")
        pyarrow.parquet.write_table(episode_table(episode), partial, write_page_checksum=True)
        os.replace(partial, path)
    return paths


def _file_name(name: str) -> str:
    # no hidden files, and none without a stem
    return (re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_") + ".parquet"


def episode_table(episode: Episode) -> pa.Table:
    """Return an episode as a table, with all that is not in its columns in the metadata."""
    fields, columns = [], []

    def add(name: str, values: Array, unit: str) -> None:
        fields.append(pa.field(name, pa.float64(), metadata={"unit": unit} if unit else None))
        missing = len(episode.observed_at) - len(values)
        columns.append(
            pa.array(np.append(values, [0.0] * missing), mask=np.arange(len(values) + missing) >= len(values))
        )

    def add_all(group: str, values: Array | None, channels: tuple[tuple[str, str], ...]) -> None:
        if values is not None:
            for k, (name, unit) in enumerate(channels):
                add(f"{group}.{name}", values[:, k], unit)

    add("time", episode.observed_at, "s")
    add_all("observations", episode.observations, episode.channels.observations)
    add_all("exogenous", episode.exogenous, episode.channels.exogenous)
    add("command_time", episode.commanded_at, "s")
    add_all("actions", episode.actions, episode.channels.actions)
    add_all("measured_actions", episode.measured_actions, episode.channels.actions)
    if episode.rewards is not None:
        add("rewards", episode.rewards, "")
    about = {
        "version": VERSION,
        "name": episode.name,
        "action_source": episode.action_source,
        "terminated": episode.terminated,
        "excluded": episode.excluded,
        "channels": {g: getattr(episode.channels, g) for g in ("observations", "actions", "exogenous")},
        "has": [g for g in ("measured_actions", "exogenous", "rewards") if getattr(episode, g) is not None],
        "provenance": with_hashes(episode.provenance),
    }
    text, schema = json.dumps(about).encode(), pa.schema(fields)
    return pa.table(columns, schema=schema.with_metadata({KEY: text, CHECKSUM: _checksum(text, schema)}))


def _checksum(text: bytes, schema: pa.Schema) -> bytes:
    """Return the SHA-256 of the metadata and of the units of columns: pages have checksums, these do not."""
    fields = [(f.name, str(f.type), (f.metadata or {}).get(b"unit", b"").decode()) for f in schema]
    return hashlib.sha256(text + json.dumps(fields).encode()).hexdigest().encode()


def read_episode(path: str | Path) -> Episode:
    """Read a file that `write_parquet` wrote.

    Raises:
        LogError: it is not one, is of a newer version, or is damaged.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            meta = file.schema_arrow.metadata or {}
            if KEY not in meta:
                raise LogError(
                    f"{path}: was not written by this toolkit, so it needs a schema that says which column is what; "
                    f"draft one: sim2real logs schema {path}"
                )
            about = json.loads(meta[KEY])
            if about["version"] != VERSION:
                raise LogError(
                    f"{path}: is of version {about['version']}, this toolkit reads {VERSION}; update the toolkit"
                )
            if meta.get(CHECKSUM) != _checksum(meta[KEY], file.schema_arrow):
                raise LogError(f"{path}: its metadata was changed or damaged; copy it anew")
            table = file.read()
        return _episode(about, table)
    except LogError as error:
        raise error if str(path) in str(error) else LogError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise LogError(f"{path}: no such file") from None
    except Exception as error:  # whatever a damaged file makes its reader raise
        said = " ".join(str(error).split())[:200]
        raise LogError(f"{path}: cannot be read as an episode: {said}; copy it anew") from error


def _episode(about: Mapping[str, Any], table: pa.Table) -> Episode:
    steps = len(table) - 1

    def column(name: str, rows: int) -> Array:
        if name not in table.column_names:
            raise LogError(f"the metadata speaks of column {name!r}, which is not there; copy the file anew")
        values = table[name].slice(0, rows)
        if values.null_count or table[name].null_count != len(table) - rows:
            raise LogError(f"column {name!r} has empty rows where it must not; copy the file anew")
        return np.asarray(values.to_numpy(), dtype=np.float64)

    def group(name: str, channels: Sequence[Sequence[str]], rows: int) -> Array:
        some = [column(f"{name}.{channel}", rows) for channel, _ in channels]
        return np.stack(some, 1) if some else np.empty((rows, 0))

    channels = Channels(**{g: tuple((n, u) for n, u in some) for g, some in about["channels"].items()})
    has = about["has"]
    return Episode(
        name=about["name"],
        observed_at=column("time", steps + 1),
        observations=group("observations", channels.observations, steps + 1),
        commanded_at=column("command_time", steps),
        actions=group("actions", channels.actions, steps),
        action_source=about["action_source"],
        channels=channels,
        measured_actions=group("measured_actions", channels.actions, steps) if "measured_actions" in has else None,
        exogenous=group("exogenous", channels.exogenous, steps + 1) if "exogenous" in has else None,
        rewards=column("rewards", steps) if "rewards" in has else None,
        terminated=bool(about["terminated"]),
        excluded=tuple((float(a), float(b)) for a, b in about["excluded"]),
        provenance=about["provenance"],
    )


def with_hashes(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance with the SHA-256 of each source file, or why it has none: it has changed, or is gone."""
    files = []
    for file in provenance.get("files", ()):
        found = dict(file)
        if "sha256" not in found:
            path = Path(found["path"])
            try:
                stat = path.stat()
                same = (stat.st_size, stat.st_mtime_ns) == (found.get("size"), found.get("modified"))
                if same:
                    with path.open("rb") as stream:
                        found["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
                else:
                    found["note"] = "changed after it was read"
            except OSError:
                found["note"] = "gone after it was read"
        files.append(found)
    return {**provenance, "files": files} if files else dict(provenance)
