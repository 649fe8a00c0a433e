"""What a run compares: predictors of the same recordings, what each part of the gap costs, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim2real.calibration import Posterior
from sim2real.combination import recalibrate
from sim2real.episodes import Array
from sim2real.estimation import Observation
from sim2real.evaluation import (
    Predictor,
    Questions,
    RecordingPredictor,
    SimulatorPredictor,
    mean_scores,
    persistence,
    score,
)
from sim2real.plant import repeated
from sim2real.prediction import Recalibration
from sim2real.preparation import Setup
from sim2real.stages import Progress, combine, model_predictor, simulator_predictor, validation
from sim2real.world_model import EnsembleDynamics

# Posterior draws that a simulator's predictive spread is made of.
DRAWS = 16
# What a few seconds of a changed robot make of these predictors, and whose recalibration the result keeps.
HEIR_OF = {"adapted_simulator": "identified_simulator", "adapted_model": "finetuned_model"}


def predictors(
    setup: Setup,
    posterior: Posterior,
    pretrained: EnsembleDynamics,
    finetuned: EnsembleDynamics,
    learned: Mapping[str, EnsembleDynamics],
    distilled: EnsembleDynamics | None,
    observation: Observation,
    covariance: Array,
) -> dict[str, Predictor]:
    """Return the predictors that a run compares.

    The last one combines the identified simulator with the models that learned from the recordings themselves, or,
    without these, with the fine-tuned one. What was distilled of it stands beside it.
    """
    nominal = {name: setup.plant.nominal()[name] for name in posterior.names}
    no_news = repeated(nominal, DRAWS)
    simulator = identified_simulator(setup, posterior, observation, covariance)
    model = model_predictor(setup, finetuned, posterior.values, observation)
    of_recordings: dict[str, Predictor] = {n: RecordingPredictor(m, setup.channels) for n, m in learned.items()}
    together = combine(setup, simulator, list(of_recordings.values()) or [model])
    in_its_place = {} if distilled is None else {"distilled_model": RecordingPredictor(distilled, setup.channels)}
    return {
        "persistence": persistence,
        "nominal_simulator": simulator_predictor(setup, nominal, no_news, observation, covariance),
        "identified_simulator": simulator,
        "pretrained_model": model_predictor(setup, pretrained, posterior.values, observation),
        "finetuned_model": model,
        **of_recordings,
        **in_its_place,
        "combined": together,
    }


def identified_simulator(
    setup: Setup, posterior: Posterior, observation: Observation, covariance: Array
) -> SimulatorPredictor:
    """Return a predictor that simulates with the identified parameters and draws of their posterior."""
    draws = posterior.sample(setup.rng("draws"), DRAWS)
    return simulator_predictor(setup, posterior.values, draws, observation, covariance)


def attribute(
    setup: Setup, values: Mapping[str, float], observation: Observation, progress: Progress
) -> dict[str, Any]:
    """Return what each part of the gap costs: the error when one parameter alone goes back to its nominal value.

    Mean NRMSE over the training and validation recordings; `{"identified", "nominal", "parameters": {name: error}}`.
    """
    nominal = setup.plant.nominal()
    asked = [Questions.of(e, setup.channels) for e in (*setup.recordings.train, *setup.recordings.validation)]

    def error(changed: Mapping[str, float]) -> float:
        predictor = simulator_predictor(setup, {**values, **changed}, {}, observation)
        rows = [score(predictor(q), q, setup.plant.model.joint_names, setup.rng("attribute")) for q in asked]
        return mean_scores(rows, "mean_nrmse")

    parameters = {}
    for name in values:
        progress(f"do({name} = {nominal[name]:.3g})")
        parameters[name] = error({name: nominal[name]})
    return {
        "identified": error({}),
        "nominal": error({name: nominal[name] for name in values}),
        "parameters": parameters,
    }


def evaluate_stage(
    setup: Setup,
    compared: Mapping[str, Predictor],
    adapted: Mapping[str, Mapping[str, Predictor]],
    progress: Progress,
) -> dict[str, Any]:
    """Score predictors on every recording that is held out.

    Args:
        setup: the run.
        compared: predictors by name; each is recalibrated on the validation recordings.
        adapted: for each shifted recording, what adaptation made of some of them, by the names of `HEIR_OF`.
        progress: called with a line now and then.

    Returns:
        `{split: {recording: {predictor: scores}}}`; shifted recordings are scored after the adaptation seconds.
    """
    joints = setup.plant.model.joint_names
    held_out = validation(setup)
    calibrations: dict[str, Recalibration] = {}
    for name, predictor in compared.items():
        progress(f"recalibrating {name}")
        calibrations[name] = recalibrate(predictor, held_out)
    questions = {
        "validation": [(q.episode.name, q) for q in held_out],
        "test": [(e.name, Questions.of(e, setup.channels)) for e in setup.recordings.test],
        "shift": [
            (e.name, Questions.of(e, setup.channels, after=shift.after(e)))
            for shift in setup.recordings.shift
            for e in shift.recordings
        ],
    }
    scores: dict[str, Any] = {}
    for split, asked in questions.items():
        for recording, q in asked:
            progress(f"scoring {recording}")
            rows = {n: (p, calibrations[n]) for n, p in compared.items()}
            if split == "shift":
                rows |= {n: (p, calibrations[HEIR_OF[n]]) for n, p in adapted.get(recording, {}).items()}
            scores.setdefault(split, {})[recording] = {
                n: score(calibration.apply(predictor(q)).require_finite(n), q, joints, setup.rng(f"score {recording}"))
                for n, (predictor, calibration) in rows.items()
            }
    return scores
