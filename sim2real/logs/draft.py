"""A first schema for a log, from the names, units and values in it; a person corrects it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from sim2real.episodes import Array
from sim2real.errors import LogError
from sim2real.logs.find import unpacked
from sim2real.logs.schema import LogSchema
from sim2real.logs.sources import FORMATS, Facts, Info, Options, is_data_set, open_source, suffix_of
from sim2real.logs.sources.base import INDEXED, is_number
from sim2real.logs.units import unit

REPORTED = frozenset(("measured", "meas", "actual", "applied", "reported", "feedback"))
LARGE = 1 << 28  # bytes; the values of larger files are not looked at

# words in a column's name -> what it is. The first that fits wins.
ROLES = tuple(
    (role, frozenset(words.split()))
    for role, words in (
        ("skipped", "index frame episode task seq id done dones terminations truncations truncated success next"),
        ("skipped", "enable enabled flag status mode error"),
        ("reward", "reward rewards"),
        ("time", "t time times timestamp timestamps stamp stamps clock"),
        ("action", "action actions cmd command commands commanded target goal desired des setpoint ref reference"),
        ("velocity", "vel velocity velocities speed speeds qd dq qvel omega rate gyro v"),
        ("effort", "torque torques tau effort efforts force forces wrench current currents pwm duty load"),
        ("exogenous", "voltage volts battery supply temp temperature temperatures"),
        ("action", "u ctrl control controls asked sent con input"),
        ("position", "pos position positions angle angles q theta qpos state states joint joints x y z pose obs"),
        ("position", "observation observations"),
    )
)
WORDS_OF_UNITS = {
    **{w: w for w in ("rad", "deg", "rpm", "ms", "us", "ns", "mA", "mV", "mm", "Nm", "mNm")},
    **{"degrees": "deg", "radians": "rad", "sec": "s", "secs": "s", "seconds": "s", "volts": "V", "amps": "A"},
    **{"nm": "Nm", "ma": "mA", "mv": "mV", "degs": "deg/s", "rads": "rad/s", "nanoseconds": "ns", "milliseconds": "ms"},
}
USUAL_UNITS = {"position": "rad", "velocity": "rad/s", "effort": "N·m", "reward": "1"}
UNIT_BY_WORD = {
    **{w: "A" for w in ("current", "currents")},
    **{w: "V" for w in ("voltage", "volts", "battery", "supply")},
    **{w: "degC" for w in ("temp", "temperature", "temperatures")},
    **{w: "1" for w in ("pwm", "duty", "load")},
    **{w: "N" for w in ("force", "forces")},
}


@dataclass
class _Draft:
    """What was made out so far: lines of YAML by key."""

    groups: dict[str, list[str]] = field(default_factory=dict)

    def add(self, group: str, name: str, column: str, of: str, guessed: bool) -> None:
        """Add a channel."""
        note = "  # unit guessed" if guessed else ""
        self.groups.setdefault(group, []).append(f"{_text(name)}: {{column: {_text(column)}, unit: {_text(of)}}}{note}")


def draft_schema(path: str | Path) -> str:
    """Return a schema in YAML, with comments where something was guessed.

    Args:
        path: a log, a data set, or a folder of logs, of which the first is looked at.

    Raises:
        LogError: it cannot be read, or holds no columns of numbers.
    """
    with unpacked(path) as places:
        place = _first_log(places[0])
        options = _options(place)
        with open_source(place, options) as source:
            recording = source.recordings()[0]
            known = {n: i for n, i in source.columns(recording).items() if i.kind == "number"}
            if len(known) < 2:
                raise LogError(
                    f"{place}: holds no columns of numbers, found {', '.join(source.columns(recording)) or 'nothing'}"
                )
            facts = source.facts(recording)

            def values(name: str) -> Array | None:
                if place.is_file() and place.stat().st_size > LARGE:
                    return None
                try:
                    return source.read({name: "a look at it"}, recording)[name]
                except LogError:
                    return None

            text = _write(place, places[0], known, facts, values, source.table_of, options)
    LogSchema.load(yaml.safe_load(text))  # what is drafted can be read
    return text


def _options(place: Path) -> Options:
    """Return how a CSV file is written: whether its first line holds numbers already, and what is between its cells."""
    if place.is_dir() or suffix_of(place) != ".csv":
        return Options()
    for delimiter in ",;\t ":
        with open_source(place, Options(delimiter=delimiter)) as source:
            names = list(source.columns())
        if len(names) > 1:
            return Options(header=not all(map(is_number, names)), delimiter=delimiter)
    return Options()


def _first_log(path: Path) -> Path:
    if path.is_file() or is_data_set(path):
        return path
    inside = sorted(
        (p for p in path.rglob("*") if (suffix_of(p) in FORMATS if p.is_file() else is_data_set(p))),
        key=lambda p: (len(p.parts), p),
    )
    if not inside:
        raise LogError(f"{path}: holds no log; expected files that end in {', '.join(FORMATS)}")
    return inside[0]


def _write(
    place: Path,
    asked: Path,
    known: Mapping[str, Info],
    facts: Facts,
    values: Callable[[str], Array | None],
    table_of: Callable[[str], str],
    options: Options,
) -> str:
    draft = _Draft()
    lines = [f"# Drafted from {place.name}: look at every line, above all at units, signs and what was asked for."]
    if place.is_file() and asked.is_dir() and place.parent == asked:
        lines.append(
            f"file: {_text('{name}' + ''.join(place.suffixes[-2:] if len(place.suffixes) > 1 else place.suffixes))}"
        )
    if options != Options():
        lines.append(f"csv: {{header: {str(options.header).lower()}, delimiter: {_text(options.delimiter)}}}")
    vectors = _vectors(known)
    roles = {name: _role(name) for name in vectors}
    for name, columns in vectors.items():  # a clock increases; what does not is something else
        if roles[name] == "time" and (len(columns) > 1 or not _increases(values(columns[0]))):
            roles[name] = "skipped"
    clocks = [vectors[name][0] for name, role in roles.items() if role == "time"]
    states = [n for n, role in roles.items() if role in ("position", "velocity")]
    main = _clock(clocks, [table_of(vectors[n][0]) for n in states], table_of)
    if main is not None:
        of, guessed = _time_unit(main, known[main], values(main))
        lines.append(f"time: {{column: {_text(main)}, unit: {of}}}" + ("  # unit guessed" if guessed else ""))
    else:
        lines.append(
            f"time: {{rate: {facts.rate or 50:g}}}" + ("" if facts.rate else "  # Hz: guessed, there is no clock")
        )
    if not states:  # the names say nothing: a person must
        unknown = [n for n in vectors if roles[n] == "skipped" and vectors[n][0] != main]
        roles |= dict.fromkeys(unknown[:-1] or unknown, "position")
        states = unknown[:-1] or unknown
    commanded = [n for n, role in roles.items() if role == "action"]
    actions = commanded or [n for n, role in roles.items() if role == "effort"]
    why = "" if commanded else "  # nothing that looks like a command was found"
    if not actions:
        actions = [n for n in vectors if vectors[n][0] != main][-1:]
        why = "  # nothing that looks like an action was found: which columns are?"
    measured = (
        _measured(actions, [n for n, role in roles.items() if role in ("effort", "exogenous")]) if commanded else {}
    )
    taken: set[str] = set()
    channels: dict[str, str] = {}
    unused = []
    for name, columns in vectors.items():
        role = roles[name]
        if name in actions:
            group = "actions"
        elif name in measured.values():
            continue
        elif role in ("position", "velocity"):
            group = "observations"
        elif role in ("effort", "exogenous"):
            group = "exogenous"
        else:
            if role != "time" and role != "reward":
                unused.append(name)
            continue
        width = len(columns)
        targets = (
            role == "action" and width > 1 and any(roles[n] == "position" and len(vectors[n]) == width for n in states)
        )
        of, guessed = _unit_of(name, "position" if targets else role, known[columns[0]])
        channels[name] = _channel(name, taken)
        draft.add(group, channels[name], name if "*" in name else columns[0], of, guessed)
    for action, name in measured.items():
        of, guessed = _unit_of(action, roles[action], known[vectors[action][0]])
        draft.add("measured_actions", channels[action], name if "*" in name else vectors[name][0], of, guessed)
    if "observations" not in draft.groups:  # a log of one column and a clock
        name = actions[0]
        draft.add("observations", channels[name], name if "*" in name else vectors[name][0], "1", True)
    for group in ("observations", "actions", "measured_actions", "exogenous"):
        if group in draft.groups:
            lines += [f"{group}:", *(f"  {line}" for line in draft.groups[group])]
        if group == "actions":
            lines.append(f"action_source: {'commanded' if commanded else 'measured'}{why}")
    rewards = [vectors[n][0] for n, role in roles.items() if role == "reward"]
    if rewards:
        lines.append(f"reward: {{column: {_text(rewards[0])}, unit: '1'}}")
    if unused:
        lines.append(f"# not used: {', '.join(unused[:30])}{', ...' if len(unused) > 30 else ''}")
    return "\n".join(lines) + "\n"


def _measured(actions: list[str], candidates: list[str]) -> dict[str, str]:
    """Return action -> what the actuator reported of it, where there is one for each by the names."""
    told = frozenset().union(*(some for role, some in ROLES if role == "action")) | REPORTED

    def bare(name: str) -> tuple[str, ...]:
        return tuple(w for w in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", name.lower()) if w and w not in told)

    found: dict[str, str] = {}
    for action in actions:
        same = [c for c in candidates if bare(c) == bare(action) and c not in found.values()]
        if not same:
            return {}
        found[action] = max(same, key=lambda c: bool(REPORTED & set(_words(c))))
    return found


def _vectors(known: Mapping[str, Info]) -> dict[str, list[str]]:
    """Return name -> columns, with the elements of a vector under one name with a `*`."""
    found: dict[str, list[str]] = {}
    for name in known:
        match = INDEXED.match(name)
        found.setdefault(f"{match['name']}[*]" if match and match["name"] else name, []).append(name)
    return found


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.replace("[*]", ""))
    return [w.lower().rstrip("0123456789") or w for w in re.split(r"[^A-Za-z0-9]+", spaced) if w]


def _role(name: str) -> str:
    words = _words(name)
    last = words[-1:] if ":" in name else words
    for role, some in ROLES:
        if some & set(last):
            return role
    for role, some in ROLES:
        if some & set(words):
            return role
    return "skipped"


def _increases(values: Array | None) -> bool:
    return values is None or (len(values) > 1 and bool((np.diff(values) > 0).mean() > 0.9))


def _clock(clocks: list[str], tables: list[str], table_of: Callable[[str], str]) -> str | None:
    """Return the clock of the table that most states are in."""
    table = max(set(tables), key=tables.count, default="")
    fitting = [c for c in clocks if table_of(c) == table] or clocks
    stamps = [c for c in fitting if c.endswith((":stamp", "timestamp"))]
    chosen = stamps or fitting
    return chosen[0] if chosen else None


def _time_unit(name: str, info: Info, values: Array | None) -> tuple[str, bool]:
    if info.unit:
        return info.unit, False
    for word in _words(name):
        if WORDS_OF_UNITS.get(word) in ("s", "ms", "us", "ns"):
            return WORDS_OF_UNITS[word], False
    if values is None or len(values) < 2 or ":" in name:
        return "s", ":" not in name
    step = float(np.median(np.diff(values)))
    for of, longest in (("s", 2.0), ("ms", 2e3), ("us", 2e6)):  # steps of robots' logs last 0.1 ms to 2 s
        if step < longest:
            return of, of != "s" or step > 0.2
    return "ns", True


def _unit_of(name: str, role: str, info: Info) -> tuple[str, bool]:
    if info.unit:
        try:
            unit(info.unit)
            return info.unit, False
        except LogError:
            pass
    words = _words(name)
    for word in words:
        if word in WORDS_OF_UNITS:
            of = WORDS_OF_UNITS[word]
            return (f"{of}/s" if role == "velocity" and of in ("deg", "rad") else of), False
    for word in words:
        if word in UNIT_BY_WORD:
            return UNIT_BY_WORD[word], True
    if role == "action":
        kinds = [r for r, some in ROLES if r in ("position", "velocity", "effort") and some & set(words)]
        return USUAL_UNITS.get(kinds[0], "1") if kinds else "1", True
    return USUAL_UNITS.get(role, "1"), True


def _channel(name: str, taken: set[str]) -> str:
    """Return a short name of a channel that is not taken yet; with `*` for a vector."""
    star = name.endswith("[*]")
    base = (
        re.sub(r"[^A-Za-z0-9_]+", "_", re.sub(r"^.*[/:.](?=[A-Za-z])", "", name.removesuffix("[*]"))).strip("_") or "x"
    )
    candidates = [base, re.sub(r"[^A-Za-z0-9_]+", "_", name.removesuffix("[*]")).strip("_")]
    chosen = next((c for c in candidates if c not in taken), f"{base}_{len(taken)}")
    taken.add(chosen)
    return f"{chosen}_*" if star else chosen


def _text(value: str) -> str:
    """Return a text as YAML has it, in quotes where it must."""
    plain = re.fullmatch(r"[A-Za-z_/][\w./:·²-]*(?<!:)", value) and not re.search(r":(\s|$)", value)
    yes = value.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return value if plain and not yes else "'" + value.replace("'", "''") + "'"
