"""A recording as its files have it: SI values on the clocks that stamped them, nothing checked or repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim2real.episodes import ActionSource, Array, Episode

Group = Literal["observations", "actions", "measured_actions", "exogenous"]


@dataclass(frozen=True)
class RawChannel:
    """One channel of a recording.

    Attributes:
        group: what it is for.
        name: of the channel in the schema.
        unit: SI unit.
        t: (N,) clock [s], as stamped: it may hold NaN, stand still or go back.
        values: (N,) in `unit`; NaN where a cell is empty. Actions may be one row short: then `t` is too.
        where: file and column, as messages put it.
        clock: name of the clock; channels of the same clock were stamped together, row by row.
    """

    group: Group
    name: str
    unit: str
    t: Array
    values: Array
    where: str
    clock: str = "time"

    @property
    def role(self) -> str:
        """Group and name, as in `observations.position`."""
        return f"{self.group}.{self.name}"


@dataclass(frozen=True)
class RawRecording:
    """One recording, before anything is checked.

    Attributes:
        name: of the recording.
        channels: every channel that the schema names, in its order.
        action_source: whether `actions` is what was asked for or what the actuator reported.
        synthetic: why the clock of the observations was never measured (a data set of a fixed rate, a clock made from
            row numbers), or "" where it may have been.
        excluded: stretches [s] on the clock not to learn from.
        stamps: topic -> (M, 2): own stamp and time of receipt of each message [s], where the log has both.
    """

    name: str
    channels: tuple[RawChannel, ...]
    action_source: ActionSource
    synthetic: str = ""
    excluded: tuple[tuple[float, float], ...] = ()
    stamps: tuple[tuple[str, Array], ...] = ()

    def group(self, group: Group) -> tuple[RawChannel, ...]:
        """Return the channels of one group."""
        return tuple(c for c in self.channels if c.group == group)


def raw_of(episode: Episode) -> RawRecording:
    """Return an episode as the linter takes it."""
    channels = []
    where = str(next((f["path"] for f in episode.provenance.get("files", ())), episode.name))
    parts: tuple[tuple[Group, Array | None, tuple[tuple[str, str], ...], Array, str], ...] = (
        ("observations", episode.observations, episode.channels.observations, episode.observed_at, "time"),
        ("actions", episode.actions, episode.channels.actions, episode.commanded_at, "command_time"),
        ("measured_actions", episode.measured_actions, episode.channels.actions, episode.commanded_at, "command_time"),
        ("exogenous", episode.exogenous, episode.channels.exogenous, episode.observed_at, "time"),
    )
    same = np.array_equal(episode.commanded_at, episode.observed_at[:-1])
    for group, values, names, t, clock in parts:
        if values is not None:
            for k, (name, unit) in enumerate(names):
                label = "time" if same else clock
                channels.append(RawChannel(group, name, unit, t, values[:, k], f"{where}: {group}.{name}", label))
    synthetic = str(episode.provenance.get("synthetic_clock", ""))
    return RawRecording(episode.name, tuple(channels), episode.action_source, synthetic, episode.excluded)
