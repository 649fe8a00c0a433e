"""Episodes: what one recording holds, in SI units, on the clocks it was recorded with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim2real.align import band_limited
from sim2real.errors import LogError

Array = NDArray[np.float64]
ActionSource = Literal["commanded", "measured"]


def all_finite(values: NDArray[np.floating[Any]]) -> bool:
    """Whether no value is NaN or infinite: a sum is not, where one is, and it is much cheaper to look at."""
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def digest(episodes: Iterable[Episode], *more: str) -> str:
    """Return a digest of every number in episodes, and of what else they are to be told apart by."""
    found = hashlib.sha256()
    for e in episodes:
        for values in (e.observed_at, e.observations, e.commanded_at, e.actions):
            found.update(np.ascontiguousarray(values).tobytes())
    for text in more:
        found.update(text.encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Channels:
    """Names and SI units of the columns of an episode: `(name, unit)` pairs, in column order."""

    observations: tuple[tuple[str, str], ...]
    actions: tuple[tuple[str, str], ...]
    exogenous: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> int:
        """Return the column of an observation.

        Raises:
            LogError: there is no observation of that name.
        """
        names = [n for n, _ in self.observations]
        if name not in names:
            raise LogError(f"no observation named {name!r}; the episode has {', '.join(names)}")
        return names.index(name)


@dataclass(frozen=True)
class Episode:
    """One recording: T transitions between T + 1 observations.

    Row k of `actions` is in force from `commanded_at[k]` until `commanded_at[k + 1]` (the last one until the end).

    Attributes:
        name: what reports call it.
        observed_at: (T + 1,) clock of the observations [s], as measured.
        observations: (T + 1, O) in SI units, in the order of `channels.observations`.
        commanded_at: (T,) clock of the actions [s], the same clock.
        actions: (T, A) in SI units.
        action_source: whether `actions` is what was asked for or what the actuator reported. Parameters of the
            execution are never fitted on "measured".
        channels: names and units.
        measured_actions: (T, A) what the actuator reported, where it does.
        exogenous: (T + 1, E) quantities known only up to the present (supply voltage, temperature).
        rewards: (T,) where there are any.
        terminated: whether the last observation is terminal.
        excluded: stretches `(from, to)` [s] on `observed_at` not to learn from or to score.
        provenance: what it was made of, as JSON has it: files, schema, resampling.

    Raises:
        LogError: lengths disagree, a clock does not increase, or a value is not finite.
    """

    name: str
    observed_at: Array
    observations: Array
    commanded_at: Array
    actions: Array
    action_source: ActionSource
    channels: Channels
    measured_actions: Array | None = None
    exogenous: Array | None = None
    rewards: Array | None = None
    terminated: bool = False
    excluded: tuple[tuple[float, float], ...] = field(default=())
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        steps = len(self.commanded_at)
        expected: dict[str, tuple[Array | None, tuple[int, ...]]] = {
            "observed_at": (self.observed_at, (steps + 1,)),
            "observations": (self.observations, (steps + 1, len(self.channels.observations))),
            "actions": (self.actions, (steps, len(self.channels.actions))),
            "measured_actions": (self.measured_actions, (steps, len(self.channels.actions))),
            "exogenous": (self.exogenous, (steps + 1, len(self.channels.exogenous))),
            "rewards": (self.rewards, (steps,)),
        }
        if steps < 1:
            raise LogError(f"{self.name}: an episode needs at least one transition (two rows), found none")
        for what, (value, shape) in expected.items():
            if value is None:
                continue
            if value.shape != shape:
                raise LogError(f"{self.name}: {what} has shape {value.shape}, expected {shape}")
            if not all_finite(value):
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise LogError(f"{self.name}: {what} is not finite in row {row}; cut or repair the row first")
        for what, clock in (("observed_at", self.observed_at), ("commanded_at", self.commanded_at)):
            rising = clock[1:] > clock[:-1]
            if not rising.all():
                k = int(rising.argmin())
                raise LogError(
                    f"{self.name}: the clock {what} must increase, but goes from {clock[k]:.6g} s to "
                    f"{clock[k + 1]:.6g} s at row {k + 1}"
                )

    def __len__(self) -> int:
        return len(self.commanded_at)

    @property
    def duration(self) -> float:
        """Time between the first and the last observation [s]."""
        return float(self.observed_at[-1] - self.observed_at[0])

    @property
    def period(self) -> float:
        """Median time between observations [s]."""
        return float(np.median(np.diff(self.observed_at)))

    def slice(self, start: float, stop: float, name: str | None = None) -> Episode:
        """Return the part observed in [start, stop] seconds after the first observation, on the same clock.

        Raises:
            LogError: fewer than two observations lie in the stretch.
        """
        t = self.observed_at - self.observed_at[0]
        inside = np.flatnonzero((t >= start - 1e-9) & (t <= stop + 1e-9))
        if len(inside) < 2:
            raise LogError(
                f"{self.name}: no two observations between {start:g} s and {stop:g} s; it lasts {self.duration:.3g} s"
            )
        a, b = int(inside[0]), int(inside[-1])
        rows, transitions = slice(a, b + 1), slice(a, b)
        return replace(
            self,
            name=name or self.name,
            observed_at=self.observed_at[rows],
            observations=self.observations[rows],
            commanded_at=self.commanded_at[transitions],
            actions=self.actions[transitions],
            measured_actions=None if self.measured_actions is None else self.measured_actions[transitions],
            exogenous=None if self.exogenous is None else self.exogenous[rows],
            rewards=None if self.rewards is None else self.rewards[transitions],
            terminated=self.terminated and b == len(t) - 1,
        )

    def commands_at(self, times: Array) -> Array:
        """Return the command in force at each of `times` [s], held between stamps: `times.shape + (A,)`.

        Before the first stamp nothing has been sent: the command there is zero.
        """
        k = np.searchsorted(self.commanded_at, times + 1e-9, side="right") - 1
        return np.where((k >= 0)[..., None], self.actions[np.maximum(k, 0)], 0.0)

    def is_excluded(self, start: Array, stop: Array) -> NDArray[np.bool_]:
        """Return whether each stretch [start, stop] [s] touches an excluded one; shape of the arguments."""
        touched = np.zeros(np.broadcast(start, stop).shape, bool)
        for a, b in self.excluded:
            touched |= (np.asarray(start) < b) & (np.asarray(stop) > a)
        return touched


def resample(episode: Episode, period: float) -> Episode:
    """Return the episode on a uniform clock: states band-limited (`band_limited`), commands by zero-order hold.

    The command of a new step is the time average of the commands in force during it, so that impulses are kept; its
    reward is the sum of the rewards of the recorded steps whose command starts inside it.

    Args:
        episode: the recording, on its own clocks.
        period: the new time step [s].

    Raises:
        LogError: the episode is shorter than one new step.
    """
    steps = int(np.floor((episode.observed_at[-1] - episode.observed_at[0]) / period + 1e-6))
    if steps < 1:
        raise LogError(f"{episode.name}: lasts {episode.duration:.3g} s, shorter than one step of {period:g} s")
    clock = episode.observed_at[0] + period * np.arange(steps + 1)

    def average(values: Array, stamps: Array) -> Array:
        # Differences of the impulse so far: exact wherever the stamps fall. There is none before the first stamp.
        knots = np.append(stamps, max(clock[-1], stamps[-1]) + period) - clock[0]
        impulse = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values * np.diff(knots)[:, None], 0)])
        at_clock = np.stack([np.interp(clock - clock[0], knots, column) for column in impulse.T], 1)
        return np.asarray(np.diff(at_clock, axis=0) / np.diff(clock)[:, None])

    stamps, measured, rewards = episode.commanded_at, episode.measured_actions, episode.rewards
    if measured is not None:  # what the actuator did before the first stamp is not known: its first report is held
        held_back = np.concatenate([[min(stamps[0], clock[0])], stamps[1:]])
        measured = average(measured, held_back)
    if rewards is not None:
        step = np.searchsorted(clock, stamps + 1e-9, side="right") - 1
        inside = (step >= 0) & (step < steps)
        rewards = np.bincount(step[inside], weights=rewards[inside], minlength=steps).astype(np.float64)
    return replace(
        episode,
        observed_at=clock,
        observations=band_limited(episode.observed_at, episode.observations, clock),
        commanded_at=clock[:-1],
        actions=average(episode.actions, stamps),
        measured_actions=measured,
        exogenous=None if episode.exogenous is None else band_limited(episode.observed_at, episode.exogenous, clock),
        rewards=rewards,
        provenance={
            **episode.provenance,
            "resampling": {"period": period, "states": "band-limited", "commands": "mean of the commands in force"},
        },
    )
