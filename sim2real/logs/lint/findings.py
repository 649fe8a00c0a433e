"""Findings of the log linter: what is wrong, where, how bad, what it prevents, how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sim2real.episodes import Array

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """One thing that is looked for.

    Attributes:
        title: in a few words.
        prevents: what a log with it cannot teach, or what goes wrong in learning from it.
        mend: what to do about it.
    """

    title: str
    prevents: str
    mend: str


CODES: Mapping[str, Rule] = {
    "LOG000": Rule("cannot be read", "everything", "see the message; leave the file out with on_error='skip'"),
    "LOG001": Rule(
        "irregular sampling",
        "models with a fixed step: they take uneven steps for even ones, and see accelerations that were not there",
        "keep the stamps and let the toolkit use them; record from a real-time thread",
    ),
    "LOG002": Rule("gap", "predictions across it", "set max_gap in the schema, or split the recording there"),
    "LOG003": Rule(
        "repeated samples",
        "velocities and noise levels: a repeated sample looks like a stop, and then a jump",
        "drop the repeated rows where they are made, or read the sensor at its own rate",
    ),
    "LOG004": Rule(
        "missing values", "reading the recording at all", "repair the rows, or cut them off with start or stop"
    ),
    "LOG005": Rule(
        "stuck channel",
        "learning from that channel; a model would learn that the joint stands still",
        "check the sensor and its cable; leave the channel or the stretch out (excluded)",
    ),
    "LOG006": Rule(
        "saturated channel",
        "identification in those stretches: the value says 'at least so much' and not how much",
        "widen the range of the sensor, or model the limit (execution.torque_limit) where it is the actuator's",
    ),
    "LOG007": Rule(
        "wrong unit", "everything that has a unit in it: inertia, gravity, limits", "correct the unit in the schema"
    ),
    "LOG008": Rule(
        "wrong order of joints",
        "any model of the robot: commands are credited to the wrong joint",
        "put the channels of the schema into the order of the joints (joints)",
    ),
    "LOG009": Rule(
        "wrong sign",
        "any model of the robot: efforts push the wrong way",
        "give the channel scale: -1, or the joint sign: -1",
    ),
    "LOG010": Rule(
        "velocity disagrees with position",
        "models that take both for the state of one joint",
        "correct the scale of one of them, or estimate velocities from the positions",
    ),
    "LOG011": Rule(
        "velocity lags",
        "starting predictions from the logged state: it is an old velocity beside a new position",
        "estimate the state from the positions, as the toolkit's observer does, not from the logged velocity",
    ),
    "LOG012": Rule(
        "delay from command to response",
        "nothing: it is what a log with both clocks can tell",
        "use it as the prior of execution.latency",
    ),
    "LOG013": Rule(
        "commands cannot be told from measurements",
        "learning the execution gap: latency, dead zone and torque limits lie between a command and what was measured",
        "record what was asked of the drive, too",
    ),
    "LOG014": Rule(
        "low excitation",
        "identification of the parameters that are named",
        "record motions that reverse, accelerate and use the range of the joint",
    ),
    "LOG015": Rule(
        "response before its command",
        "any causal model: the action of a row acted before the row was stamped (an off-by-one)",
        "shift the actions by a row, or stamp them when they are sent (command_time)",
    ),
    "LOG016": Rule(
        "too short",
        "predictions over a second, and every estimate of noise",
        "record for longer; join what belongs together",
    ),
    "LOG017": Rule(
        "stamps were not measured",
        "learning latency and jitter: every step is exactly as long as the others",
        "log the time at which the sample was taken",
    ),
    "LOG018": Rule(
        "clocks differ",
        "delays between topics: they drift by as much",
        "synchronise the clocks (chrony, PTP), or give the clock a scale and an offset in the schema",
    ),
    "LOG019": Rule(
        "clock goes back", "reading the recording at all", "sort the rows; do not set the clock while recording"
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found in one recording.

    Attributes:
        code: of `CODES`.
        severity: "error" (learning from it goes wrong), "warning" (some of it does) or "note" (worth knowing).
        recording: its name.
        channels: roles of the channels, such as `observations.velocity`.
        what: one sentence with numbers and units.
        where: rows or times.
        values: the numbers in it, SI units.
        curves: what to draw: name -> (x, y).
    """

    code: str
    severity: Severity
    recording: str
    channels: tuple[str, ...]
    what: str
    where: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, tuple[Array, Array]] = field(default_factory=dict, compare=False)

    @property
    def rule(self) -> Rule:
        """What the code means."""
        return CODES[self.code]

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return {
            "code": self.code,
            "title": self.rule.title,
            "severity": self.severity,
            "recording": self.recording,
            "channels": list(self.channels),
            "what": self.what,
            "where": self.where,
            "values": dict(self.values),
            "prevents": self.rule.prevents,
            "mend": self.rule.mend,
        }
