"""Topics of bags as tables: what ROS bags and MCAP files have in common."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import LogError, did_you_mean
from sim2real.logs.sources.base import Info, Source, missing
from sim2real.logs.sources.columnar import Damage
from sim2real.logs.sources.messages import Element, Field, Path, Taker, list_fields, parse, stamp_of
from sim2real.logs.sources.ros_types import Codec, Types, known

Message = tuple[str, int, int, bytes]  # topic, time of recording and of publishing [ns], content
SECOND = 1_000_000_000  # [ns]; one int divided by another is rounded once


@dataclass(frozen=True)
class Decoder:
    """What turns the bytes of a message into its fields.

    Attributes:
        decode: bytes -> the message.
        stamp: bytes -> the stamp of the header [ns], where that can be had without the rest.
    """

    decode: Callable[[bytes], Any]
    stamp: Callable[[bytes], int] | None = None


@dataclass(frozen=True)
class Topic:
    """A topic of a bag.

    Attributes:
        kind: type of its messages.
        count: how many there are, where the bag says it.
        decoder: makes the decoder; raises a LogError where nobody knows how to decode.
    """

    kind: str
    count: int | None
    decoder: Callable[[], Decoder]


@dataclass(frozen=True)
class _Look:
    """What the first message of a topic shows."""

    fields: Mapping[str, Field]
    decoder: Decoder | None
    stamped: bool


class BagSource(Source):
    """Topics as tables. One pass over the file reads all that is wanted; other topics are not decoded.

    `/joint_states:position[elbow]` is a column of the topic `/joint_states`. Every topic has the columns `received`
    (when the message was recorded [s]) and `stamp` (of its header [s], where it has one), and in MCAP files
    `published`. The rows of a topic are in the order of `received`.

    Args:
        path: of the file or folder.
        messages: `.msg` files, or folders of them, for types that the bag does not define.
    """

    kind: str
    clocks: tuple[str, ...] = ("received",)  # that every message has

    def __init__(self, path: FilePath, messages: Sequence[FilePath] = ()) -> None:
        super().__init__(path)
        self._message_files = messages
        self._stack = ExitStack()
        self._looks: dict[str, _Look] = {}
        try:
            with self._clear():
                self.topics = self._open()
        except BaseException:
            self._stack.close()
            raise

    def _clear(self) -> Damage:
        return Damage(self.path, self.kind, "record it again, or let the tools of its format repair it")

    @abstractmethod
    def _open(self) -> dict[str, Topic]: ...

    @abstractmethod
    def _messages(self, topics: Sequence[str]) -> Iterator[Message]:
        """Yield the messages of topics, in any order; `topics` is not empty."""

    def split(self, name: str) -> tuple[str, str]:
        """Return the topic and the field of a column; a topic's name may hold a colon."""
        topic, _, field = name.partition(":")
        if topic not in self.topics:
            fitting = [t for t in self.topics if name.startswith(f"{t}:")]
            if fitting:
                topic = max(fitting, key=len)
                field = name[len(topic) + 1 :]
        return topic, field

    def table_of(self, name: str) -> str:
        return self.split(name)[0]

    def clock_of(self, table: str, like: str) -> str | None:
        """Return the clock of a topic of the same kind; the time of recording where its messages have no stamp."""
        field = self.split(like)[1]
        if table not in self.topics or field not in (*self.clocks, "stamp"):
            return None
        return f"{table}:{field}" if f"{table}:{field}" in self._columns_of(table) else f"{table}:received"

    def receipt_of(self, clock: str) -> str | None:
        topic, field = self.split(clock)[:2]
        return f"{topic}:received" if field == "stamp" else None

    def columns(self, recording: str = "") -> dict[str, Info]:
        found: dict[str, Info] = {}
        for topic in self.topics:
            found |= self._columns_of(topic)
        return found

    def matching(self, before: str, after: str, recording: str = "") -> dict[str, Info]:
        topic = self.split(before)[0]
        some = self._columns_of(topic) if topic in self.topics and ":" in before else self.columns()
        return {n: i for n, i in some.items() if n.startswith(before) and n.endswith(after)}

    def _columns_of(self, topic: str) -> dict[str, Info]:
        look = self._look(topic)
        count = self.topics[topic].count
        found = {f"{topic}:{name}": field.info for name, field in look.fields.items()}
        names = (*self.clocks, *(("stamp",) if look.stamped else ()))
        return {f"{topic}:{name}": Info(topic, count, "s") for name in names} | {
            name: info for name, info in found.items() if self.split(name)[1] not in names
        }

    def _look(self, topic: str) -> _Look:
        """Look at the first message of a topic."""
        if topic not in self._looks:
            with self._clear():
                self._looks[topic] = self._first(topic)
        return self._looks[topic]

    def _first(self, topic: str) -> _Look:
        known = self.topics[topic]
        other = {"data": Field(("data",), Info(topic, known.count, kind="other"))}
        try:
            decoder = known.decoder()
        except LogError:
            return _Look(other, None, False)
        raw = next((raw for *_, raw in self._messages([topic])), None) if known.count != 0 else None
        if raw is None:
            return _Look({}, decoder, decoder.stamp is not None)
        message = self._decoded(topic, decoder, raw, 0)
        try:
            stamp_of(message)
            stamped = True
        except (LookupError, AttributeError, TypeError, ValueError, OverflowError):
            stamped = False
        return _Look(list_fields(topic, known.kind, message, known.count), decoder, stamped)

    def _decoded(self, topic: str, decoder: Decoder, raw: bytes, row: int) -> Any:
        try:
            return decoder.decode(raw)
        except Exception as error:  # generated code and parsers raise what they like
            raise self._undecodable(topic, row, error) from error

    def _undecodable(self, topic: str, row: int, error: Exception) -> LogError:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return LogError(
            f"{self.path}: message {row} of {topic!r} (the first is 0) cannot be decoded as "
            f"{self.topics[topic].kind or 'its encoding'}: {said}; the file is damaged, or its definitions are others"
        )

    def read(self, wanted: Mapping[str, str], recording: str = "") -> dict[str, Array]:
        if not wanted:
            return {}
        plans: dict[str, _Plan] = {}
        for name, what in wanted.items():
            topic, field = self.split(name)
            if topic not in self.topics:
                near = did_you_mean(topic, self.topics)
                raise LogError(f"{self.path}: no topic {topic!r} ({what}; column {name!r}){near}")
            look = self._look(topic)
            if look.decoder is None and field not in self.clocks:
                self.topics[topic].decoder()  # says why nobody knows how to decode it
            plan = plans.setdefault(topic, _Plan(f"{self.path}: {topic}", look, self.clocks))
            problem = plan.add(field, what)
            if problem == "missing":
                raise missing(self.path, name, what, list(self._columns_of(topic)))
            if problem:
                raise LogError(
                    f"{self.path}: column {name!r} ({what}) holds {problem}, expected numbers; name another field"
                )
        with self._clear():
            for plan in plans.values():
                plan.start()
            for topic, received, published, raw in self._messages(list(plans)):
                try:
                    plans[topic].take(received, published, raw)
                except LogError:
                    raise
                except Exception as error:  # generated code and parsers raise what they like
                    raise self._undecodable(topic, len(plans[topic].order), error) from error
        found = {
            f"{topic}:{field}": values for topic, plan in plans.items() for field, values in plan.columns().items()
        }
        return {name: found[name] for name in wanted}

    def stamps(self, topics: Sequence[str], recording: str = "") -> dict[str, Array]:
        """Return topic -> (M, 2): own stamp and time of recording of each message [s], for the topics that have both.

        Messages are not decoded where their stamp can be had without. How one runs against the other is the drift of
        the sensor's clock.
        """
        both = [t for t in topics if t in self.topics and f"{t}:stamp" in self._columns_of(t)]
        found = self.read({f"{t}:{c}": "clock drift" for t in both for c in ("stamp", "received")})
        return {t: np.stack([found[f"{t}:stamp"], found[f"{t}:received"]], axis=1) for t in both}

    def close(self) -> None:
        self._stack.close()


def codec_of(
    path: FilePath, topic: str, kind: str, encoding: str, types: Types, text: str, form: str, digest: str = ""
) -> Decoder:
    """Return the decoder of the messages of a topic, from the definition that a bag has of their type, or has not.

    Args:
        path: of the file, for messages.
        topic: its name, for messages.
        kind: full name of the type.
        encoding: `cdr` or `ros1`.
        types: that `.msg` files define.
        text: the definition in the bag, or "".
        form: of the definition, `msg` or `idl`.
        digest: hash of the definition in the bag, or "".

    Raises:
        LogError: there is no definition, or it cannot be read.
    """
    try:
        codec = Codec(kind, encoding, types, text, form, digest) if types else known(kind, encoding, text, form, digest)
        return Decoder(codec.decode, codec.stamp_reader())
    except LogError as error:
        raise LogError(f"{path}: messages of {topic!r}: {error}") from error
    except Exception as error:  # parsers raise what they like
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise LogError(
            f"{path}: the definition of the messages of {topic!r} ({kind}) cannot be read: {said}; record it again"
        ) from error


class _Plan:
    """What is taken out of the messages of one topic."""

    def __init__(self, where: str, look: _Look, clocks: Sequence[str]) -> None:
        self._where, self._look = where, look
        self._kinds = (*clocks, *(("stamp",) if look.stamped else ()))
        self._clocks: dict[str, array[float]] = {}
        self._fields: dict[str, tuple[Path, str]] = {}
        self.order: array[int] = array("q")  # times of recording [ns]

    def add(self, field: str, what: str) -> str:
        """Want a field or a clock; return "" or what is wrong with it."""
        if field in self._kinds:
            self._clocks[field] = array("d")
            return ""
        known = self._look.fields.get(field)
        if known is not None:
            self._fields[field] = known.path, what
            return {"number": "", "text": "text"}.get(known.info.kind, "no single number")
        path = parse(field)
        numbered = any(isinstance(step, Element) and step.label.isdecimal() for step in path or ())
        bare = {_bare(some.path) for some in self._look.fields.values()}
        if path is None or (self._look.fields and not (numbered and _bare(path) in bare)):
            return "missing"
        self._fields[field] = path, what
        return ""

    def start(self) -> None:
        """Get ready for the first message."""
        self._taker = Taker(self._where, self._fields) if self._fields else None
        decoder = self._look.decoder
        self._decode = decoder.decode if decoder is not None else bytes
        self._stamp = decoder.stamp if decoder is not None else None
        self._stamps, self._published = self._clocks.get("stamp"), self._clocks.get("published")

    def take(self, received: int, published: int, raw: bytes) -> None:
        """Take what is wanted of a message."""
        if self._taker is not None:
            message = self._decode(raw)
            self._taker.take(message, len(self.order))
        if self._stamps is not None:
            if self._stamp is not None:
                ns = self._stamp(raw)
            else:
                ns = stamp_of(message if self._taker is not None else self._decode(raw))
            self._stamps.append(ns / SECOND)
        if self._published is not None:
            self._published.append(published / SECOND)
        self.order.append(received)

    def columns(self) -> dict[str, Array]:
        """Return field -> (messages,), in the order of recording, whatever that of the file."""
        found = {} if self._taker is None else self._taker.columns()
        for name, values in self._clocks.items():
            if name == "received":
                values.extend(ns / SECOND for ns in self.order)
            found[name] = np.frombuffer(values, np.float64) if values else np.empty(0)
        times = np.frombuffer(self.order, np.int64) if self.order else np.empty(0)
        if (times[1:] < times[:-1]).any():
            sorting = np.argsort(times, kind="stable")
            found = {name: values[sorting] for name, values in found.items()}
        return found


def _bare(path: Path) -> tuple[str, ...]:
    return tuple(step for step in path if isinstance(step, str))
