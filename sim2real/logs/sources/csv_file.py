"""CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import Info, Source, check_names, check_text, is_number


class CsvSource(Source):
    """A CSV file, whose first line names the columns; without such a line they are called `[0]`, `[1]`, ...

    Args:
        path: the file.
        header: whether the first line names the columns.
        delimiter: between cells.
    """

    def __init__(self, path: Path, header: bool = True, delimiter: str = ",") -> None:
        super().__init__(path)
        self.header, self.delimiter = header, delimiter
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                first = next(csv.reader(file, delimiter=delimiter), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise LogError(f"{path}: cannot be read as CSV text in UTF-8: {error}") from error
        self.names = [name.strip() for name in first] if header else [f"[{i}]" for i in range(len(first))]
        numeric = header and bool(self.names) and all(map(is_number, self.names))
        self._hint = (
            "; the first line must be the names of the columns; where there is none, say `csv: {header: false}`"
            if numeric
            else ""
        )

    def columns(self, recording: str = "") -> dict[str, Info]:
        return {name: Info() for name in self.names}

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        check_names(self.path, wanted, self.names, self._hint)
        for name in wanted:
            if self.names.count(name) > 1:
                raise LogError(f"{self.path}: {self.names.count(name)} columns are called {name!r}; rename one of them")
        try:
            table = self._table(wanted, pa.float64())
        except pa.ArrowInvalid as error:
            if "Could not skip initial" in str(error) or "Empty CSV file" in str(error):
                return {name: np.empty(0) for name in wanted}  # a header without so much as an end of line
            if "conversion error" in str(error):
                for name, column in zip(wanted, self._table(wanted, pa.string()).columns, strict=True):
                    check_text(self.path, name, wanted[name], column.to_pylist())
            raise LogError(f"{self.path}: {error}; repair or cut the row") from error
        return {name: table[name].to_numpy() for name in wanted}

    def _table(self, wanted: Mapping[str, str], kind: pa.DataType) -> pa.Table:
        return pyarrow.csv.read_csv(
            self.file,
            # Without threads, a message about a row names it.
            read_options=pyarrow.csv.ReadOptions(
                column_names=self.names, skip_rows=int(self.header), use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter),
            # Types are given, not guessed: a guess is made from the first block, and a later one may not fit it.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, kind), include_columns=list(wanted), strings_can_be_null=True
            ),
        )
