"""The control loop: read, estimate, plan, send; at every step anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import NonFiniteError
from sim2real.estimation import Estimate, StateEstimator
from sim2real.planning import Policy
from sim2real.twin import Twin


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


def closed_loop(
    twin: Twin,
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
    n, steps = len(starts), round(seconds / period)
    robots = twin.start(starts)
    policy.reset()
    estimator.reset(robots.reading[:, :dof])
    sent = np.zeros((n, max(history, 1), actions))
    estimate = np.concatenate([robots.reading[:, :dof], np.zeros((n, dof))], 1)
    past = np.repeat(robots.reading[:, None, :dof], lookback, 1)
    states, commands, elapsed = [robots.state()], [], []
    for k in range(steps):
        clock = time.perf_counter()
        if k:
            estimate = estimator.update(period, robots.reading[:, :dof], sent[:, -1])
        command = policy.act(Estimate(estimate, sent, past), k * period)
        if not np.isfinite(command).all():
            raise NonFiniteError(f"the policy returned a command that is not finite at {k * period:.2f} s")
        command = np.clip(command, -limit, limit)
        elapsed.append(1e3 * (time.perf_counter() - clock))
        sent = np.concatenate([sent[:, 1:], command[:, None]], 1)
        past = np.concatenate([past, robots.reading[:, None, :dof]], 1)[:, 1:]
        robots.step(command, period)
        states.append(robots.state())
        commands.append(command)
        if k % 25 == 0:
            progress(k / steps)
    clock_of_run: Array = period * np.arange(steps + 1, dtype=np.float64)
    return Run(clock_of_run, np.stack(states, 1), np.stack(commands, 1), np.array(elapsed))
