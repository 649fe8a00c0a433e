"""The formats of logs behind one door: `open_source` says what a file or a folder is, and opens it."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim2real.errors import LogError, require
from sim2real.logs.sources.base import Facts, Info, Source

# suffix -> module and class; a module is imported when a file needs it
FORMATS: dict[str, str] = {
    ".csv": "csv_file:CsvSource",
    ".parquet": "columnar:ParquetSource",
    ".arrow": "columnar:ArrowSource",
    ".feather": "columnar:ArrowSource",
    ".npz": "array_files:NpzSource",
    ".json": "json_file:JsonSource",
    ".jsonl": "json_file:JsonLinesSource",
    ".ndjson": "json_file:JsonLinesSource",
    ".hdf5": "hdf5:Hdf5Source",
    ".h5": "hdf5:Hdf5Source",
    ".bag": "bags:RosbagSource",
    ".db3": "bags:RosbagSource",
    ".mcap": "bags:McapSource",
}
# file or folder inside a folder that makes it one data set -> module and class
FOLDERS: dict[str, str] = {
    "meta/info.json": "datasets:LerobotSource",
    "data/main_data.hdf5": "datasets:MinariSource",
    "data/metadata.json": "datasets:MinariSource",
    "metadata.yaml": "bags:open_ros2",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Options:
    """What a schema says of how files are written.

    Attributes:
        header: whether the first line of a CSV file names the columns.
        delimiter: between the cells of a CSV file.
        messages: `.msg` files, or folders of them, for bags without definitions.
    """

    header: bool = True
    delimiter: str = ","
    messages: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """Return the suffix that says the format, without that of a compression: `.csv` of `run.csv.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def is_data_set(path: Path) -> bool:
    """Whether a folder is a data set that is read as a whole."""
    return any((path / inside).exists() for inside in FOLDERS)


def may_hold_several(path: Path) -> bool:
    """Whether a file or data set may hold more than one recording."""
    return suffix_of(path) in (".hdf5", ".h5") or (path.is_dir() and not (path / "metadata.yaml").exists())


@contextmanager
def open_source(path: Path, options: Options = Options()) -> Iterator[Source]:
    """Open a log.

    Args:
        path: a file, compressed or not, or a folder that is a data set.
        options: of its format.

    Raises:
        LogError: it is of no known format, empty or damaged.
        MissingExtraError: reading it takes a package that is not installed.
    """
    if path.is_dir():
        kind = next((kind for inside, kind in FOLDERS.items() if (path / inside).exists()), None)
        if kind is None:
            raise LogError(f"{path}: is no data set; expected a folder with one of {', '.join(FOLDERS)}")
        with _class(kind)(path, **_arguments(kind, options)) as source:
            yield source
        return
    kind = FORMATS.get(suffix_of(path))
    if kind is None:
        raise LogError(
            f"{path}: expected a file that ends in {', '.join(FORMATS)} (or such a one with {', '.join(COMPRESSED)} "
            f"behind it), found {path.suffix or 'no suffix'!r}"
        )
    if path.stat().st_size == 0:
        raise LogError(f"{path}: the file is empty; record it again, or take it out of the folder")
    with _decompressed(path) as plain:
        try:
            opened = _class(kind)(plain, **_arguments(kind, options))
        except LogError as error:
            raise LogError(str(error).replace(str(plain), str(path))) from error
        with opened as source:
            source.path = path
            yield source


def _class(kind: str) -> Any:
    module, name = kind.split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def _arguments(kind: str, options: Options) -> dict[str, Any]:
    if kind.startswith("csv_file:"):
        return {"header": options.header, "delimiter": options.delimiter}
    if kind.startswith("bags:") and options.messages:
        messages: Sequence[Path] = [Path(m) for m in options.messages]
        return {"messages": messages}
    return {}


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """Give the file as it is, or what is in it, in a temporary file that has the room."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sim2real-") as folder:
        plain = Path(folder, path.stem)
        try:
            with _reader(path, suffix) as packed, plain.open("wb") as out:
                while block := packed.read(1 << 20):
                    if shutil.disk_usage(folder).free < 1 << 28:
                        raise LogError(f"{path}: there is no room for what is in it in {folder}; unpack it elsewhere")
                    out.write(block)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, RuntimeError) as error:
            if isinstance(error, LogError):
                raise
            raise LogError(
                f"{path}: cannot be unpacked: {' '.join(str(error).split()) or 'it is cut off'}; copy it anew"
            ) from error
        if plain.stat().st_size == 0:
            raise LogError(f"{path}: holds an empty file; record it again, or take it out of the folder")
        yield plain


def _reader(path: Path, suffix: str) -> Any:
    if suffix == ".zst":
        zstandard = require("zstandard", "logs")
        return _Zstd(path, zstandard)
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers[suffix](path, "rb")


class _Zstd:
    """A zstd file that raises when it is cut off, which its reader passes over in silence."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._file = path.open("rb")
        self._kind = zstandard
        self._object = zstandard.ZstdDecompressor().decompressobj()
        self._error = zstandard.ZstdError

    def read(self, size: int) -> bytes:
        """Return the next block, b"" at the end."""
        while True:
            packed = self._file.read(size)
            if not packed:
                if not self._object.eof:
                    raise EOFError("it is cut off")
                return b""
            try:
                out: bytes = self._object.decompress(packed)
            except self._error as error:
                raise OSError(str(error)) from error
            if out:
                return out

    def __enter__(self) -> _Zstd:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


__all__ = [
    "COMPRESSED",
    "FOLDERS",
    "FORMATS",
    "Facts",
    "Info",
    "Options",
    "Source",
    "is_data_set",
    "may_hold_several",
    "open_source",
    "suffix_of",
]
