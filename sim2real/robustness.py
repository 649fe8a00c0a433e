"""How much of a difference a policy survives: `sim2real sweep` with `objective: robustness`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from sim2real.environment_recipe import EnvironmentRecipe
from sim2real.episodes import Array
from sim2real.errors import ModelError, RecipeError, require
from sim2real.margins import Line, Margin, surely
from sim2real.policies import PolicyFunction, load_policy
from sim2real.policy_episodes import Episodes
from sim2real.randomization.addressing import BoundParameters
from sim2real.randomization.distributions import LogNormal, LogUniform
from sim2real.randomization.parameters import Parameter
from sim2real.recipe import Section, apply_overrides, read_document, validated
from sim2real.run_directory import RunDirectory, read_json, write_json

# Of distributions without an end, what lies beyond these quantiles is left out.
ENDLESS = (0.001, 0.999)
# Of each pair of parameters in a return map.
CELLS, PAIRS = 11, 3
# What there is to say where a question is not asked.
NOTHING: dict[str, Any] = {"margins": [], "indices": {}, "maps": [], "values": {}, "returns": [], "episodes": 0}


class RobustnessSection(Section):
    """What is asked of a policy.

    Attributes:
        objective: "robustness".
        lose: below which mean return of an episode the policy counts as failing: a return, or a share of what it
            reaches at the nominal parameters ("80 %": a fifth of its size below it, whatever its sign).
        episodes: of a value, at most; fewer where those tell.
        grid: values of each parameter, in equal steps of probability.
        samples: of the Sobol design, a power of two; 0 for none.
        map_episodes: of each cell of a map, and of each point of the Sobol design; 0 draws no maps.
    """

    objective: Literal["robustness"] = "robustness"
    lose: float | str = "80 %"
    episodes: int = Field(default=32, ge=2)
    grid: int = Field(default=41, ge=5)
    samples: int = Field(default=128, ge=0)
    map_episodes: int = Field(default=4, ge=0)

    @field_validator("samples")
    @classmethod
    def _a_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("expected a power of two, as Sobol designs are")
        return value

    @field_validator("lose")
    @classmethod
    def _a_limit(cls, value: float | str) -> float | str:
        if not np.isfinite(_limit(value, 1.0)):
            raise ValueError("expected a finite return, or a share such as '80 %'")
        return value

    @field_validator("lose", mode="before")
    @classmethod
    def _no_answer(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("expected a return, or a share such as '80 %'")
        return value


class RobustnessRecipe(EnvironmentRecipe):
    """A recipe about an environment, with the policy that is asked about; its `parameters` are what is varied.

    Attributes:
        name: of the run; that of the environment unless said.
        seed: of starts and designs.
        policy: as for `load_policy`.
        normalize: statistics of `VecNormalize` that it was trained with.
        max_episode_steps: control steps of an episode; 0 for what the id is registered with.
        sweep: what is asked.
    """

    name: str = ""
    seed: int = Field(default=0, ge=0)
    policy: str
    normalize: str | None = None
    max_episode_steps: int = Field(default=0, ge=0)
    sweep: RobustnessSection = RobustnessSection()

    @model_validator(mode="after")
    def _something_to_ask(self) -> RobustnessRecipe:
        if self.env is None:
            raise ValueError("key 'env' is missing: the id of an environment, or the name of a robot task")
        if not self.parameters:
            raise ValueError("nothing varies: give it `parameters: {name: notation}`")
        return self

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.name or f"{(self.env or '').rpartition(':')[2]}-robustness"


def load_robustness_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RobustnessRecipe:
    """Read a recipe; paths in it are relative to it, those in overrides to the present folder.

    Raises:
        RecipeError: it cannot be read, or a key is unknown, missing or wrong.
    """
    file = Path(path)
    document = read_document(file)
    for key in ("policy", "normalize"):
        value = document.get(key)
        if isinstance(value, str) and (value.rpartition(":")[0].endswith(".py") or ":" not in value):
            document[key] = str(file.resolve().parent / value)
    return validated(RobustnessRecipe, apply_overrides(document, overrides), str(path))


@dataclass(frozen=True)
class Robustness:
    """What was found.

    Attributes:
        directory: of the run, with robustness.json, results.parquet and robustness.html.
        nominal: mean return at the nominal parameters.
        lose: the limit.
        margins: of each parameter.
        sobol: name -> first-order and total indices with the half widths of their 95 % intervals, by `first`, `total`,
            `first_by_chance`, `total_by_chance`; empty without a design.
        maps: mean returns (CELLS, CELLS) of pairs of parameters: `names`, `values` of both, `returns`.
        episodes: that were run.
    """

    directory: Path
    nominal: float
    lose: float
    margins: tuple[Margin, ...]
    sobol: dict[str, dict[str, float]]
    maps: tuple[dict[str, Any], ...]
    episodes: int

    def told(self) -> list[str]:
        """Say what matters, a line each."""
        if self.nominal < self.lose:
            return [f"it fails at the nominal parameters: {self.nominal:.4g} is below {self.lose:.4g}"]
        fails = [m for m in self.margins if m.fails_below is not None or m.fails_above is not None]
        lines = [m.told() for m in (*fails, *(m for m in self.margins if m not in fails))]
        if self.sobol:
            most = max(self.sobol, key=lambda name: self.sobol[name]["total"])
            share = min(max(self.sobol[most]["total"], 0.0), 1.0)
            lines.append(f"with all of them varied, {most} takes part in {share:.0%} of what differs in return")
        return lines


def robustness(
    recipe: RobustnessRecipe,
    output: Path,
    *,
    again: bool = False,
    say: Callable[[str], None] = lambda line: None,
    policy: PolicyFunction | None = None,
) -> Robustness:
    """Find how far each parameter may go before a policy fails, and which of them matter together.

    What has finished stays in the run directory: killed, the same call goes on. With a `policy` that is given as a
    function it starts over, for a function has no contents to be told by.

    Args:
        recipe: what is asked.
        output: folder of run directories; this one is `<title>-<digest>`.
        again: start over.
        say: told a line of progress now and then.
        policy: instead of the recipe's.

    Raises:
        ModelError: the policy cannot be read, or returns what is no action.
        ParameterError, RecipeError: the recipe cannot be used on the environment.
    """
    act = load_policy(recipe.policy, recipe.normalize) if policy is None else policy
    directory = output.resolve() / f"{recipe.title}-{_digest(recipe)}"
    episodes = Episodes(recipe, act, recipe.max_episode_steps)
    try:
        asked = _Asked(recipe, episodes, say)
        run = RunDirectory(directory)
        if again or policy is not None:
            run.clear()
            for old in ("robustness.json", "robustness.html", "results.parquet"):
                (directory / old).unlink(missing_ok=True)
        say(f"{recipe.policy} on {recipe.env}, {len(asked.names)} parameters")
        nominal = run.stage("nominal", asked.nominal)["result"]
        lose = _limit(recipe.sweep.lose, nominal["mean"])
        if nominal["mean"] < lose:
            margins = sobol = maps = NOTHING
        else:
            margins = run.stage("margins", lambda: asked.margins(nominal["mean"], lose))["result"]
            sobol = run.stage("sobol", asked.sobol)["result"]
            maps = run.stage("maps", lambda: asked.maps(sobol["indices"]))["result"]
    finally:
        episodes.close()
    document = {
        "name": recipe.title,
        "env": recipe.env,
        "policy": recipe.policy,
        "nominal": nominal["mean"],
        "lose": lose,
        "margins": margins["margins"],
        "sobol": sobol["indices"],
        "maps": maps["maps"],
        "episodes": sum(stage["episodes"] for stage in (nominal, margins, sobol, maps)),
    }
    write_json(directory / "robustness.json", document)
    found = read_robustness(directory)
    _write_results(directory / "results.parquet", found.margins, sobol)
    from sim2real.report.robustness_page import write_robustness_report

    write_robustness_report(directory)
    return found


def read_robustness(directory: Path) -> Robustness:
    """Read what `robustness` found.

    Raises:
        ModelError: robustness.json is missing or damaged.
    """
    found = read_json(directory / "robustness.json")
    try:
        margins = tuple(Margin(**m | {"tried": tuple(map(tuple, m["tried"]))}) for m in found["margins"])
        rest = {key: found[key] for key in ("nominal", "lose", "sobol", "episodes")}
        return Robustness(directory=directory, margins=margins, maps=tuple(found["maps"]), **rest)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{directory / 'robustness.json'} is damaged: {error}") from error


class _Asked:
    """The questions, each of which is a stage of the run."""

    def __init__(self, recipe: RobustnessRecipe, episodes: Episodes, say: Callable[[str], None]) -> None:
        self.section, self.seed, self.episodes, self.say = recipe.sweep, recipe.seed, episodes, say
        self.names = list(episodes.bound.targets)
        self.ends = _ends(episodes.bound)
        self.at_rest = _nominal_shares(episodes.bound, self.ends)

    def nominal(self) -> dict[str, Any]:
        many = self.section.episodes
        returns = self.episodes.run(np.tile(self.at_rest, (many, 1)), self.seed + np.arange(many))
        self.say(f"nominal: mean return {returns.mean():.4g}")
        return {"mean": float(returns.mean()), "episodes": many}

    def grids(self) -> Array:
        """Return the uniform numbers (D, G) of the values that each parameter may be tried at."""
        return _between(self.ends, self.section.grid)

    def margins(self, nominal: float, lose: float) -> dict[str, Any]:
        """Scan each parameter roughly, then halve the stretch in which it begins to fail."""
        before, grids = self.episodes.count, self.grids()
        lines = [Line(k, int(np.abs(grids[k] - share).argmin()), len(grids[k])) for k, share in enumerate(self.at_rest)]
        for line in lines:
            line.found[line.start] = nominal, self.section.episodes
        asked = [(line, at) for line in lines for at in line.scan()]
        reach, rounds = 2.0 * abs(nominal - lose), 0
        while asked:
            rounds += 1
            self.say(f"margins, round {rounds}: {len(asked)} values")
            for (line, at), found in zip(asked, self._means(asked, grids, lose, reach), strict=True):
                line.found[at] = found
            asked = [(line, at) for line in lines for at in line.next(lose)]
        margins = [asdict(self._margin(line, grids[line.column], lose)) for line in lines]
        return {"margins": margins, "episodes": self.episodes.count - before}

    def _means(
        self, asked: Sequence[tuple[Line, int]], grids: Array, lose: float, reach: float
    ) -> list[tuple[float, int]]:
        """Return mean returns and how many episodes each took: as many as it takes to tell them from the limit."""
        u = np.tile(self.at_rest, (len(asked), 1))
        for row, (line, at) in zip(u, asked, strict=True):
            row[line.column] = grids[line.column, at]
        returns: list[list[float]] = [[] for _ in asked]
        open_, many = list(range(len(asked))), min(max(4, self.section.episodes // 8), self.section.episodes)
        while open_:
            new = [(k, s) for k in open_ for s in range(len(returns[k]), many)]
            which = [k for k, _ in new]
            for k, value in zip(
                which, self.episodes.run(u[which], self.seed + np.array([s for _, s in new])), strict=True
            ):
                returns[k].append(float(value))
            open_ = [k for k in open_ if many < self.section.episodes and not surely(returns[k], lose, reach)]
            many = min(2 * many, self.section.episodes)
        return [(float(np.mean(r)), len(r)) for r in returns]

    def _margin(self, line: Line, grid: Array, lose: float) -> Margin:
        bound, name = self.episodes.bound, self.names[line.column]
        u = np.tile(self.at_rest, (len(grid), 1))
        u[:, line.column] = grid
        values, factor = self._values(name, u), self._factor(name)
        low, high = line.edges(lose)
        ends = [
            (float(values[low]), None if low == 0 else float(values[low - 1])),
            (float(values[high]), None if high == len(grid) - 1 else float(values[high + 1])),
        ]
        if values[0] > values[-1]:  # what is below zero gets less with a larger factor
            ends.reverse()
        evenly = isinstance(self._parameter(name).distribution, LogUniform | LogNormal)
        return Margin(
            name,
            "" if factor else self.episodes.units[bound.targets[name][0]],
            factor,
            evenly and bool((values > 0).all()),
            1.0 if factor else bound.nominal(name),
            low=ends[0][0],
            high=ends[1][0],
            fails_below=ends[0][1],
            fails_above=ends[1][1],
            tried=tuple(sorted((float(values[at]), *found) for at, found in line.found.items())),
        )

    def sobol(self) -> dict[str, Any]:
        """Vary all parameters at once, and share out what differs in return among them (Saltelli et al. 2010)."""
        many, dimension = self.section.samples, len(self.names)
        if not many or dimension < 2:
            return NOTHING
        require("SALib", "rl")
        from SALib.analyze import sobol as analyze
        from SALib.sample import sobol as sample

        before = self.episodes.count
        problem = {"num_vars": dimension, "names": self.names, "bounds": self.ends.tolist()}
        u = sample.sample(problem, many, calc_second_order=False, seed=self.seed)
        tries = max(1, self.section.map_episodes)
        self.say(f"Sobol design: {len(u)} points, {tries} episodes each")
        returns = self._several(u, tries)
        # it takes a seed of zero for none
        found = analyze.analyze(problem, returns, calc_second_order=False, seed=self.seed + 1)
        indices = {
            name: {
                "first": float(found["S1"][k]),
                "first_by_chance": float(found["S1_conf"][k]),
                "total": float(found["ST"][k]),
                "total_by_chance": float(found["ST_conf"][k]),
            }
            for k, name in enumerate(self.names)
        }
        return {
            "indices": indices if np.ptp(returns) > 0 else {},
            "values": {name: v.tolist() for name, v in self.episodes.bound.values(u).items()},
            "returns": returns.tolist(),
            "episodes": self.episodes.count - before,
        }

    def maps(self, indices: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """Map the return over pairs of the parameters that matter most, the others nominal."""
        if not self.section.map_episodes or len(self.names) < 2:
            return NOTHING
        before = self.episodes.count
        ranked = sorted(self.names, key=lambda name: -indices.get(name, {}).get("total", 0.0))
        pairs = [(a, b) for k, b in enumerate(ranked) for a in ranked[:k]][:PAIRS]
        maps = []
        for first, second in pairs:
            self.say(f"map of {first} and {second}")
            u = np.tile(self.at_rest, (CELLS * CELLS, 1))
            a, b = self.names.index(first), self.names.index(second)
            sides = _between(self.ends[[a, b]], CELLS)
            u[:, a], u[:, b] = np.repeat(sides[0], CELLS), np.tile(sides[1], CELLS)
            returns = self._several(u, self.section.map_episodes).reshape(CELLS, CELLS)
            values = [self._values(first, u)[::CELLS].tolist(), self._values(second, u)[:CELLS].tolist()]
            maps.append({"names": [first, second], "values": values, "returns": returns.tolist()})
        return {"maps": maps, "episodes": self.episodes.count - before}

    def _parameter(self, name: str) -> Parameter:
        return next(p for p in self.episodes.bound.parameters if p.name == name)

    def _factor(self, name: str) -> bool:
        """Return whether a parameter is told as a factor, since it scales several."""
        return self._parameter(name).operation == "scale" and len(self.episodes.bound.targets[name]) > 1

    def _values(self, name: str, u: Array) -> Array:
        """Return what uniform numbers (k, D) make of a parameter: values in its unit, or factors (k,)."""
        bound = self.episodes.bound
        return bound.parameters.quantile(u)[name] if self._factor(name) else bound.values(u)[bound.targets[name][0]]

    def _several(self, u: Array, tries: int) -> Array:
        """Return mean returns (k,) of the same starts at each of u (k, D)."""
        seeds = np.tile(self.seed + np.arange(tries), len(u))
        return np.asarray(self.episodes.run(np.repeat(u, tries, 0), seeds).reshape(len(u), tries).mean(1))


def _ends(bound: BoundParameters) -> Array:
    """Return the smallest and largest uniform number of each parameter that is asked for: (D, 2)."""
    finite = [np.isfinite(p.distribution.quantile([0.0, 1.0])) for p in bound.parameters]
    return np.asarray(np.where(finite, [0.0, 1.0], ENDLESS), float)


def _between(ends: Array, many: int) -> Array:
    """Return (D, many) numbers in equal steps between ends (D, 2)."""
    return np.asarray(ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.linspace(0.0, 1.0, many))


def _nominal_shares(bound: BoundParameters, ends: Array) -> Array:
    """Return the uniform numbers (D,) at which every parameter is nominal, or as near to it as it is drawn."""
    fine = _between(ends, 2001).T
    draws = bound.parameters.quantile(fine)
    rest = {"scale": 1.0, "add": 0.0}
    nominal = [rest.get(p.operation, bound.nominal(p.name)) for p in bound.parameters]
    for p, value in zip(bound.parameters, nominal, strict=True):
        low, high = draws[p.name].min(), draws[p.name].max()
        if not low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high):
            what = "a factor of 1" if p.operation == "scale" else f"its nominal value {value:g} {p.unit}".rstrip()
            raise RecipeError(
                f"{p.name}: {what} lies outside of {low:g} to {high:g}, and how far it may go is asked outwards from "
                "there: widen its range"
            )
    apart = np.stack([np.abs(draws[p.name] - n) for p, n in zip(bound.parameters, nominal, strict=True)], 1)
    return np.asarray(np.take_along_axis(fine, apart.argmin(0)[None], 0)[0])


def _limit(lose: float | str, nominal: float) -> float:
    """Return the limit in returns."""
    if isinstance(lose, str):
        number = lose.strip().removesuffix("%").strip()
        try:
            share = float(number) / 100.0
        except ValueError:
            raise ValueError("expected a return, or a share such as '80 %'") from None
        if not lose.strip().endswith("%"):
            return float(number)
        return nominal - (1.0 - share) * abs(nominal)
    return float(lose)


def _digest(recipe: RobustnessRecipe) -> str:
    """Return eight characters that stand for the recipe and the files of the policy."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()
    for named in (recipe.policy, recipe.normalize or ""):
        place = named.rpartition(":")[0] or named
        if ":" in named and not place.endswith(".py"):
            with contextlib.suppress(ImportError, ValueError):
                found = importlib.util.find_spec(place)
                place = found.origin or place if found is not None else place
        if place and Path(place).is_file():
            text += Path(place).read_bytes()
    return hashlib.sha256(text).hexdigest()[:8]


def _write_results(path: Path, margins: Sequence[Margin], sobol: Mapping[str, Any]) -> None:
    """Write a row for every point that was tried: what was varied, its value, the mean return, the episodes."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {"part": "margin", "parameter": m.name, "value": value, "return": mean, "episodes": many}
        for m in margins
        for value, mean, many in m.tried
    ]
    for k, mean in enumerate(sobol["returns"]):
        drawn = {name: column[k] for name, column in sobol["values"].items()}
        rows.append({"part": "sobol", "parameter": json.dumps(drawn), "value": None, "return": mean, "episodes": None})
    parquet.write_table(pa.Table.from_pylist(rows), path)
