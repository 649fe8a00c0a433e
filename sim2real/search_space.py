"""The search space of a sweep: what a key of a recipe may become, in the notation `U(0.3, 0.8)` or `choice(a, b)`."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.episodes import Episode
from sim2real.errors import ParameterError, RecipeError, did_you_mean
from sim2real.objectives import OF_PIPELINES, Objective, objective_of
from sim2real.policy_recipe import PolicyRecipe, SweptRecipe
from sim2real.preparation import Setup, prepare
from sim2real.randomization import parse_distribution
from sim2real.randomization.distributions import LogUniform, Uniform
from sim2real.recipe import Recipe, read_value, value_of, with_overrides

NOTATION = ("U(a, b)", "LogU(a, b)", "int(a, b)", "choice(x, y, ...)")
# The limit of commands comes before all else, for recordings keep to it.
BEFORE = "control.limit"
# Keys that say what a controller is scored by, or nothing about it; a fallback is part of one that backs off.
UNSCORED = (
    *("control.target", "control.cost", "control.seconds", "control.starts", "control.spread", "control.loop"),
    *("control.fallback", "control.fallback_gain", "control.fallback_stiffness"),
)
# Sections that neither the robot nor the recordings depend on.
LEARNING = ("identify", "observer", "model", "finetune")
OPENING, CLOSING = "([{", ")]}"


def shown(value: Any) -> str:
    """Return a value of a key in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class SearchRange(ABC):
    """What one key may become; prints the notation that it is parsed from."""

    @abstractmethod
    def domain(self) -> Any:
        """Return the domain of Ray Tune to draw from."""

    @abstractmethod
    def value(self, drawn: Any) -> Any:
        """Return the value for the recipe, as YAML data, of what was drawn from the domain."""

    @property
    @abstractmethod
    def probes(self) -> tuple[Any, ...]:
        """Values to try a recipe with: where they are valid, all of the range is."""


@dataclass(frozen=True)
class RealRange(SearchRange):
    """A real number, uniform (`U`) or uniform in the logarithm (`LogU`)."""

    distribution: Uniform | LogUniform

    def domain(self) -> Any:
        from ray import tune

        draw = tune.uniform if isinstance(self.distribution, Uniform) else tune.loguniform
        return draw(self.distribution.low, self.distribution.high)

    def value(self, drawn: float) -> float:
        """Round to six significant digits: more would only make the winning recipe hard to read."""
        return min(max(float(f"{drawn:.6g}"), self.distribution.low), self.distribution.high)

    @property
    def probes(self) -> tuple[float, ...]:
        low, high = self.distribution.low, self.distribution.high
        return low, low + 0.382 * (high - low), high

    def __str__(self) -> str:
        return str(self.distribution)


@dataclass(frozen=True)
class IntegerRange(SearchRange):
    """A whole number between `low` and `high`, both included."""

    low: int
    high: int

    def domain(self) -> Any:
        from ray import tune

        return tune.randint(self.low, self.high + 1)

    def value(self, drawn: int) -> int:
        return min(max(int(drawn), self.low), self.high)

    @property
    def probes(self) -> tuple[int, int]:
        return self.low, self.high

    def __str__(self) -> str:
        return f"int({self.low}, {self.high})"


@dataclass(frozen=True)
class Choice(SearchRange):
    """One of some options, which are drawn as they are written.

    Attributes:
        options: as written.
        values: what they mean, as YAML data.
    """

    options: tuple[str, ...]
    values: tuple[Any, ...]

    def domain(self) -> Any:
        from ray import tune

        return tune.choice(list(self.options))

    def value(self, drawn: str) -> Any:
        return self.values[self.options.index(drawn)]

    @property
    def probes(self) -> tuple[Any, ...]:
        return self.values

    def __str__(self) -> str:
        return f"choice({', '.join(self.options)})"


def parse_range(key: str, text: str) -> SearchRange:
    """Parse a notation: `U(0.3, 0.8)`, `LogU(1e-4, 1e-2)`, `int(2, 6)` or `choice(=U(0, 0.02), =U(0, 0.08))`.

    Raises:
        RecipeError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if match is None:
        raise RecipeError(f"sweep.keys.{key}: expected {', '.join(NOTATION)}; found {text!r}")
    symbol, inside = match[1], match[2]
    if symbol == "choice":
        return _choice(key, inside)
    if symbol == "int":
        bounds = re.fullmatch(r"\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*", inside)
        if bounds is None or int(bounds[1]) >= int(bounds[2]):
            raise RecipeError(f"sweep.keys.{key}: int(a, b) needs two whole numbers, a < b; found {text!r}")
        return IntegerRange(int(bounds[1]), int(bounds[2]))
    if symbol not in ("U", "LogU"):
        near = did_you_mean(symbol, [n.partition("(")[0] for n in NOTATION])
        raise RecipeError(f"sweep.keys.{key}: no range is called {symbol!r}{near}")
    try:
        distribution = parse_distribution(f"{symbol}({inside})")
    except ParameterError as error:
        raise RecipeError(f"sweep.keys.{key}: {error}") from None
    assert isinstance(distribution, Uniform | LogUniform)
    return RealRange(distribution)


def _choice(key: str, inside: str) -> Choice:
    options = tuple(_split(key, inside))
    values = tuple(read_value(key, o) for o in options)
    if len(options) < 2 or "" in options or any(v in values[:k] for k, v in enumerate(values)):
        raise RecipeError(
            f"sweep.keys.{key}: choice(x, y, ...) needs two options or more, all different; found choice({inside})"
        )
    return Choice(options, values)


def _split(key: str, text: str) -> list[str]:
    """Split at the commas that lie in no bracket and no quotes."""
    parts, closing, quote = [""], "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in OPENING:
            closing = CLOSING[OPENING.index(character)] + closing
        elif character in CLOSING:
            if not closing.startswith(character):
                raise RecipeError(f"sweep.keys.{key}: {character!r} closes nothing in choice({text})")
            closing = closing[1:]
        elif character == "," and not closing:
            parts.append("")
            continue
        parts[-1] += character
    if closing or quote:
        raise RecipeError(f"sweep.keys.{key}: a {(closing or quote)[0]!r} is missing in choice({text})")
    return [p.strip() for p in parts]


def search_space(recipe: SweptRecipe) -> dict[str, SearchRange]:
    """Return what each key of the recipe's `sweep:` may become, each tried on the recipe.

    Raises:
        RecipeError: there is nothing to sweep, a key is not the recipe's or cannot matter, or a range is wrong.
    """
    if recipe.sweep is None or not recipe.sweep.keys:
        raise RecipeError(
            f"recipe {recipe.name} has nothing to sweep: give it `sweep: {{keys: {{identify.window: 'U(0.3, 0.8)'}}}}`"
        )
    objective, space = objective_of(recipe), {}
    for key, text in recipe.sweep.keys.items():
        head = key.partition(".")[0]
        if head in ("sweep", "name"):
            raise RecipeError(f"sweep.keys.{key}: no result depends on it")
        scored = ":" not in recipe.sweep.objective  # of a function of one's own nothing is known
        if head == "learn" and scored:
            raise RecipeError(f"sweep.keys.{key}: no objective scores `learn:`; compare runs by metrics.json")
        value_of(recipe, key)
        if scored:
            _require_scored(recipe, key, head, objective)
        space[key] = parse_range(key, text)
        for value in space[key].probes:
            with_overrides(recipe, {key: value})
    return space


def _require_scored(recipe: SweptRecipe, key: str, head: str, objective: Objective) -> None:
    """Raise a RecipeError where a key cannot matter to an objective, or changes what is asked."""
    if head in objective.never and key != BEFORE:
        others = [name for name, one in OF_PIPELINES.items() if head not in one.never]
        instead = f"; set sweep.objective: {others[0]}" if isinstance(recipe, Recipe) and others else ""
        raise RecipeError(f"sweep.keys.{key}: the {objective.what}, which is scored here, does not use it{instead}")
    if isinstance(recipe, PolicyRecipe):
        if key in ("env", "max_episode_steps", "train.episodes"):
            raise RecipeError(f"sweep.keys.{key}: it changes what is asked of a policy, so scores would not compare")
        return
    unscored = UNSCORED if recipe.control.back_off is None else tuple(k for k in UNSCORED if "fallback" not in k)
    if key.startswith(unscored):
        raise RecipeError(f"sweep.keys.{key}: it changes what is asked of a controller, so scores would not compare")


def require_same_recordings(before: Setup, space: Mapping[str, SearchRange]) -> None:
    """Try values of every key, and require that all are scored on the recordings that the recipe is scored on.

    Raises:
        RecipeError: a key changes the validation recordings, so that scores would not compare, or a prior is wrong.
        Sim2RealError: another value of a key cannot be prepared.
    """
    for key, values in space.items():
        if key.partition(".")[0] in LEARNING:
            continue
        for value in values.probes:
            try:
                after = prepare(with_overrides(before.recipe, {key: value}))
            except ParameterError as error:
                raise RecipeError(f"sweep.keys.{key}: {error}") from None
            same = _same(before.recordings.validation, after.recordings.validation)
            if not same or before.channels != after.channels:
                raise RecipeError(
                    f"sweep.keys.{key}: {value!r} changes the validation recordings, so scores would not compare; "
                    "sweep what is learned from them, not what they are"
                )


def _same(one: Sequence[Episode], other: Sequence[Episode]) -> bool:
    parts = ("observed_at", "observations", "commanded_at", "actions")
    return len(one) == len(other) and all(
        a.excluded == b.excluded and all(np.array_equal(getattr(a, p), getattr(b, p)) for p in parts)
        for a, b in zip(one, other, strict=True)
    )
