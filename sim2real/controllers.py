"""What a recipe says of control, made real: the task, planners, fallbacks, filters, and controllers ready to work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sim2real.backing_off import BackOff, Calm
from sim2real.control import Run, Startable, closed_loop
from sim2real.episodes import Array
from sim2real.errors import ModelError, RecipeError
from sim2real.estimation import ModelObserver, Observation, StateEstimator
from sim2real.planning import (
    ICEM,
    MPPI,
    Cost,
    Damping,
    GradientShooting,
    Hold,
    Planner,
    Policy,
    PredictiveSampling,
    Upright,
    closeness,
    named_cost,
)
from sim2real.planning.costs import beginning
from sim2real.plant import Plant, repeated
from sim2real.preparation import Setup
from sim2real.randomization import RobotModel
from sim2real.safety import Limits, SafetyFilter
from sim2real.stages import lateness
from sim2real.world_model import EnsembleDynamics

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
    return Upright(target=recipe.target) if recipe.cost is None else named_cost(recipe.cost, setup.plant.model)


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
    try:
        return Hold(recipe.fallback_gain, limit, 0.0, gravity=_of_efforts(setup, "control.fallback: gravity"))
    except ModelError as error:
        raise RecipeError(f"control.fallback: gravity: {error}") from None


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
    task, joints = task_of(setup), setup.plant.degrees_of_freedom
    states, commands = np.zeros((1, 2, 2 * joints)), torch.zeros(1, 2, setup.plant.actions)
    try:
        costs = beginning(task, 0.0, 0.1)(torch.as_tensor(states, dtype=torch.float32), commands)
        close = closeness(task, states, 0.1)
    except Exception as error:  # of a user's own cost it may be any
        raise RecipeError(f"control.cost: at rest at zero it fails: {type(error).__name__}: {error}") from None
    if costs.shape != (1, 2) or not (torch.isfinite(costs).all() and np.isfinite(close).all()):
        raise RecipeError(
            f"control.cost: at rest at zero expected finite costs (1, 2) of states (1, 2, {2 * joints}), found "
            f"{costs.tolist()}, and a closeness of {close.tolist()}"
        )
    require_calm(setup, setup.recipe.model.timestep)
    try:
        guarded(setup, fallback_of(setup), setup.recipe.model.timestep, {})
    except ModelError as error:
        raise RecipeError(f"control.safety: {error}") from None


def require_calm(setup: Setup, period: float) -> None:
    """Raise a RecipeError where calm runs would be too short to calibrate backing off on."""
    recipe = setup.recipe.control
    if recipe.back_off is None:
        return
    told, settling = recipe.back_off, round(recipe.back_off.ahead / period)
    periods = (math.floor(told.seconds / recipe.starts / period) - settling) * recipe.starts
    needed = 2 * math.ceil(1 / told.false_alarms)
    if periods < needed:
        enough = recipe.starts * period * (math.ceil(needed / recipe.starts) + settling + 1)
        raise RecipeError(
            f"control.back_off: false alarms of {told.false_alarms:g} need {needed} periods of calm runs; "
            f"{told.seconds:g} s, shared by {recipe.starts} starts, have {max(periods, 0)} beyond the first "
            f"{told.ahead:g} s of each: set seconds to {enough:.3g} or more"
        )


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
        plans = planner(setup, model)
        policy: Policy = plans
        if recipe.back_off is not None:
            policy = BackOff(plans, fallback_of(setup), controller.calm, ahead=recipe.back_off.ahead)
        return cls(policy, estimator, config.timestep, config.history, config.lookback)

    def run(
        self,
        twin: Startable,
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


def told_of(policy: Policy) -> dict[str, int]:
    """Return why a policy's emergency stop is latched, as an intervention; nothing if it is not."""
    stopped = getattr(policy, "stopped", None)
    return {} if stopped is None else {f"stopped: {stopped}": 1}
