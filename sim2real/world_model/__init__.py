"""The Bayesian ensemble world model: architecture, data, training."""

from sim2real.world_model.dataset import Excitation, Stretches, from_episodes, simulate
from sim2real.world_model.ensemble import EnsembleConfig, EnsembleDynamics
from sim2real.world_model.recorded import fit_to_recordings
from sim2real.world_model.training import fit, rollout_error

__all__ = [
    "EnsembleConfig",
    "EnsembleDynamics",
    "Excitation",
    "Stretches",
    "fit",
    "fit_to_recordings",
    "from_episodes",
    "rollout_error",
    "simulate",
]
