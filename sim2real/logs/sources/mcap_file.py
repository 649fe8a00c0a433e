"""MCAP files: their records, and the topics in them."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any

from sim2real.errors import LogError, require
from sim2real.logs.sources.bag_files import Bounded, bag_files
from sim2real.logs.sources.ros_types import full_name, types_in
from sim2real.logs.sources.topics import BagSource, Decoder, Message, Topic, codec_of

# https://mcap.dev/spec
MAGIC = b"\x89MCAP0\r\n"
RECORD, MESSAGE, FOOTER = Struct("<BQ"), Struct("<HIQQ"), Struct("<BQQQI")
SCHEMA, CHANNEL, INSIDE, CHUNK, STATISTICS, CHUNK_INDEX, DATA_END, END, ATTACHMENT = 3, 4, 5, 6, 11, 8, 15, 2, 9
LARGEST_CHUNK = 1 << 30  # bytes, unpacked
FORMS = {"ros2msg": "msg", "ros1msg": "msg", "ros2idl": "idl", "omgidl": "idl"}
REPAIR = "repair it with `mcap recover`, or copy it anew"


@dataclass
class _Contents:
    """What the end of a file, or a walk through it, says of it."""

    schemas: dict[int, Any] = field(default_factory=dict)
    channels: dict[int, Any] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)  # messages of a channel
    chunks: dict[int, Any] = field(default_factory=dict)  # start -> index


class McapFile:
    """The records of an MCAP file. Checksums are looked at wherever the file has them.

    Raises:
        LogError: the file was cut off or never finished.
        Exception: of the library, for a damaged one.
    """

    def __init__(self, path: Path, stream: Bounded) -> None:
        self.path, self._stream = path, stream
        self._last: tuple[int, bytes] = (-1, b"")
        if stream.read(len(MAGIC)) != MAGIC:
            raise LogError(f"{path}: does not begin as an MCAP file does; it is another format, or damaged")
        tail = FOOTER.size + len(MAGIC)
        stream.seek(max(0, stream.size - tail))
        self._end = stream.read(tail)
        if len(self._end) < tail or self._end[-len(MAGIC) :] != MAGIC or self._end[0] != END:
            raise LogError(f"{path}: ends before its last record: it was cut off, or never finished; {REPAIR}")
        _, _, self._summary_start, _, crc = FOOTER.unpack(self._end[: FOOTER.size])
        self.contents = self._summary(crc) or self._walk_all()

    def _summary(self, crc: int) -> _Contents | None:
        """Read the summary at the end; None where it is not there or says too little."""
        start, stop = self._summary_start, self._stream.size - FOOTER.size - len(MAGIC)
        if start == 0:
            return None
        if not len(MAGIC) <= start <= stop:
            raise LogError(f"{self.path}: its summary is not where the footer says; {REPAIR}")
        self._stream.seek(start)
        data = self._stream.read(stop - start)
        if crc and zlib.crc32(self._end[: FOOTER.size - 4], zlib.crc32(data)) != crc:
            raise LogError(f"{self.path}: the checksum of its summary does not fit; it is damaged; {REPAIR}")
        found, statistics = _Contents(), None
        for code, at, length in self._parts(data):
            content = data[at : at + length]
            if code == STATISTICS:
                statistics = _parsed("Statistics", content)
            elif code == CHUNK_INDEX:
                index = _parsed("ChunkIndex", content)
                found.chunks[index.chunk_start_offset] = index
            else:
                _note(found, code, content)
        if statistics is None:
            return None
        found.counts = dict(statistics.channel_message_counts)
        known = found.counts.keys() <= found.channels.keys() and all(
            c.schema_id == 0 or c.schema_id in found.schemas for c in found.channels.values()
        )
        return found if known and sum(found.counts.values()) == statistics.message_count else None

    def _walk_all(self) -> _Contents:
        found = _Contents()
        for channel, *_ in self._records(lambda _: True, None, found):
            found.counts[channel] = found.counts.get(channel, 0) + 1
        return found

    def messages(self, channels: frozenset[int]) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield channel, time of recording and of publishing [ns], and content of the messages of some channels.

        Raises:
            LogError: there are not as many as the summary says.
        """

        def wanted(start: int) -> bool:
            index = self.contents.chunks.get(start)
            return (
                index is None or not index.message_index_offsets or bool(channels & index.message_index_offsets.keys())
            )

        left = {channel: self.contents.counts.get(channel, 0) for channel in channels}
        for message in self._records(wanted, channels):
            left[message[0]] -= 1
            yield message
        if any(left.values()):
            topics = ", ".join(sorted({self.contents.channels[c].topic for c, n in left.items() if n}))
            raise LogError(f"{self.path}: has not as many messages of {topics} as its summary says; {REPAIR}")

    def _records(
        self, wanted: Callable[[int], bool], channels: frozenset[int] | None, note: _Contents | None = None
    ) -> Iterator[tuple[int, int, int, bytes]]:
        """Walk through the data section: yield its messages, those of chunks only where they are wanted.

        Args:
            wanted: start of a chunk -> whether to look inside.
            channels: that are wanted, or None for all, without their contents.
            note: where to put schemas and channels on the way.
        """
        at, size, crc, whole = len(MAGIC), self._stream.size, zlib.crc32(MAGIC), True
        while True:
            self._stream.seek(at)
            head = self._stream.read(RECORD.size)
            if len(head) < RECORD.size:
                raise LogError(f"{self.path}: ends within a record, at byte {at}; {REPAIR}")
            code, length = RECORD.unpack(head)
            start, at = at, at + RECORD.size + length
            if at > size:
                raise LogError(f"{self.path}: the record at byte {start} says it has {length:,} bytes; {REPAIR}")
            if code in (DATA_END, END):
                expected = int.from_bytes(self._stream.read(4), "little") if code == DATA_END else 0
                behind = self._stream.size - len(MAGIC) - (FOOTER.size if code == DATA_END else 0)
                if at not in (behind, self._summary_start):
                    raise LogError(f"{self.path}: its data ends too early, at byte {start}; {REPAIR}")
                if whole and expected and crc != expected:
                    raise LogError(f"{self.path}: the checksum of its data does not fit; it is damaged; {REPAIR}")
                return
            crc = zlib.crc32(head, crc)
            if code == CHUNK:
                if not wanted(start):
                    whole = False
                    index = self.contents.chunks[start]
                    at += index.message_index_length
                    continue
                whole = False  # it has a checksum of its own
                data = self._unpacked(start, length)
                for inner, where, long in self._parts(data):
                    if inner == INSIDE:
                        channel, _, received, published = MESSAGE.unpack_from(data, where)
                        if channels is None:
                            yield channel, received, published, b""
                        elif channel in channels:
                            yield channel, received, published, data[where + MESSAGE.size : where + long]
                    elif note is not None:
                        _note(note, inner, data[where : where + long])
                continue
            content = b""
            for block in self._blocks(length, whole or code in (INSIDE, SCHEMA, CHANNEL), code != ATTACHMENT):
                crc, content = zlib.crc32(block, crc), block
            if code == INSIDE:
                channel, _, received, published = MESSAGE.unpack_from(content)
                if channels is None or channel in channels:
                    yield channel, received, published, content[MESSAGE.size :]
            elif note is not None:
                _note(note, code, content)

    def _blocks(self, length: int, needed: bool, at_once: bool) -> Iterator[bytes]:
        while needed and length:
            block = self._stream.read(length if at_once else min(length, 1 << 20))
            if not block:
                raise LogError(f"{self.path}: ends within a record; {REPAIR}")
            length -= len(block)
            yield block

    def _parts(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield code, start and length of each record in a block of them."""
        at, size = 0, len(data)
        while at + RECORD.size <= size:
            code, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            if at + length > size or (code == INSIDE and length < MESSAGE.size):
                break
            yield code, at, length
            at += length
        else:
            if at == size:
                return
        raise LogError(f"{self.path}: a chunk ends within a record; {REPAIR}")

    def _unpacked(self, start: int, length: int) -> bytes:
        """Return the records in the chunk at a byte; the last chunk is kept, for the next topic."""
        if self._last[0] == start:
            return self._last[1]
        content = self._stream.read(length)
        chunk = _parsed("Chunk", content)
        if chunk.uncompressed_size > LARGEST_CHUNK:
            raise LogError(
                f"{self.path}: the chunk at byte {start} says it unpacks to {chunk.uncompressed_size:,} bytes; {REPAIR}"
            )
        try:
            data = _unpack(chunk.compression, chunk.data, chunk.uncompressed_size)
        except LogError:
            raise
        except Exception as error:  # each compression has exceptions of its own
            said = " ".join(str(error).split())[:200]
            raise LogError(f"{self.path}: the chunk at byte {start} cannot be unpacked: {said}; {REPAIR}") from error
        if len(data) != chunk.uncompressed_size or (
            chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc
        ):
            raise LogError(
                f"{self.path}: the checksum of the chunk at byte {start} does not fit; it is damaged; {REPAIR}"
            )
        self._last = start, data
        return data


def _unpack(compression: str, data: bytes, size: int) -> bytes:
    if compression == "":
        return data
    if compression == "zstd":
        zstandard = require("zstandard", "logs")
        if zstandard.frame_content_size(data) not in (-1, size):
            raise ValueError("the sizes in it contradict each other")
        return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=size))
    if compression == "lz4":
        unpacker = require("lz4.frame", "logs").LZ4FrameDecompressor()
        return bytes(unpacker.decompress(data, max_length=size + 1))
    raise ValueError(f"unknown compression {compression!r}")


def _parsed(kind: str, content: bytes) -> Any:
    """Return a record, read by the library."""
    stream = require("mcap.data_stream", "logs").ReadDataStream(io.BytesIO(content))
    return getattr(require("mcap.records", "logs"), kind).read(stream)


def _note(found: _Contents, code: int, content: bytes) -> None:
    if code == SCHEMA:
        schema = _parsed("Schema", content)
        found.schemas[schema.id] = schema
    elif code == CHANNEL:
        channel = _parsed("Channel", content)
        found.channels[channel.id] = channel


class McapSource(BagSource):
    """An MCAP file, or a ROS 2 bag in MCAP: messages in CDR or ROS 1's encoding with their definitions, or in JSON."""

    kind = "MCAP"
    clocks = ("received", "published")

    def _open(self) -> dict[str, Topic]:
        self._types = types_in(self._message_files)
        self._files: list[McapFile] = []
        found: dict[str, list[tuple[Any, Any, int]]] = {}
        for path in bag_files(self.path) if self.path.is_dir() else [self.path]:
            file = McapFile(path, self._stack.enter_context(Bounded(path)))
            self._files.append(file)
            for identity, channel in file.contents.channels.items():
                schema = file.contents.schemas.get(channel.schema_id)
                found.setdefault(channel.topic, []).append((channel, schema, file.contents.counts.get(identity, 0)))
        return {name: self._topic(name, some) for name, some in found.items()}

    def _topic(self, name: str, channels: Sequence[tuple[Any, Any, int]]) -> Topic:
        first, schema, _ = channels[0]
        kinds = {(c.message_encoding, s and (s.name, s.encoding, s.data)) for c, s, _ in channels}
        kind = full_name(schema.name) if schema is not None else ""
        several = len(kinds) > 1
        return Topic(
            kind,
            sum(count for *_, count in channels),
            lambda: self._refused(name, channels) if several else self._decoder(name, first, schema, kind),
        )

    def _refused(self, name: str, channels: Sequence[tuple[Any, Any, int]]) -> Decoder:
        kinds = ", ".join(sorted({f"{s.name if s else 'none'} ({c.message_encoding})" for c, s, _ in channels}))
        raise LogError(f"{self.path}: topic {name!r} holds messages of several types: {kinds}; record one a topic")

    def _decoder(self, topic: str, channel: Any, schema: Any, kind: str) -> Decoder:
        encoding, form = channel.message_encoding, schema.encoding if schema is not None else ""
        if encoding == "json":
            return Decoder(json.loads)
        if encoding not in ("cdr", "ros1") or (form not in FORMS and schema is not None and schema.data):
            raise LogError(
                f"{self.path}: messages of {topic!r} are encoded as {encoding or 'unknown'!r} (schema "
                f"{form or 'none'!r}); expected json, or cdr or ros1 with a schema in ros2msg, ros1msg or ros2idl; "
                "convert the file"
            )
        return codec_of(
            self.path, topic, kind, encoding, self._types, schema.data.decode() if schema else "", FORMS.get(form, "")
        )

    def _messages(self, topics: Sequence[str]) -> Iterator[Message]:
        for file in self._files:
            names = {i: c.topic for i, c in file.contents.channels.items() if c.topic in topics}
            for channel, received, published, raw in file.messages(frozenset(names)):
                yield names[channel], received, published, raw
