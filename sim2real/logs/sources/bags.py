"""ROS 1 bags, ROS 2 bags and MCAP files: each topic is a table, whose columns are the fields of its messages.

`/joint_states:position[elbow]` is a column of the topic `/joint_states`. Every topic has the columns `received` (when
the message was recorded [s]), `stamp` (of its header [s], where it has one), and in MCAP files `published` too.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from struct import Struct
from typing import Any

import numpy as np
import yaml

from sim2real.episodes import Array
from sim2real.errors import LogError, did_you_mean, require
from sim2real.logs.sources.base import Info, Source, missing
from sim2real.logs.sources.columnar import Damage
from sim2real.logs.sources.messages import Taker, list_fields, stamp_of

RECORD, MESSAGE, MESSAGE_CODE = Struct("<BQ"), Struct("<HIQQ"), 0x05  # of MCAP
LARGEST_CHUNK = 1 << 32  # bytes
CLOCKS = ("stamp", "received", "published")


@dataclass(frozen=True)
class Topic:
    """A topic of a bag.

    Attributes:
        kind: type of its messages.
        count: how many there are, where the bag says it.
        decode: bytes of a message -> the message; raises a LogError where nobody knows how.
    """

    kind: str
    count: int | None
    decode: Callable[[bytes], Any]


class _BagSource(Source):
    """What bags have in common. One pass over the file reads all that is wanted; other topics are not decoded."""

    kind: str
    has_published = False

    def __init__(self, path: Path, messages: Sequence[Path] = ()) -> None:
        super().__init__(path)
        self._message_files = messages
        self._stack = ExitStack()
        try:
            with self._clear():
                self.topics = self._open()
        except LogError:
            self._stack.close()
            raise
        self._known: dict[str, Info] | None = None

    def _clear(self) -> Damage:
        return Damage(self.path, self.kind, "record it again, or let the tools of its format repair it")

    @abstractmethod
    def _open(self) -> dict[str, Topic]: ...

    @abstractmethod
    def _messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, int, bytes]]:
        """Yield topic, time of recording [ns], time of publishing [ns] and bytes of each message, in any order."""

    def table_of(self, name: str) -> str:
        return name.partition(":")[0]

    def clock_of(self, table: str, like: str) -> str | None:
        """Return the clock of a topic of the same kind; the time of recording where its messages have no stamp."""
        field = like.partition(":")[2]
        if not table or field not in CLOCKS:
            return None
        return f"{table}:{field}" if f"{table}:{field}" in self.columns() else f"{table}:received"

    def columns(self, recording: str = "") -> dict[str, Info]:
        if self._known is None:
            with self._clear():
                self._known = self._look()
        return self._known

    def _look(self) -> dict[str, Info]:
        found: dict[str, Info] = {}
        for name, topic in self.topics.items():
            clock = Info(name, topic.count, "s")
            found |= {f"{name}:received": clock} | ({f"{name}:published": clock} if self.has_published else {})
            try:
                message = next((topic.decode(raw) for *_, raw in self._messages([name])), None)
            except LogError:
                found[f"{name}:data"] = Info(name, topic.count, kind="other")  # nobody knows how to decode it
                continue
            if message is None:
                continue
            try:
                stamp_of(message)
                found[f"{name}:stamp"] = clock
            except (AttributeError, TypeError):
                pass
            found |= list_fields(name, topic.kind, message, topic.count)
        return found

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        fields: dict[str, dict[str, str]] = {}
        clocks: dict[str, dict[str, array[int]]] = {}
        for name, what in wanted.items():
            topic, _, field = name.partition(":")
            if topic not in self.topics:
                near = did_you_mean(topic, self.topics)
                raise LogError(f"{self.path}: no topic {topic!r} ({what}; column {name!r}){near}")
            if field in CLOCKS and (field != "published" or self.has_published):
                clocks.setdefault(topic, {})[field] = array("q")
            else:
                fields.setdefault(topic, {})[field] = what
        self._check(wanted, fields)
        takers = {t: Taker(f"{self.path}: {t}", some) for t, some in fields.items()}
        plans = {
            t: (self.topics[t].decode, takers.get(t), clocks.get(t, {}), array("q"))
            for t in fields.keys() | clocks.keys()
        }
        with self._clear():
            for topic, received, published, raw in self._messages(list(plans)):
                decode, taker, stamps, order = plans[topic]
                order.append(received)
                message = decode(raw) if taker is not None or "stamp" in stamps else None
                if taker is not None:
                    taker.take(message)
                for kind, column in stamps.items():
                    column.append(
                        stamp_of(message) if kind == "stamp" else received if kind == "received" else published
                    )
        columns = {f"{t}:{field}": values for t, taker in takers.items() for field, values in taker.columns().items()}
        for topic, some in clocks.items():
            # whole nanoseconds become the nearest float64
            columns |= {f"{topic}:{k}": np.frombuffer(v, np.int64) / 1e9 if v else np.empty(0) for k, v in some.items()}
        for topic, (*_, order) in plans.items():  # rows are in the order of recording, whatever that of the file
            times = np.frombuffer(order, np.int64) if order else np.empty(0)
            if (times[1:] < times[:-1]).any():
                sorting = np.argsort(times, kind="stable")
                columns |= {n: v[sorting] for n, v in columns.items() if self.table_of(n) == topic}
        return {name: columns[name] for name in wanted}

    def _check(self, wanted: Mapping[str, str], fields: Mapping[str, Mapping[str, str]]) -> None:
        """Raise the error of the first field that the first message of its topic has not."""
        for topic, some in fields.items():
            kinds = {n: i.kind for n, i in self.columns().items() if i.table == topic}
            if kinds.get(f"{topic}:data") != "other" or len(kinds) > 2 + self.has_published:
                for field in some:
                    name = f"{topic}:{field}"
                    by_number = field.endswith("]") and field[field.rfind("[") + 1 : -1].isdecimal()
                    if name not in kinds and not by_number:
                        raise missing(self.path, name, wanted[name], [n for n in kinds if kinds[n] == "number"])
                    if kinds.get(name) == "text":
                        raise LogError(f"{self.path}: column {name!r} ({wanted[name]}) holds text, expected numbers")

    def close(self) -> None:
        self._stack.close()


class RosbagSource(_BagSource):
    """A ROS 1 bag, or a ROS 2 bag in SQLite: a folder with `metadata.yaml`, or its `.db3` file alone."""

    kind = "a ROS bag"

    def _open(self) -> dict[str, Topic]:
        highlevel, typesys = require("rosbags.highlevel", "logs"), require("rosbags.typesys", "logs")
        if self.path.is_dir():
            bag_files(self.path)
        store = typesys.get_typestore(typesys.Stores.LATEST)
        register(store, self._message_files)
        reader = highlevel.AnyReader([self.path], default_typestore=store)
        self._reader = self._stack.enter_context(reader)
        found = {}
        for name, info in self._reader.topics.items():
            kinds = {c.msgtype for c in info.connections}
            if len(kinds) != 1:
                raise LogError(
                    f"{self.path}: topic {name!r} holds messages of several types: {', '.join(sorted(kinds))}"
                )
            kind = kinds.pop()
            found[name] = Topic(kind, info.msgcount, self._decoder(name, kind))
        return found

    def _decoder(self, topic: str, kind: str) -> Callable[[bytes], Any]:
        store = self._reader.typestore
        if kind not in store.fielddefs:
            return _unknown(
                f"{self.path}: messages of {topic!r} are of type {kind!r}, which the bag does not define; "
                "name its .msg files in the schema: `messages: [path/to/pkg]`"
            )
        decode = store.deserialize_cdr if self._reader.is2 else store.deserialize_ros1
        return lambda raw: decode(raw, kind)

    def _messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, int, bytes]]:
        connections = [c for t in topics for c in self._reader.topics[t].connections]
        for connection, time, raw in self._reader.messages(connections):
            yield connection.topic, time, time, raw


class McapSource(_BagSource):
    """An MCAP file, or a ROS 2 bag in MCAP. Messages in CDR, ROS 1's encoding or JSON; checksums are looked at."""

    kind = "MCAP"
    has_published = True

    def _open(self) -> dict[str, Topic]:
        reader, typesys = require("mcap.reader", "logs"), require("rosbags.typesys", "logs")
        self._typesys = typesys
        self._files: list[tuple[Any, Any, Any]] = []
        found: dict[str, Topic] = {}
        for file in bag_files(self.path) if self.path.is_dir() else [self.path]:
            stream = self._stack.enter_context(file.open("rb"))
            opened = reader.make_reader(stream, validate_crcs=True)
            summary = opened.get_summary()
            if summary is None or summary.statistics is None:
                raise LogError(f"{file}: has no summary: it was not finished; repair it with `mcap recover`")
            self._files.append((stream, opened, summary))
            for identity, channel in summary.channels.items():
                schema = summary.schemas.get(channel.schema_id)
                count = summary.statistics.channel_message_counts.get(identity, 0)
                known = found.get(channel.topic)
                kind = schema.name if schema is not None else ""
                if known is not None and known.kind != kind:
                    raise LogError(
                        f"{file}: topic {channel.topic!r} holds messages of several types: {known.kind}, {kind}"
                    )
                decode = known.decode if known is not None else self._decoder(channel, schema)
                found[channel.topic] = Topic(kind, count + ((known.count or 0) if known is not None else 0), decode)
        return found

    def _decoder(self, channel: Any, schema: Any) -> Callable[[bytes], Any]:
        encoding, form = channel.message_encoding, schema.encoding if schema is not None else ""
        if encoding == "json":
            return json.loads
        if encoding in ("cdr", "ros1") and form in ("ros2msg", "ros1msg"):
            store = self._typesys.get_typestore(self._typesys.Stores.EMPTY)
            store.register(self._typesys.get_types_from_msg(schema.data.decode(), _full(schema.name)))
            decode = store.deserialize_cdr if encoding == "cdr" else store.deserialize_ros1
            return lambda raw: decode(raw, _full(schema.name))
        return _unknown(
            f"{self.path}: messages of {channel.topic!r} are encoded as {encoding or 'unknown'!r} (schema "
            f"{form or 'none'!r}); expected cdr or ros1 with their definitions, or json; convert the file"
        )

    def _messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, int, bytes]]:
        for stream, reader, summary in self._files:
            names = {i: c.topic for i, c in summary.channels.items() if c.topic in topics}
            if summary.chunk_indexes:
                for index in summary.chunk_indexes:
                    if names.keys() & index.message_index_offsets.keys() or not index.message_index_offsets:
                        stream.seek(index.chunk_start_offset + 9)
                        for channel, received, published, raw in self._records(stream):
                            if channel in names:
                                yield names[channel], received, published, raw
            else:
                for _, channel, message in reader.iter_messages(topics=list(topics), log_time_order=False):
                    yield channel.topic, message.log_time, message.publish_time, message.data

    def _records(self, stream: Any) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield channel, the two times and the bytes of each message of a chunk, whose checksum has been looked at.

        The library takes a chunk apart field by field; a message is a header of 22 bytes and its content
        (https://mcap.dev/spec#message-op0x05).
        """
        data_stream, parts = require("mcap.data_stream", "logs"), require("mcap.stream_reader", "logs")
        chunk = require("mcap.records", "logs").Chunk.read(data_stream.ReadDataStream(stream))
        if chunk.uncompressed_size > LARGEST_CHUNK:
            raise LogError(f"{self.path}: a chunk says that it holds {chunk.uncompressed_size:,} bytes; it is damaged")
        inside, size = parts.get_chunk_data_stream(chunk, validate_crc=True)
        data, at = inside.read(size), 0
        while at + RECORD.size <= size:
            code, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            if at + length > size:
                break
            if code == MESSAGE_CODE:
                channel, _, received, published = MESSAGE.unpack_from(data, at)
                yield channel, received, published, data[at + MESSAGE.size : at + length]
            at += length
        if at != size:
            raise LogError(f"{self.path}: a chunk ends within a record; record it again, or run `mcap recover`")


def open_ros2(path: Path, messages: Sequence[Path] = ()) -> _BagSource:
    """Open a ROS 2 bag, whichever storage it is in."""
    mcap = path.is_dir() and all(file.suffix == ".mcap" for file in bag_files(path))
    return McapSource(path, messages) if mcap else RosbagSource(path, messages)


def bag_files(folder: Path) -> list[Path]:
    """Return the files that `metadata.yaml` of a ROS 2 bag names, all inside of its folder.

    Raises:
        LogError: it cannot be read, or names files that are not there or lie elsewhere.
    """
    try:
        names = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))["rosbag2_bagfile_information"][
            "relative_file_paths"
        ]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise LogError(
            f"{folder}/metadata.yaml: cannot be read as that of a ROS 2 bag: {said}; run `ros2 bag reindex`"
        ) from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise LogError(f"{folder}/metadata.yaml: names no files of messages; run `ros2 bag reindex`")
    for name in names:
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts or "\\" in name:
            raise LogError(f"{folder}/metadata.yaml: {name!r} leads out of the bag; do not trust it")
        if not (folder / inner).is_file():
            there = sorted(file.name for file in folder.iterdir())
            raise LogError(f"{folder}: no file {name!r}, which metadata.yaml names{did_you_mean(name, there)}")
    return [folder / name for name in names]


def register(store: Any, files: Sequence[Path]) -> None:
    """Teach a store of types the messages in `.msg` files, or in folders of them.

    Raises:
        LogError: a file is not there or cannot be read.
    """
    typesys = require("rosbags.typesys", "logs")
    for path in files:
        some = sorted(path.rglob("*.msg")) if path.is_dir() else [path]
        if not some or not all(file.is_file() for file in some):
            raise LogError(f"{path}: no such .msg file, and no folder of them (messages of the schema)")
        for file in some:
            package = file.parent.parent.name if file.parent.name == "msg" else file.parent.name
            try:
                store.register(
                    typesys.get_types_from_msg(file.read_text(encoding="utf-8"), f"{package}/msg/{file.stem}")
                )
            except Exception as error:  # parsers raise what they like
                raise LogError(f"{file}: cannot be read as a definition of messages: {error}") from error


def _full(name: str) -> str:
    """Return the name of a type with `msg` in its middle, as ROS 2 has it."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[-1]}" if len(parts) == 2 else name


def _unknown(text: str) -> Callable[[bytes], Any]:
    def refuse(_: bytes) -> Any:
        raise LogError(text)

    return refuse
