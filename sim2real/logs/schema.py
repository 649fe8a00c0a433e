"""The schema of a log: which column of which file is what, in which unit, on which clock."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from sim2real.episodes import ActionSource, Array
from sim2real.errors import LogError, did_you_mean
from sim2real.logs.sources import FORMATS, Options, suffix_of
from sim2real.logs.units import unit


class _Strict(BaseModel):
    """A part of the schema: unknown keys are mistakes, and the message names the key that was meant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise LogError(f"expected a mapping with the keys {', '.join(cls.model_fields)}, found {data!r}")
        for key in data:
            if key not in cls.model_fields:
                raise LogError(f"unknown key {key!r}{did_you_mean(str(key), cls.model_fields)}")
        return data


class Column(_Strict):
    """A column of a file: the SI value is that of the file in `unit`, times `scale`, plus `offset` (in SI).

    Attributes:
        column: its name; with `*` in it, all columns whose names fit, one for each `*` of the channel's name.
        unit: any that pint reads.
        scale: sign and gain of the sensor.
        offset: in SI units.
        clock: the clock of `clocks` that the column was stamped by, where it is not the one of its group.
        signed_bits: how many bits the file's unsigned integers have that mean two's complement.
    """

    column: str
    unit: str
    scale: FiniteFloat = 1.0
    offset: FiniteFloat = 0.0
    clock: str = ""
    signed_bits: int = Field(0, ge=0, le=52)

    @field_validator("unit", mode="before")
    @classmethod
    def _known_unit(cls, value: Any) -> str:
        unit(str(value).strip())  # YAML reads `unit: 1` as a number
        return str(value).strip()

    @property
    def si(self) -> str:
        """The SI unit that the column is read into."""
        return unit(self.unit).si

    @property
    def factor(self) -> float:
        """SI units in one unit of the file."""
        return unit(self.unit).factor

    @property
    def zero(self) -> float:
        """The SI value of a zero in the file's unit, as of degrees Celsius."""
        return unit(self.unit).offset

    def to_si(self, values: Array) -> Array:
        """Convert values as they stand in the file; any shape."""
        if self.signed_bits:
            negative = values >= 2.0 ** (self.signed_bits - 1)
            values = np.asarray(values - 2.0**self.signed_bits * negative, dtype=np.float64)
        if (self.factor, self.zero, self.scale, self.offset) == (1.0, 0.0, 1.0, 0.0):
            return values
        return (values * self.factor + self.zero) * self.scale + self.offset


class Clock(Column):
    """A clock: a column of stamps, or a rate or period where the log has none. Drift is a `scale`, a shift an `offset`.

    Attributes:
        rate: of the rows [Hz].
        period: from row to row [s].
    """

    column: str = ""
    unit: str = "s"
    rate: PositiveFloat | None = None
    period: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Clock:
        if sum((bool(self.column), self.rate is not None, self.period is not None)) != 1:
            raise LogError("give one of column (of stamps), rate (of the rows, in Hz) and period (in s)")
        return self

    def counted(self, rows: int) -> Array:
        """Return the stamps that a rate or a period gives to so many rows [s]."""
        k = np.arange(rows)
        stamps = k / self.rate if self.rate is not None else k * (self.period or 0.0)
        return np.asarray(self.offset + stamps, dtype=np.float64)


class Joint(_Strict):
    """A joint that `*` stands for.

    Attributes:
        at: what the file calls it: a number or a name; the joint's own name where it is left out.
        sign: 1, or -1 where the log counts the other way round.
    """

    at: str | int | None = None
    sign: Literal[1, -1] = 1


class Csv(_Strict):
    """How CSV files are written.

    Attributes:
        header: whether the first line names the columns; otherwise they are called `[0]`, `[1]`, ...
        delimiter: between cells.
    """

    header: bool = True
    delimiter: str = Field(",", min_length=1, max_length=1)


class Recording(_Strict):
    """What is different for one recording; what is left out is as in the schema, and so are the other channels.

    `command_time: null` puts its commands on the clock of the observations.

    Attributes:
        recording: the recording that this one is another name for, where it is one.
        start: the first time to keep [s], on the clock of the log, as stamped.
        stop: the last time to keep [s], on the same clock.
        excluded: stretches `[from, to]` [s], on the same clock, not to learn from or to score.
    """

    recording: str | None = None
    time: Clock | None = None
    command_time: Clock | None = None
    observations: dict[str, Column] = Field(default_factory=dict)
    actions: dict[str, Column] = Field(default_factory=dict)
    action_source: ActionSource | None = None
    measured_actions: dict[str, Column] = Field(default_factory=dict)
    exogenous: dict[str, Column] = Field(default_factory=dict)
    reward: Column | None = None
    start: float = -float("inf")
    stop: float = float("inf")
    excluded: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Recording:
        for a, b in ((self.start, self.stop), *self.excluded):
            if not a < b:
                raise LogError(f"a stretch must end after it starts, found {a:g} s to {b:g} s")
        return self


@dataclass(frozen=True)
class Layout:
    """How one recording is read: the schema with what is different for the recording put in."""

    recording: str
    time: Clock
    command_time: Clock | None
    observations: Mapping[str, Column]
    actions: Mapping[str, Column]
    action_source: ActionSource
    measured_actions: Mapping[str, Column]
    exogenous: Mapping[str, Column]
    reward: Column | None = None
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    start: float = -float("inf")
    stop: float = float("inf")
    excluded: tuple[tuple[float, float], ...] = ()

    def columns(self) -> Iterator[tuple[str, Column]]:
        """Yield every column with what it is for, as in `("observations.velocity", column)`."""
        yield "time", self.time
        if self.command_time is not None:
            yield "command_time", self.command_time
        for name, clock in self.clocks.items():
            yield f"clocks.{name}", clock
        for group in ("observations", "actions", "measured_actions", "exogenous"):
            for name, column in getattr(self, group).items():
                yield f"{group}.{name}", column
        if self.reward is not None:
            yield "reward", self.reward


class LogSchema(_Strict):
    """Which files make up a recording, and which of their columns are what.

    Attributes:
        file: the one file of a recording, as in `"{name}.csv"`; its columns are named as they are. It may be left out:
            then every log of the folder, or the one that is read, is a recording, or holds several.
        files: or the files that are joined row by row; their columns are named `<file>.<column>`.
        csv: how CSV files are written.
        messages: `.msg` files, or folders of them, for bags that hold no definitions.
        joints: what `*` stands for in the names of channels and columns, in this order: names, or name -> Joint.
        time: clock of the observations, and of the commands where they have none of their own.
        command_time: clock of the commands.
        clocks: further clocks, which columns name as their `clock`: states are brought onto `time` band-limited,
            commands are held.
        observations: name -> column; one row an observation.
        actions: name -> column; the action of row k is in force from row k to row k + 1.
        action_source: whether `actions` is what was asked for or what the actuator reported.
        measured_actions: what the actuator reported, under the names of the actions.
        exogenous: name -> column; known only up to the present (supply voltage).
        reward: of row k, for the step from row k to row k + 1.
        max_gap: longest time between two observations [s] that may be learnt from; a longer one is excluded.
        recordings: what is different for some recordings, and other names for parts of them.
    """

    file: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    csv: Csv = Field(default_factory=lambda: Csv(header=True, delimiter=","))
    messages: tuple[str, ...] = ()
    joints: dict[str, Joint] = Field(default_factory=dict)
    time: Clock
    command_time: Clock | None = None
    clocks: dict[str, Clock] = Field(default_factory=dict)
    observations: dict[str, Column] = Field(min_length=1)
    actions: dict[str, Column] = Field(min_length=1)
    action_source: ActionSource
    measured_actions: dict[str, Column] = Field(default_factory=dict)
    exogenous: dict[str, Column] = Field(default_factory=dict)
    reward: Column | None = None
    max_gap: PositiveFloat | None = None
    recordings: dict[str, Recording] = Field(default_factory=dict)

    @field_validator("joints", mode="before")
    @classmethod
    def _names_or_joints(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {str(name): {} for name in value}
        return {name: joint or {} for name, joint in value.items()} if isinstance(value, Mapping) else value

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> LogSchema:
        """Return the schema in a YAML file, or in a mapping of the same form.

        Raises:
            LogError: the file cannot be read, or what it says cannot be used; the message names the key.
        """
        where, data = "log schema", source
        if not isinstance(source, Mapping):
            where = str(source)
            try:
                data = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise LogError(f"{where}: no such file; a log schema is a YAML file") from None
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise LogError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise LogError(f"{where}: {_first(error)}") from error

    @property
    def patterns(self) -> dict[str, str]:
        """Pattern of each file of a recording; the key is "" where there is only one. Nothing where none is given."""
        if self.file is not None:
            return {"": self.file}
        return self.files

    @property
    def options(self) -> Options:
        """How the files are written."""
        return Options(self.csv.header, self.csv.delimiter, self.messages)

    def source(self, column: Column) -> tuple[str, str]:
        """Return the key of the file that holds a column, and the column's name there."""
        if not self.files:
            return "", column.column
        key, dot, name = column.column.partition(".")
        if (bracket := column.column.find("[")) >= 0 and column.column[:bracket] in self.files:
            key, dot, name = (
                column.column[:bracket],
                ".",
                column.column[bracket:],
            )  # `torque[0]` of a file without names
        if not dot or key not in self.files:
            raise LogError(
                f"column {column.column!r} must name its file first, as in '{next(iter(self.files))}.<column>'"
                f"{did_you_mean(key, self.files)}"
            )
        return key, name

    def layout(self, name: str) -> Layout:
        """Return how the recording `name`, or the one that it is another name for, is read."""
        fields: dict[str, Any] = {key: getattr(self, key) for key in Layout.__dataclass_fields__ if hasattr(self, key)}
        own = self.recordings.get(name, Recording())
        of = own.recording or name
        for part in (self.recordings.get(of, Recording()), own):  # a part of a recording is read as the whole is
            for key in part.model_fields_set - {"recording"}:
                value = getattr(part, key)
                if value is None and key != "command_time":
                    continue
                fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
        return Layout(**{**fields, "recording": of})

    @model_validator(mode="after")
    def _consistent(self) -> LogSchema:
        if self.file is not None and self.files:
            raise LogError("give either 'file' (one file a recording) or 'files' (several, joined row by row)")
        for key, pattern in self.patterns.items():
            _check_pattern(f"files.{key}" if key else "file", pattern)
        self._check_layout("", self.layout(""))
        for name, part in self.recordings.items():
            if part.recording is not None and (other := self.recordings.get(part.recording)) and other.recording:
                raise LogError(f"recordings.{name}: {part.recording!r} is itself another name; name the recording")
            for group in ("observations", "actions", "exogenous"):
                for channel in getattr(part, group):
                    if channel not in getattr(self, group):  # the episodes of a schema have the same channels
                        known = did_you_mean(channel, getattr(self, group))
                        raise LogError(f"recordings.{name}: {group}.{channel} is not in the schema's {group}{known}")
            self._check_layout(f"recordings.{name}: ", self.layout(name))
        return self

    def _check_layout(self, where: str, layout: Layout) -> None:
        for role, column in layout.columns():
            if column.clock and column.clock not in self.clocks:
                raise LogError(
                    f"{where}{role}: no clock {column.clock!r} in clocks{did_you_mean(column.clock, self.clocks)}"
                )
            if isinstance(column, Clock) and not column.column:
                continue
            stars = column.column.count("*")
            if stars and ("*" not in role or isinstance(column, Clock)):
                raise LogError(
                    f"{where}{role}: {column.column!r} stands for several columns; call the channel '*' or 'name_*' too"
                )
            if ("*" in role and not stars) or stars > 1 or role.count("*") > 1:
                raise LogError(f"{where}{role}: expected one * in the channel's name and one in its column")
            try:
                self.source(column)
            except LogError as error:
                raise LogError(f"{where}{role}: {error}") from error
            if isinstance(column, Clock) and column.si != "s":
                raise LogError(f"{where}{role}: expected a unit of time (s, ms, us, ns), found {column.unit!r}")
        if layout.measured_actions and set(layout.measured_actions) != set(layout.actions):
            raise LogError(
                f"{where}measured_actions are {', '.join(layout.measured_actions)}; expected the names of the actions: "
                f"{', '.join(layout.actions)}"
            )
        for name, column in layout.measured_actions.items():
            if column.si != layout.actions[name].si:
                raise LogError(
                    f"{where}measured_actions.{name} is in {column.unit}, the action itself in "
                    f"{layout.actions[name].unit}; they must be of one kind"
                )
        if layout.command_time is None or not (layout.command_time.column and layout.time.column):
            return
        observed, stamped = self.source(layout.time)[0], self.source(layout.command_time)[0]
        for name, column in layout.actions.items():
            if observed != stamped and self.source(column)[0] == observed:
                raise LogError(  # measured torques stamped by the clock of the commands would be shifted silently
                    f"{where}actions.{name} is in file {observed!r}, whose clock is 'time', but command_time is in "
                    f"file {stamped!r}; give the command_time of file {observed!r}, or null for 'time'"
                )


def _check_pattern(where: str, pattern: str) -> None:
    path, rest = PurePosixPath(pattern), pattern.replace("{name}", "")
    if rest == pattern or "{" in rest or "}" in rest:
        raise LogError(f"{where}: {pattern!r} must hold {{name}}, the recording's name, and no other braces")
    if path.is_absolute() or ".." in path.parts or "\\" in pattern:
        raise LogError(f"{where}: {pattern!r} must be a path inside the folder of the logs")
    if path.suffix and suffix_of(Path(pattern)) not in FORMATS:
        raise LogError(
            f"{where}: {pattern!r} must end in one of {', '.join(FORMATS)}, or be a folder that is a data set"
        )


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong, as `observations.velocity: unknown key 'unti'; did you mean unit?`."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if first["type"] == "missing":
        text = "is missing"
    elif cause is not None:
        text = str(cause)
    else:
        text = f"{re.sub('^Input s', 's', first['msg'])}, found {first['input']!r}"
        if first["type"] == "string_type":
            text += " (in YAML, write it in quotes)"
    return f"{path}: {text}" if path else text
