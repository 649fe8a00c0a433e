"""Which recordings there are: in a folder, in a file or data set of several, behind a glob, in an archive."""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from glob import escape, has_magic
from glob import glob as glob_paths
from pathlib import Path, PurePosixPath
from typing import IO

from sim2real.errors import LogError, did_you_mean
from sim2real.logs.schema import LogSchema
from sim2real.logs.sources import (
    COMPRESSED,
    FORMATS,
    Options,
    Source,
    is_data_set,
    may_hold_several,
    open_source,
    suffix_of,
)

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Place:
    """Where one recording is: its files by their key in the schema, and its name inside of them."""

    paths: Mapping[str, Path]
    inner: str = ""


@dataclass(frozen=True)
class Skipped:
    """A file or recording that could not be read, and why."""

    name: str
    reason: str


class Opened:
    """The sources that are open; the last few stay so, for the next recording may be in them too."""

    def __init__(self, options: Options, most: int = 8) -> None:
        self._options, self._most = options, most
        self._open: dict[Path, tuple[ExitStack, Source]] = {}

    def get(self, path: Path) -> Source:
        """Open a source, or return the one that is open."""
        if path not in self._open:
            while len(self._open) >= self._most:
                self._open.pop(next(iter(self._open)))[0].close()
            stack = ExitStack()
            self._open[path] = (stack, stack.enter_context(open_source(path, self._options)))
        return self._open[path][1]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1][0].close()


@contextmanager
def unpacked(path: str | Path) -> Iterator[list[Path]]:
    """Give the folder or files that a path means: itself, what a glob matches, or what an archive holds, unpacked.

    Raises:
        LogError: nothing is there, or an archive is damaged or reaches outside of itself.
    """
    if has_magic(str(path)) and not Path(path).exists():
        found = sorted(Path(p) for p in glob_paths(str(path), recursive=True))
        if not found:
            raise LogError(f"{path}: no file or folder fits this pattern")
        yield found
        return
    path = Path(path)
    if not path.is_file() or not path.name.lower().endswith(ARCHIVES):
        if not path.exists():
            parent = path.parent
            there = sorted(file.name for file in parent.iterdir()) if parent.is_dir() else []
            raise LogError(f"{path}: no such folder or file{did_you_mean(path.name, there)}")
        yield [path]
        return
    with tempfile.TemporaryDirectory(prefix="sim2real-") as folder:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    for info in packed.infolist():
                        if stat.S_ISLNK(info.external_attr >> 16):
                            raise LogError(f"{path}: {info.filename!r} is a link; unpack it by hand and look at it")
                        if not info.is_dir():
                            _unpack(path, Path(folder), info.filename, packed.open(info))
            else:
                with tarfile.open(path) as tape:
                    for member in tape:
                        if member.isdir():
                            continue
                        content = tape.extractfile(member) if member.isfile() else None
                        if content is None:
                            raise LogError(
                                f"{path}: {member.name!r} is a link or a device; unpack it by hand and look at it"
                            )
                        _unpack(path, Path(folder), member.name, content)
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError) as error:
            if isinstance(error, LogError):
                raise
            raise LogError(f"{path}: cannot be unpacked: {' '.join(str(error).split())}; copy it anew") from error
        top = [p for p in Path(folder).iterdir() if not p.name.startswith((".", "__MACOSX"))]
        yield top if len(top) == 1 and top[0].is_dir() else [Path(folder)]


def _unpack(archive: Path, folder: Path, name: str, content: IO[bytes]) -> None:
    inner = PurePosixPath(name.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or re.match(r"[A-Za-z]:", name):
        raise LogError(f"{archive}: {name!r} leads out of the archive; do not trust it")
    target = folder / inner
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as out:
        while block := content.read(1 << 20):
            if shutil.disk_usage(folder).free < 1 << 28:
                raise LogError(f"{archive}: there is no room for what is in it in {folder}; unpack it elsewhere")
            out.write(block)


def find_recordings(
    path: Path, schema: LogSchema, opened: Opened, skipped: list[Skipped] | None = None
) -> dict[str, Place]:
    """Return recording -> where it is.

    Args:
        path: a folder, a file, or a folder that is a data set.
        schema: with the pattern of the files' names, or without.
        opened: where files of several recordings are opened.
        skipped: takes what cannot be opened; without it, that is an error.
    """
    if schema.patterns and not is_data_set(path):
        return _by_pattern(path, schema, opened, skipped)
    if path.is_file() or is_data_set(path):
        return _inside(path, _stem(path), opened, alone=True)
    files = sorted(
        file
        for file in path.iterdir()
        if not file.name.startswith(".") and (is_data_set(file) if file.is_dir() else suffix_of(file) in FORMATS)
    )
    if not files:
        raise LogError(
            f"{path}: expected logs that end in {', '.join(FORMATS)} (or such with {', '.join(COMPRESSED)} behind it), "
            f"found {_listed(path)}"
        )
    found: dict[str, Place] = {}
    for file in files:
        some = _of_file(file, _stem(file), opened, skipped)
        for name in some.keys() & found.keys():
            raise LogError(
                f'{path}: two logs are called {name!r}; say which files to read: `file: "{{name}}{file.suffix}"`'
            )
        found |= some
    return found


def _stem(file: Path) -> str:
    if file.is_dir():
        return file.name
    return Path(file.stem).stem if file.suffix.lower() in COMPRESSED else file.stem


def _inside(path: Path, stem: str, opened: Opened, alone: bool) -> dict[str, Place]:
    """Return the recordings of one file or data set; `alone` leaves its own name out of theirs."""
    inner = opened.get(path).recordings() if may_hold_several(path) else [""]
    if inner == [""]:
        return {stem: Place({"": path})}
    return {name if alone else f"{stem}/{name}": Place({"": path}, name) for name in inner}


def _by_pattern(path: Path, schema: LogSchema, opened: Opened, skipped: list[Skipped] | None) -> dict[str, Place]:
    first = next(iter(schema.patterns.values()))
    if path.is_dir():
        matches = path.glob("*".join(escape(part) for part in first.split("{name}")))
        names = [_name(file.relative_to(path), first) for file in matches if file.is_file() or is_data_set(file)]
        if not any(names):
            raise LogError(f"{path}: expected files like {first!r}, found {_listed(path)}")
        found: dict[str, Place] = {}
        for name in sorted(filter(None, names)):
            place = Place(_files(path, schema, name))
            found |= {name: place} if schema.files else _of_file(place.paths[""], name, opened, skipped)
        return found
    for pattern in schema.patterns.values():
        depth = len(Path(pattern).parts)
        if name := _name(Path(*path.parts[-depth:]), pattern):
            place = Place(_files(Path(*path.parts[:-depth]), schema, name))
            return {name: place} if schema.files else _inside(path, name, opened, alone=True)
    if schema.files:
        raise LogError(f"{path}: expected a file like {' or '.join(map(repr, schema.files.values()))}")
    return _inside(path, _stem(path), opened, alone=True)  # named by hand, so the pattern need not fit


def _of_file(path: Path, name: str, opened: Opened, skipped: list[Skipped] | None) -> dict[str, Place]:
    """Return the recordings of a file of a folder, whose name is `name`; none where it is skipped."""
    try:
        some = _inside(path, name, opened, alone=False)
    except LogError as error:
        if skipped is None:
            raise
        skipped.append(Skipped(str(path), str(error)))
        return {}
    return some


def _files(folder: Path, schema: LogSchema, name: str) -> dict[str, Path]:
    return {key: folder / pattern.replace("{name}", name) for key, pattern in schema.patterns.items()}


def _name(file: Path, pattern: str) -> str:
    """Return the recording that a file belongs to by its name, or ''."""
    before, *rest = (re.escape(part) for part in PurePosixPath(pattern).as_posix().split("{name}"))
    match = re.fullmatch(before + r"(?P<name>[^/.][^/]*)" + r"(?P=name)".join(rest), file.as_posix())
    return match["name"] if match else ""


def _listed(folder: Path) -> str:
    there = sorted(file.name for file in folder.iterdir())
    return ", ".join(there[:10]) + (", ..." if len(there) > 10 else "") or "an empty folder"
