"""What a log file is to the reader: recordings, each of tables, each of columns of numbers with names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from sim2real.episodes import ActionSource, Array
from sim2real.errors import LogError, did_you_mean

Kind = Literal["number", "text", "other"]
INDEXED = re.compile(r"^(?P<name>.*)\[(?P<index>[^\[\]]+)\]$")  # x[1] or position[elbow]: an element of each row


@dataclass(frozen=True)
class Info:
    """What is known of a column without reading it.

    Attributes:
        table: the columns of one table have their rows together; a topic of a bag is one. "" where there is only one.
        rows: how many, where that is known without reading.
        unit: as the file or the message's definition has it, or "".
        kind: what the cells hold.
    """

    table: str = ""
    rows: int | None = None
    unit: str = ""
    kind: Kind = "number"


@dataclass(frozen=True)
class Facts:
    """What a format says of a recording beside its columns.

    Attributes:
        synthetic: why the clock was never measured, or "".
        rate: of the rows [Hz], where the format fixes one.
        action_source: where the format says it.
        terminated: whether the last observation is terminal, where the format says it.
    """

    synthetic: str = ""
    rate: float | None = None
    action_source: ActionSource | None = None
    terminated: bool = False


class Source(ABC):
    """An opened log: a file, or a folder that is one data set. A context manager that closes it.

    Columns are read one recording at a time, and only those that are asked for, in blocks: a file larger than the
    memory can be read as long as the wanted columns fit.
    """

    def __init__(self, path: Path) -> None:
        self.file = path  # what is read
        self.path = path  # what messages name: the file as the user knows it, compressed or not

    def recordings(self) -> list[str]:
        """Return the names of the recordings; `[""]` for the only one of a file."""
        return [""]

    @abstractmethod
    def columns(self, recording: str = "") -> dict[str, Info]:
        """Return every column of a recording; elements of vectors as `x[0]`, or by name where the file has names."""

    def matching(self, before: str, after: str, recording: str = "") -> dict[str, Info]:
        """Return the columns whose names begin and end so; a cheaper look than `columns` where there is one."""
        return {n: i for n, i in self.columns(recording).items() if n.startswith(before) and n.endswith(after)}

    @abstractmethod
    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        """Return columns of a recording as float64, one array (rows,) each, as they stand there; an empty cell is NaN.

        Columns of one matrix may be views of it, which spares whoever puts them side by side again a copy.

        Args:
            wanted: name of each column -> what it is for, as messages put it.
            recording: its name.

        Raises:
            LogError: a column is missing or holds no numbers, or the file is damaged.
        """

    def stated_units(self, recording: str = "") -> dict[str, str]:
        """Return the units of the columns that the file itself vouches for; a schema that says otherwise is wrong."""
        return {}

    def table_of(self, name: str) -> str:
        """Return the table of a column, from its name alone."""
        return ""

    def clock_of(self, table: str, like: str) -> str | None:
        """Return the column of a table that is its clock, of the kind of the clock `like`; None where there is none."""
        return None

    def receipt_of(self, clock: str) -> str | None:
        """Return the column that says when the rows of a clock's table were received, where the log has that too."""
        return None

    def facts(self, recording: str = "") -> Facts:
        """Return what the format says beside the columns."""
        return Facts()

    def close(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def where(self, recording: str) -> str:
        """Return the path, and the recording where it has a name, as messages put them."""
        return f"{self.path}: {recording}" if recording else str(self.path)


def check_names(where: object, wanted: Mapping[str, str], available: Iterable[str], hint: str = "") -> None:
    """Raise the LogError of the first wanted column that is not available."""
    names = list(available)
    known = set(names)
    for name, what in wanted.items():
        if name not in known:
            raise missing(where, name, what, names, hint)


def missing(where: object, name: str, what: str, names: list[str], hint: str = "") -> LogError:
    """Return the error for a column that is not there."""
    near = did_you_mean(name, names)
    listed = f" (the file has {', '.join(names[:20])})" if "did you mean" in near else ""
    return LogError(f"{where}: no column {name!r} ({what}){near}{listed}{hint}")


def check_text(where: object, name: str, what: str, values: Iterable[str | None], first: int = 0) -> None:
    """Raise a LogError for the first cell that is text and not a number; `first` is the row of the first cell."""
    for row, value in enumerate(values, start=first):
        if value is not None and value.strip() and not is_number(value):
            raise LogError(
                f"{where}: column {name!r} ({what}) must hold numbers, found the text {value!r} in row {row} "
                f"(the first is 0); repair or cut the row"
            )


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def wants_whole(wanted: int, width: int) -> bool:
    """Whether a matrix of `width` columns is kept whole for the sake of those that are wanted of it."""
    return 4 * wanted >= width


def as_numbers(where: object, name: str, what: str, values: np.ndarray) -> Array:
    """Return an array as float64, or raise a LogError if it does not hold numbers."""
    if values.dtype.kind == "U":
        check_text(where, name, what, values.ravel().tolist())
    if values.dtype.kind not in "biuf":
        raise LogError(f"{where}: column {name!r} ({what}) is of type {values.dtype}, expected numbers")
    return values.astype(np.float64, copy=False)
