"""The closed loop of a run: every controller on the same twins from the same starts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sim2real.control import Run, Tracker, closed_loop
from sim2real.control_loop import ControlLoop, Paced
from sim2real.episodes import Array
from sim2real.errors import RecipeError
from sim2real.estimation import ModelObserver, Observation, StateEstimator
from sim2real.logs.record import RecordEpisodes
from sim2real.planning import (
    ICEM,
    MPPI,
    Damping,
    GradientShooting,
    Planner,
    PlannerProcess,
    Policy,
    PredictiveSampling,
    Upright,
    upright_reward,
)
from sim2real.plant import Plant, repeated
from sim2real.preparation import Setup
from sim2real.randomization import RobotModel
from sim2real.recipe import ControlSection
from sim2real.safety import Limits, SafetyFilter
from sim2real.stages import lateness
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleDynamics

Progress = Callable[[str], None]
PLANNERS: dict[str, Callable[..., Planner]] = {
    "mppi": MPPI,
    "icem": ICEM,
    "predictive_sampling": PredictiveSampling,
    "gradient": GradientShooting,
}


@dataclass(frozen=True)
class Controller:
    """A world model with the observer that it plans from; `model` None is the fallback alone."""

    model: EnsembleDynamics | None
    plant: Plant
    values: dict[str, float]


def planner(recipe: ControlSection, model: EnsembleDynamics, limit: Array, seed: int) -> Planner:
    """Return the planner that a recipe asks for, on a model."""
    given: dict[str, Any] = {"horizon": recipe.horizon, "deadline": recipe.deadline, "seed": seed}
    chosen = {name: getattr(recipe, name) for name in ("candidates", "iterations", "noise", "risk")}
    given |= {name: value for name, value in chosen.items() if value is not None}
    if recipe.planner == "mppi":
        given["temperature"] = recipe.temperature
    return PLANNERS[recipe.planner](model, Upright(target=recipe.target), limit, **given)


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
    recipe, robot = setup.recipe.control, setup.plant.model
    if recipe.safety is None:
        return policy
    if not isinstance(robot, RobotModel):
        raise RecipeError(f"control.safety needs a robot file; {robot.name} is a function")
    for stage in setup.plant.chain.stages:
        if stage.takes is not None and stage.takes not in robot.effort_units:
            raise RecipeError(
                f"control.safety limits efforts, but commands are in {stage.takes}: stage {stage.name} of `execution:` "
                "takes them; put a filter of your own in front of it"
            )
    told = recipe.safety
    limits = Limits([recipe.limit] * setup.plant.actions, told.position, told.velocity, told.rate, told.free)
    return SafetyFilter(policy, limits, robot, period, told.margin, lateness(values))


def require_safety(setup: Setup) -> None:
    """Raise what `guarded` would raise."""
    nothing = Damping(0.0, np.full(setup.plant.actions, setup.recipe.control.limit))
    guarded(setup, nothing, setup.recipe.model.timestep, {})


def start_positions(setup: Setup) -> Array:
    """Return the states (n, X), near hanging at rest, that every controller starts from."""
    dof, n = setup.plant.degrees_of_freedom, setup.recipe.control.starts
    starts = np.zeros((n, 2 * dof))
    starts[:, :dof] = setup.rng("starts").uniform(-0.5, 0.5, (n, dof))
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
        """Make it ready."""
        recipe, limit = setup.recipe.control, np.full(setup.plant.actions, setup.recipe.control.limit)
        model = controller.model
        observer = ModelObserver(controller.plant.start(n, repeated(controller.values, n)), observation.bandwidth)
        if model is None:
            brakes = Damping(recipe.fallback_gain, limit)
            return cls(brakes, observer, setup.recipe.model.timestep, setup.recipe.model.history, 0)
        config = model.config
        estimator = observer if model.encoder is None else model.encoder.estimator()
        policy = planner(recipe, model, limit, setup.recipe.seed)
        return cls(policy, estimator, config.timestep, config.history, config.lookback)


def control_stage(
    setup: Setup, controllers: Mapping[str, Controller], observation: Observation, progress: Progress
) -> tuple[dict[str, Run], dict[str, dict[str, int]]]:
    """Let each controller swing up the same twins from the same starts; say how often a safety filter stepped in."""
    assert setup.twin is not None
    recipe, twin = setup.recipe.control, setup.twin
    starts = start_positions(setup)
    runs, interventions = {}, {}
    for name, controller in controllers.items():
        ready = Ready.of(setup, controller, observation, recipe.starts)
        policy = guarded(setup, ready.policy, ready.period, controller.values)
        runs[name] = closed_loop(
            twin,
            policy,
            ready.estimator,
            starts,
            seconds=recipe.seconds,
            period=ready.period,
            limit=np.full(twin.plant.actions, recipe.limit),
            history=ready.history,
            lookback=ready.lookback,
            progress=lambda share, name=name: progress(f"{name}: {100 * share:.0f} %"),  # type: ignore[misc]
        )
        if isinstance(policy, SafetyFilter):
            interventions[name] = policy.interventions | told_of(policy)
    return runs, interventions


def real_time_stage(
    setup: Setup, controller: Controller, observation: Observation, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Let a controller swing up one twin by the clock, recorded, its planner in a process of its own.

    Returns:
        what `Timing` tells, how often a plan before was followed, how upright the twin was on average, and what a
        safety filter did. The folder has the recording, TensorBoard curves, and `clock.npz` as `Timing` has them.
    """
    assert setup.twin is not None
    assert setup.recipe.control.loop is not None
    recipe, limit = setup.recipe.control, np.full(setup.plant.actions, setup.recipe.control.limit)
    settings = setup.recipe.control.loop
    ready = Ready.of(setup, controller, observation, 1)
    period, dof = ready.period, setup.plant.degrees_of_freedom
    progress("in real time: starting the planner's process")
    apart = PlannerProcess(ready.policy, period, patience=settings.patience)
    policy = guarded(setup, apart, period, controller.values)
    shutil.rmtree(folder, ignore_errors=True)
    robot = TwinEnv(setup.twin, limit, period)
    recorder = RecordEpisodes(Paced(robot, period), folder / "logs", names=robot.names, clock="wall", dt=period)
    tracker = Tracker(
        ready.estimator, period, history=ready.history, actions=setup.plant.actions, lookback=ready.lookback
    )
    try:
        apart.reset()
        progress(f"in real time: {settings.seconds:g} s at {1 / period:g} Hz")
        timing = ControlLoop(recorder, policy, tracker, range(dof)).run(settings.seconds, setup.recipe.seed)
    finally:
        recorder.end()
        apart.close()
    np.savez_compressed(folder / "clock.npz", times=timing.times, milliseconds=timing.milliseconds)
    with contextlib.suppress(ImportError):  # tensorboard is an extra
        timing.write_curves(folder)
    upright = upright_reward(torch.as_tensor(timing.readings[1:]), target=recipe.target).mean()
    did = policy.interventions | told_of(policy) if isinstance(policy, SafetyFilter) else {}
    return {**timing.to_json(), "followed": apart.followed, "upright": float(upright), "safety": did}


def told_of(policy: Policy) -> dict[str, int]:
    """Return why a policy's emergency stop is latched, as an intervention; nothing if it is not."""
    stopped = getattr(policy, "stopped", None)
    return {} if stopped is None else {f"stopped: {stopped}": 1}


def returns(run: Run, joints: int, target: float) -> Array:
    """Return how upright each robot was on average, 0 to 1: (n,)."""
    return upright_reward(torch.as_tensor(run.states[:, 1:, :joints]), target=target).mean(1).numpy()


def save_runs(runs: Mapping[str, Run], path: Path) -> None:
    """Write what the robots did as one npz: `<controller>.states`, `.commands` and `.milliseconds`, as in `Run`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ("states", "commands", "milliseconds")
    arrays = {f"{name}.{part}": getattr(run, part) for name, run in runs.items() for part in parts}
    np.savez_compressed(path, time=next(iter(runs.values())).time, **arrays)
