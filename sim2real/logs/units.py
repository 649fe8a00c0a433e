"""The units that a log may be written in, and the SI units that they are read into: pint's, and what labs write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from sim2real.errors import LogError, did_you_mean


@dataclass(frozen=True)
class Unit:
    """A unit of a column: x of it are `x * factor + offset` of the SI unit `si`."""

    si: str
    factor: float
    offset: float = 0.0


# pint's name of a unit in base units -> what this toolkit calls it
_SI = {
    "dimensionless": "1",
    "count": "1",
    "radian": "rad",
    "radian / second": "rad/s",
    "radian / second ** 2": "rad/s²",
    "second": "s",
    "1 / second": "Hz",
    "meter": "m",
    "meter / second": "m/s",
    "meter / second ** 2": "m/s²",
    "kilogram": "kg",
    "kilogram * meter ** 2": "kg·m²",
    "kilogram * meter / second ** 2": "N",
    "kilogram * meter ** 2 / second ** 2": "N·m",
    "kilogram * meter ** 2 / radian / second ** 2": "N·m/rad",
    "kilogram * meter ** 2 / radian / second": "N·m·s/rad",
    "kilogram / second ** 2": "N/m",
    "kilogram * meter ** 2 / second ** 3": "W",
    "kilogram / meter / second ** 2": "Pa",
    "ampere": "A",
    "kilogram * meter ** 2 / ampere / second ** 3": "V",
    "kilogram * meter ** 2 / ampere ** 2 / second ** 3": "Ω",
    "kilogram / ampere / second ** 2": "T",
    "kelvin": "K",
}
_COMMON: tuple[str, ...] = (
    "rad",
    "deg",
    "rev",
    "rad/s",
    "deg/s",
    "rpm",
    "N·m",
    "mN·m",
    "N",
    "m",
    "mm",
    "m/s",
    "m/s²",
    "s",
    "ms",
    "us",
)
_COMMON += ("ns", "V", "mV", "A", "mA", "degC", "K", "%", "1")
# What labs write and pint reads otherwise: `Nm` would be a nanometre's namesake, and `rev` nothing.
_AS_PINT = (
    (re.compile(r"(?<![A-Za-z])([mkuµ]?)Nm(?![A-Za-z])"), r"\1N*m"),
    (re.compile(r"(?<![A-Za-z])revs?(?![A-Za-z])"), "revolution"),
    (re.compile("·"), "*"),
)
_PLAIN = re.compile(r"[\w·*/^²³°%Ωµ() .+-]{1,40}")  # pint's parser evaluates what it is given
_LARGE_POWER = re.compile(r"(\*\*|\^)\s*[-+(]*\d*(\d\d|\()|\be\d|\d[eE]\d|\*\*.*\*\*")
_NONE = ("1", "none", "")


@cache
def unit(name: str) -> Unit:
    """Return the unit of that name: any that pint reads, and `Nm`, `N·m`, `rev`, `1` and `none`.

    Raises:
        LogError: there is none; the message lists the near ones.
    """
    if name in _NONE:
        return Unit("1", 1.0)
    text = name if _PLAIN.fullmatch(name) and not _LARGE_POWER.search(name) else "not a unit"
    for pattern, replacement in _AS_PINT:
        text = pattern.sub(replacement, text)
    try:
        pint_unit = _registry().Unit(text)
        zero, one = (_registry().Quantity(x, pint_unit).to_base_units() for x in (0.0, 1.0))
        base = str(one.units)
        offset = float(zero.magnitude)
        return Unit(_SI.get(base) or f"{one.units:~C}".replace("*", "·"), float(one.magnitude) - offset, offset)
    except Exception as error:  # pint raises what its parser, Python's tokenizer or arithmetic happen to raise
        near = did_you_mean(name, _COMMON)
        meant = near if "did you mean" in near else ""
        raise LogError(f"unknown unit {name!r}{meant} (any that pint reads, such as {', '.join(_COMMON)})") from error


@cache
def _registry() -> Any:
    import pint  # takes a second

    return pint.UnitRegistry(cache_folder=None)
