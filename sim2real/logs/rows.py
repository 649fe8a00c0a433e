"""Rows: which rows of the files belong together, on one clock and on two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array, all_finite
from sim2real.errors import LogError
from sim2real.logs.schema import Clock, Column, LogSchema

Rows = NDArray[np.int_]


# Rows that are put side by side at a time: few enough to stay in the cache.
AT_ONCE = 2048


@dataclass(frozen=True)
class Table:
    """The columns of one recording as they stand in its files."""

    paths: Mapping[str, Path]
    schema: LogSchema
    columns: Mapping[str, Mapping[str, Array]]

    def raw(self, column: Column) -> Array:
        key, name = self.schema.source(column)
        return self.columns[key][name]

    def where(self, column: Column) -> str:
        if not column.column:
            return f"{next(iter(self.paths.values()))}: the clock of the schema"
        key, name = self.schema.source(column)
        return f"{self.paths[key]}: column {name!r}"

    def si(
        self, role: str, column: Column, rows: Rows | range, mend: str = ", or cut it off with start or stop"
    ) -> Array:
        """Return the SI values of some rows (-1 for none, which reads as zero): the shape of `rows`."""
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows
        raw = np.where(rows >= 0, self.raw(column)[np.maximum(rows, 0)], 0.0)
        if not all_finite(raw):
            bad = int(np.flatnonzero(~np.isfinite(raw))[0])
            raise LogError(
                f"{self.where(column)} ({role}) must hold finite numbers, found {raw[bad]:g} in row {rows[bad]} "
                f"(the first is 0; an empty cell reads as nan); repair the row{mend}"
            )
        return np.where(rows >= 0, column.to_si(raw), 0.0)

    def matrix(self, columns: Sequence[Column], start: int, stop: int) -> Array:
        """Return the SI values of the rows from `start` to before `stop`: (rows, columns). They may not be finite."""
        raw = side_by_side([self.raw(column)[start:stop] for column in columns])
        if any(column.signed_bits for column in columns):
            return np.stack([column.to_si(raw[:, k]) for k, column in enumerate(columns)], 1)
        # x -> (x * factor + offset of the unit) * scale + offset; most columns are in SI units already
        for what, neutral in (("factor", 1.0), ("zero", 0.0), ("scale", 1.0), ("offset", 0.0)):
            row = np.array([getattr(column, what) for column in columns])
            if (row != neutral).any():
                raw = raw * row if neutral else raw + row
        return raw

    def clock(self, role: str, column: Clock, rows: int | None = None) -> Array:
        """Return the first rows of a clock [s]: (rows,); all of it where no number is given."""
        if not column.column:
            return column.counted(rows or 0)
        rows = len(self.raw(column)) if rows is None else rows
        clock = column.to_si(self.raw(column)[:rows])
        if not all_finite(clock):
            self.si(role, column, np.arange(rows), mend="")  # raises, and says where
        rising = clock[1:] > clock[:-1]
        if not rising.all():
            k = int(rising.argmin())
            raise LogError(
                f"{self.where(column)} ({role}) must increase from row to row, found {clock[k]:.9g} s in row {k} and "
                f"{clock[k + 1]:.9g} s in row {k + 1} (the first is 0); sort the rows and drop the repeated ones"
            )
        return clock

    def join(self, states: Sequence[Column], steps: Sequence[Column]) -> tuple[int, str]:
        """Return how many rows the states have together, and a note where files were cut to that.

        The steps between N states stand in N rows, the last of which means nothing, or in N - 1.
        """
        states = [column for column in states if column.column]  # a clock of a rate has as many rows as it must
        rows: dict[str, int] = {}
        for column in (*states, *steps):
            key = self.schema.source(column)[0]
            rows[key] = max(rows.get(key, 0), len(self.raw(column)))
        keys = {self.schema.source(column)[0] for column in states or steps}
        for is_step, column in (*((False, c) for c in states), *((True, c) for c in steps)):
            key = self.schema.source(column)[0]
            missing = rows[key] - len(self.raw(column))
            if missing and not (missing == 1 and is_step and key in keys):
                raise LogError(
                    f"{self.where(column)} has {len(self.raw(column))} rows, others of the file have {rows[key]}; "
                    f"expected as many in all (one less only in actions)"
                )
        n = min(rows[key] for key in keys)
        n = min([n, *(length for key, length in rows.items() if key not in keys and length != n - 1)])
        if all(length == n or (key not in keys and length == n - 1) for key, length in rows.items()):
            return n, ""
        found = ", ".join(f"{self.paths[key].name} has {length} rows" for key, length in rows.items())
        return n, f"{found}; joined row by row and cut to {n}"


def side_by_side(columns: Sequence[Array]) -> Array:
    """Return columns of one length as a matrix (N, C); where they lie evenly in one already, without a copy."""
    first = columns[0]
    at = [column.__array_interface__["data"][0] for column in columns]
    apart = at[1] - at[0] if len(at) > 1 else first.itemsize
    if (
        first.base is not None
        and all(column.base is first.base and column.strides == first.strides for column in columns)
        and all(b - a == apart for a, b in pairwise(at))
    ):
        return np.lib.stride_tricks.as_strided(first, (len(first), len(columns)), (first.strides[0], apart))
    matrix = np.empty((len(first), len(columns)))
    for start in range(0, len(first), AT_ONCE):
        for k, column in enumerate(columns):
            matrix[start : start + AT_ONCE, k] = column[start : start + AT_ONCE]
    return matrix


def pair(observed_at: Array, stamps: Array) -> tuple[Rows, Array, str]:
    """Return which command is in force in each of the T steps between T + 1 observations.

    Command k belongs to step k as it is, with its own stamp, where there are T or T + 1 commands and each is in force
    at some time of its step. Otherwise a step gets the last command stamped by its first observation, or none.

    Args:
        observed_at: (T + 1,) clock of the observations [s].
        stamps: (M,) clock of the commands [s].

    Returns:
        Row of each command (T,), -1 for none; its stamp (T,) [s]; a note where stamps were moved.
    """
    steps = len(observed_at) - 1
    if len(stamps) in (steps, steps + 1):
        until = np.append(stamps[1:], np.inf)[:steps]
        if bool(((stamps[:steps] < observed_at[1:]) & (until > observed_at[:-1])).all()):
            return np.arange(steps), stamps[:steps], ""
    start = observed_at[:-1]
    held = np.searchsorted(stamps, start + 1e-9, side="right") - 1
    inside = (stamps > start[0]) & (stamps < observed_at[-1])
    used, first = np.unique(held[held >= 0], return_index=True)
    moved = (start[held >= 0][first] - stamps[used])[inside[used]]
    late = max(0.0, float(moved.max(initial=0.0)))
    lost = int(inside.sum()) - len(moved)
    note = (
        f"{len(stamps)} commands do not pair with {steps} steps between observations, so they were held onto the "
        f"observations: {lost} of them fell between two and are lost, the others act up to {late:.3g} s late"
    )
    return held, start, note
