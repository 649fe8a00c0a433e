"""Fields of messages as columns: which there are, in which unit, and how they are taken out of messages."""

from __future__ import annotations

import operator
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.sources.base import Info, Kind

LONGEST = 4096  # elements of an array that are listed one by one; longer ones are images and the like
NAMES = ("name", "joint_names")  # fields that name the elements of the arrays beside or below them
_NAME_PATHS = [(name,) for name in NAMES]
_EMPTY = "structure_needs_at_least_one_member"  # what messages without fields are filled with
_TOKEN = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")
_PATH = re.compile(r"(?:\.?[^.\[\]]+|\[[^\[\]]+\])+")

_POSE, _TWIST, _WRENCH, _ACCEL = (
    {"position": "m"},
    {"linear": "m/s", "angular": "rad/s"},
    {"force": "N", "torque": "N·m"},
    {"linear": "m/s²", "angular": "rad/s²"},
)
_POINT = {"positions": "rad", "velocities": "rad/s", "accelerations": "rad/s²", "effort": "N·m"}


def _inside(field: str, units: Mapping[str, str]) -> dict[str, str]:
    return {f"{field}.{name}": unit for name, unit in units.items()}


# type of message -> field -> unit of what is in it; revolute joints are taken for granted, as the definitions do
UNITS: Mapping[str, Mapping[str, str]] = {
    "sensor_msgs/msg/JointState": {"position": "rad", "velocity": "rad/s", "effort": "N·m"},
    "sensor_msgs/msg/Imu": {"angular_velocity": "rad/s", "linear_acceleration": "m/s²"},
    "sensor_msgs/msg/BatteryState": {"voltage": "V", "current": "A", "cell_voltage": "V"},
    "sensor_msgs/msg/MagneticField": {"magnetic_field": "T"},
    "sensor_msgs/msg/Range": {"range": "m"},
    "geometry_msgs/msg/Twist": _TWIST,
    "geometry_msgs/msg/TwistStamped": _inside("twist", _TWIST),
    "geometry_msgs/msg/Wrench": _WRENCH,
    "geometry_msgs/msg/WrenchStamped": _inside("wrench", _WRENCH),
    "geometry_msgs/msg/Accel": _ACCEL,
    "geometry_msgs/msg/AccelStamped": _inside("accel", _ACCEL),
    "geometry_msgs/msg/Pose": _POSE,
    "geometry_msgs/msg/PoseStamped": _inside("pose", _POSE),
    "nav_msgs/msg/Odometry": {**_inside("pose.pose", _POSE), **_inside("twist.twist", _TWIST)},
    "trajectory_msgs/msg/JointTrajectoryPoint": _POINT,
    "trajectory_msgs/msg/JointTrajectory": _inside("points", _POINT),
}


@dataclass(frozen=True)
class Element:
    """A step into an array: the name of a joint, or a number."""

    label: str


Path = tuple[str | Element, ...]  # from a message to a field of it


@dataclass(frozen=True)
class Field:
    """A column that a message can fill."""

    path: Path
    info: Info


def list_fields(topic: str, kind: str, message: Any, rows: int | None) -> dict[str, Field]:
    """Return the fields of a message by the names of their columns: `position[elbow]`, `a.b[3].c`.

    Elements go by the names in the field `name` or `joint_names` beside or above their array, as in `JointState` and
    `JointTrajectory`, where there are as many names as elements; others by number. Of a `JointTrajectory`, the first
    point is listed; any other can be read. The header's stamp is no field: it is the column `stamp`.

    Args:
        topic: its name.
        kind: type of its messages.
        message: one of them, decoded: an object of fields, or what JSON holds.
        rows: how many messages there are.
    """
    units = UNITS.get(kind, {})
    found: dict[str, Field] = {}
    for path, what in _leaves((), message, None):
        name = "".join(f"[{s.label}]" if isinstance(s, Element) else f".{s}" for s in path).removeprefix(".") or "value"
        if path[:2] == ("header", "stamp") or (kind.endswith("/JointTrajectory") and _later_point(path)):
            continue
        bare = ".".join(s for s in path if isinstance(s, str))
        unit = next((u for f, u in units.items() if bare == f or bare.startswith(f"{f}.")), "")
        found.setdefault(name, Field(path, Info(topic, rows, unit if what == "number" else "", what)))
    return found


def _later_point(path: Path) -> bool:
    return path[:1] == ("points",) and path[1:2] not in ((), (Element("0"),))


def _leaves(path: Path, value: Any, names: Sequence[str] | None) -> Iterator[tuple[Path, Kind]]:
    if isinstance(value, bool | int | float | np.number | np.bool_ | None):
        yield path, "number"
    elif isinstance(value, str):
        yield path, "text"
    elif _is_message(value):
        names = names_in(value) or names
        for name, inner in value.items() if isinstance(value, Mapping) else vars(value).items():
            if name != _EMPTY:
                yield from _leaves((*path, name), inner, names)
    elif isinstance(value, np.ndarray | list | tuple):
        if len(value) > LONGEST:
            yield path, "other"
            return
        labels = names if names and len(names) == len(value) and path[-1:] not in _NAME_PATHS else None
        for k, inner in enumerate(value):
            named = labels is not None and not _is_message(inner) and not isinstance(inner, list)
            yield from _leaves((*path, Element(labels[k] if labels and named else str(k))), inner, names)
    else:
        yield path, "other"


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "__dataclass_fields__")


def names_in(message: Any) -> list[str] | None:
    """Return the names that a message has for the elements of its arrays; None where it has none, or not all differ."""
    for key in NAMES:
        names = message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return distinct(names)
    return None


def distinct(names: Any) -> list[str] | None:
    """Return names if they are a list of different ones."""
    return names if isinstance(names, list) and names and len(set(names)) == len(names) else None


def parse(name: str) -> Path | None:
    """Return the path that the name of a column spells, or None where it spells none."""
    if not _PATH.fullmatch(name):
        return None
    return tuple(field or Element(label) for field, label in _TOKEN.findall(name))


def stamp_of(message: Any) -> int:
    """Return the stamp of a message's header [ns].

    Raises:
        LookupError, AttributeError, TypeError or ValueError: the message has no header with a stamp.
    """
    if isinstance(message, Mapping):
        stamp = message["header"]["stamp"]
        nanoseconds = stamp["nanosec"] if "nanosec" in stamp else stamp["nsec"]
        return int(stamp["sec"]) * 10**9 + int(nanoseconds)
    stamp = message.header.stamp
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


class Taker:
    """Takes columns out of the messages of one topic, one after another.

    Args:
        where: file and topic, as messages put it.
        wanted: name of each field -> its path, and what it is for.
    """

    def __init__(self, where: str, wanted: Mapping[str, tuple[Path, str]]) -> None:
        groups: dict[tuple[Path, bool], dict[str, str]] = {}
        for name, (path, _) in wanted.items():
            last = path[-1] if path else None
            if isinstance(last, Element):
                groups.setdefault((path[:-1], True), {})[name] = last.label
            else:
                groups.setdefault((path, False), {})[name] = ""
        uses = {name: what for name, (_, what) in wanted.items()}
        self._fields = [
            (_Elements if array_ else _Scalar)(where, path, some, uses) for (path, array_), some in groups.items()
        ]

    def take(self, message: Any, row: int) -> None:
        """Take the wanted fields of a message, which is number `row` of its topic."""
        for field in self._fields:
            field.take(message, row)

    def columns(self) -> dict[str, Array]:
        """Return name of the field -> (messages,)."""
        return {name: values for field in self._fields for name, values in field.columns().items()}


class _Scalar:
    """A field that is a number."""

    def __init__(self, where: str, path: Path, labels: Mapping[str, str], uses: Mapping[str, str]) -> None:
        self._where, self._path, self._labels, self._uses = where, path, labels, uses
        self._get = getter(path)
        self._flat = array("d")

    def take(self, message: Any, row: int) -> None:
        """Append what a message has."""
        try:
            self._append(message, row)
        except LogError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise self._wrong(message, row, error) from error

    def _append(self, message: Any, row: int) -> None:
        if row == 0:
            self._get = compiled(self._path, message)
        value = self._get(message)
        self._flat.append(np.nan if value is None else value)

    def _wrong(self, message: Any, row: int, error: Exception) -> LogError:
        name = next(iter(self._labels))
        try:
            found = repr(self._get(message))[:60]
        except (AttributeError, LookupError, TypeError):
            found = f"no such field ({type(error).__name__})"
        return LogError(
            f"{self._where}: column {name!r} ({self._uses[name]}) must hold numbers, found {found} in message {row} "
            "(the first is 0); name another field, or cut off the message"
        )

    def columns(self) -> dict[str, Array]:
        """Return name -> (messages,); those of one array are views of one matrix."""
        flat = np.frombuffer(self._flat, dtype=np.float64) if self._flat else np.empty(0)
        matrix = flat.reshape(-1, len(self._labels))
        return {name: matrix[:, k] for k, name in enumerate(self._labels)}


class _Elements(_Scalar):
    """Elements of an array, which each message may have in another order."""

    def __init__(self, where: str, path: Path, labels: Mapping[str, str], uses: Mapping[str, str]) -> None:
        super().__init__(where, path, labels, uses)
        self._get_names: Callable[[Any], Any] | None = None
        self._raw_names: Any = None
        self._named: set[str] = set()
        self._width = -1
        self._whole = False
        self._picks = np.empty(0, np.intp)

    def _append(self, message: Any, row: int) -> None:
        if row == 0:
            self._get = compiled(self._path, message)
            self._get_names = self._names_getter(message)
        value = self._get(message)
        names = None if self._get_names is None else self._get_names(message)
        if len(value) != self._width or names != self._raw_names:
            self._find(value, names, row)
        if isinstance(value, np.ndarray):
            some = value if self._whole else value[self._picks]
            if some.dtype != np.float64:
                if some.dtype.kind not in "biuf":
                    raise TypeError(some.dtype)
                some = some.astype(np.float64)
            self._flat.frombytes(some.tobytes())
            return
        picked = value if self._whole else [value[k] for k in self._picks]
        if None in picked:
            picked = [np.nan if v is None else v for v in picked]
        self._flat.extend(picked)

    def _names_getter(self, message: Any) -> Callable[[Any], Any] | None:
        """Return how the names of the elements are got out of messages, or None where these have none."""
        for n in range(len(self._path) - 1, -1, -1):
            holder = getter(self._path[:n])(message)
            for key in NAMES:
                names = holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)
                if isinstance(names, list) and all(isinstance(name, str) for name in names):
                    return compiled((*self._path[:n], key), message)
        return None

    def _find(self, value: Sequence[Any], raw_names: Any, row: int) -> None:
        """Find the wanted elements: by the names of this message, or by number."""
        if isinstance(value, str | Mapping):
            raise TypeError(type(value))
        self._width, self._raw_names = len(value), raw_names
        names = distinct(raw_names)
        picks = []
        for name, label in self._labels.items():
            if names is not None and label in names and len(names) == len(value):
                k = names.index(label)
                self._named.add(label)
            elif label in self._named:  # a joint called "1" is never the element 1
                k = len(value)
            else:
                k = int(label) if label.isascii() and label.isdecimal() else len(value)
            if k >= len(value):
                called = f", called {', '.join(names[:20])}" if names is not None else ""
                raise LogError(
                    f"{self._where}: column {name!r} ({self._uses[name]}) is not in message {row} (the first is 0), "
                    f"whose array has {len(value)} elements{called}; choose another element, or cut off the message"
                )
            picks.append(k)
        self._whole = picks == list(range(len(value)))
        self._picks = np.array(picks, np.intp)


def getter(path: Path) -> Callable[[Any], Any]:
    """Return how a field is got out of a message: attributes of objects, keys of mappings, elements of arrays."""
    steps = [(int(s.label), True) if isinstance(s, Element) else (s, False) for s in path]

    def walk(message: Any) -> Any:
        for step, inside in steps:
            message = message[step] if inside or isinstance(message, Mapping) else getattr(message, str(step))
        return message

    return walk


def compiled(path: Path, message: Any) -> Callable[[Any], Any]:
    """Return how a field is got out of messages like this one, as fast as can be."""
    if path and not isinstance(message, Mapping) and all(isinstance(step, str) for step in path):
        return operator.attrgetter(".".join(str(step) for step in path))
    if len(path) == 1 and isinstance(message, Mapping):
        return operator.itemgetter(path[0])
    return getter(path)
