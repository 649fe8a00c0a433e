"""Sim-to-sim: the same policy and parameters on two engines, and which parameters would explain where they part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.adapters import Chain
from sim2real.episodes import Array
from sim2real.errors import ParameterError, RecipeError
from sim2real.importing import imported_function
from sim2real.plant import Plant, Values
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.recipe import Recipe
from sim2real.run_directory import read_json, write_json
from sim2real.twin import excite

# (states (n, X), time [s]) -> commands (n, A)
PolicyFunction = Callable[[Array, float], Array]
# Seconds ahead that are told of, as far as a run goes.
HORIZONS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
# Of the commands that excite [Hz].
FREQUENCIES = (0.35, 0.8, 1.7)
# Share of a parameter's spread that its effect is measured with.
NUDGE = 0.02
# Apart by less than this share of the motion, engines are taken to agree.
AGREE = 0.02


@dataclass(frozen=True)
class Disagreement:
    """How far two simulators are apart.

    Attributes:
        simulators: their names.
        channels: of the state: positions of the joints, then velocities.
        units: of each.
        horizons: seconds after the start.
        apart: (H, X) root mean square distance over plants, in the units of the channels.
        share: (H, X) the same, relative to the spread of the channel over the run.
        explained: for each parameter the share of the squared distance that shifting it alone would take away, 0 to 1.
        shift: by how much the first simulator's would have to be shifted for that, in its own unit.
        times: (T,) of the paths [s].
        paths: (2, T, X) of the plant whose simulators are the farthest apart.
        name: of the recipe, where it was one.
    """

    simulators: tuple[str, str]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    horizons: tuple[float, ...]
    apart: Array
    share: Array
    explained: dict[str, float]
    shift: dict[str, float]
    times: Array
    paths: Array
    name: str = ""

    @property
    def largest(self) -> float:
        """The largest share at a horizon of up to a second."""
        return float(self.share[[h <= 1.0 for h in self.horizons]].max())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "simulators": list(self.simulators),
            "channels": list(self.channels),
            "units": list(self.units),
            "horizons": list(self.horizons),
            "apart": self.apart.tolist(),
            "share": self.share.tolist(),
            "explained": self.explained,
            "shift": self.shift,
            "times": self.times.tolist(),
            "paths": self.paths.tolist(),
            "name": self.name,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Disagreement:
        """Return what `to_json` gave."""
        kinds: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(("simulators", "channels", "units", "horizons"), tuple),
            **dict.fromkeys(("apart", "share", "times", "paths"), np.array),
            **dict.fromkeys(("explained", "shift"), dict),
            "name": str,
        }
        return cls(**{key: kind(document[key]) for key, kind in kinds.items()})


def compare_simulators(
    plants: tuple[Plant, Plant],
    values: Values,
    policy: PolicyFunction,
    starts: Array,
    *,
    seconds: float = 2.0,
    period: float = 0.01,
    names: tuple[str, str] = ("one", "other"),
    explain: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Disagreement:
    """Let a policy drive n plants on two simulators, with the same parameters from the same starts.

    What a parameter would explain is linear regression: the paths of the first simulator are taken again with the
    parameter nudged, and the distance to the second one is projected on how they moved. Parameters are taken one at a
    time, so that their shares may add up to more than one where they move a robot alike.

    Args:
        plants: of the two simulators, behind chains.
        values: parameters that both are given: name -> (n,).
        policy: `f(states (n, X), time) -> commands (n, A)`, of the state of its own simulator.
        starts: (n, X) states to start in.
        seconds: how long [s].
        period: between commands [s].
        names: of the simulators.
        explain: parameters to try, with the spread of each, in its own unit.
        say: called with a line now and then.

    Raises:
        ParameterError: a simulator does not have one of the parameters, or the plants differ in joints or substeps.
        NonFiniteError: a plant left the finite numbers.
    """
    one, other = plants
    if one.model.joint_names != other.model.joint_names or one.timestep != other.timestep:
        raise ParameterError(
            f"both simulators have the same joints and substeps; found {one.model.joint_names} at {one.timestep:g} s "
            f"and {other.model.joint_names} at {other.timestep:g} s"
        )

    def driven(plant: Plant, what: Values) -> Array:
        return _driven(plant, what, policy, starts, seconds, period)

    paths = []
    for name, plant in zip(names, plants, strict=True):
        say(f"driving {len(starts)} plants on {name}")
        paths.append(driven(plant, values))
    spread = paths[0].std((0, 1)).clip(1e-9)
    away = paths[1] - paths[0]
    explained, shift = {}, {}
    for name, width in (explain or {}).items():
        say(f"nudging {name}")
        known, nudge = values.get(name, np.full(len(starts), one.nominal()[name])), NUDGE * width
        moved = [driven(one, {**values, name: known + sign * nudge}) for sign in (-1.0, 1.0)]
        slope = (moved[1] - moved[0]) / (2.0 * nudge) / spread
        strength = float((slope**2).sum())
        by = float((slope * away / spread).sum()) / strength if strength > 0 else 0.0
        left = float(((away / spread - by * slope) ** 2).sum())
        total = float(((away / spread) ** 2).sum())
        explained[name], shift[name] = (1.0 - left / total if total > 0 else 0.0), by
    times = period * np.arange(1, paths[0].shape[1] + 1)
    horizons = tuple(h for h in HORIZONS if h <= seconds + 1e-9)
    at = [int(np.abs(times - h).argmin()) for h in horizons]
    apart = np.sqrt((away[:, at] ** 2).mean(0))
    worst = int(((away / spread) ** 2).sum((1, 2)).argmax())
    units = tuple(one.model.joint_units)
    return Disagreement(
        names,
        (*(f"{j}.position" for j in one.model.joint_names), *(f"{j}.velocity" for j in one.model.joint_names)),
        (*units, *(f"{u}/s" for u in units)),
        horizons,
        apart,
        apart / spread,
        explained,
        shift,
        times,
        np.stack([path[worst] for path in paths]),
    )


def _driven(
    plant: Plant, values: Values, policy: PolicyFunction, starts: Array, seconds: float, period: float
) -> Array:
    """Return the states (n, T, X) after each period."""
    substeps = round(period / plant.timestep)
    if abs(substeps * plant.timestep - period) > 1e-9 or substeps < 1:
        raise ParameterError(f"the period of {period:g} s is no whole number of substeps of {plant.timestep:g} s")
    running = plant.start(len(starts), values)
    running.reset(np.asarray(starts, float))
    out, state = [], np.asarray(starts, float)
    for k in range(round(seconds / period)):
        commands = np.asarray(policy(state, k * period), float)
        expected = (len(starts), plant.actions)
        if commands.shape != expected or not np.isfinite(commands).all():
            wrong = "some that are not finite" if commands.shape == expected else f"{commands.shape}"
            when = f"at {k * period:.3g} s it returned {wrong}"
            raise ParameterError(f"the policy must return finite commands {expected}, one row a plant; {when}")
        state = running.step(np.repeat(commands[:, None], substeps, 1))[:, -1]
        out.append(state)
    return np.stack(out, 1)


def excitation(n: int, seconds: float, period: float, limit: Array, rng: np.random.Generator) -> PolicyFunction:
    """Return a policy that looks at nothing: smooth commands of several frequencies, others for each plant."""
    commands = np.stack([excite(rng, seconds, period, limit, FREQUENCIES) for _ in range(n)])
    return lambda _, time: commands[:, min(round(time / period), commands.shape[1] - 1)]


def compare_recipe(recipe: Recipe, output: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Compare the simulators that a recipe names, with draws of its parameters; write what was found and a page.

    Args:
        recipe: with `simulators:` and, if need be, `compare:`.
        output: folder of run directories.
        say: called with a line now and then.

    Returns:
        the run directory, with `simulators.json` and `simulators.html`.

    Raises:
        RecipeError: not two simulators, or a robot that is a function.
        MissingExtraError: a simulator is not installed.
    """
    from sim2real.report.simulators_page import write_simulators_report

    names = recipe.simulators
    if len(names) != 2:
        raise RecipeError(f"expected two simulators, simulators=[mujoco,genesis]; found [{', '.join(names)}]")
    if ":" in recipe.robot:
        raise RecipeError("simulators are compared on a robot file; the recipe's robot is a function")
    settings = recipe.compare
    asked = json.dumps(recipe.model_dump(mode="json", include={"simulators", "compare"}), sort_keys=True)
    which = hashlib.sha256(asked.encode()).hexdigest()[:8]
    directory = output / f"{recipe.name}-{recipe.digest()}" / f"simulators-{which}"
    plants = [plant_on(recipe, name) for name in names]
    first = plants[0]
    prior = ParameterSet.parse(recipe.parameters, first.units()).against(first.nominal())
    rng = np.random.default_rng([recipe.seed, 20])
    values = prior.sample(rng, settings.draws)
    joints = first.degrees_of_freedom
    starts = np.zeros((settings.draws, 2 * joints))
    starts[:, :joints] = rng.uniform(-1, 1, (settings.draws, joints)) * settings.spread
    policy: PolicyFunction
    if settings.policy is None:
        limit = np.full(first.actions, recipe.control.limit)
        policy = excitation(settings.draws, settings.seconds, settings.period, limit, rng)
    else:
        policy = imported_function(settings.policy, "compare.policy", "expected a function", RecipeError)
    found = compare_simulators(
        (plants[0], plants[1]),
        values,
        policy,
        starts,
        seconds=settings.seconds,
        period=settings.period,
        names=(names[0], names[1]),
        explain={p.name: p.distribution.std for p in prior},
        say=say,
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "simulators.json", replace(found, name=recipe.name).to_json())
    (directory / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_simulators_report(directory)
    return directory


def plant_on(recipe: Recipe, simulator: str) -> Plant:
    """Return the plant of a recipe on a simulator."""
    model: Any = RobotModel(recipe.robot)
    if simulator == "genesis":
        from sim2real.randomization.genesis import GenesisModel

        model = GenesisModel(recipe.robot)
    return Plant(model, Chain.from_config(recipe.execution), recipe.timestep)


def read_disagreement(directory: Path) -> Disagreement:
    """Return what `compare_recipe` found.

    Raises:
        ModelError: it is not there, or damaged.
    """
    return Disagreement.from_json(read_json(directory / "simulators.json"))


def told(found: Disagreement) -> Sequence[str]:
    """Return in a few lines what was found."""
    one, other = found.simulators
    reach = max(h for h in found.horizons if h <= 1.0)
    if found.largest < AGREE:
        at_most = f"{100 * found.largest:.1g} %" if found.largest >= 1e-4 else "less than a hundredth of a percent"
        return [f"{one} and {other} agree: within {reach:g} s apart by {at_most} of the motion"]
    lines = [f"{one} and {other} part: within {reach:g} s by up to {found.largest:.0%} of the motion"]
    ranked = sorted(found.explained, key=lambda name: -found.explained[name])
    strong = [name for name in ranked if found.explained[name] > 0.1][:3]
    for name in strong:
        share, by = found.explained[name], found.shift[name]
        lines.append(f"{name} of {one}, shifted by {by:+.2g}, would explain {share:.0%} of that")
    if not strong and found.explained:
        lines.append("none of the parameters would explain more than a tenth of that: it is the engines themselves")
    return lines
