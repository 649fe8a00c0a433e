"""From files to the columns of one recording: which there are, which clock stamped them, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sim2real.errors import LogError
from sim2real.logs.find import Opened, Place
from sim2real.logs.raw import Group, RawChannel, RawRecording
from sim2real.logs.rows import Table
from sim2real.logs.schema import Clock, Column, Layout, LogSchema
from sim2real.logs.sources import Facts, Source
from sim2real.logs.units import unit

GROUPS = ("observations", "actions", "measured_actions", "exogenous")


@dataclass(frozen=True)
class Loaded:
    """The columns of one recording, as they stand in its files.

    Attributes:
        name: of the recording.
        layout: which column is what; every `*` has been replaced by what it stands for.
        table: the columns.
        own_clocks: name of a column -> its clock, for those that are stamped by none of the two of the schema.
        tables: name of a column -> the file and the table in it.
        receipts: name of a clock's column -> the column that says when its rows were received, where there is one.
        facts: what the format says beside.
    """

    name: str
    layout: Layout
    table: Table
    own_clocks: Mapping[str, Clock]
    tables: Mapping[str, tuple[str, str]]
    receipts: Mapping[str, str]
    facts: Facts

    def clock_of(self, column: Column) -> Clock | None:
        """Return the clock of a column that is on none of the two of the schema, or None."""
        return self.layout.clocks[column.clock] if column.clock else self.own_clocks.get(column.column)


def load(name: str, place: Place, schema: LogSchema, opened: Opened) -> Loaded:
    """Read the columns of one recording.

    Raises:
        LogError: a file or a column is not there, or cannot be read.
    """
    layout = schema.layout(name)
    keys = {schema.source(c)[0] for role, c in layout.columns() if c.column}
    for key in keys:
        if not place.paths[key].exists():
            raise LogError(f"{place.paths[key]}: no such file; recording {layout.recording!r} needs it as file {key!r}")
    sources = {key: opened.get(place.paths[key]) for key in keys}
    layout = _expand(layout, schema, sources, place.inner)
    layout, own_clocks = _clocks(layout, schema, sources)
    wanted: dict[str, dict[str, str]] = {}
    for role, column in (*layout.columns(), *(("clock", clock) for clock in own_clocks.values())):
        if column.column:
            key, header = schema.source(column)
            wanted.setdefault(key, {}).setdefault(header, role)
    receipts = {}
    for clock in (layout.time, layout.command_time, *layout.clocks.values(), *own_clocks.values()):
        if clock is not None and clock.column:
            key, header = schema.source(clock)
            if receipt := sources[key].receipt_of(header):
                wanted[key].setdefault(receipt, "time of receipt")
                receipts[clock.column] = clock.column.removesuffix(header) + receipt
    _check_units(layout, schema, sources, place.inner)
    columns = {key: sources[key].read(some, place.inner) for key, some in wanted.items()}
    for key, some in columns.items():
        for header, values in some.items():
            if len(values) == 0:
                raise LogError(
                    f"{sources[key].where(place.inner)}: column {header!r} has no rows, only its name; take the file "
                    "out of the folder"
                )
    tables = {}
    for _, column in layout.columns():
        if column.column:
            key, header = schema.source(column)
            tables[column.column] = (key, sources[key].table_of(header))
    facts = next(iter(sources.values())).facts(place.inner)
    return Loaded(name, layout, Table(place.paths, schema, columns), own_clocks, tables, receipts, facts)


def _check_units(layout: Layout, schema: LogSchema, sources: Mapping[str, Source], inner: str) -> None:
    stated = {key: source.stated_units(inner) for key, source in sources.items()}
    for role, column in layout.columns():
        if not column.column:
            continue
        key, name = schema.source(column)
        found = stated[key].get(name)
        if found is not None and unit(found) != unit(column.unit):
            raise LogError(
                f"{sources[key].where(inner)}: column {name!r} ({role}) is in {found!r} by the file itself, the schema "
                f"says {column.unit!r}; correct one of them"
            )


def _expand(layout: Layout, schema: LogSchema, sources: Mapping[str, Source], inner: str) -> Layout:
    """Replace each channel with `*` by those that it stands for."""
    expanded: dict[str, dict[str, Column]] = {}
    for group in GROUPS:
        channels: dict[str, Column] = {}
        for name, column in getattr(layout, group).items():
            some = {name: column} if "*" not in column.column else _stands_for(name, column, schema, sources, inner)
            for twice in some.keys() & channels.keys():
                raise LogError(f"{group}.{twice}: is there twice, once of {name!r}; call one of them otherwise")
            channels |= some
        expanded[group] = channels
    return replace(
        layout,
        observations=expanded["observations"],
        actions=expanded["actions"],
        measured_actions=expanded["measured_actions"],
        exogenous=expanded["exogenous"],
    )


def _stands_for(
    name: str, column: Column, schema: LogSchema, sources: Mapping[str, Source], inner: str
) -> dict[str, Column]:
    if schema.joints:
        return {
            name.replace("*", joint): column.model_copy(
                update={
                    "column": column.column.replace("*", str(joint if how.at is None else how.at)),
                    "scale": column.scale * how.sign,
                    "offset": column.offset * how.sign,
                }
            )
            for joint, how in schema.joints.items()
        }
    key, pattern = schema.source(column)
    before, after = pattern.split("*")
    prefix = column.column[: len(column.column) - len(pattern)]
    known = sources[key].matching(before, after, inner)
    fits = [n for n, i in known.items() if _fits(n, before, after) and i.kind == "number"]
    if not fits:
        there = list(sources[key].columns(inner))
        raise LogError(
            f"{sources[key].where(inner)}: no column of numbers fits {pattern!r} ({name}); available: "
            f"{', '.join(there[:20])}{', ...' if len(there) > 20 else ''}"
        )
    return {
        name.replace("*", n[len(before) : len(n) - len(after)]): column.model_copy(update={"column": prefix + n})
        for n in fits
    }


def _fits(name: str, before: str, after: str) -> bool:
    middle = name[len(before) : len(name) - len(after)]
    return (
        name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after) and "[" not in middle
    )


def _clocks(layout: Layout, schema: LogSchema, sources: Mapping[str, Source]) -> tuple[Layout, dict[str, Clock]]:
    """Find the clocks of the columns that are in other tables than the two clocks of the schema.

    A topic of a bag, for instance, has stamps of its own, of the kind of those that the schema names. Commands that are
    all in one such table get its clock as their command_time.
    """
    if not layout.time.column:
        return layout, {}

    def table(column: Column) -> tuple[str, str]:
        key, name = schema.source(column)
        return key, sources[key].table_of(name)

    def clock(column: Column) -> Clock | None:
        key, name = schema.source(column)
        own = sources[key].clock_of(sources[key].table_of(name), schema.source(layout.time)[1])
        if own is None:
            return None
        prefix = column.column[: len(column.column) - len(name)]
        return layout.time.model_copy(update={"column": prefix + own})

    main = table(layout.time)
    apart = {c.column for _, c in _channels(layout) if table(c) != main and not c.clock and clock(c) is not None}
    if layout.command_time is None and not any(c.clock for c in layout.actions.values()):
        tables = {table(c) for c in layout.actions.values()}
        if len(tables) == 1 and all(c.column in apart for c in layout.actions.values()):
            layout = replace(layout, command_time=clock(next(iter(layout.actions.values()))))
    if layout.command_time is not None and layout.command_time.column:
        stamped = table(layout.command_time)
        for group in ("actions", "measured_actions"):
            apart -= {c.column for c in getattr(layout, group).values() if table(c) == stamped}
    own = {c.column: found for _, c in _channels(layout) if c.column in apart and (found := clock(c)) is not None}
    return layout, own


def _channels(layout: Layout) -> Iterable[tuple[str, Column]]:
    return ((role, c) for role, c in layout.columns() if not isinstance(c, Clock))


def raw_recording(loaded: Loaded) -> RawRecording:
    """Return a recording with nothing checked: every channel on the clock that stamped it."""
    layout, table = loaded.layout, loaded.table
    groups: dict[Group, Mapping[str, Column]] = {
        "observations": layout.observations,
        "actions": layout.actions,
        "measured_actions": layout.measured_actions,
        "exogenous": layout.exogenous,
    }
    channels = []
    for group, columns in groups.items():
        for name, column in columns.items():
            own = loaded.clock_of(column)
            commands = group == "actions" or (
                group == "measured_actions" and column in measured_beside(loaded, layout.command_time)
            )
            clock = own or (layout.command_time if commands and layout.command_time else layout.time)
            values = column.to_si(table.raw(column))
            stamps = clock.to_si(table.raw(clock)) if clock.column else table.clock("time", clock, len(values))
            n = min(len(values), len(stamps))
            label = "time" if clock == layout.time else clock.column or "command_time"
            channels.append(RawChannel(group, name, column.si, stamps[:n], values[:n], table.where(column), label))
    made = "the schema gives its rows a rate or period" if not layout.time.column else ""
    seconds = layout.time.model_copy(update={"unit": "s", "scale": 1.0, "offset": 0.0})
    pairs = tuple(
        (clock, np.stack([table.raw(seconds.model_copy(update={"column": c})) for c in (clock, receipt)], 1))
        for clock, receipt in loaded.receipts.items()
    )
    synthetic = loaded.facts.synthetic or made
    return RawRecording(loaded.name, tuple(channels), layout.action_source, synthetic, layout.excluded, pairs)


def measured_beside(loaded: Loaded, own_clock: Clock | None) -> list[Column]:
    """Return the measured actions on the clock of the commands: those in its table, unless observations share it."""
    tables = loaded.tables
    if own_clock is None or not own_clock.column or tables[own_clock.column] == tables.get(loaded.layout.time.column):
        return []
    return [c for c in loaded.layout.measured_actions.values() if tables[c.column] == tables[own_clock.column]]
