"""From the columns of a recording to an episode: which rows, on which clocks, in SI units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from sim2real.align import band_limited, held
from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import LogError
from sim2real.logs.load import Loaded, measured_beside
from sim2real.logs.rows import Rows, pair
from sim2real.logs.schema import Clock, Column, LogSchema

STATES = ("observations", "exogenous", "measured_actions")  # groups that are interpolated; the others are held


def assemble(loaded: Loaded, schema: LogSchema) -> tuple[Episode, list[str]]:
    """Return the episode in the columns of a recording, and what there is to say about it.

    Raises:
        LogError: clocks or values that cannot be used; the message names the row.
    """
    work = _Assembly(loaded)
    return work.episode(schema.max_gap, _provenance(loaded, schema, work.aligned)), [n for n in work.notes if n]


class _Assembly:
    """An episode in the making.

    Columns are of three kinds: those on the clock of the observations, those on the clock of the commands (`stamped`),
    and those on a clock of their own (`apart`).
    """

    def __init__(self, loaded: Loaded) -> None:
        self.name, self.layout, self.table = loaded.name, loaded.layout, loaded.table
        self.notes: list[str] = []
        layout = self.layout
        self.groups: dict[str, Mapping[str, Column]] = {
            "observations": layout.observations,
            "exogenous": layout.exogenous,
            "actions": layout.actions,
            "measured_actions": layout.measured_actions,
            "reward": {} if layout.reward is None else {"reward": layout.reward},
        }
        columns = [c for group in self.groups.values() for c in group.values()]
        self.apart = {c.column: _Apart(loaded, c) for c in columns if loaded.clock_of(c) is not None}
        own = layout.command_time
        commands = [] if own is None else [*layout.actions.values(), *measured_beside(loaded, own)]
        self.stamped = [c for c in commands if c.column not in self.apart]
        self._terminated = loaded.facts.terminated

    @property
    def aligned(self) -> list[str]:
        """What was brought from one clock onto another."""
        return sorted(column.how for column in self.apart.values())

    @cached_property
    def observed_at(self) -> Array:
        """The clock of the observations, all of it: (N,) [s]."""
        here = {
            group: [c for c in columns.values() if c.column not in self.apart and c not in self.stamped]
            for group, columns in self.groups.items()
        }
        states = [self.layout.time, *here["observations"], *here["exogenous"]]
        n, note = self.table.join(states, [*here["actions"], *here["measured_actions"], *here["reward"]])
        self.notes.append(note)
        if n < 2:
            raise LogError(f"{self.table.where(self.layout.time)} has {n} row; an episode needs two at least")
        return self.table.clock("time", self.layout.time, n)

    @cached_property
    def commands(self) -> tuple[Array, Rows | None]:
        """Stamps of the commands (N - 1,) [s], and the rows that they are in; None where each is in its own."""
        clock, observed_at, table = self.layout.command_time, self.observed_at, self.table
        if clock is None or not self.stamped:
            return observed_at[:-1], None
        m, note = table.join([clock], self.stamped)
        stamps = table.clock("command_time", clock, min(m, *(len(table.raw(column)) for column in self.stamped)))
        if stamps[-1] < observed_at[0] or stamps[0] >= observed_at[-1]:
            raise LogError(
                f"{table.where(clock)} (command_time) runs from {stamps[0]:.9g} s to {stamps[-1]:.9g} s, the "
                f"observations from {observed_at[0]:.9g} s to {observed_at[-1]:.9g} s; put both on one clock (offset)"
            )
        rows, commanded_at, more = pair(observed_at, stamps)
        self.notes += [note, more]
        return commanded_at, rows

    @cached_property
    def kept(self) -> tuple[int, int]:
        """The first observation that is kept, and the one after the last."""
        layout, t = self.layout, self.observed_at
        names = {c.column for group in ("observations", "exogenous") for c in self.groups[group].values()}
        ends = [(c.t[0], c.t[-1]) for name, c in self.apart.items() if name in names]
        first, last = max([layout.start, *(a for a, _ in ends)]), min([layout.stop, *(b for _, b in ends)])
        a, b = np.searchsorted(t, [first - 1e-9, last + 1e-9]).tolist()
        if b - a < 2:
            raise LogError(
                f"{self.table.where(layout.time)}: {self.name!r} has fewer than two observations from {first:.9g} s to "
                f"{last:.9g} s (start = {layout.start:g} s to stop = {layout.stop:g} s, and what other clocks cover); "
                f"the clock of the log runs from {t[0]:.9g} s to {t[-1]:.9g} s"
            )
        start, stop = np.searchsorted(t, [layout.start - 1e-9, layout.stop + 1e-9]).tolist()
        if lost := stop - start - (b - a):
            self.notes.append(f"{lost} observations lie outside of what the other clocks cover, and were cut off")
        return a, b

    def rows(self, group: str, stamped: bool) -> Rows | range:
        """Return the rows of a group of columns, on the clock of the observations or on that of the commands."""
        a, b = self.kept
        if group in ("observations", "exogenous"):
            return range(a, b)
        held_rows = self.commands[1]
        if not stamped or held_rows is None:
            return range(a, b - 1)
        some = held_rows[a : b - 1]
        # Before the first stamp nothing was asked for, but what the actuator did is not known: its first report holds.
        return np.maximum(some, 0) if group == "measured_actions" else some

    def stack(self, group: str) -> Array | None:
        """Return the values of a group: (rows, columns), or None where it has no columns. They may not be finite."""
        columns = list(self.groups[group].values())
        if not columns:
            return None
        stamped = columns[0] in self.stamped
        rows = self.rows(group, stamped)
        alike = all(c.column not in self.apart and (c in self.stamped) == stamped for c in columns)
        if alike and (isinstance(rows, range) or (rows[0] >= 0 and (np.diff(rows) == 1).all())):
            return self.table.matrix(columns, int(rows[0]), int(rows[-1]) + 1)
        return np.stack([self._column(group, name, c) for name, c in self.groups[group].items()], 1)

    def _column(self, group: str, name: str, column: Column) -> Array:
        if column.column not in self.apart:
            return self.table.si(f"{group}.{name}", column, self.rows(group, column in self.stamped))
        rows = self.rows(group, stamped=False)
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        if group in STATES:
            return self.apart[column.column].state(self.observed_at[part])
        return self.apart[column.column].command(self.commands[0][part])

    def episode(self, max_gap: float | None, provenance: Mapping[str, Any]) -> Episode:
        """Return the episode."""
        values = {group: self.stack(group) for group in self.groups}
        observations, actions, rewards = values["observations"], values["actions"], values["reward"]
        assert observations is not None
        assert actions is not None
        a, b = self.kept
        t = self.observed_at[a:b]
        try:
            return Episode(
                name=self.name,
                observed_at=t,
                observations=observations,
                commanded_at=self.commands[0][a : b - 1],
                actions=actions,
                action_source=self.layout.action_source,
                channels=Channels(*(_named(self.groups[g]) for g in ("observations", "actions", "exogenous"))),
                measured_actions=values["measured_actions"],
                exogenous=values["exogenous"],
                rewards=None if rewards is None else rewards[:, 0],
                terminated=self._terminated and b == len(self.observed_at),
                excluded=(*self.layout.excluded, *_gaps(t, max_gap)),
                provenance=provenance,
            )
        except LogError:
            for group, columns in self.groups.items():
                for name, column in columns.items():
                    self._column(group, name, column)  # raises for the cell that is at fault, if one is
            raise


class _Apart:
    """A column on a clock of its own."""

    def __init__(self, loaded: Loaded, column: Column) -> None:
        table, clock = loaded.table, loaded.clock_of(column)
        assert isinstance(clock, Clock)
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


def _named(columns: Mapping[str, Column]) -> tuple[tuple[str, str], ...]:
    return tuple((name, column.si) for name, column in columns.items())


def _gaps(t: Array, longest: float | None) -> list[tuple[float, float]]:
    after = [] if longest is None else np.flatnonzero(np.diff(t) > longest).tolist()
    return [(float(t[k]), float(t[k + 1])) for k in after]


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
