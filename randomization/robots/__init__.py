"""Robots that come with the toolkit, as MJCF: SI units, contacts off, every body, joint, geom and actuator named."""

from __future__ import annotations

from pathlib import Path

from sim2real.errors import RobotError, did_you_mean

__all__ = ["ROBOTS", "path"]

_FOLDER = Path(__file__).resolve().parent
ROBOTS: tuple[str, ...] = tuple(sorted(file.stem for file in _FOLDER.glob("*.xml")))


def path(name: str) -> Path:
    """Return the MJCF file of the robot called `name`, one of `ROBOTS`.

    Raises:
        RobotError: no robot of that name comes with the toolkit.
    """
    if name not in ROBOTS:
        raise RobotError(f"no robot named {name!r} comes with the toolkit{did_you_mean(name, ROBOTS)}")
    return _FOLDER / f"{name}.xml"
