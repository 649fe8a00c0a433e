"""ROS 1 bags and ROS 2 bags; MCAP files are in `mcap_file`."""

from __future__ import annotations

import bz2
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

from sim2real.errors import LogError, require
from sim2real.logs.sources.bag_files import Bounded, bag_files, check_sqlite, metadata
from sim2real.logs.sources.mcap_file import McapSource
from sim2real.logs.sources.ros_types import types_in
from sim2real.logs.sources.topics import BagSource, Decoder, Message, Topic, codec_of

LENGTH, TIME = Struct("<I"), Struct("<II")
LARGEST_CHUNK = 1 << 30  # bytes, unpacked


class RosbagSource(BagSource):
    """A ROS 1 bag, or a ROS 2 bag: a folder with `metadata.yaml`, or its `.db3` file alone.

    Neither ROS 1 bags nor SQLite have checksums: a damaged number in them cannot be told from another number. Lengths,
    counts and the hashes of definitions are looked at. Bags in MCAP have checksums (`McapSource`).
    """

    kind = "a ROS bag"
    _last = (-1, b"")

    def _open(self) -> dict[str, Topic]:
        self._types = types_in(self._message_files)
        self._one = not self.path.is_dir() and self.path.suffix.lower() not in (".db3", ".mcap")
        if self._one:
            self._reader = require("rosbags.rosbag1", "logs").Reader(_Opened(self.path))
        else:
            for file in bag_files(self.path) if self.path.is_dir() else [self.path]:
                if file.suffix == ".db3":
                    check_sqlite(file)
            self._reader = require("rosbags.rosbag2", "logs").Reader(self.path)
        try:
            self._stack.enter_context(self._reader)
        except Exception as error:
            if "not indexed" in str(error):
                raise LogError(f"{self.path}: was not finished: it has no index; run `rosbag reindex` on it") from error
            raise
        if self._one:
            self._check_index()
        return {name: self._topic(name, info) for name, info in self._reader.topics.items()}

    def _topic(self, name: str, info: Any) -> Topic:
        def decoder() -> Decoder:
            kinds = {c.msgtype for c in info.connections}
            if len(kinds) > 1:
                raise LogError(
                    f"{self.path}: topic {name!r} holds messages of several types: {', '.join(sorted(kinds))}; record "
                    "one a topic"
                )
            first = info.connections[0]
            form = first.msgdef.format.name.lower()
            encoding, text = "ros1" if self._one else "cdr", first.msgdef.data if form != "none" else ""
            return codec_of(
                self.path, name, first.msgtype, encoding, self._types, text, form, first.digest if text else ""
            )

        return Topic(info.msgtype or "", info.msgcount, decoder)

    def _messages(self, topics: Sequence[str]) -> Iterator[Message]:
        connections = [c for t in topics for c in self._reader.topics[t].connections]
        if self._one:
            yield from self._chunks({c.id: c.topic for c in connections})
            return
        left = dict.fromkeys(topics, 0) | {t: self._reader.topics[t].msgcount for t in topics}
        for connection, time, raw in self._reader.messages(connections):
            left[connection.topic] -= 1
            yield connection.topic, time, time, raw
        for topic, missing in left.items():
            if missing > 0:
                raise LogError(
                    f"{self.path}: has {missing:,} messages of {topic!r} less than its metadata says; run `ros2 bag "
                    "reindex`, or copy it anew"
                )

    def _check_index(self) -> None:
        """Check that the index of a ROS 1 bag names every chunk, and lists as many messages as it says."""
        reader, rosbag1 = self._reader, require("rosbags.rosbag1.reader", "logs")
        stream = reader.bio
        stream.seek(0)
        stream.readline()
        header = rosbag1.Header.read(stream)
        stream.seek(header.get_uint64("index_pos"))
        for _ in range(header.get_uint32("conn_count")):
            reader.read_connection()
        counts: Counter[int] = Counter()
        for _ in range(header.get_uint32("chunk_count")):
            counts.update(reader.read_chunk_info().connection_counts)
        behind = stream.read(32)
        if (
            b"op=\x06" in behind
            or b"op=\x07" in behind
            or +counts != +Counter({c: len(i) for c, i in reader.indexes.items()})
        ):
            raise LogError(f"{self.path}: its index does not fit the file; run `rosbag reindex`, or copy it anew")

    def _chunks(self, names: dict[int, str]) -> Iterator[Message]:
        """Yield the messages of some connections of a ROS 1 bag, chunk by chunk."""
        places: dict[int, list[tuple[int, int, int]]] = {}
        for connection in names:
            for time, chunk, offset in self._reader.indexes[connection]:
                places.setdefault(chunk, []).append((offset, connection, time))
        for chunk in sorted(places):
            data = self._unpacked(chunk)
            for offset, connection, time in sorted(places[chunk]):
                header, at, length = _record(data, offset)
                while header[b"op"] == b"\x07":  # a connection, which comes before its first message
                    header, at, length = _record(data, at + length)
                seconds, nanoseconds = TIME.unpack(header[b"time"])
                if (
                    header[b"op"] != b"\x02"
                    or LENGTH.unpack(header[b"conn"])[0] != connection
                    or seconds * 1_000_000_000 + nanoseconds != time
                ):
                    raise LogError(
                        f"{self.path}: the chunk at byte {chunk} holds other messages than its index says; run `rosbag "
                        "reindex`, or copy it anew"
                    )
                yield names[connection], time, time, data[at : at + length]

    def _unpacked(self, chunk: int) -> bytes:
        """Return what is in the chunk at a byte; the last one is kept, for the next topic."""
        if self._last[0] == chunk:
            return self._last[1]
        rosbag1, stream = require("rosbags.rosbag1.reader", "logs"), self._reader.bio
        stream.seek(chunk)
        header = rosbag1.Header.read(stream)
        size, compression = header.get_uint32("size"), header.get_string("compression")
        packed = rosbag1.read_bytes(stream, rosbag1.read_uint32(stream))
        if size > LARGEST_CHUNK:
            raise LogError(f"{self.path}: the chunk at byte {chunk} says it unpacks to {size:,} bytes; copy it anew")
        try:
            data = _unpack(compression, packed, size)
        except Exception as error:  # each compression has exceptions of its own
            said = " ".join(str(error).split())[:200]
            raise LogError(
                f"{self.path}: the chunk at byte {chunk} cannot be unpacked: {said}; copy it anew"
            ) from error
        if len(data) != size:
            raise LogError(
                f"{self.path}: the chunk at byte {chunk} does not unpack to its {size:,} bytes; copy it anew"
            )
        self._last = chunk, data
        return data


class _Opened:
    """A path as rosbags takes one, whose file is bounded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        return self._path.exists()

    def open(self, _: str) -> Bounded:
        return Bounded(self._path)

    def __str__(self) -> str:
        return str(self._path)


def _unpack(compression: str, packed: bytes, size: int) -> bytes:
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(packed, size + 1)
    if compression == "lz4":
        return bytes(require("lz4.frame", "logs").LZ4FrameDecompressor().decompress(packed, max_length=size + 1))
    return packed


def _record(data: bytes, at: int) -> tuple[dict[bytes, bytes], int, int]:
    """Return the header of a record in a chunk of a ROS 1 bag, and start and length of its content.

    Raises:
        ValueError: it leads out of the chunk.
    """
    (size,) = LENGTH.unpack_from(data, at)
    at += 4
    end = at + size
    header = {}
    while at < end:
        (length,) = LENGTH.unpack_from(data, at)
        at += 4
        name, _, value = data[at : at + length].partition(b"=")
        header[name] = value
        at += length
    (length,) = LENGTH.unpack_from(data, end)
    if at != end or end + 4 + length > len(data):
        raise ValueError("a record leads out of its chunk")
    return header, end + 4, length


def open_ros2(path: Path, messages: Sequence[Path] = ()) -> BagSource:
    """Open a ROS 2 bag, whichever storage it is in."""
    plain = path.is_dir() and all(file.suffix == ".mcap" for file in bag_files(path))
    each = plain and str(metadata(path).get("compression_mode", "")).lower() == "message"
    return McapSource(path, messages) if plain and not each else RosbagSource(path, messages)


__all__ = ["McapSource", "RosbagSource", "open_ros2"]
