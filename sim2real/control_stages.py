"""The closed loop of a run: every controller on the same twins from the same starts, and one of them by the clock."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.backing_off import BackOff, Calm, collected
from sim2real.control import Run, Tracker
from sim2real.control_loop import ControlLoop, Paced
from sim2real.controllers import Controller, Ready, guarded, limits_of, require_calm, start_positions, task_of, told_of
from sim2real.episodes import Array
from sim2real.errors import SafetyError
from sim2real.estimation import Observation
from sim2real.logs.record import RecordEpisodes
from sim2real.planning import Cost, PlannerProcess, Policy, closeness
from sim2real.preparation import Setup
from sim2real.safety import SafetyFilter
from sim2real.twin import Twin
from sim2real.twin_env import TwinEnv

Progress = Callable[[str], None]
# Share of a period after which a plan in real time is sent as good as it is.
IN_TIME = 2 / 3


class Noisy:
    """A twin whose readings have white noise; it stands in for one as `closed_loop` asks it.

    Args:
        twin: that is read.
        noise: (D,) standard deviation of the readings [rad or m].
        rng: of the noise.
    """

    def __init__(self, twin: Twin, noise: Array, rng: np.random.Generator) -> None:
        self.twin, self.plant, self.noise, self.rng = twin, twin.plant, noise, rng

    def start(self, states: Array) -> Noisy:
        """Start twins in states (n, X)."""
        self._running = self.twin.start(states)
        self.step, self.state = self._running.step, self._running.state
        return self

    @property
    def reading(self) -> Array:
        """(n, D) positions as they are read now."""
        found = self._running.reading[:, : len(self.noise)]
        return np.asarray(found + self.rng.normal(size=found.shape) * self.noise)


def calm_of(
    setup: Setup, controller: Controller, observation: Observation, noise: Array, progress: Progress
) -> Controller:
    """Return a controller that knows what calm looks like, where the recipe asks for backing off.

    It runs on the plant that it believes in, as noisy as the recordings.

    Args:
        setup: the run.
        controller: to calibrate.
        observation: what the observer does.
        noise: (D,) standard deviation of the readings [rad or m].
        progress: called with what is being done.
    """
    recipe = setup.recipe.control
    if recipe.back_off is None or controller.model is None:
        return controller
    ready = Ready.of(setup, controller, observation, recipe.starts)
    assert isinstance(ready.policy, BackOff)
    twin = Twin(controller.plant, controller.values, period=ready.period)
    starts = start_positions(setup, "calm")
    require_calm(setup, ready.period)
    seconds = recipe.back_off.seconds / recipe.starts
    progress("runs in which all is well, to know a doubt when it comes")
    rng = setup.rng("calm noise")
    ready.run(Noisy(twin, noise, rng), ready.policy, starts, seconds, limits_of(setup))
    return replace(controller, calm=Calm.of(collected([ready.policy]), recipe.back_off.false_alarms))


@dataclass(frozen=True)
class Tried:
    """What came of a controller.

    Attributes:
        run: on the twins.
        interventions: of a safety filter, by reason; None where there is none.
        backed_off: share of the periods in which less than the plan was sent; None where it cannot.
    """

    run: Run
    interventions: dict[str, int] | None
    backed_off: float | None


def control_stage(
    setup: Setup, controllers: Mapping[str, Controller], observation: Observation, progress: Progress
) -> dict[str, Tried]:
    """Let each controller loose on the same twins from the same starts."""
    assert setup.twin is not None
    recipe, twin = setup.recipe.control, setup.twin
    starts, out = start_positions(setup), {}
    for name, controller in controllers.items():
        ready = Ready.of(setup, controller, observation, recipe.starts)
        policy = guarded(setup, ready.policy, ready.period, controller.values)
        run = ready.run(
            twin,
            policy,
            starts,
            recipe.seconds,
            limits_of(setup),
            lambda share, name=name: progress(f"{name}: {100 * share:.0f} %"),  # type: ignore[misc]
        )
        filtered = policy.interventions | told_of(policy) if isinstance(policy, SafetyFilter) else None
        out[name] = Tried(run, filtered, backed_off(ready.policy))
    return out


def backed_off(policy: Policy) -> float | None:
    """Return the share of periods in which less than the plan was sent; None where a policy does not back off."""
    return float((np.array(policy.shares) < 1.0).mean()) if isinstance(policy, BackOff) else None


def real_time_stage(
    setup: Setup, controller: Controller, observation: Observation, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Let a controller loose on one twin by the clock, recorded, its planner in a process of its own.

    Returns:
        what `Timing` tells, how often a plan before was followed, how close to its goal the twin was on average, and
        what a safety filter did; or why there was no command in time, as `failed`, where no filter stands in. The
        folder has the recording, TensorBoard curves, and `clock.npz` as `Timing` has it.
    """
    assert setup.twin is not None
    assert setup.recipe.control.loop is not None
    settings, limit = setup.recipe.control.loop, limits_of(setup)
    period, dof = controller.period(setup), setup.plant.degrees_of_freedom
    deadline = settings.deadline or 1e3 * IN_TIME * period
    in_time = setup.recipe.control.model_copy(update={"deadline": deadline})
    hurried = replace(setup, recipe=setup.recipe.model_copy(update={"control": in_time}))
    ready = Ready.of(hurried, controller, observation, 1)
    progress("in real time: starting the planner's process")
    apart = PlannerProcess(ready.policy, period, patience=settings.patience)
    policy = guarded(setup, apart, period, controller.values)
    shutil.rmtree(folder, ignore_errors=True)
    robot = TwinEnv(setup.twin, limit, period, settings.seconds + period, setup.recipe.control.spread)
    recorder = RecordEpisodes(Paced(robot, period), folder / "logs", names=robot.names, clock="wall", dt=period)
    tracker = Tracker(
        ready.estimator, period, history=ready.history, actions=setup.plant.actions, lookback=ready.lookback
    )
    try:
        apart.reset()
        progress(f"in real time: {settings.seconds:g} s at {1 / period:g} Hz")
        timing = ControlLoop(recorder, policy, tracker, range(dof)).run(settings.seconds, setup.recipe.seed)
    except SafetyError as error:
        return {"failed": str(error)}
    finally:
        recorder.end()
        apart.close()
    np.savez_compressed(
        folder / "clock.npz", times=timing.times, readings=timing.readings, milliseconds=timing.milliseconds
    )
    with contextlib.suppress(ImportError):  # tensorboard is an extra
        timing.write_curves(folder)
    close = closeness_as_read(task_of(setup), timing.readings, period, period)
    did = policy.interventions | told_of(policy) if isinstance(policy, SafetyFilter) else {}
    return {**timing.to_json(), "followed": apart.followed, "closeness": close, "safety": did}


def returns(run: Run, cost: Cost) -> Array:
    """Return how close to the goal of a cost each robot was on average, 0 to 1: (n,)."""
    return closeness(cost, run.states[:, 1:], float(run.time[1] - run.time[0]))


def closeness_as_read(cost: Cost, positions: Array, spacing: float | Array, period: float) -> float:
    """Return how close to its goal one robot was on average, 0 to 1, as it was read.

    Args:
        cost: with a goal.
        positions: (T + 1, D) of the joints, as read [rad or m]; what is not finite is left out.
        spacing: between readings, or their times (T + 1,) [s].
        period: that they should be apart [s].
    """
    states = np.concatenate([positions, np.gradient(positions, spacing, axis=0)], 1)[None, 1:]
    return float(closeness(cost, states[:, np.isfinite(states).all((0, 2))], period)[0])


def save_runs(runs: Mapping[str, Run], path: Path) -> None:
    """Write what the robots did as one npz: `<controller>.states`, `.commands` and `.milliseconds`, as in `Run`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ("states", "commands", "milliseconds")
    arrays = {f"{name}.{part}": getattr(run, part) for name, run in runs.items() for part in parts}
    np.savez_compressed(path, time=next(iter(runs.values())).time, **arrays)
