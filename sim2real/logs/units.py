"""The units that a log may be written in, and the SI units that they are read into."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim2real.errors import LogError, did_you_mean


@dataclass(frozen=True)
class Unit:
    """A unit of a column: one of it is `factor` of the SI unit `si`."""

    si: str
    factor: float


# Spelled out rather than parsed: a robot log needs no more, and a misspelt unit must not become another one.
UNITS: dict[str, Unit] = {
    "1": Unit("1", 1.0),
    "none": Unit("1", 1.0),
    "rad": Unit("rad", 1.0),
    "deg": Unit("rad", math.pi / 180),
    "rev": Unit("rad", 2 * math.pi),
    "rad/s": Unit("rad/s", 1.0),
    "deg/s": Unit("rad/s", math.pi / 180),
    "rpm": Unit("rad/s", 2 * math.pi / 60),
    "N·m": Unit("N·m", 1.0),
    "Nm": Unit("N·m", 1.0),
    "N*m": Unit("N·m", 1.0),
    "mN·m": Unit("N·m", 1e-3),
    "mNm": Unit("N·m", 1e-3),
    "mN*m": Unit("N·m", 1e-3),
    "m": Unit("m", 1.0),
    "mm": Unit("m", 1e-3),
    "m/s": Unit("m/s", 1.0),
    "s": Unit("s", 1.0),
    "ms": Unit("s", 1e-3),
    "us": Unit("s", 1e-6),
    "ns": Unit("s", 1e-9),
    "V": Unit("V", 1.0),
    "mV": Unit("V", 1e-3),
    "A": Unit("A", 1.0),
    "mA": Unit("A", 1e-3),
}


def unit(name: str) -> Unit:
    """Return the unit of that name.

    Raises:
        LogError: there is none; the message lists the near ones, or all.
    """
    if name not in UNITS:
        near = did_you_mean(name, UNITS)
        meant = near if "did you mean" in near else ""
        raise LogError(f"unknown unit {name!r}{meant} (known: {', '.join(UNITS)})")
    return UNITS[name]
