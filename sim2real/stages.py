"""The stages of the loop: identification, world model, learning from recordings, adaptation.

Each is a function of plain values that a notebook can call; `pipeline.run` strings them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sim2real.calibration import (
    Adaptation,
    Check,
    OutsideForce,
    Posterior,
    adapt,
    check,
    identify,
    outside_forces,
    own_values,
)
from sim2real.combination import CombinedPredictor, recalibrate_model
from sim2real.distillation import Distilled, distill, practise
from sim2real.episodes import Array, Episode
from sim2real.errors import LogError, NonFiniteError
from sim2real.estimation import Observation
from sim2real.evaluation import (
    EnsemblePredictor,
    Predictor,
    Questions,
    RecordingPredictor,
    SimulatorPredictor,
    mean_scores,
    score,
)
from sim2real.plant import Plant
from sim2real.preparation import Setup, Shift
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.recipe import LearnSection
from sim2real.run_directory import RunDirectory
from sim2real.twin import Twin
from sim2real.world_model import (
    Driven,
    EnsembleConfig,
    EnsembleDynamics,
    Excitation,
    PhysicsPriors,
    Rehearsal,
    Stretches,
    fit,
    fit_to_recordings,
    simulate,
)

Progress = Callable[[str], None]


def identify_stage(setup: Setup, progress: Progress, examine: bool = True) -> Posterior:
    """Identify the parameters on the training recordings."""
    return identify(
        setup.plant,
        setup.recordings.train,
        setup.prior,
        channels=setup.channels,
        rng=setup.rng("identify"),
        progress=progress,
        examine=examine,
        **setup.recipe.identify.model_dump(),
    )


def outside_stage(setup: Setup, posterior: Posterior, progress: Progress) -> list[OutsideForce]:
    """Find stretches of the training recordings in which something pushed; none where the replay diverges."""
    progress("looking for outside forces")
    try:
        return outside_forces(
            setup.plant,
            setup.recordings.train,
            posterior.values,
            channels=setup.channels,
            of_recordings=own_values(posterior.evidence),
        )
    except NonFiniteError:
        return []


def check_stage(setup: Setup, directory: RunDirectory, truths: int, workers: int, progress: Progress) -> Check:
    """Identify truths drawn from the prior from simulations of the training recordings, as noisy as the recordings.

    Every truth is kept in the directory, and not identified again.
    """
    directory.belongs_to(setup.recordings.fingerprint())
    told = directory.stage("noise", lambda: {"noise": identify_stage(setup, progress, examine=False).noise.tolist()})
    return check(
        setup.plant,
        setup.recordings.train,
        setup.prior,
        partial(identify_anew, channels=setup.channels, settings=setup.recipe.identify.model_dump()),
        channels=setup.channels,
        noise=np.array(told["result"]["noise"]),
        truths=truths,
        seed=setup.recipe.seed,
        workers=workers,
        folder=directory.path,
        progress=progress,
    )


def identify_anew(
    plant: Plant,
    episodes: Sequence[Episode],
    prior: ParameterSet,
    rng: np.random.Generator,
    *,
    channels: Sequence[str],
    settings: Mapping[str, Any],
) -> Posterior:
    """Identify as `check` asks for, without the examination, with these arguments of `identify`."""
    return identify(plant, episodes, prior, channels=channels, rng=rng, examine=False, **settings)


def choose_observer(setup: Setup, values: Mapping[str, float]) -> tuple[Observation, dict[str, float]]:
    """Choose the observer's bandwidth by the identified simulator's error on the validation recordings."""
    errors = {}
    for bandwidth in setup.recipe.observer.bandwidths:
        observation = Observation(setup.recipe.observer.span, bandwidth)
        predictor = simulator_predictor(setup, values, {}, observation)
        rows = [score(predictor(q), q, setup.plant.model.joint_names, setup.rng("observer")) for q in validation(setup)]
        errors[f"{bandwidth:g}"] = mean_scores(rows, "mean_nrmse")
    best = min(errors, key=lambda b: errors[b])
    return Observation(setup.recipe.observer.span, float(best)), errors


def validation(setup: Setup) -> list[Questions]:
    """Return what the validation recordings ask."""
    return [Questions.of(e, setup.channels) for e in setup.recordings.validation]


def simulator_predictor(
    setup: Setup,
    values: Mapping[str, float],
    draws: Mapping[str, Array],
    observation: Observation,
    covariance: Array | None = None,
) -> SimulatorPredictor:
    """Return a predictor that simulates the recipe's plant with the given parameters."""
    size = 2 * setup.plant.degrees_of_freedom
    zero = np.zeros((size, size))
    return SimulatorPredictor(
        setup.plant, dict(values), draws, zero if covariance is None else covariance, observation, setup.channels
    )


def model_predictor(
    setup: Setup, model: EnsembleDynamics, values: Mapping[str, float], observation: Observation
) -> Predictor:
    """Return a predictor that asks a world model, from its own filter or from an observer with the given parameters."""
    if model.encoder is not None:
        return RecordingPredictor(model, setup.channels)
    late = lateness(values)
    return EnsemblePredictor(model, setup.plant, dict(values), observation, setup.channels, advance=late)


def lateness(values: Mapping[str, float]) -> float:
    """Return by how much an execution with these parameters lags behind commands [s]."""
    late = [v for k, v in values.items() if k.startswith("execution.") and k.endswith((".delay", ".time_constant"))]
    return float(sum(late))


def excitation(setup: Setup, timestep: float) -> Excitation:
    """Return how simulations for a model with some timestep are excited, as the recipe has it."""
    wild, joints = setup.recipe.model.excitation, setup.plant.degrees_of_freedom
    limits = (setup.recipe.control.limit,) * setup.plant.actions
    seen = Driven.of(setup.recordings.commanded, setup.channels, timestep) if wild.recorded > 0 else ()
    return Excitation(limits, (wild.velocity,) * joints, (wild.position,) * joints, seen, wild.recorded)


def simulated_stretches(
    setup: Setup, config: EnsembleConfig, plant: Plant, draws: Mapping[str, Array], stage: str
) -> Stretches:
    """Simulate training data for a world model: one draw of the parameters a member."""
    recipe = setup.recipe.model
    return simulate(
        plant,
        draws,
        excitation(setup, config.timestep),
        stretches=recipe.stretches,
        steps=recipe.steps,
        history=config.history,
        timestep=config.timestep,
        rng=setup.rng(stage),
    )


def of_states(setup: Setup) -> EnsembleConfig:
    """Return the architecture of the model that is pre-trained, which predicts from an observer's states."""
    recipe = setup.recipe.model
    return EnsembleConfig(
        wraps=setup.plant.model.wraps,
        actions=setup.plant.actions,
        timestep=recipe.timestep,
        history=recipe.history,
        members=recipe.members,
        hidden=recipe.hidden,
    )


def pretrain(
    setup: Setup, plant: Plant, draws: Mapping[str, Array], covariance: Array, progress: Progress
) -> EnsembleDynamics:
    """Train a world model on simulations, each member on its own draw of the parameters.

    Args:
        setup: the run.
        plant: what is simulated.
        draws: name -> (members,).
        covariance: (X, X) of the state estimates that predictions will start from.
        progress: called with a line now and then.
    """
    recipe, config = setup.recipe.model, of_states(setup)
    progress("simulating")
    data = simulated_stretches(setup, config, plant, draws, "pretrain")
    model = EnsembleDynamics(config, seed=setup.recipe.seed)
    fit(
        model,
        data,
        step_iterations=recipe.iterations,
        rollout_iterations=recipe.rollout_iterations,
        rate=recipe.rate,
        seed=setup.recipe.seed,
        progress=progress,
    )
    model.start_covariance.copy_(torch.as_tensor(covariance, dtype=torch.float32))
    return model


def learn_stage(setup: Setup, posterior: Posterior, progress: Progress) -> dict[str, EnsembleDynamics]:
    """Learn models from the training recordings themselves: alone, and beside simulations; none without `learn:`.

    Raises:
        LogError: no training recording says what was asked for.
    """
    recipe = setup.recipe.learn
    if recipe is None:
        return {}
    if not setup.recordings.commanded:
        raise LogError("`learn:` needs training recordings of commanded actions; these have measured ones only")

    def say(name: str, line: str) -> None:
        progress(f"{name.replace('_', ' ')}: {line}")

    kinds = {"recordings_model": None, **({"rehearsed_model": posterior} if recipe.rehearse else {})}
    models = {}
    for name, known in kinds.items():
        models[name] = learned_model(setup, known, partial(say, name))
        predictor = RecordingPredictor(models[name], setup.channels)
        recalibrate_model(models[name], predictor, validation(setup))
    return models


def learned_model(setup: Setup, posterior: Posterior | None, progress: Progress) -> EnsembleDynamics:
    """Learn a model from the training recordings, as `learn:` has it: alone, or beside simulations of a posterior."""
    recipe = setup.recipe.learn
    assert recipe is not None
    rehearsal = None
    if posterior is not None:
        draws = posterior.sample(setup.rng("rehearsal"), recipe.members)
        rehearsal = Rehearsal(setup.plant, draws, excitation(setup, recipe.timestep), windows=recipe.windows)
    model = setup.plant.model
    stops = model.joint_stops if isinstance(model, RobotModel) else ()
    return fit_to_recordings(
        EnsembleDynamics(_of_recordings(setup, recipe), setup.recipe.seed),
        setup.recordings.commanded,
        setup.channels,
        rehearsal=rehearsal,
        trust=recipe.trust,
        physics=PhysicsPriors(limits=recipe.limits, stops=stops, smoothness=recipe.smoothness),
        iterations=recipe.iterations,
        batch=recipe.batch,
        rate=recipe.rate,
        seed=setup.recipe.seed,
        progress=progress,
    )


def _of_recordings(setup: Setup, recipe: LearnSection) -> EnsembleConfig:
    return EnsembleConfig(
        wraps=setup.plant.model.wraps,
        actions=setup.plant.actions,
        timestep=recipe.timestep,
        history=recipe.history,
        members=recipe.members,
        hidden=recipe.hidden,
        lookback=recipe.lookback,
        latents=recipe.latents,
    )


def combine(setup: Setup, simulator: SimulatorPredictor, others: Sequence[Predictor]) -> CombinedPredictor:
    """Return the identified simulator and models together, weighed on the validation recordings."""
    training = [Questions.of(e, setup.channels) for e in setup.recordings.train]
    return CombinedPredictor.fit([simulator, *others], validation(setup), training)


def distill_stage(
    setup: Setup, simulator: SimulatorPredictor, learned: Mapping[str, EnsembleDynamics], progress: Progress
) -> Distilled:
    """Make one model of what the simulator and the models that learned from recordings say together."""
    recipe = setup.recipe.learn
    assert recipe is not None
    models = [RecordingPredictor(model, setup.channels) for model in learned.values()]
    encoder = next(iter(learned.values())).encoder
    assert encoder is not None
    known = setup.plant.nominal()
    # read about as often as the robot, a whole number of times in a step of the model, of whole steps of the plant
    substeps = round(recipe.timestep / setup.plant.timestep)
    wanted = max(round(recipe.timestep / float(np.median([e.period for e in setup.recordings.commanded]))), 1)
    times = max(k for k in range(1, substeps + 1) if substeps % k == 0 and k <= wanted)
    values = {name: value for name, value in simulator.best.items() if name in known}
    practice = practise(
        Twin(setup.plant, values, period=recipe.timestep / times),
        excitation(setup, recipe.timestep),
        setup.channels,
        hold=recipe.timestep,
        noise=encoder.noise.numpy(),
        rng=setup.rng("practice"),
        episodes=recipe.practice,
    )
    return distill(
        combine(setup, simulator, models),
        EnsembleDynamics(_of_recordings(setup, recipe), setup.recipe.seed),
        setup.recordings.commanded,
        practice,
        setup.recordings.validation,
        setup.channels,
        trust=recipe.trust,
        iterations=recipe.iterations,
        seed=setup.recipe.seed,
        progress=lambda line: progress(f"distilled model: {line}"),
    )


def adapt_stage(setup: Setup, posterior: Posterior, shift: Shift, progress: Progress) -> Adaptation:
    """Find what changed about the robot from the first seconds of a recording."""
    return adapt(
        setup.plant,
        posterior,
        [shift.adapt_to],
        channels=setup.channels,
        window=setup.recipe.identify.window,
        rng=setup.rng(f"adapt {shift.name}"),
        progress=progress,
    )
