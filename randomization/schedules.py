"""How a randomized parameter moves within an episode.

A schedule moves the uniform numbers that a draw is made from, so that whatever the distribution, the parameter stays
in its support, and parameters of different units move alike. The eight schedules of the Real-World RL suite
(Dulac-Arnold et al. 2020, `perturb_spec`) carry its names; there an update comes once an episode, here every so many
seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sim2real.errors import ParameterError, did_you_mean

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """How the uniform numbers behind a draw move with time.

    Attributes:
        every: least time between updates [s]; an update comes with the first control step at or after it, with every
            step where it is zero.
    """

    every: float = 0.0
    kind: ClassVar[str]
    # whether an update uses normal numbers, so that none are drawn where nobody uses them
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata.get("above", -1.0)
            if not (np.isfinite(value) and value > least and value >= 0):
                raise ParameterError(f"schedule {self.kind}: {f.name} must be positive, found {value!r}")

    @abstractmethod
    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        """Return the phase (n, D) at `time` (n, 1) [s], from the one at the last update.

        Args:
            phase: (n, D), equal to `start` when the episode begins.
            start: (n, D) the draw of the episode, in [0, 1).
            time: (n, 1) since the episode began [s].
            noise: (n, D) standard normal, zero where the schedule is not random.
        """

    def uniform(self, phase: Array) -> Array:
        """Return the uniform numbers (n, D) in [0, 1] that a phase stands for."""
        return phase

    def weight(self, time: Array) -> Array:
        """Return how far (n, 1) the parameter has moved from its nominal value to the draw: 0 not at all, 1 fully."""
        return np.ones_like(time)

    def describe(self) -> str:
        """Return the schedule in words: `sinusoid period=3`."""
        arguments = [f"{key}={value:g}" for key, value in asdict(self).items() if value or key != "every"]
        return " ".join([self.kind, *arguments])

    def to_config(self) -> dict[str, Any]:
        """Return `{kind: {argument: value}}`, which `parse_schedule` reads."""
        return {self.kind: asdict(self)}


def _period() -> Any:
    from dataclasses import field

    return field(metadata={"above": 0.0})


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """Nominal until `at` [s], then the draw of the episode: a payload that is picked up."""

    at: float = _period()
    kind: ClassVar[str] = "step"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return phase

    def weight(self, time: Array) -> Array:
        return np.where(time >= self.at - 1e-9, 1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Drift(Schedule):
    """Moves evenly from the nominal value to the draw of the episode within `over` [s], and stays: wear, warming up."""

    over: float = _period()
    kind: ClassVar[str] = "drift"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return phase

    def weight(self, time: Array) -> Array:
        return np.clip(time / self.over, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Schedule):
    """Swings from one end of the distribution to the other and back in `period` [s], starting from the draw."""

    period: float = _period()
    kind: ClassVar[str] = "sinusoid"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * time / self.period + np.arcsin(2 * start - 1)))


@dataclass(frozen=True, kw_only=True)
class SawTooth(Schedule):
    """Rises from the lower end of the distribution to the upper in `period` [s] and falls back at once."""

    period: float = _period()
    kind: ClassVar[str] = "saw_tooth"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return np.asarray((start + time / self.period) % 1.0)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Keeps the draw of the episode (Real-World RL suite: `constant`)."""

    kind: ClassVar[str] = "constant"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return phase


@dataclass(frozen=True, kw_only=True)
class Uniform(Schedule):
    """Draws afresh with every update (Real-World RL suite: `uniform`)."""

    kind: ClassVar[str] = "uniform"
    random: ClassVar[bool] = True

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return np.asarray(special.ndtr(noise))


@dataclass(frozen=True, kw_only=True)
class Walk(Schedule):
    """A schedule that moves by random steps; `std` is their deviation, as a share of the distribution."""

    std: float = 0.1
    random: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class RandomWalk(Walk):
    """Wanders, and turns back at the ends, so that at any time all draws are as likely as at the start."""

    kind: ClassVar[str] = "random_walk"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return phase + self.std * noise

    def uniform(self, phase: Array) -> Array:
        return _fold(phase)


@dataclass(frozen=True, kw_only=True)
class DriftPositive(Walk):
    """Wanders upwards to the upper end, and stays there."""

    kind: ClassVar[str] = "drift_pos"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return np.minimum(phase + self.std * np.abs(noise), 1.0)


@dataclass(frozen=True, kw_only=True)
class DriftNegative(Walk):
    """Wanders downwards to the lower end, and stays there."""

    kind: ClassVar[str] = "drift_neg"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return np.maximum(phase - self.std * np.abs(noise), 0.0)


@dataclass(frozen=True, kw_only=True)
class CyclicPositive(Walk):
    """Wanders upwards, and starts again from the draw of the episode when it reaches the upper end."""

    kind: ClassVar[str] = "cyclic_pos"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        phase = phase + self.std * np.abs(noise)
        return np.where(phase >= 1.0, start, phase)


@dataclass(frozen=True, kw_only=True)
class CyclicNegative(Walk):
    """Wanders downwards, and starts again from the draw of the episode when it reaches the lower end."""

    kind: ClassVar[str] = "cyclic_neg"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        phase = phase - self.std * np.abs(noise)
        return np.where(phase <= 0.0, start, phase)


@dataclass(frozen=True, kw_only=True)
class SawWave(Walk):
    """Wanders upwards to the upper end, then downwards to the lower, and so on."""

    kind: ClassVar[str] = "saw_wave"

    def update(self, phase: Array, start: Array, time: Array, noise: Array) -> Array:
        return phase + self.std * np.abs(noise)

    def uniform(self, phase: Array) -> Array:
        return _fold(phase)


def _fold(phase: Array) -> Array:
    """Reflect at 0 and 1."""
    return np.asarray(1.0 - np.abs(1.0 - phase % 2.0))


SCHEDULES: dict[str, type[Schedule]] = {
    schedule.kind: schedule
    for schedule in (
        Step,
        Drift,
        Sinusoid,
        SawTooth,
        Constant,
        Uniform,
        RandomWalk,
        DriftPositive,
        DriftNegative,
        CyclicPositive,
        CyclicNegative,
        SawWave,
    )
}


def parse_schedule(config: Mapping[str, Any]) -> Schedule:
    """Build a schedule from `{sinusoid: {period: 3}}`; `{interval: 2}` stands for `{uniform: {every: 2}}`.

    Raises:
        ParameterError: an unknown schedule or argument.
    """
    if len(config) != 1:
        raise ParameterError(f"a schedule is one name and its arguments, as {{step: {{at: 2}}}}; found {dict(config)}")
    ((kind, arguments),) = config.items()
    if kind == "interval":
        kind, arguments = "uniform", {"every": arguments}
    if kind not in SCHEDULES:
        raise ParameterError(f"no schedule named {kind!r}{did_you_mean(kind, [*SCHEDULES, 'interval', 'automatic'])}")
    if not isinstance(arguments, Mapping):
        raise ParameterError(f"schedule {kind}: expected its arguments by name, found {arguments!r}")
    known = [f.name for f in fields(SCHEDULES[kind])]
    for key, value in arguments.items():
        if key not in known:
            raise ParameterError(f"schedule {kind} has no argument {key!r}{did_you_mean(key, known)}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ParameterError(f"schedule {kind}: {key} must be a number, found {value!r}")
    missing = [f.name for f in fields(SCHEDULES[kind]) if "above" in f.metadata and f.name not in arguments]
    if missing:
        raise ParameterError(f"schedule {kind} needs {missing[0]} [s]")
    return SCHEDULES[kind](**arguments)
