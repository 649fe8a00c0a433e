"""Fine-tuning of a run: the model that it has trained, or a saved one, on its recordings; and what to show of that."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim2real.calibration import FinetuneResult, OfReadings, Posterior, finetune_dynamics
from sim2real.combination import recalibrate_model
from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Observation
from sim2real.evaluation import Questions
from sim2real.input_space import Seen, compare
from sim2real.plant import repeated
from sim2real.preparation import Setup
from sim2real.stages import Progress, excitation, model_predictor, of_states, simulated_stretches, validation
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Rehearsal, Stretches, from_episodes

# Of the windows that are drawn: how far ahead, and by what steps [s].
AHEAD, STEP = 1.0, 0.05


def saved_model(setup: Setup) -> EnsembleDynamics | None:
    """Return the model that the recipe names, to be tuned instead of one that is trained first; None without a name.

    Raises:
        ModelError: it cannot be read, or is of another robot.
    """
    place, plant = setup.recipe.finetune.model, setup.plant
    if place is None:
        return None
    model = EnsembleDynamics.load(place)
    config = model.config
    if (config.wraps, config.actions) != (plant.model.wraps, plant.actions):
        raise ModelError(
            f"finetune.model: {place} is of a robot with {config.joints} joints, {sum(config.wraps)} of them turning "
            f"freely, and {config.actions} actions; {plant.model.name} has {len(plant.model.wraps)}, "
            f"{sum(plant.model.wraps)} and {plant.actions}"
        )
    return model


def recorded_stretches(setup: Setup, config: EnsembleConfig) -> Stretches:
    """Cut the training recordings into stretches on the clock of a model."""
    return from_episodes(
        setup.recordings.commanded,
        setup.channels,
        steps=setup.recipe.finetune.steps,
        history=config.history,
        timestep=config.timestep,
    )


def look_before_finetuning(setup: Setup) -> tuple[Stretches, list[Seen], float]:
    """Return the stretches that fine-tuning would learn from, how much of what is simulated they see, and the timestep.

    The simulations are of the nominal plant: nothing is identified or trained.

    Raises:
        ModelError: the saved model that is to be tuned is not of this robot.
        LogError: no training recording says what was asked for, or none is long enough.
    """
    saved, robot = saved_model(setup), setup.plant.model
    config = of_states(setup) if saved is None else saved.config
    real = recorded_stretches(setup, config)
    simulated = simulated_stretches(setup, config, setup.plant, repeated(setup.plant.nominal(), 1), "look")
    joints = [f"{n} [{u}, {u}/s]" for n, u in zip(robot.joint_names, robot.joint_units, strict=True)]
    actuators = [f"{n} [{u}]" for n, u in zip(robot.actuator_names, robot.effort_units, strict=True)]
    return real, compare(simulated, real, robot.wraps, joints, actuators), config.timestep


def finetune_stage(
    setup: Setup, model: EnsembleDynamics, posterior: Posterior, observation: Observation, progress: Progress
) -> FinetuneResult:
    """Fine-tune the dynamics on the training recordings; the validation recordings decide whether it stays."""
    recipe, config = setup.recipe.finetune, model.config
    draws = posterior.sample(setup.rng("replay"), config.members)
    real: Stretches | OfReadings
    replay: Stretches | OfReadings | None = None
    if model.encoder is None:
        real = recorded_stretches(setup, config)
        if recipe.replay_weight > 0:
            replay = simulated_stretches(setup, config, setup.plant, draws, "replay")
    else:
        commanded, seconds = setup.recordings.commanded, recipe.steps * config.timestep
        real = OfReadings.of(model, commanded, setup.channels, seconds)
        if recipe.replay_weight > 0:
            rehearsal = Rehearsal(setup.plant, draws, excitation(setup, config.timestep), windows=500)
            replay = OfReadings.simulated(model, rehearsal, commanded[0].period, seconds, setup.recipe.seed)
    found = finetune_dynamics(
        model,
        real,
        answer=lambda m, q: model_predictor(setup, m, posterior.values, observation)(q),
        held_out=validation(setup),
        method=recipe.method,
        replay=replay,
        replay_weight=recipe.replay_weight,
        anchor=recipe.anchor,
        iterations=recipe.iterations,
        rate=recipe.rate,
        seed=setup.recipe.seed,
        progress=progress,
    )
    found = replace(found, model=copy.deepcopy(found.model))  # recalibrated is not what came in
    predictor = model_predictor(setup, found.model, posterior.values, observation)
    recalibrate_model(found.model, predictor, validation(setup))
    return found


@dataclass(frozen=True)
class Shown:
    """Windows of held-out recordings as they were, and as both models foretold them.

    Attributes:
        recording: (N,) names.
        start: (N,) on the clock of the recording [s].
        ahead: (H,) [s].
        measured: (N, H, D).
        before: (3, N, H, D) mean, and the ends of the 90 % interval.
        after: as `before`.
    """

    recording: Array
    start: Array
    ahead: Array
    measured: Array
    before: Array
    after: Array

    def save(self, path: Path) -> None:
        """Write one npz."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Shown:
        """Read what `save` wrote."""
        with np.load(path) as found:
            return cls(**{name: found[name] for name in cls.__dataclass_fields__})


def show(
    setup: Setup,
    before: EnsembleDynamics,
    after: EnsembleDynamics,
    values: Mapping[str, float],
    observation: Observation,
) -> Shown:
    """Foretell windows of the validation recordings with both: of each a typical one and the one that was worst.

    Both are recalibrated on these recordings, as they are where they are used.
    """
    horizons = [round(k * STEP, 6) for k in range(1, round(AHEAD / STEP) + 1)]
    asked = [Questions.of(e, setup.channels, horizons=horizons) for e in setup.recordings.validation]
    answers = []
    for model in (before, after):
        model = copy.deepcopy(model)
        predictor = model_predictor(setup, model, values, observation)
        recalibrate_model(model, predictor, validation(setup))
        answers.append([predictor(q) for q in asked])
    parts = []
    for q, *foretold in zip(asked, *answers, strict=True):
        missed = np.square(foretold[0].mean.double().numpy() - q.truth).mean((1, 2))
        rows = np.argsort(missed)[[len(missed) // 2, -1]]
        drawn = []
        for answer in foretold:
            drawn.append(np.stack([x.double().numpy()[rows] for x in (answer.mean, *answer.interval(0.9))]))
        names = np.full(len(rows), q.episode.name)
        parts.append((names, q.episode.observed_at[q.starts[rows]], q.truth[rows], *drawn))
    names, start, measured, old, new = (
        np.concatenate(column, 1 if k > 2 else 0) for k, column in enumerate(zip(*parts, strict=True))
    )
    return Shown(names, start, np.array(horizons), measured, old, new)
