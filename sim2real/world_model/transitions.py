"""Transitions of any environment: what a model of its observations learns from, in memory or on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        outcomes: name -> (N,), what came with each: numbers, such as a reward, or truth values, such as an end.

    Raises:
        LogError: shapes disagree, or a value is not finite; the message names observation and row.
    """

    observations: Numbers
    actions: Numbers
    following: Numbers
    names: tuple[str, ...] = ()
    outcomes: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in FIELDS:
            values = getattr(self, name)
            if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
                raise LogError(f"expected {name} of two axes and floating numbers, found {values.shape} {values.dtype}")
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
        for part in FIELDS:
            for first, some in self.chunks(part):
                if not all_finite(some):
                    finite = np.isfinite(some)
                    row, column = np.argwhere(~finite)[0]
                    name = what.get(part, names)[column]
                    where = "the following observation" if part == "following" else "the transition"
                    raise LogError(
                        f"{name} is {some[row, column]} in {where} of row {first + row} "
                        f"({(~finite).sum()} such values near there); leave those rows out, or mend them"
                    )
        for name, outcome in self.outcomes.items():
            if outcome.shape != (many,):
                raise LogError(f"expected the outcome {name} of shape ({many},), found {outcome.shape}")
            if outcome.dtype != bool and not all_finite(np.asarray(outcome, float)):
                row = int(np.flatnonzero(~np.isfinite(outcome))[0])
                raise LogError(f"the outcome {name} is {outcome[row]} in row {row}; leave that row out, or mend it")

    def __len__(self) -> int:
        return len(self.observations)

    def chunks(self, part: str) -> Iterator[tuple[int, Numbers]]:
        """Return the rows of a field piece by piece, with the number of the first row of each."""
        values: Numbers = getattr(self, part)
        for first in range(0, len(values), CHUNK):
            yield first, values[first : first + CHUNK]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Transitions:
        """Take the transitions of episodes that were recorded step by step; those in excluded stretches are left out.

        Outcomes are `terminated`, and `reward` where all episodes have rewards.

        Raises:
            LogError: there is none, or observations and actions are not on the same clock.
        """
        require_steps(episodes)
        rows: list[tuple[Numbers, Numbers, Numbers]] = []
        ends, rewards = [], []
        for e in episodes:
            kept = ~e.is_excluded(e.observed_at[:-1], e.observed_at[1:])
            rows.append((e.observations[:-1][kept], e.actions[kept], e.observations[1:][kept]))
            ends.append((e.terminated & (np.arange(len(e)) == len(e) - 1))[kept])
            if e.rewards is not None:
                rewards.append(e.rewards[kept])
        if not rows:
            raise LogError("there is no episode to learn from")
        names = tuple(name for name, _ in episodes[0].channels.observations)
        seen, sent, after = (np.concatenate([r[i] for r in rows]) for i in range(3))
        outcomes: dict[str, NDArray[Any]] = {"terminated": np.concatenate(ends)}
        if len(rewards) == len(episodes):
            outcomes["reward"] = np.concatenate(rewards)
        return cls(seen, sent, after, names, outcomes)

    def save(self, directory: str | Path) -> None:
        """Write one .npy file a field, and `transitions.json`, into a directory, which is made."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        parts = {part: getattr(self, part) for part in FIELDS} | {_file(n): v for n, v in self.outcomes.items()}
        for part, values in parts.items():
            # beside the old file, which may be the very one that is mapped
            partial = directory / f"{part}.partial.npy"
            np.save(partial, values, allow_pickle=False)
            partial.replace(directory / f"{part}.npy")
        document = {"format_version": FORMAT_VERSION, "names": self.names, "outcomes": list(self.outcomes)}
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
            outcomes = document.get("outcomes", [])
            parts = (*FIELDS, *map(_file, outcomes))
            arrays = [np.load(directory / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in parts]
        except FileNotFoundError as error:
            raise ModelError(f"no transitions in {directory}: {Path(error.filename).name} is missing") from None
        except (ValueError, EOFError, KeyError, TypeError) as error:
            raise ModelError(f"the transitions in {directory} are damaged: {error}") from None
        found = document.get("format_version")
        if found != FORMAT_VERSION:
            raise ModelError(f"the transitions in {directory} have format {found}, this version reads {FORMAT_VERSION}")
        seen, sent, after, *came = arrays
        return cls(seen, sent, after, names, dict(zip(outcomes, came, strict=True)))


def _file(outcome: str) -> str:
    """Return the name of an outcome's file.

    Raises:
        ModelError: the outcome's name is none for a file.
    """
    if not re.fullmatch(r"[\w.-]+", outcome):
        raise ModelError(
            f"expected an outcome named by letters, digits, dots, dashes and underscores, found {outcome!r}"
        )
    return f"outcome.{outcome}"


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
