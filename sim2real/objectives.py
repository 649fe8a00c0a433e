"""What a sweep scores recipes by: each objective, what it costs less of first, and which keys cannot matter to it."""

from __future__ import annotations

import contextlib
import fcntl
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sim2real.errors import LogError, RecipeError
from sim2real.policy_recipe import PolicyRecipe, SweptRecipe
from sim2real.preparation import Setup, prepare
from sim2real.recipe import ControlSection, Recipe, with_overrides
from sim2real.run_directory import RunDirectory, read_json, write_json


@dataclass(frozen=True)
class Scored:
    """A score that a recipe got on its way.

    Attributes:
        share: of the whole work, so far.
        score: with that.
        saved: folder from which the work can be gone on with elsewhere; None where the run directory has it all.
    """

    share: float
    score: float
    saved: Path | None = None


# (folder of run directories, recipe, shares, folder that an earlier process saved) -> scores, one after the other
Scorer = Callable[[Path, Any, Sequence[float], Path | None], Iterator[Scored]]


@dataclass(frozen=True)
class Objective:
    """What recipes are scored by.

    Attributes:
        measure: what the score is, in words.
        scores: of a recipe.
        better: whether less or more is.
        shares: of the work after which it is scored, the last 1.
        what: what is scored, in a word or two.
        never: sections of the recipe that it does not depend on, or that come after it.
        trains: whether it goes on from what was saved, so that a population can be trained.
    """

    measure: str
    scores: Scorer
    better: Literal["less", "more"] = "less"
    shares: tuple[float, ...] = (1 / 3, 1.0)
    what: str = ""
    never: tuple[str, ...] = ()
    trains: bool = False


def objective_of(recipe: SweptRecipe) -> Objective:
    """Return the objective of a recipe's `sweep:`.

    Raises:
        RecipeError: there is none of this name for such a recipe, or it cannot be imported.
    """
    section = recipe.sweep
    assert section is not None
    name = section.objective
    known = OF_POLICIES if isinstance(recipe, PolicyRecipe) else OF_PIPELINES
    if ":" in name:
        found = Objective(f"what {name} returns", function_scores, section.better, trains=True, what="function")
        _own(name)
    elif name in known:
        found = known[name]
    else:
        about = "an environment" if isinstance(recipe, PolicyRecipe) else "the whole loop"
        raise RecipeError(
            f"sweep.objective: of recipes about {about} expected {', '.join(known)}"
            f"{', robustness' if known is OF_POLICIES else ''} or a function such as package.module:name; "
            f"found {name!r}"
        )
    if isinstance(recipe, PolicyRecipe) and ":" not in name and recipe.env is None:
        raise RecipeError("key 'env' is missing: the id of an environment, or the name of a robot task")
    if section.scheduler == "pbt" and not found.trains:
        raise RecipeError(
            f"sweep.scheduler: a population is trained, which {name} does not do; use asha, or objective: policy"
        )
    return replace(found, shares=section.shares or found.shares)


# the loop of a recipe


def stage_scores(runs: Path, recipe: Recipe, shares: Sequence[float], _: Path | None = None) -> Iterator[Scored]:
    """Score a recipe on its validation recordings, learning from more and more of its training recordings.

    What has finished in a run directory is not repeated, and a share that is too short to learn from is passed over.
    The score is the normalised RMSE of the identified simulator, or the CRPS of the fine-tuned model [rad or m], the
    mean over the horizons; or one less the mean closeness of the identified simulator to its goal under the controller.

    Args:
        runs: folder of the run directories, one a recipe and share.
        recipe: whose `sweep.objective` says what is scored.
        shares: of the duration of every training recording, from its beginning on.
    """
    from sim2real.pipeline import StagedRun, Watcher, set_threads

    assert recipe.sweep is not None
    objective, control = recipe.sweep.objective, recipe.control
    until = {"identify": "observe", "finetune": "finetune", "control": "finetune"}[objective]
    set_threads()
    if objective == "control":  # how it is controlled does not change what is learned: trials share that
        recipe = recipe.model_copy(update={"control": ControlSection(limit=control.limit)})
    whole = prepare(recipe)
    for share in shares:
        folder = runs if share == 1 else runs / f"first-{100 * share:.0f}-percent"
        directory = RunDirectory(folder / f"{recipe.name}-{recipe.digest()}")
        with _alone_in(directory.path):
            setup = _shortened(whole, share)
            directory.belongs_to(setup.recordings.fingerprint())
            (directory.path / "recipe.yaml").write_text(setup.recipe.to_yaml())
            run = StagedRun(directory, setup, Watcher(), examine=False)
            try:
                run.to(until)
            except LogError:
                if share == 1:
                    raise
                continue
        found = run.result(until)
        if objective == "control":
            yield Scored(share, 1.0 - run.rehearsed_return(control))
        elif until == "observe":
            yield Scored(share, float(min(found["validation_nrmse"].values())))
        else:
            crps = found["crps"]["after" if found["accepted"] else "before"]
            yield Scored(share, float(np.mean(list(crps.values()))))


def transfer_scores(runs: Path, recipe: Recipe, shares: Sequence[float], _: Path | None = None) -> Iterator[Scored]:
    """Score a randomization: a model that was trained on simulations of the prior alone meets the robot.

    On a twin the score is one less how close to its goal the controller keeps it; on recordings it is the CRPS of the
    model on the validation recordings [rad or m], mean over the horizons. A part of the work is shorter training of
    fewer members.
    """
    from sim2real.pipeline import set_threads

    set_threads()
    whole, folder = prepare(recipe), runs / f"{recipe.name}-{recipe.digest()}"
    folder.mkdir(parents=True, exist_ok=True)
    for share in shares:
        file = folder / f"transfer-{100 * share:.0f}-percent.json"
        with _alone_in(folder):
            if not file.is_file():
                write_json(file, {"score": _transferred(_shortened(whole, share))})
        yield Scored(share, float(read_json(file)["score"]))


def _transferred(setup: Setup) -> float:
    from sim2real import control_stages, controllers, stages
    from sim2real.evaluation import mean_scores, score, start_covariance

    draws = setup.prior.sample(setup.rng("members"), setup.recipe.model.members)
    middle = {name: float(np.median(v)) for name, v in setup.prior.sample(setup.rng("middle"), 1001).items()}
    values = {**setup.plant.nominal(), **middle}
    observation, _ = stages.choose_observer(setup, values)
    recordings = [*setup.recordings.train, *setup.recordings.validation]
    covariance = start_covariance(setup.plant, values, observation, recordings, setup.channels)
    model = stages.pretrain(setup, setup.plant, draws, covariance, lambda _: None)
    if setup.twin is None:
        predictor = stages.model_predictor(setup, model, values, observation)
        names, rng = setup.plant.model.joint_names, setup.rng("score")
        return mean_scores([score(predictor(q), q, names, rng) for q in stages.validation(setup)], "crps")
    controllers.require(setup)
    controller = controllers.Controller(model, setup.plant, values)
    tried = control_stages.control_stage(setup, {"after": controller}, observation, lambda _: None)
    return 1.0 - float(control_stages.returns(tried["after"].run, controllers.task_of(setup)).mean())


def _shortened(setup: Setup, share: float) -> Setup:
    """The same with the beginning of every training recording alone, and less training of fewer members."""
    if share == 1:
        return setup
    recipe = setup.recipe
    less = {
        "model.iterations": math.ceil(share * recipe.model.iterations),
        "model.rollout_iterations": math.ceil(share * recipe.model.rollout_iterations),
        "model.members": max(2, math.ceil(share * recipe.model.members)),
        "finetune.iterations": math.ceil(share * recipe.finetune.iterations),
    }
    train = [e.slice(0.0, share * e.duration) for e in setup.recordings.train]
    return replace(setup, recipe=with_overrides(recipe, less), recordings=replace(setup.recordings, train=train))


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait for any other process in the directory: two trials may draw the same values."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# a function of one's own


def function_scores(runs: Path, recipe: SweptRecipe, shares: Sequence[float], kept: Path | None) -> Iterator[Scored]:
    """Score by `function(recipe, share, folder) -> float`, called for each share that has not been scored yet.

    What it leaves in its folder goes along wherever the trial does: to the next share, to another machine, and, in a
    population, to the trial that takes its place.
    """
    assert recipe.sweep is not None
    function = _own(recipe.sweep.objective)
    folder = _working_folder(runs, recipe, kept)
    for share in _left(folder, shares, kept):
        score = float(function(recipe, share, folder))
        write_json(folder / "share.json", share)
        yield Scored(share, score, folder)


def _own(place: str) -> Callable[..., Any]:
    from sim2real.importing import imported_function

    return imported_function(place, "sweep.objective", "not a function of a recipe", RecipeError)


def _working_folder(runs: Path, recipe: SweptRecipe, kept: Path | None) -> Path:
    """Return a folder for this recipe, with what was kept; empty where nothing was."""
    folder = runs / f"{recipe.name}-{recipe.digest()}"
    shutil.rmtree(folder, ignore_errors=True)
    if kept is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(kept, folder)
    return folder


def _left(folder: Path, shares: Sequence[float], kept: Path | None) -> list[float]:
    done = 0.0 if kept is None else float(read_json(folder / "share.json"))
    return [share for share in shares if share > done]


# a policy that learns


def policy_scores(runs: Path, recipe: PolicyRecipe, shares: Sequence[float], kept: Path | None) -> Iterator[Scored]:
    """Score a randomization by the policy that learns in it: its mean return of an episode on the twin.

    It is trained by stable-baselines3 in `make_vec`, and saved after each share: `policy.zip`, of SAC `replay.pkl`.
    Each share begins with environments and numbers drawn anew from the seed, so that going on where a process ended
    gives what it would have given.
    """
    from sim2real.policy_training import Training

    folder = _working_folder(runs, recipe, kept)
    training = Training(recipe, None if kept is None else folder)
    try:
        for share in _left(folder, shares, kept):
            training.to(share)
            training.save(folder)
            write_json(folder / "share.json", share)
            yield Scored(share, training.score(), folder)
    finally:
        training.close()


def require_policy(recipe: PolicyRecipe) -> None:
    """Make one environment of each kind, so that what is wrong with a recipe is said before anything runs.

    Raises:
        Sim2RealError: what is wrong.
    """
    from sim2real.policy_training import Training

    small = recipe.train.model_copy(update={"envs": 1, "episodes": 1})
    Training(recipe.model_copy(update={"train": small}), None).close()


OF_PIPELINES = {
    "identify": Objective(
        "NRMSE of the identified simulator on the validation recordings", stage_scores,
        what="identification", never=("model", "finetune", "control"),
    ),
    "finetune": Objective(
        "CRPS of the fine-tuned model on the validation recordings [rad or m]", stage_scores,
        what="fine-tuning", never=("control",),
    ),
    "control": Objective(
        "how far from its goal the controller keeps the identified simulator, 0 to 1", stage_scores,
        what="controller",
    ),
    "transfer": Objective(
        "how far from its goal a controller keeps the twin that knows the randomization alone, 0 to 1; where there is "
        "no twin, the CRPS of its model [rad or m]", transfer_scores,
        what="randomization", never=("identify", "finetune"),
    ),
}  # fmt: skip
OF_POLICIES = {
    "policy": Objective(
        "mean return of an episode on the twin", policy_scores, "more", tuple(k / 8 for k in range(1, 9)),
        what="policy", never=("twin", "settings"), trains=True,
    ),
}  # fmt: skip
