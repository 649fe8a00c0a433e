"""The loop around a robot: read, estimate, act, send, on a clock, and what the clock says of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from sim2real.control import Tracker
from sim2real.episodes import Array
from sim2real.errors import LogError, NonFiniteError
from sim2real.planning.policy import Policy

# A period that is longer than it should be by this share has missed its deadline.
LATE = 0.1
# How long a robot is held after an interrupt, for it to come to rest [s].
HELD = 1.0


class Paced(gym.Wrapper[Any, Any, Any, Any]):
    """Lets every step of an environment that does not wait by itself, such as a simulation, end on the clock's tick.

    Args:
        env: whose steps take less than a period.
        period: from tick to tick [s]; after a step that took longer, ticks are counted from its end.
    """

    def __init__(self, env: gym.Env[Any, Any], period: float) -> None:
        super().__init__(env)
        self.period = period
        self._tick: float | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._tick = None  # the first step is as long as the others
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        begun = time.perf_counter() if self._tick is None else self._tick
        found = self.env.step(action)
        self._tick = begun + self.period
        left = self._tick - time.perf_counter()
        if left > 0:
            time.sleep(left)
        else:
            self._tick -= left
        return found


@dataclass(frozen=True)
class Timing:
    """What the clock said of a run.

    Attributes:
        period: as it should be [s].
        times: (T + 1,) of the readings, from the first command [s].
        milliseconds: (T,) from a reading to its command [ms]; the first one may be long, for planners get ready.
        commands: (T, A) that were sent.
        readings: (T + 1, D) of the joint positions.
    """

    period: float
    times: Array
    milliseconds: Array
    commands: Array
    readings: Array

    @property
    def jitter(self) -> Array:
        """By how much each period was longer than it should be [ms]: (T,)."""
        return np.asarray(1e3 * (np.diff(self.times) - self.period))

    @property
    def missed(self) -> int:
        """How many periods missed their deadline, by a tenth of a period or more."""
        return int((self.jitter > 1e3 * LATE * self.period).sum())

    def to_json(self) -> dict[str, float]:
        """Return what is told of it; the first command is left out of how long they took."""
        late, took = np.abs(self.jitter), self.milliseconds[1:] if len(self.milliseconds) > 1 else self.milliseconds
        return {
            "rate_hz": (len(self.times) - 1) / float(self.times[-1]),
            "periods": len(self.milliseconds),
            "missed": self.missed,
            "command_ms_p50": float(np.median(took)),
            "command_ms_p99": float(np.quantile(took, 0.99)),
            "jitter_ms_p50": float(np.median(late)),
            "jitter_ms_p99": float(np.quantile(late, 0.99)),
            "jitter_ms_max": float(late.max()),
        }

    def write_curves(self, folder: Path) -> None:
        """Write TensorBoard curves of positions, commands and times; needs `tensorboard`."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder))
        for k, (took, late) in enumerate(zip(self.milliseconds, self.jitter, strict=True)):
            writer.add_scalar("loop/command_ms", took, k)
            writer.add_scalar("loop/jitter_ms", late, k)
            for name, rows in (("position", self.readings), ("command", self.commands)):
                for i, value in enumerate(rows[k]):
                    writer.add_scalar(f"{name}/{i}", value, k)
        writer.add_histogram("loop/jitter", self.jitter)
        writer.close()


class ControlLoop:
    """Runs a policy on a robot.

    The robot is a Gymnasium environment whose `step` sends a command, holds it for a period, and returns what was read
    at its end. Hardware waits there by itself; a simulation in real time is to be `Paced`. `RecordEpisodes` around
    either one records.

    Args:
        robot: what to control.
        policy: for one plant: `SafetyFilter(PlannerProcess(planner, period), limits, robot_model, period)`.
        tracker: makes estimates of readings; its period is that of the loop.
        channels: which of the observations are joint positions, by number.
        clock: what `policy` is told: the wall's time, or `simulated`, the periods so far.

    Raises:
        LogError: the robot does not take a box of commands.
    """

    def __init__(
        self,
        robot: gym.Env[Any, Any],
        policy: Policy,
        tracker: Tracker,
        channels: Sequence[int],
        clock: Literal["wall", "simulated"] = "wall",
    ) -> None:
        if not isinstance(robot.action_space, gym.spaces.Box):
            raise LogError(f"expected a robot that takes a box of commands, found {robot.action_space}")
        self.robot, self.policy, self.tracker, self.channels = robot, policy, tracker, list(channels)
        self._space, self._wall = robot.action_space, clock == "wall"

    def run(self, seconds: float, seed: int | None = None) -> Timing:
        """Run for some seconds, or until the robot says the episode is over; the clock begins at the first command.

        On an interrupt (Ctrl-C), a policy with an emergency stop is told to `stop`, holds the robot for a second, and
        then the KeyboardInterrupt goes on.

        Raises:
            NonFiniteError: the policy returned a command that is not finite; it was not sent.
            LogError: that is less than a period.
        """
        period, space = self.tracker.period, self._space
        self.policy.reset()
        self.tracker.reset()
        observation, _ = self.robot.reset(seed=seed)
        begun: float | None = None
        times, took, commands = [0.0], list[float](), list[Array]()
        readings = [np.asarray(observation, float)[self.channels]]
        interrupted: KeyboardInterrupt | None = None
        left = round(seconds / period)
        if left < 1:
            raise LogError(f"expected a run of a period of {period:g} s or more, found {seconds:g} s")
        while left > 0:
            left -= 1
            try:
                read = time.perf_counter()
                now = times[-1] if self._wall else len(took) * period
                estimate = self.tracker.read(readings[-1][None])
                command = self.policy.act(estimate, now)
                if not np.isfinite(command).all():
                    raise NonFiniteError(f"a command that is not finite after {now:.2f} s; it was not sent")
                command = np.clip(command, space.low, space.high)
                self.tracker.send(command)
                sent = time.perf_counter()
                begun = sent if begun is None else begun
                took.append(1e3 * (sent - read))
                commands.append(command[0])
                observation, _, terminated, truncated, _ = self.robot.step(command[0].astype(space.dtype))
                times.append(time.perf_counter() - begun)
                readings.append(np.asarray(observation, float)[self.channels])
                if terminated or truncated:
                    break
            except KeyboardInterrupt as pressed:
                stop = getattr(self.policy, "stop", None)
                if stop is None or interrupted is not None:
                    raise
                stop("interrupted")
                interrupted, left = pressed, round(HELD / period)
        if interrupted is not None:
            raise interrupted
        return Timing(period, np.array(times), np.array(took), np.stack(commands), np.stack(readings))
