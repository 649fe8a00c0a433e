"""Recipes of policies that learn in a randomized environment, and are scored on a twin: what `sweep` sweeps there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sim2real.environment_recipe import EnvironmentRecipe
from sim2real.recipe import NamedRecipe, Recipe, Section, SweepSection, apply_overrides, read_document, validated


class GapsSection(Section):
    """What a twin is like, in the keys of an `EnvironmentRecipe`; numbers such as `=0.85` rather than ranges."""

    parameters: dict[str, str] = Field(default_factory=dict)
    execution: list[dict[str, Any]] = Field(default_factory=list)
    perception: list[dict[str, Any]] = Field(default_factory=list)
    initial_state: dict[str, str] = Field(default_factory=dict)
    push: dict[str, Any] = Field(default_factory=dict)


class TrainSection(Section):
    """How a policy learns, with stable-baselines3; see `policy_scores`.

    Attributes:
        algorithm: PPO or SAC.
        steps: of all environments together.
        envs: side by side.
        rate: of learning.
        gamma: discount.
        hidden: widths of the hidden layers.
        episodes: that it is scored with.
    """

    algorithm: Literal["ppo", "sac"] = "ppo"
    steps: int = Field(default=100_000, ge=1)
    envs: int = Field(default=16, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    gamma: float = Field(default=0.99, gt=0, le=1)
    hidden: tuple[int, ...] = (64, 64)
    episodes: int = Field(default=32, ge=1)


class PolicyRecipe(EnvironmentRecipe, NamedRecipe):
    """A recipe about an environment, swept.

    Attributes:
        name: of the runs; that of the environment unless said.
        seed: of what is drawn.
        twin: what the policy is scored on, in the place of the robot.
        train: how it learns.
        max_episode_steps: control steps of an episode; 0 for what the id is registered with.
        settings: of an objective of one's own, whatever it needs.
        sweep: what is tried.
    """

    name: str = ""
    seed: int = Field(default=0, ge=0)
    twin: GapsSection = GapsSection()
    train: TrainSection = TrainSection()
    max_episode_steps: int = Field(default=0, ge=0)
    settings: dict[str, Any] = Field(default_factory=dict)
    sweep: SweepSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, document: Any) -> Any:
        if isinstance(document, dict) and not document.get("name"):
            return {**document, "name": f"{str(document.get('env') or 'settings').rpartition(':')[2]}"}
        return document


# What has a `sweep:` that searches.
SweptRecipe = Recipe | PolicyRecipe


def load_policy_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PolicyRecipe:
    """Read a recipe; a file of code in it is relative to it, one in overrides to the present folder.

    Raises:
        RecipeError: it cannot be read, or a key is unknown, missing or wrong.
    """
    return validated(PolicyRecipe, apply_overrides(read_document(Path(path)), overrides), str(path))
