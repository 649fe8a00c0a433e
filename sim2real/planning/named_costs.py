"""Costs by name, as a recipe has them: `[{cost: upright, joint: pole}, {cost: bounds, position: {cart: [-1, 1]}}]`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim2real.errors import ModelError, RecipeError, did_you_mean
from sim2real.importing import imported
from sim2real.planning.costs import Bounds, Cost, Effort, Quadratic, Sum, Track, Upright, has_goal, number
from sim2real.randomization import PlantModel, RobotModel


def named_cost(terms: Sequence[Mapping[str, Any]], robot: PlantModel) -> Cost:
    """Return the sum of named terms.

    Each term is a mapping with the key `cost`, and what that cost takes; joints are named. Every term may have a
    `weight`. The names: upright, quadratic, reach, track, bounds, effort, and `module:name` of your own, which is
    called with the other keys and returns a `Cost`; or `file.py:name`.

    Raises:
        RecipeError: a name, a key or a joint is unknown, a value does not fit, or no term is a `Goal`.
    """
    if isinstance(terms, str | Mapping) or not all(isinstance(term, Mapping) for term in terms):
        raise RecipeError(f"control.cost: expected a list such as [{{cost: upright, joint: pole}}], found {terms!r}")
    built, weights = [], []
    for term in terms:
        given = dict(term)
        name, weight = str(given.pop("cost", "")), given.pop("weight", 1.0)
        try:
            weights.append(number("weight", weight))
        except ModelError as error:
            raise RecipeError(f"control.cost: {name}: {error}") from None
        make = _own(name) if ":" in name else COSTS.get(name)
        if make is None:
            raise RecipeError(f"control.cost: no cost named {name!r}{did_you_mean(name, COSTS)}")
        built.append(_called(name, make, robot, given))
    if not any(has_goal(cost) for cost in built):
        raise RecipeError(
            "control.cost: no term has a goal: upright, quadratic, reach, track, or one of yours with closeness(states)"
        )
    return Sum(tuple(built), tuple(weights))


def _called(name: str, make: Callable[..., Cost], robot: PlantModel, given: dict[str, Any]) -> Cost:
    own = ":" in name
    known = list(inspect.signature(make).parameters)[0 if own else 1 :]
    free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())
    for key in given:
        if key not in known and not free:
            raise RecipeError(f"control.cost: {name} has no argument {key!r}{did_you_mean(key, known)}")
    missing = [
        key
        for key, p in inspect.signature(make).parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and key in known and key not in given
    ]
    if missing:
        raise RecipeError(f"control.cost: {name} needs {', '.join(missing)}")
    try:
        cost = make(**given) if own else make(robot, **given)
    except (TypeError, ValueError, KeyError, AttributeError, ModelError) as error:
        raise RecipeError(f"control.cost: {name}: {error}") from None
    if not callable(cost):
        raise RecipeError(f"control.cost: {name} returns {type(cost).__name__}, which is no cost")
    return cost


def _own(place: str) -> Callable[..., Cost]:
    try:
        found: Callable[..., Cost] = imported(place)
    except ImportError as error:
        raise RecipeError(f"control.cost: {place} cannot be imported: {error}") from None
    if not callable(found):
        raise RecipeError(f"control.cost: {place} is {type(found).__name__}, not what makes a cost")
    return found


def _joint(robot: PlantModel, joint: str | int) -> int:
    names = robot.joint_names
    if isinstance(joint, int) and 0 <= joint < len(names):
        return joint
    if joint not in names:
        raise ModelError(f"the robot has no joint {joint!r}{did_you_mean(str(joint), names)}")
    return names.index(str(joint))


def _each(robot: PlantModel, told: Mapping[str, Any], otherwise: Any) -> tuple[Any, ...]:
    """Return what a mapping says of each joint, in their order."""
    if not isinstance(told, Mapping):
        raise ModelError(
            f"expected a value for each joint by name, such as {{{robot.joint_names[0]}: 1.0}}, found {told!r}"
        )
    values = [otherwise] * len(robot.joint_names)
    for joint, value in told.items():
        values[_joint(robot, joint)] = value
    return tuple(values)


def _upright(
    robot: PlantModel, joint: str | int = 0, target: float = math.pi, velocity: float = 0.02, effort: float = 0.002
) -> Cost:
    return Upright(_joint(robot, joint), target, velocity, effort)


def _quadratic(
    robot: PlantModel,
    goal: Mapping[str, float],
    position: Mapping[str, float] | None = None,
    velocity: Mapping[str, float] | None = None,
    effort: float = 0.0,
) -> Cost:
    goals = _each(robot, goal, 0.0)
    weights = _each(robot, dict.fromkeys(goal, 1.0) if position is None else position, 0.0)
    return Quadratic(goals, weights, _each(robot, velocity or {}, 0.0), effort)


def _reach(
    robot: PlantModel,
    body: str,
    goal: Sequence[float],
    point: Sequence[float] = (0.0, 0.0, 0.0),
    width: float = 0.1,
    velocity: float = 0.02,
    effort: float = 0.002,
) -> Cost:
    from sim2real.planning.reaching import Kinematics, Reach

    if not isinstance(robot, RobotModel):
        raise ModelError(f"needs a robot file, whose bodies have places; {robot.name} is a function")
    return Reach(Kinematics(robot, body, tuple(point)), tuple(goal), width, velocity, effort)


def _track(
    robot: PlantModel,
    times: Sequence[float],
    path: Mapping[str, Sequence[float]],
    position: Mapping[str, float] | None = None,
    effort: float = 0.0,
) -> Cost:
    for joint, along in path.items() if isinstance(path, Mapping) else ():
        if len(along) != len(times):
            raise ModelError(f"expected a position of {joint} at each of {len(times)} times, found {len(along)}")
    still = [0.0] * len(times)
    weights = dict.fromkeys(path, 1.0) if position is None else position
    columns = _each(robot, path, still)
    return Track(times, list(zip(*columns, strict=True)), _each(robot, weights, 0.0), effort)  # type: ignore[arg-type]


def _bounds(
    robot: PlantModel,
    position: Mapping[str, Sequence[float]] | None = None,
    velocity: Mapping[str, float] | None = None,
    width: float = 0.1,
) -> Cost:
    free = (-math.inf, math.inf)
    return Bounds(_each(robot, position or {}, free), _each(robot, velocity, math.inf) if velocity else (), width=width)


def _effort(robot: PlantModel, effort: float = 0.01, change: float = 0.0) -> Cost:
    return Effort(effort, change)


COSTS: dict[str, Callable[..., Cost]] = {
    "upright": _upright,
    "quadratic": _quadratic,
    "reach": _reach,
    "track": _track,
    "bounds": _bounds,
    "effort": _effort,
}
