"""The files of bags, and how they are opened without trust in what they say."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sim2real.errors import LogError, did_you_mean


class Bounded(io.BufferedReader):
    """A file that is never asked for more than it has: a damaged length must not take the memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), 1 << 16)
        self.size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.size:
            raise ValueError(f"a length of {size:,} bytes is more than the file has")
        return super().read(size)


def check_sqlite(file: Path) -> None:
    """Raise a LogError where a file of SQLite is cut off, or was never closed; SQLite passes over both."""
    for ending in ("-wal", "-journal"):
        beside = file.with_name(file.name + ending)
        if beside.exists() and beside.stat().st_size:
            raise LogError(
                f"{file}: was not closed: part of it is still in {beside.name}; run `sqlite3 {file.name} 'PRAGMA "
                "wal_checkpoint(TRUNCATE)'` on a copy"
            )
    with file.open("rb") as stream:
        head = stream.read(100)
    # https://www.sqlite.org/fileformat.html#the_database_header: the size counts where both versions are the same
    if head[:16] == b"SQLite format 3\0" and len(head) == 100 and head[24:28] == head[92:96]:
        page, pages = int.from_bytes(head[16:18]), int.from_bytes(head[28:32])
        size = pages * (65_536 if page == 1 else page)
        if file.stat().st_size < size:
            raise LogError(
                f"{file}: is cut off: it has {file.stat().st_size:,} of its {size:,} bytes; copy it anew, or run "
                "`sqlite3` with `.recover` on it"
            )


def metadata(folder: Path) -> Any:
    """Return what `metadata.yaml` of a ROS 2 bag says.

    Raises:
        LogError: it cannot be read.
    """
    try:
        found = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        found["relative_file_paths"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise LogError(
            f"{folder}/metadata.yaml: cannot be read as that of a ROS 2 bag: {said}; run `ros2 bag reindex`"
        ) from error
    return found


def bag_files(folder: Path) -> list[Path]:
    """Return the files that `metadata.yaml` of a ROS 2 bag names, all inside of its folder.

    Raises:
        LogError: it cannot be read, or names files that are not there or lie elsewhere.
    """
    names = metadata(folder)["relative_file_paths"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise LogError(f"{folder}/metadata.yaml: names no files of messages; run `ros2 bag reindex`")
    for name in names:
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts or "\\" in name:
            raise LogError(f"{folder}/metadata.yaml: {name!r} leads out of the bag; do not trust it")
        if not (folder / inner.name).is_file():  # bags of version 3 have the folder's name before it
            there = sorted(file.name for file in folder.iterdir())
            raise LogError(f"{folder}: no file {name!r}, which metadata.yaml names{did_you_mean(name, there)}")
    return [folder / PurePosixPath(name).name for name in names]
