"""A recording as the rules look at it: channels on an even clock, and which belong to one joint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.signal import savgol_coeffs

from sim2real.episodes import Array
from sim2real.logs.raw import RawChannel, RawRecording

POSITIONS, VELOCITIES = ("rad", "m"), ("rad/s", "m/s")
EFFORTS = ("N·m", "N", "V", "A", "1")
SPAN = 0.03  # of the polynomials that give derivatives [s]
_KINDS = re.compile(
    r"(?i)(?<![a-z])(joint|motor|pos(ition)?|angle|vel(ocity)?|speed|rate|torque|tau|effort|force|current|volts?|"
    r"voltage|cmd|command(ed)?|target|goal|des(ired)?|action|state|obs|meas(ured)?|q|dq|qd|u)(?![a-z])"
)


@dataclass(frozen=True)
class Joint:
    """A joint: its position, and what else of it the recording has."""

    name: str
    position: RawChannel
    velocity: RawChannel | None
    action: RawChannel | None


class View:
    """A recording, with what the rules need of it worked out once."""

    def __init__(self, recording: RawRecording) -> None:
        self.recording = recording

    @cached_property
    def t(self) -> Array:
        """The clock of the observations, without what is not finite: (N,) [s]."""
        t = self.recording.group("observations")[0].t
        return t[np.isfinite(t)]

    @cached_property
    def regular(self) -> bool:
        """Whether there is enough of a clock, and it increases, so that motion can be looked at."""
        return len(self.t) >= 50 and bool((np.diff(self.t) > 0).all()) and self.t[-1] - self.t[0] > 20 * SPAN

    @cached_property
    def dt(self) -> float:
        """Median step [s]."""
        return float(np.median(np.diff(self.t))) if len(self.t) > 1 else 0.0

    @cached_property
    def grid(self) -> Array:
        """An even clock of the median step, (M,) [s]; at most 60,000 instants."""
        steps = min(int((self.t[-1] - self.t[0]) / self.dt + 1e-6) + 1, 60_000)
        return np.asarray(self.t[0] + self.dt * np.arange(steps))

    def on_grid(self, channel: RawChannel, hold: bool = False) -> Array:
        """Return a channel on the even clock (M,): by lines, or of held commands the mean about each instant."""
        n = min(len(channel.t), len(channel.values))
        ok = np.isfinite(channel.values[:n]) & np.isfinite(channel.t[:n])
        t, x = channel.t[:n][ok], channel.values[:n][ok]
        if len(t) < 2:
            return np.zeros(len(self.grid))
        if hold:  # the mean over the step about each instant, so that no stamp is rounded to the grid
            knots = np.append(t, t[-1] + self.dt)
            impulse = np.concatenate([[0.0], np.cumsum(x * np.diff(knots))])
            ends = np.interp(
                np.append(self.grid - self.dt / 2, self.grid[-1] + self.dt / 2) - t[0], knots - t[0], impulse
            )
            return np.asarray(np.diff(ends) / self.dt)
        return np.interp(self.grid, t, x)

    def smooth(self, x: Array, order: int, half: int | None = None) -> Array:
        """Return the derivative of that order (0, 1 or 2) of a parabola about each instant, without delay: (M,).

        The parabola is through `half` samples on either side, by default those of `SPAN` seconds.
        """
        half = max(2, round(SPAN / 2 / self.dt)) if half is None else half
        weights = savgol_coeffs(2 * half + 1, 2, deriv=order, delta=self.dt, use="dot")
        return np.correlate(np.pad(x, half, mode="edge"), weights, mode="valid")

    @property
    def margin(self) -> int:
        """Instants at either end where derivatives are not to be trusted."""
        return 2 * max(2, round(SPAN / 2 / self.dt))

    @cached_property
    def joints(self) -> list[Joint]:
        """The joints: positions, and the velocities and actions of the same name, or in the same place."""
        observations = self.recording.group("observations")
        positions = [c for c in observations if c.unit in POSITIONS]
        velocities = [c for c in observations if c.unit in VELOCITIES]
        actions = list(self.recording.group("actions"))
        of_velocity, of_action = _match(positions, velocities), _match(positions, actions)
        return [Joint(_stem(p.name) or p.name, p, of_velocity.get(p.name), of_action.get(p.name)) for p in positions]


def _stem(name: str) -> str:
    """Return what is left of a channel's name without the words for what is measured."""
    return re.sub(
        r"[^a-z0-9]+", "_", _KINDS.sub("", re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", name).replace("_", " ")).lower()
    ).strip("_")


def _match(positions: list[RawChannel], others: list[RawChannel]) -> dict[str, RawChannel]:
    stems: dict[str, RawChannel] = {}
    for other in others:
        stems.setdefault(_stem(other.name), other)
    found = {p.name: stems[_stem(p.name)] for p in positions if _stem(p.name) in stems}
    if len(found) == len(positions) == len(stems):
        return found
    if len(positions) == len(others):
        return {p.name: o for p, o in zip(positions, others, strict=True)}
    return found
