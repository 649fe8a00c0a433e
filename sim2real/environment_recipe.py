"""All of a recipe's gaps around an environment: `wrap` for one, `gaps` for the arguments of `make_vec`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from pydantic import Field

from sim2real.errors import RecipeError, did_you_mean
from sim2real.recipe import Recipe, Section, read_document, validated


class EnvironmentRecipe(Section):
    """What differs between a simulated environment and the robot: a recipe that is about an environment only.

    Attributes:
        env: id of the environment, for the command line.
        robot: or a robot file, whose parameters these are.
        parameters: `{name: notation}`, drawn at every reset.
        randomization: more of them, with other times: `[{parameters: ..., when: startup}, ...]`.
        execution: stages between actions and plant.
        perception: stages between plant and observations.
        initial_state: `{name: notation}`.
        push: arguments of `Push`, by name.
        pixels: what a camera sees in the place of the observations: `{camera: track, height: 84, width: 84}`.
    """

    env: str | None = None
    robot: str | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    randomization: list[dict[str, Any]] = Field(default_factory=list)
    execution: list[dict[str, Any]] = Field(default_factory=list)
    perception: list[dict[str, Any]] = Field(default_factory=list)
    initial_state: dict[str, str] = Field(default_factory=dict)
    push: dict[str, Any] = Field(default_factory=dict)
    pixels: dict[str, Any] | None = None


RecipeLike = str | Path | Mapping[str, Any] | Recipe | EnvironmentRecipe


def load_environment_recipe(recipe: RecipeLike) -> EnvironmentRecipe:
    """Read a recipe about an environment; of a recipe of the whole loop, the parts about gaps.

    Raises:
        RecipeError: it cannot be read, or has an unknown key.
    """
    if isinstance(recipe, EnvironmentRecipe):
        return recipe
    if isinstance(recipe, Recipe):
        return EnvironmentRecipe(robot=recipe.robot, parameters=recipe.parameters, execution=recipe.execution)
    where = "recipe" if isinstance(recipe, Mapping) else str(recipe)
    document = dict(recipe) if isinstance(recipe, Mapping) else read_document(Path(recipe))
    if "control" in document:  # a recipe of the whole loop
        document = {key: document[key] for key in ("robot", "parameters", "execution") if key in document}
    return validated(EnvironmentRecipe, document, where)


def gaps(recipe: RecipeLike) -> dict[str, Any]:
    """Return a recipe's gaps as the arguments of `make_vec`: `make_vec(id, 64, **gaps("recipe.yaml"))`."""
    r = load_environment_recipe(recipe)
    parameters: list[dict[str, Any]] = [{"parameters": r.parameters}] if r.parameters else []
    return {
        "parameters": [*parameters, *r.randomization],
        "execution": r.execution,
        "perception": r.perception,
        "initial_state": r.initial_state,
        "push": r.push,
        "pixels": r.pixels,
    }


def make_envs(
    recipe: EnvironmentRecipe, many: int, given: Mapping[str, Any], **how: Any
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make environments of a recipe's id with gaps, as `gaps` returns them.

    Raises:
        RecipeError: there is no such environment.
        ParameterError: it does not have what the gaps name.
    """
    from sim2real.randomization.vector import ROBOT_TASKS, make_vec

    name = recipe.env or ""
    try:
        return make_vec(name, many, **given, **how)
    except gym.error.UnregisteredEnv as error:
        known = [*gym.registry, *ROBOT_TASKS]
        raise RecipeError(f"no environment {name!r}{did_you_mean(name, known)} ({error})") from None


def episode_limit(envs: gym.vector.VectorEnv[Any, Any, Any], name: str) -> int:
    """Return the control steps after which an episode is truncated.

    Raises:
        RecipeError: episodes never end.
    """
    from sim2real.randomization.vector.conventions import PlantsVectorEnv

    if isinstance(envs, PlantsVectorEnv):
        limit: int | None = envs.max_episode_steps
    else:
        limit = envs.envs[0].spec and envs.envs[0].spec.max_episode_steps  # type: ignore[attr-defined]
    if not limit:
        raise RecipeError(f"episodes of {name} never end: give the recipe `max_episode_steps`")
    return int(limit)


def wrap(env: gym.Env[Any, Any], recipe: RecipeLike) -> gym.Env[Any, Any]:
    """Put all of a recipe's gaps around an environment.

    Args:
        env: a single environment.
        recipe: a file, a mapping with the keys of `EnvironmentRecipe`, or a `Recipe` of the whole loop, whose
            `parameters` and `execution` are used.

    Raises:
        RecipeError: the recipe cannot be read.
        ParameterError: it names what the environment does not have.

    Example:
        >>> env = wrap(
        ...     gym.make("HalfCheetah-v5"),
        ...     {
        ...         "execution": [{"stage": "latency"}],
        ...         "parameters": {"dynamics.torso.mass": "*U(0.8, 1.2)", "execution.latency.delay": "=U(0, 0.02) s"},
        ...     },
        ... )
        >>> sorted(env.reset(seed=0)[1]["parameters"])
        ['dynamics.torso.mass', 'execution.latency.delay']
    """
    from sim2real.randomization.vector.make import randomized

    meant = load_environment_recipe(recipe).env
    if meant is not None and env.spec is not None and meant.rpartition(":")[2] != env.spec.id:
        raise RecipeError(f"the recipe is for {meant}, found {env.spec.id}; leave out `env:` where it is for both")
    return randomized(env, **gaps(recipe))


def starter_recipe(target: str, names: Mapping[str, float], is_env: bool) -> str:
    """Return a recipe in YAML that randomizes cautiously what the names have in common.

    Args:
        target: id of an environment or a robot file.
        names: every parameter with its nominal value.
        is_env: which of the two it is.
    """
    chosen: dict[str, str] = {}
    for field, notation in CAUTIOUS.items():
        found = [n for n in names if n.startswith("dynamics.") and n.rsplit(".", 1)[1] == field and names[n] != 0]
        if not found:
            continue
        if len(found) > 1:
            chosen[f"dynamics.*.{field}"] = notation
        else:
            chosen[found[0]] = notation.removesuffix(" each")
    if not chosen:
        chosen = {n: "*U(0.9, 1.1)" for n, value in names.items() if value != 0 and n.startswith("dynamics.")}
    key = "env" if is_env else "robot"
    head = f"# Cautious ranges around the nominal values: widen what you know least.\n{key}: {target}\n"
    return head + yaml.safe_dump({"parameters": chosen}, sort_keys=False, allow_unicode=True, width=120)


CAUTIOUS = {
    "mass": "*U(0.9, 1.1) each",
    "damping": "*U(0.8, 1.25) each",
    "frictionloss": "*U(0.8, 1.25) each",
    "armature": "*U(0.9, 1.1) each",
    "friction[0]": "*U(0.8, 1.2)",
    "gear": "*U(0.95, 1.05) each",
    "kp": "*U(0.9, 1.1) each",
    "kv": "*U(0.9, 1.1) each",
    "density": "*U(0.9, 1.1)",
    "gravity": "*U(0.99, 1.01)",
}
