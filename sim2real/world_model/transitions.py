"""Transitions of any environment: what a model of its observations learns from, in memory or on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Episode, all_finite
from sim2real.errors import LogError, ModelError

FORMAT_VERSION = 1
# Rows that are looked at side by side where all have to be.
CHUNK = 65_536
Numbers = NDArray[np.floating[Any]]
Rows = NDArray[np.integer[Any]]
FIELDS = ("observations", "actions", "following")


@dataclass(frozen=True)
class Transitions:
    """N transitions: what was observed, what was done, what was observed next.

    Attributes:
        observations: (N, O) in the units of the environment; a memory-mapped file may be larger than the memory.
        actions: (N, A).
        following: (N, O).
        names: of the O observations.

    Raises:
        LogError: shapes disagree, or a value is not finite; the message names observation and row.
    """

    observations: Numbers
    actions: Numbers
    following: Numbers
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in FIELDS:
            values = getattr(self, field)
            if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
                raise LogError(
                    f"expected {field} of two axes and floating numbers, found {values.shape} {values.dtype}"
                )
        many, width = self.observations.shape
        if self.following.shape != (many, width) or len(self.actions) != many:
            raise LogError(
                f"expected observations (N, O), actions (N, A) and following (N, O), found {self.observations.shape}, "
                f"{self.actions.shape} and {self.following.shape}"
            )
        if not many:
            raise LogError("there is no transition to learn from")
        names = self.names or tuple(f"observation {i}" for i in range(width))
        if len(names) != width:
            raise LogError(f"expected {width} names of observations, found {len(names)}: {', '.join(names)}")
        object.__setattr__(self, "names", names)
        what = {"observations": names, "actions": tuple(f"action {i}" for i in range(self.actions.shape[1]))}
        for field in FIELDS:
            for first, some in self.chunks(field):
                if not all_finite(some):
                    finite = np.isfinite(some)
                    row, column = np.argwhere(~finite)[0]
                    name = what.get(field, names)[column]
                    where = "the following observation" if field == "following" else "the transition"
                    raise LogError(
                        f"{name} is {some[row, column]} in {where} of row {first + row} "
                        f"({(~finite).sum()} such values near there); leave those rows out, or mend them"
                    )

    def __len__(self) -> int:
        return len(self.observations)

    def chunks(self, field: str) -> Iterator[tuple[int, Numbers]]:
        """Return the rows of a field piece by piece, with the number of the first row of each."""
        values: Numbers = getattr(self, field)
        for first in range(0, len(values), CHUNK):
            yield first, values[first : first + CHUNK]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Transitions:
        """Take the transitions of episodes that were recorded step by step; those in excluded stretches are left out.

        Raises:
            LogError: there is none, or observations and actions are not on the same clock.
        """
        require_steps(episodes)
        rows: list[tuple[Numbers, Numbers, Numbers]] = []
        for e in episodes:
            kept = ~e.is_excluded(e.observed_at[:-1], e.observed_at[1:])
            rows.append((e.observations[:-1][kept], e.actions[kept], e.observations[1:][kept]))
        if not rows:
            raise LogError("there is no episode to learn from")
        names = tuple(name for name, _ in episodes[0].channels.observations)
        seen, sent, after = (np.concatenate([r[i] for r in rows]) for i in range(3))
        return cls(seen, sent, after, names)

    def save(self, directory: str | Path) -> None:
        """Write one .npy file a field, and `transitions.json`, into a directory, which is made."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for field in FIELDS:
            # beside the old file, which may be the very one that is mapped
            partial = directory / f"{field}.partial.npy"
            np.save(partial, getattr(self, field), allow_pickle=False)
            partial.replace(directory / f"{field}.npy")
        document = {"format_version": FORMAT_VERSION, "names": self.names}
        (directory / "transitions.json").write_text(json.dumps(document, indent=1))

    @classmethod
    def open(cls, directory: str | Path) -> Transitions:
        """Map what `save` wrote into memory: all rows are looked at once, but none stays there.

        Raises:
            ModelError: files are missing, damaged or of another format.
        """
        directory = Path(directory)
        try:
            document = json.loads((directory / "transitions.json").read_text())
            names = tuple(document["names"])
            arrays = [np.load(directory / f"{field}.npy", mmap_mode="r", allow_pickle=False) for field in FIELDS]
        except FileNotFoundError as error:
            raise ModelError(f"no transitions in {directory}: {Path(error.filename).name} is missing") from None
        except (ValueError, EOFError, KeyError, TypeError) as error:
            raise ModelError(f"the transitions in {directory} are damaged: {error}") from None
        found = document.get("format_version")
        if found != FORMAT_VERSION:
            raise ModelError(f"the transitions in {directory} have format {found}, this version reads {FORMAT_VERSION}")
        seen, sent, after = arrays
        return cls(seen, sent, after, names)


def require_steps(episodes: Sequence[Episode]) -> None:
    """Raise a LogError where episodes were not recorded step by step, or have other channels than the first one."""
    for e in episodes:
        if e.channels != episodes[0].channels:
            raise LogError(f"{e.name} has other channels than {episodes[0].name}; learn from recordings that agree")
        if len(e.commanded_at) != len(e.observed_at) - 1 or (e.commanded_at != e.observed_at[:-1]).any():
            raise LogError(
                f"{e.name}: expected an action at the time of every observation but the last, as an environment "
                "records it; resample it, or learn from it with fit_to_recordings"
            )
