"""Definitions of ROS messages, and what decodes messages by them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

from sim2real.errors import LogError, require

Decode = Callable[[bytes], Any]
Types = Mapping[str, Any]  # name of a type -> (constants, fields), as rosbags has it
LARGEST_ARRAY = 10_000  # elements of an array of a fixed size that rosbags writes code for one by one


def full_name(name: str) -> str:
    """Return the name of a type with `msg` in its middle, as ROS 2 has it."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[-1]}" if len(parts) == 2 else name


def parse_types(text: str, form: str, kind: str) -> dict[str, Any]:
    """Return the types that a definition defines.

    Args:
        text: of the definition, those that it needs behind it.
        form: `msg` or `idl`.
        kind: name of the type.
    """
    typesys = require("rosbags.typesys", "logs")
    found: dict[str, Any] = {}
    if form == "msg":
        found = typesys.get_types_from_msg(text, kind)
    else:
        rule = "=" * 80 + "\n"
        parts = text.split(rule)[1:] if text.startswith(f"{rule}IDL: ") else [f"\n{text}"]
        for part in parts:
            found |= typesys.get_types_from_idl(part.partition("\n")[2])
    for name, (_, fields) in found.items():
        for field, what in fields:
            if (
                what[0] == 3
                and what[1][1] > LARGEST_ARRAY
                and not (what[1][0][0] == 1 and what[1][0][1][0] != "string")
            ):
                raise ValueError(f"{name}.{field} is an array of {what[1][1]:,} elements; it is damaged")
    return found


def types_in(files: Sequence[Path]) -> dict[str, Any]:
    """Return the types that `.msg` files define, or folders of them: `pkg/msg/Name.msg` or `pkg/Name.msg`.

    Raises:
        LogError: a file is not there or cannot be read.
    """
    found: dict[str, Any] = {}
    for path in files:
        some = sorted(path.rglob("*.msg")) if path.is_dir() else [path]
        if not some or not all(file.is_file() for file in some):
            raise LogError(f"{path}: no such .msg file, and no folder of them (messages of the schema)")
        for file in some:
            package = file.parent.parent.name if file.parent.name == "msg" else file.parent.name
            try:
                found |= parse_types(file.read_text(encoding="utf-8"), "msg", f"{package}/msg/{file.stem}")
            except Exception as error:  # parsers raise what they like
                said = " ".join(str(error).split())[:200]
                raise LogError(f"{file}: cannot be read as a definition of messages: {said}") from error
    return found


class Codec:
    """What decodes the messages of one type.

    Args:
        kind: full name of the type.
        encoding: `cdr` or `ros1`.
        types: what `.msg` files define.
        text: the definition in the log, which comes first, or ""; standard messages need none.
        form: of the definition, `msg` or `idl`.
        digest: hash of the definition by the log, or "".

    Raises:
        LogError: a type is not defined.
        Exception: of rosbags, for a definition that makes no sense.
    """

    def __init__(self, kind: str, encoding: str, types: Types, text: str, form: str, digest: str) -> None:
        typesys = require("rosbags.typesys", "logs")
        needed = _closure(kind, {**types, **(parse_types(text, form, kind) if text else {})}, encoding)
        self._store = typesys.get_typestore(typesys.Stores.EMPTY)
        self._store.register(needed)
        if digest and digest != "*":
            found = self._store.generate_msgdef(kind)[1] if encoding == "ros1" else self._store.hash_rihs01(kind)
            if found != digest:
                raise ValueError(f"the definition of {kind} has the hash {found}, the log says {digest}; it is damaged")
        self._kind, self._cdr = kind, encoding == "cdr"
        self.decode: Decode = functools.partial(
            self._store.deserialize_cdr if self._cdr else self._store.deserialize_ros1, typename=kind
        )

    def stamp_reader(self) -> Callable[[bytes], int] | None:
        """Return what reads the stamp [ns] out of the bytes of a message; None where it does not begin with a header.

        A header begins with the stamp, in ROS 1 behind a sequence number; CDR has 4 bytes before it all, the second of
        which says the order of the bytes (OMG formal/02-06-51, 15.3).
        """
        fields = self._store.fielddefs[self._kind][1]
        if not fields or fields[0] != ("header", (2, "std_msgs/msg/Header")):
            return None
        names = [name for name, _ in self._store.fielddefs["std_msgs/msg/Header"][1]]
        if names[:1] != ["stamp"] and names[:2] != ["seq", "stamp"]:
            return None
        start = 4 * self._cdr + 4 * (names[0] == "seq")
        little, big = Struct("<iI"), Struct(">iI")

        def read(raw: bytes) -> int:
            kind = little if not self._cdr or raw[1] else big
            seconds, nanoseconds = kind.unpack_from(raw, start)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)

        return read


@functools.lru_cache(maxsize=256)
def known(kind: str, encoding: str, text: str, form: str, digest: str) -> Codec:
    """Return the codec of a type that needs no `.msg` files; the bags of a folder share it."""
    return Codec(kind, encoding, {}, text, form, digest)


def _standard(encoding: str) -> Types:
    typesys = require("rosbags.typesys", "logs")
    store = typesys.Stores.LATEST if encoding == "cdr" else typesys.Stores.ROS1_NOETIC
    found: Types = typesys.get_typestore(store).fielddefs
    return found


def _closure(kind: str, types: Types, encoding: str) -> dict[str, Any]:
    """Return the definitions of a type and of all that it holds."""
    needed: dict[str, Any] = {}
    open_ = [kind]
    while open_:
        name = open_.pop()
        if name in needed:
            continue
        found = types[name] if name in types else _standard(encoding).get(name)
        if found is None:
            raise LogError(
                f"the type {name!r} is not defined in the log, and is no standard one; name its .msg files, or a "
                "folder of them, in the schema: `messages: [path/to/pkg]`"
            )
        needed[name] = found
        open_.extend(_names(what for _, what in found[1]))
    return needed


def _names(fields: Iterable[Any]) -> Iterable[str]:
    for what in fields:
        if what[0] == 2:
            yield what[1]
        elif what[0] in (3, 4):
            yield from _names([what[1][0]])
