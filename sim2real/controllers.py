"""The closed loop of a run: every controller on the same twins from the same starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.backing_off import BackOff, Calm, collected
from sim2real.control import Run, Tracker, closed_loop
from sim2real.control_loop import ControlLoop, Paced
from sim2real.episodes import Array
from sim2real.errors import RecipeError, SafetyError
from sim2real.estimation import ModelObserver, Observation, StateEstimator
from sim2real.logs.record import RecordEpisodes
from sim2real.planning import (
    ICEM,
    MPPI,
    Cost,
    Damping,
    GradientShooting,
    Hold,
    Planner,
    PlannerProcess,
    Policy,
    PredictiveSampling,
    Upright,
    closeness,
    named_cost,
)
from sim2real.plant import Plant, repeated
from sim2real.preparation import Setup
from sim2real.randomization import RobotModel
from sim2real.safety import Limits, SafetyFilter
from sim2real.stages import lateness
from sim2real.twin import Twin
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleDynamics

Progress = Callable[[str], None]
# Share of a period after which a plan in real time is sent as good as it is.
IN_TIME = 2 / 3
PLANNERS: dict[str, Callable[..., Planner]] = {
    "mppi": MPPI,
    "icem": ICEM,
    "predictive_sampling": PredictiveSampling,
    "gradient": GradientShooting,
}


@dataclass(frozen=True)
class Controller:
    """A world model with the observer that it plans from.

    Attributes:
        model: None is the fallback alone.
        plant: that the observer runs along.
        values: of its parameters.
        calm: what the model's doubts look like on that plant; None where it never backs off.
    """

    model: EnsembleDynamics | None
    plant: Plant
    values: dict[str, float]
    calm: Calm | None = None

    def period(self, setup: Setup) -> float:
        """Return the period of its loop [s]."""
        return setup.recipe.model.timestep if self.model is None else self.model.config.timestep


def task_of(setup: Setup) -> Cost:
    """Return what a recipe's controllers have to do.

    Raises:
        RecipeError: the recipe's costs make no sense.
    """
    recipe = setup.recipe.control
    return named_cost(recipe.cost, setup.plant.model) if recipe.cost else Upright(target=recipe.target)


def limits_of(setup: Setup) -> Array:
    """Return the largest commands (A,)."""
    return np.full(setup.plant.actions, setup.recipe.control.limit)


def fallback_of(setup: Setup) -> Policy:
    """Return what a recipe falls back on.

    Raises:
        RecipeError: gravity is to be compensated of a robot without a file, or whose commands are no efforts.
    """
    recipe, robot, limit = setup.recipe.control, setup.plant.model, limits_of(setup)
    if recipe.fallback == "damping":
        return Damping(recipe.fallback_gain, limit, robot.driven)
    if recipe.fallback == "hold":
        return Hold(recipe.fallback_gain, limit, recipe.fallback_stiffness, driven=robot.driven)
    return Hold(recipe.fallback_gain, limit, 0.0, gravity=_of_efforts(setup, "control.fallback: gravity"))


def _of_efforts(setup: Setup, what: str) -> RobotModel:
    """Return the robot, whose commands have to be efforts.

    Raises:
        RecipeError: it is a function, whose dynamics cannot be asked for, or commands are no efforts.
    """
    robot = setup.plant.model
    if not isinstance(robot, RobotModel):
        raise RecipeError(f"{what} needs a robot file; {robot.name} is a function")
    for stage in setup.plant.chain.stages:
        if stage.takes is not None and stage.takes not in robot.effort_units:
            raise RecipeError(
                f"{what} is about efforts, but commands are in {stage.takes}: stage {stage.name} of `execution:` "
                "takes them; build it in Python, in front of that"
            )
    return robot


def planner(setup: Setup, model: EnsembleDynamics) -> Planner:
    """Return the planner that a recipe asks for, on a model."""
    recipe, seed = setup.recipe.control, setup.recipe.seed
    given: dict[str, Any] = {"horizon": recipe.horizon, "deadline": recipe.deadline, "seed": seed}
    chosen = {name: getattr(recipe, name) for name in ("candidates", "iterations", "noise", "risk")}
    given |= {name: value for name, value in chosen.items() if value is not None}
    if recipe.planner == "mppi":
        given["temperature"] = recipe.temperature
    return PLANNERS[recipe.planner](model, task_of(setup), limits_of(setup), **given)


def guarded(setup: Setup, policy: Policy, period: float, values: Mapping[str, float]) -> Policy:
    """Return a policy behind the safety filter that the recipe asks for, if it does.

    Args:
        setup: the run.
        policy: what to filter.
        period: of the loop [s].
        values: parameters of the execution: delays and lags are reckoned with.

    Raises:
        ModelError: the limits make no sense, or the robot cannot keep them.
        RecipeError: the robot is a function, whose dynamics cannot be asked for, or commands are no efforts.
    """
    recipe = setup.recipe.control
    if recipe.safety is None:
        return policy
    robot, told = _of_efforts(setup, "control.safety"), recipe.safety
    limits = Limits([recipe.limit] * setup.plant.actions, told.position, told.velocity, told.rate, told.free)
    return SafetyFilter(policy, limits, robot, period, told.margin, lateness(values))


def require(setup: Setup) -> None:
    """Raise what speaks against a recipe's control, before anything takes time."""
    task_of(setup)
    guarded(setup, fallback_of(setup), setup.recipe.model.timestep, {})


def start_positions(setup: Setup, purpose: str = "starts") -> Array:
    """Return the states (n, X), near hanging at rest, that every controller starts from; others for other purposes."""
    dof, n = setup.plant.degrees_of_freedom, setup.recipe.control.starts
    starts = np.zeros((n, 2 * dof))
    starts[:, :dof] = setup.recipe.control.spread * setup.rng(purpose).uniform(-1, 1, (n, dof))
    return starts


@dataclass(frozen=True)
class Ready:
    """A controller at work on n plants.

    Attributes:
        policy: what it does.
        estimator: where it believes that they are.
        period: of the loop [s].
        history: commands that estimates carry.
        lookback: readings before the present one that they carry.
    """

    policy: Policy
    estimator: StateEstimator
    period: float
    history: int
    lookback: int

    @classmethod
    def of(cls, setup: Setup, controller: Controller, observation: Observation, n: int) -> Ready:
        """Make it ready. Where it is to back off and does not know what calm looks like, doubts are only collected."""
        recipe, model = setup.recipe.control, controller.model
        observer = ModelObserver(controller.plant.start(n, repeated(controller.values, n)), observation.bandwidth)
        if model is None:
            return cls(fallback_of(setup), observer, setup.recipe.model.timestep, setup.recipe.model.history, 0)
        config = model.config
        estimator = observer if model.encoder is None else model.encoder.estimator()
        policy: Policy = planner(setup, model)
        if recipe.back_off is not None:
            policy = BackOff(planner(setup, model), fallback_of(setup), controller.calm, ahead=recipe.back_off.ahead)
        return cls(policy, estimator, config.timestep, config.history, config.lookback)

    def run(
        self,
        twin: Twin | Noisy,
        policy: Policy,
        starts: Array,
        seconds: float,
        limit: Array,
        progress: Callable[[float], None] = lambda _: None,
    ) -> Run:
        """Run a policy, its own or that behind a filter, on twins from states (n, X)."""
        return closed_loop(
            twin, policy, self.estimator, starts, seconds=seconds, period=self.period, limit=limit,
            history=self.history, lookback=self.lookback, progress=progress,
        )  # fmt: skip


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
    seconds = max(recipe.back_off.seconds / recipe.starts, ready.period)
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
    robot = TwinEnv(setup.twin, limit, period, spread=setup.recipe.control.spread)
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
    states = np.concatenate([timing.readings, np.gradient(timing.readings, period, axis=0)], 1)[None, 1:]
    close = float(closeness(task_of(setup), states, period)[0])
    did = policy.interventions | told_of(policy) if isinstance(policy, SafetyFilter) else {}
    return {**timing.to_json(), "followed": apart.followed, "closeness": close, "safety": did}


def told_of(policy: Policy) -> dict[str, int]:
    """Return why a policy's emergency stop is latched, as an intervention; nothing if it is not."""
    stopped = getattr(policy, "stopped", None)
    return {} if stopped is None else {f"stopped: {stopped}": 1}


def returns(run: Run, cost: Cost) -> Array:
    """Return how close to the goal of a cost each robot was on average, 0 to 1: (n,)."""
    return closeness(cost, run.states[:, 1:], float(run.time[1] - run.time[0]))


def save_runs(runs: Mapping[str, Run], path: Path) -> None:
    """Write what the robots did as one npz: `<controller>.states`, `.commands` and `.milliseconds`, as in `Run`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ("states", "commands", "milliseconds")
    arrays = {f"{name}.{part}": getattr(run, part) for name, run in runs.items() for part in parts}
    np.savez_compressed(path, time=next(iter(runs.values())).time, **arrays)
