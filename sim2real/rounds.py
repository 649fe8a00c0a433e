"""`sim2real dagger`: rounds of control, recording and fine-tuning with what a run of a recipe has learned."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sim2real.calibration import Posterior
from sim2real.calibration.evidence import OfReadings
from sim2real.control import closed_loop
from sim2real.control_stages import closeness_as_read, returns
from sim2real.controllers import fallback_of, guarded, limits_of, planner, start_positions, task_of, told_of
from sim2real.dagger import Round, dagger
from sim2real.episodes import Episode
from sim2real.errors import RecipeError, SafetyError
from sim2real.logs import read_logs
from sim2real.planning import Policy
from sim2real.preparation import Setup, prepare
from sim2real.recipe import Recipe
from sim2real.run_directory import read_json, write_json
from sim2real.stages import excitation, identify_stage, learned_model
from sim2real.twin_env import TwinEnv
from sim2real.windows import joint_positions
from sim2real.world_model import EnsembleDynamics, Rehearsal


@dataclass(frozen=True)
class Rounds:
    """What came of going round.

    Attributes:
        directory: of the rounds.
        rounds: in order.
        returns: on a twin, how close to its goal its controllers kept it on average, 0 to 1: the fallback alone, and
            planning before the rounds and after them; empty with any other robot.
        curve: the same after each round, by seconds of the robot: `seconds`, `recorded` while it ran, and on a twin
            `after` it, and `scratch`, of a model of the recordings alone, where asked for; each with all starts.
    """

    directory: Path
    rounds: list[Round]
    returns: dict[str, float]
    curve: list[dict[str, Any]]


def go_round(recipe: Recipe, run: Path, progress: Callable[[str], None]) -> Rounds:
    """Go round with the model that a run has learned from recordings, on the recipe's twin or on `dagger.env`.

    Args:
        recipe: with a `learn:` section.
        run: its directory, in which it has run up to `learn`.
        progress: called with a line now and then.

    Raises:
        RecipeError: there is no `learn:` section, and so no model, or neither a twin nor a robot.
        Sim2RealError: of `dagger`.
    """
    require(recipe)
    assert recipe.learn is not None
    settings, setup = recipe.dagger, prepare(recipe)
    name = "rehearsed_model" if recipe.learn.rehearse else "recordings_model"
    model = EnsembleDynamics.load(run / "model" / name)
    assert model.encoder is not None
    seconds = min(0.5, 0.3 * settings.episode)
    replay, posterior = None, Posterior.load(run / "posterior")
    values = posterior.values
    if recipe.learn.rehearse:
        draws = posterior.sample(setup.rng("rehearsal"), model.config.members)
        rehearsal = Rehearsal(setup.plant, draws, excitation(setup, model.config.timestep), windows=500)
        replay = OfReadings.simulated(model, rehearsal, model.config.timestep, seconds, recipe.seed)
    # more rounds go on where fewer ended
    told = json.dumps(settings.model_dump(mode="json", exclude={"rounds", "patience", "scratch"}), sort_keys=True)
    directory = run / f"rounds-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    fallback = fallback_of(setup)

    def of_model(model: EnsembleDynamics) -> Policy:
        return planner(setup, model)

    def behind_a_filter(policy: Policy) -> Policy:
        return guarded(setup, policy, model.config.timestep, values)

    def with_recordings(before: Sequence[Episode], new: Sequence[Episode]) -> Setup:
        return replace(setup, recordings=replace(setup.recordings, train=[*before, *new]))

    def anew(recordings: Sequence[Episode]) -> EnsembleDynamics:
        assert recipe.learn is not None
        known = with_recordings(setup.recordings.train, recordings)
        found = identify_stage(known, progress, examine=False) if recipe.learn.rehearse else None
        return learned_model(known, found, progress)

    rounds = dagger(
        robot(setup), model, of_model, fallback, setup.channels, directory,
        names=settings.names, rounds=settings.rounds, seconds=settings.seconds, episode=settings.episode,
        shares=settings.shares, segment=settings.segment, clock=settings.clock, method=settings.method,
        guard=behind_a_filter, replay=replay, learn=anew if settings.anew else None, patience=settings.patience,
        seed=recipe.seed, progress=progress, iterations=settings.iterations, anchor=settings.anchor, rate=settings.rate,
    )  # fmt: skip

    def scored(name: str, place: Path, policy: Policy, of: EnsembleDynamics) -> list[float]:
        """Score a controller on the twin, once."""
        file = place / f"{name}.json"
        if not file.is_file():
            progress(f"trying the controllers: {name.replace('_', ' ')}")
            write_json(file, {"returns": returned(setup, behind_a_filter(policy), of)})
        each: list[float] = read_json(file)["returns"]
        return each

    curve, recordings = [], list[Episode]()
    for r in rounds:
        place = directory / f"round-{r.number:02d}"
        here = read_logs(place / "logs")
        recordings += here
        point: dict[str, Any] = {
            "seconds": sum(e.duration for e in recordings),
            "recorded": [
                closeness_as_read(task_of(setup), joint_positions(e, setup.channels), e.observed_at, e.period)
                for e in here
                if len(e.observed_at) > 1
            ],
        }
        if settings.env is None:
            after = EnsembleDynamics.load(place / "model")
            point["after"] = scored("return_after", place, of_model(after), after)
        if settings.env is None and settings.scratch:
            if not (place / "scratch").is_dir():
                progress(f"round {r.number}: a model of the recordings alone")
                learned_model(with_recordings([], recordings), None, progress).save(place / "scratch")
            alone = EnsembleDynamics.load(place / "scratch")
            point["scratch"] = scored("return_scratch", place, of_model(alone), alone)
        curve.append(point)
    found: dict[str, float] = {}
    if settings.env is None and rounds:
        rivals = {"fallback": fallback, "before": of_model(model)}
        each = {name: scored(f"return_{name}", directory, policy, model) for name, policy in rivals.items()}
        found = {name: float(np.mean(v)) for name, v in {**each, "after": curve[-1]["after"]}.items()}
    told_of_all = {
        "rounds": [asdict(r) for r in rounds],
        "returns": found,
        "curve": curve,
        "measure": recipe.control.measure,
    }
    write_json(directory / "rounds.json", told_of_all)
    return Rounds(directory, rounds, found, curve)


def require(recipe: Recipe) -> None:
    """Raise a RecipeError where a recipe has nothing to go round with; the robot itself is not touched."""
    if recipe.learn is None:
        raise RecipeError(
            "rounds begin with a model that looks back: give the recipe a `learn:` section whose timestep is the "
            "robot's control period, such as 'learn={timestep: 0.02}'"
        )
    if recipe.twin is None and recipe.dagger.env is None:
        raise RecipeError("rounds need a robot: give the recipe a `twin:`, or name a Gymnasium environment, dagger.env")
    if recipe.dagger.env is not None:
        module, _, name = recipe.dagger.env.rpartition(":")
        try:
            if module:
                importlib.import_module(module)
            gym.spec(name)
        except (gym.error.Error, ImportError) as error:
            raise RecipeError(f"dagger.env: {error}") from None


def robot(setup: Setup) -> gym.Env[Any, Any]:
    """Return what a recipe goes round with."""
    recipe = setup.recipe
    assert recipe.learn is not None
    if recipe.dagger.env is not None:
        return gym.make(recipe.dagger.env)
    assert setup.twin is not None
    return TwinEnv(setup.twin, limits_of(setup), recipe.learn.timestep, spread=recipe.control.spread)


def returned(setup: Setup, policy: Policy, model: EnsembleDynamics) -> list[float]:
    """Return how close to its goal a policy keeps the twin on average, from each of the starts that `control` has."""
    assert setup.twin is not None
    assert model.encoder is not None
    recipe, config = setup.recipe.control, model.config
    run = closed_loop(
        setup.twin, policy, model.encoder.estimator(), start_positions(setup), seconds=recipe.seconds,
        period=config.timestep, limit=limits_of(setup), history=config.history,
        lookback=config.lookback,
    )  # fmt: skip
    if told_of(policy):
        raise SafetyError(f"the twin was stopped while it was scored: {', '.join(told_of(policy))}")
    return [float(v) for v in returns(run, task_of(setup))]
