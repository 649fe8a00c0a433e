"""The control loop: read, estimate, plan, send; at every step anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import NonFiniteError
from sim2real.estimation import Estimate, StateEstimator
from sim2real.planning import Policy
from sim2real.plant import Plant


@dataclass(frozen=True)
class Run:
    """What n robots did under a policy.

    Attributes:
        time: (T + 1,) [s].
        states: (n, T + 1, X) true states, for scoring.
        commands: (n, T, A).
        milliseconds: (T,) time from reading to command, for all n robots together [ms].
    """

    time: Array
    states: Array
    commands: Array
    milliseconds: Array


class Robots(Protocol):
    """n robots that have started, such as a `RunningTwin`."""

    @property
    def reading(self) -> Array:
        """(n, O) what is read now, positions first."""
        ...

    def step(self, command: Array, seconds: float) -> Any:
        """Hold commands (n, A) for some time."""
        ...

    def state(self) -> Array:
        """Return the true states (n, X)."""
        ...


class Startable(Protocol):
    """What starts robots in states (n, X): a `Twin`."""

    @property
    def plant(self) -> Plant: ...

    def start(self, states: Array) -> Robots: ...


class Tracker:
    """Makes estimates of readings and of the commands that were sent between them, on the model's clock.

    Args:
        estimator: for n plants.
        period: between readings [s].
        history: commands that an estimate carries.
        actions: width of a command.
        lookback: readings before the present one that it carries.
    """

    def __init__(
        self, estimator: StateEstimator, period: float, *, history: int, actions: int, lookback: int = 0
    ) -> None:
        self.estimator, self.period = estimator, period
        self._sizes = max(history, 1), actions, lookback
        self._last: Array | None = None

    def reset(self) -> None:
        """Forget the past."""
        self._last = None

    def read(self, positions: Array) -> Estimate:
        """Take readings of the positions (n, D); return what is known now."""
        if self._last is None:
            history, actions, lookback = self._sizes
            self.estimator.reset(positions)
            state = np.concatenate([positions, np.zeros_like(positions)], 1)
            self._sent = np.zeros((len(positions), history, actions))
            self._past = np.repeat(positions[:, None], lookback, 1)
        else:
            state = self.estimator.update(self.period, positions, self._sent[:, -1])
            self._past = np.concatenate([self._past, self._last[:, None]], 1)[:, 1:]
        self._last = np.array(positions)
        return Estimate(state, self._sent, self._past, self._last)

    def send(self, command: Array) -> None:
        """Note the commands (n, A) that were sent after the last reading."""
        self._sent = np.concatenate([self._sent[:, 1:], command[:, None]], 1)


def closed_loop(
    twin: Startable,
    policy: Policy,
    estimator: StateEstimator,
    starts: Array,
    *,
    seconds: float,
    period: float,
    limit: Array,
    history: int,
    lookback: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Run:
    """Run a policy on n twins.

    Args:
        twin: the robot.
        policy: for n plants.
        estimator: for n plants, from readings of the positions.
        starts: (n, X) states to start in.
        seconds: how long.
        period: of the control loop [s].
        limit: (A,) hard limit of every command that is sent, whatever the policy says.
        history: commands that an estimate carries.
        lookback: readings before the present one that an estimate carries, for models that look back: those want their
            own filter, `model.encoder.estimator()`, and a period that is their timestep.
        progress: called with the share that is done.

    Raises:
        NonFiniteError: the policy returned a command that is not finite.
    """
    dof, actions = twin.plant.degrees_of_freedom, twin.plant.actions
    steps = round(seconds / period)
    robots = twin.start(starts)
    policy.reset()
    tracker = Tracker(estimator, period, history=history, actions=actions, lookback=lookback)
    states, commands, elapsed = [robots.state()], [], []
    for k in range(steps):
        clock = time.perf_counter()
        command = policy.act(tracker.read(robots.reading[:, :dof]), k * period)
        if not np.isfinite(command).all():
            raise NonFiniteError(f"the policy returned a command that is not finite at {k * period:.2f} s")
        command = np.clip(command, -limit, limit)
        elapsed.append(1e3 * (time.perf_counter() - clock))
        tracker.send(command)
        robots.step(command, period)
        states.append(robots.state())
        commands.append(command)
        if k % 25 == 0:
            progress(k / steps)
    clock_of_run: Array = period * np.arange(steps + 1, dtype=np.float64)
    return Run(clock_of_run, np.stack(states, 1), np.stack(commands, 1), np.array(elapsed))
