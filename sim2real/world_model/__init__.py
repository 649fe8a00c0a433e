"""The Bayesian ensemble world model: architecture, data, training."""

from sim2real.world_model.dataset import Stretches, from_episodes, simulate
from sim2real.world_model.ensemble import EnsembleConfig, EnsembleDynamics
from sim2real.world_model.excitation import Driven, Excitation
from sim2real.world_model.physics import PhysicsPriors
from sim2real.world_model.recorded import fit_to_recordings
from sim2real.world_model.rehearsal import Rehearsal
from sim2real.world_model.training import fit, rollout_error
from sim2real.world_model.transition_ensemble import Foretold, TransitionConfig, TransitionEnsemble
from sim2real.world_model.transition_training import Schedule, fit_transitions
from sim2real.world_model.transitions import Transitions

__all__ = [
    "Driven",
    "EnsembleConfig",
    "EnsembleDynamics",
    "Excitation",
    "Foretold",
    "PhysicsPriors",
    "Rehearsal",
    "Schedule",
    "Stretches",
    "TransitionConfig",
    "TransitionEnsemble",
    "Transitions",
    "fit",
    "fit_to_recordings",
    "fit_transitions",
    "from_episodes",
    "rollout_error",
    "simulate",
]
