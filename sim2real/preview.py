"""What a recipe randomizes, within which limits, and whether it matters: shown before anybody trains on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim2real.environment_recipe import RecipeLike, gaps, load_environment_recipe
from sim2real.errors import RecipeError, did_you_mean
from sim2real.randomization.env_parameters import parameter_store
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.parameters import Array, ParameterStore
from sim2real.randomization.randomization import Randomizer
from sim2real.randomization.vector.make import randomized

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass(frozen=True)
class PreviewRow:
    """One draw of a recipe, and what it does.

    Attributes:
        name: of the parameter, or the pattern of those that share the draw.
        targets: the parameters that it is written to.
        notation: how it is drawn, and when.
        nominal: value of the first of them [unit].
        low, high: 5 % and 95 % quantile of what is drawn for it [unit].
        unit: SI unit.
        effect: how far the trajectories at the two ends lie apart: 0 not at all, 0.5 about as far as the observations
            spread in the nominal one, towards 1 much further.
    """

    name: str
    targets: tuple[str, ...]
    notation: str
    nominal: float
    low: float
    high: float
    unit: str
    effect: float


def preview(
    env: gym.Env[Any, Any] | str,
    recipe: RecipeLike,
    *,
    steps: int = 100,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> list[PreviewRow]:
    """Draw what a recipe randomizes, and try each draw alone, with the same start and the same random actions.

    Args:
        env: a single environment, or its id.
        recipe: as for `wrap`.
        steps: control steps of a trial.
        seed: of start, actions and draws.
        progress: told what is tried next.

    Raises:
        RecipeError, ParameterError: the recipe cannot be used on the environment.
    """
    if steps < 1:
        raise RecipeError(f"a trial takes at least one step, found {steps}")
    base = make_environment(env) if isinstance(env, str) else env
    arguments = gaps(recipe) | {"pixels": None}  # what is compared is the state
    if not arguments["parameters"]:
        raise RecipeError("the recipe randomizes no parameters: give it `parameters: {name: notation}`")
    wrapped: Any = randomized(base, **arguments)
    randomizer: Randomizer = wrapped.randomizer
    nominal, units = randomizer.store.nominal(), randomizer.store.units()
    draws = randomizer.sample(np.random.default_rng(seed), 1000)
    # with everything at its nominal value but what is tried
    rest = {name: nominal[name] for name in randomizer.names}
    spread = np.maximum(_trajectory(wrapped, rest, steps, seed).std(0), 1e-9)
    rows = []
    for name, (targets, notation) in randomizer.draws().items():
        progress(name)
        order = np.argsort(draws[targets[0]], kind="stable")
        ends = [order[round(share * (len(order) - 1))] for share in (0.05, 0.95)]
        tried = [_trajectory(wrapped, rest | {t: float(draws[t][k]) for t in targets}, steps, seed) for k in ends]
        both = min(map(len, tried))
        distance = np.abs(tried[1][:both] - tried[0][:both])
        # an episode that ends sooner is different from there on
        apart = float((distance / (distance + spread)).mean(1).sum() + abs(len(tried[0]) - len(tried[1])))
        low, high = (float(draws[targets[0]][k]) for k in ends)
        first = targets[0]
        effect = apart / max(map(len, tried))
        rows.append(PreviewRow(name, targets, notation, nominal[first], low, high, units[first], effect))
    return rows


def _trajectory(env: Any, values: Mapping[str, float], steps: int, seed: int) -> Array:
    """Observations (T, O) of an episode with the same start and actions, whatever the parameters."""
    import gymnasium as gym

    observation, _ = env.reset(seed=seed, options={"parameters": dict(values)})
    env.action_space.seed(seed)
    out = []
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        out.append(np.asarray(gym.spaces.flatten(env.observation_space, observation), float))
        if terminated or truncated:
            break
    return np.array(out)


def recipe_target(recipe: RecipeLike) -> str:
    """Return the id of the environment that a recipe is for.

    Raises:
        RecipeError: it does not say.
    """
    read = load_environment_recipe(recipe)
    found = read.env
    if found is None and read.robot is not None:
        raise RecipeError(
            "the recipe is about a robot file, and a preview needs an environment: give it `env:` or --env, or "
            "register one that loads the file"
        )
    if found is None:
        raise RecipeError("the recipe does not say for which environment it is: give it `env: HalfCheetah-v5`, say")
    return found


def find_parameters(target: str) -> tuple[ParameterStore | MujocoFields, bool]:
    """Find the parameters of an environment, by id, or of a robot, by file or name.

    Returns:
        what knows them, and whether it is an environment.

    Raises:
        RobotError: neither an environment nor a robot.
    """
    from pathlib import Path

    from sim2real.randomization import robots
    from sim2real.randomization.mujoco_model import load_mujoco

    if Path(target).suffix in (".xml", ".urdf", ".mjcf", ".mjb") or target in robots.ROBOTS:
        return MujocoFields(load_mujoco(target), target), False
    return parameter_store(make_environment(target)), True


def make_environment(name: str) -> gym.Env[Any, Any]:
    """Make an environment by id.

    Raises:
        RobotError: there is none of that id, or it cannot be made; the message says why.
    """
    import gymnasium as gym

    from sim2real.errors import RobotError
    from sim2real.randomization import robots

    try:
        return gym.make(name)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.UnregisteredEnv):
        known = [*gym.registry, *robots.ROBOTS]
        raise RobotError(
            f"{name!r} is neither the id of an environment nor a robot (a file, or one of {', '.join(robots.ROBOTS)}); "
            f"the environments of a package need its name, as gymnasium_robotics:PointMaze_UMaze-v3"
            f"{did_you_mean(name, known)}"
        ) from None
    except Exception as error:  # environments fail to load in as many ways as there are packages
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RobotError(f"{name!r} cannot be made: {reason}") from error
