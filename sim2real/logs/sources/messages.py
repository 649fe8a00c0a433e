"""Fields of messages as columns: which there are, in which unit, and how they are taken out of messages."""

from __future__ import annotations

import operator
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import Info, Kind

LONGEST = 4096  # elements of an array that are listed one by one; longer ones are images and the like
_TOKEN = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")

# type of message -> field -> unit of what is in it
UNITS: Mapping[str, Mapping[str, str]] = {
    "sensor_msgs/msg/JointState": {"position": "rad", "velocity": "rad/s", "effort": "N·m"},
    "sensor_msgs/msg/Imu": {"angular_velocity": "rad/s", "linear_acceleration": "m/s²"},
    "geometry_msgs/msg/Twist": {"linear": "m/s", "angular": "rad/s"},
    "geometry_msgs/msg/TwistStamped": {"twist.linear": "m/s", "twist.angular": "rad/s"},
    "geometry_msgs/msg/Wrench": {"force": "N", "torque": "N·m"},
    "geometry_msgs/msg/WrenchStamped": {"wrench.force": "N", "wrench.torque": "N·m"},
    "geometry_msgs/msg/PoseStamped": {"pose.position": "m"},
    "trajectory_msgs/msg/JointTrajectory": {
        "positions": "rad",
        "velocities": "rad/s",
        "accelerations": "rad/s²",
        "effort": "N·m",
    },
}


def list_fields(topic: str, kind: str, message: Any, rows: int | None) -> dict[str, Info]:
    """Return the columns of a topic: every number in one of its messages.

    Elements of `JointState` and `JointTrajectory` go by the names of the joints in the message; others by number.

    Args:
        topic: its name, before the colon.
        kind: type of its messages.
        message: one of them, decoded: an object of fields, or a mapping.
        rows: how many messages there are.
    """
    units = UNITS.get(kind, {})

    def unit_of(path: str) -> str:
        bare = re.sub(r"\[[^\]]*\]", "", path)
        return next(
            (u for f, u in units.items() if bare == f or bare.startswith(f"{f}.") or bare.endswith(f".{f}")), ""
        )

    return {
        f"{topic}:{path}": Info(topic, rows, unit_of(path) if what == "number" else "", what)
        for path, what in _leaves("", message, message)
        if not path.startswith("header.")
    }


def _leaves(path: str, value: Any, root: Any) -> Iterator[tuple[str, Kind]]:
    if isinstance(value, bool | int | float | np.number):
        yield path, "number"
    elif isinstance(value, str):
        yield path, "text"
    elif isinstance(value, Mapping) or hasattr(value, "__dataclass_fields__"):
        for name in value if isinstance(value, Mapping) else value.__dataclass_fields__:
            if name != "__msgtype__":
                inner = value[name] if isinstance(value, Mapping) else getattr(value, name)
                yield from _leaves(f"{path}.{name}" if path else name, inner, _named(value, name, root))
    elif isinstance(value, np.ndarray | list | tuple):
        if len(value) > LONGEST:
            yield path, "other"
            return
        names = root if isinstance(root, list) and len(root) == len(value) and len(set(root)) == len(root) else None
        for k, inner in enumerate(value):
            yield from _leaves(f"{path}[{names[k] if names and not _is_message(inner) else k}]", inner, root)
    else:
        yield path, "other"


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "__dataclass_fields__")


def _named(message: Any, field: str, above: Any) -> Any:
    """Return the names of the joints that the elements of a field are of, or what was known further up."""
    get = message.get if isinstance(message, Mapping) else lambda key, _=None: getattr(message, key, None)
    for key in ("name", "joint_names"):
        names = get(key, None)
        if field != key and isinstance(names, list) and names and all(isinstance(n, str) for n in names):
            return names
    return above if isinstance(above, list) else None


def stamp_of(message: Any) -> int:
    """Return the stamp of a message's header [ns].

    Raises:
        AttributeError: the message has no header.
    """
    stamp = message.header.stamp
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


class Taker:
    """Takes columns out of the messages of one topic, one after another.

    Args:
        where: file and topic, as messages put it.
        wanted: path of each field -> what it is for.
    """

    def __init__(self, where: str, wanted: Mapping[str, str]) -> None:
        self.where, self.wanted, self.rows = where, wanted, 0
        groups: dict[tuple[str | int, ...], dict[str, str | int | None]] = {}
        for name in wanted:
            tokens = [a or (int(b) if b.isdecimal() else b) for a, b in _TOKEN.findall(name)]
            last = tokens[-1] if name.endswith("]") else None
            groups.setdefault(tuple(tokens[:-1] if last is not None else tokens), {})[name] = last
        self._fields = [_Field(where, tokens, some, wanted) for tokens, some in groups.items()]

    def take(self, message: Any) -> None:
        """Take the wanted fields of a message."""
        for field in self._fields:
            field.take(message, self.rows)
        self.rows += 1

    def columns(self) -> dict[str, Array]:
        """Return path of the field -> (messages,)."""
        return {name: values for field in self._fields for name, values in field.columns().items()}


class _Field:
    """A field, or elements of an array that is one."""

    def __init__(
        self,
        where: str,
        tokens: tuple[str | int, ...],
        elements: Mapping[str, str | int | None],
        wanted: Mapping[str, str],
    ) -> None:
        self._where, self._elements, self._wanted = where, elements, wanted
        self._tokens = tokens
        self._get = _getter(tokens)
        self._flat = array("d")
        self._scalar = list(elements.values()) == [None]
        self._labels = [e for e in elements.values() if isinstance(e, str)]
        self._owner = _getter(tokens[:-1])
        self._names: Any = None
        self._picks: Any = None

    def take(self, message: Any, row: int) -> None:
        """Append what a message has."""
        try:
            value = self._get(message)
            if self._scalar:
                self._flat.append(value)
                return
            if self._labels:
                names = self._names_in(message)
                if names is not self._names and names != self._names:
                    self._names, self._picks = names, None
            if self._picks is None or len(value) != self._width:
                self._find(value, row)
            if self._picks == "all":
                if isinstance(value, np.ndarray):
                    self._flat.frombytes(value.astype(np.float64, copy=False).tobytes())
                else:
                    self._flat.extend(value)
            elif isinstance(value, np.ndarray):
                self._flat.extend(value[self._picks].tolist())
            else:
                self._flat.extend([value[k] for k in self._picks])
        except LogError:
            raise
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(message, row, error) from error

    def _names_in(self, message: Any) -> Any:
        owner = self._owner(message)
        for holder in (owner, message):
            for key in ("name", "joint_names"):
                names = holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)
                if isinstance(names, list):
                    return names
        return []

    def _find(self, value: Sequence[Any], row: int) -> None:
        """Find the wanted elements in an array, whose order may be another one in every message."""
        self._width = len(value)
        picks = []
        for name, element in self._elements.items():
            k = (
                element
                if not isinstance(element, str)
                else self._names.index(element)
                if element in self._names
                else None
            )
            if k is None or k >= len(value):
                known = f"the joints {', '.join(map(str, self._names))}" if isinstance(element, str) else "elements"
                raise LogError(
                    f"{self._where}: column {name!r} ({self._wanted[name]}) is not in message {row} (the first is 0), "
                    f"which has {len(value)} values{f' of {known}' if isinstance(element, str) else ''}; "
                    "choose another element, or cut off the message"
                )
            picks.append(k)
        self._picks = "all" if picks == list(range(len(value))) else picks

    def _wrong(self, message: Any, row: int, error: Exception) -> LogError:
        name = next(iter(self._elements))
        try:
            found = repr(self._get(message))[:60]
        except (AttributeError, KeyError, IndexError, TypeError):
            found = f"nothing of that name ({type(error).__name__})"
        return LogError(
            f"{self._where}: column {name!r} ({self._wanted[name]}) must hold numbers, found {found} in message {row} "
            "(the first is 0); name another field"
        )

    def columns(self) -> dict[str, Array]:
        """Return path -> values; those of an array are views of one matrix."""
        flat = np.frombuffer(self._flat, dtype=np.float64) if self._flat else np.empty(0)
        if self._scalar:
            return {name: flat for name in self._elements}
        matrix = flat.reshape(-1, len(self._elements))
        return {name: matrix[:, k] for k, name in enumerate(self._elements)}


def _getter(tokens: Sequence[str | int]) -> Callable[[Any], Any]:
    """Return how a field is got out of a message: attributes of objects, keys of mappings, elements of arrays."""
    if not tokens:
        return lambda message: message
    attributes = operator.attrgetter(".".join(map(str, tokens))) if all(isinstance(t, str) for t in tokens) else None

    def walk(message: Any) -> Any:
        for token in tokens:
            message = (
                message[token] if isinstance(token, int) or isinstance(message, Mapping) else getattr(message, token)
            )
        return message

    def get(message: Any) -> Any:
        return walk(message) if isinstance(message, Mapping) or attributes is None else attributes(message)

    return get
