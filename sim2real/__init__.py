"""Measure how far a simulator is from a robot, say which part of the gap costs most, and close it.

The parts load when they are first used: `sim2real.Episode`, `sim2real.identify` and the others named in
`__all__` are attributes of this package, and so are the subpackages `sim2real.adapters` (execution and
perception effects), `sim2real.randomization` (parameters and simulators) and `sim2real.calibration`
(identification and fine-tuning).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a checkout the sibling folders adapters/, randomization/, calibration/ and recipes/ lie beside this one. There,
# and only there, look for them: an installed package must never pick up somebody else's top-level `adapters`.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "adapters" / "chain.py").is_file():
    __path__.append(str(_checkout))

_HOMES = {
    "AppendParameters": "sim2real.randomization.wrappers",
    "AppendParametersVector": "sim2real.randomization.vector",
    "Chain": "sim2real.adapters",
    "EnsembleDynamics": "sim2real.world_model",
    "Episode": "sim2real.episodes",
    "ExecutionGap": "sim2real.adapters",
    "PerceptionGap": "sim2real.adapters",
    "VectorPerceptionGap": "sim2real.adapters",
    "FunctionTask": "sim2real.randomization.vector",
    "KalmanFilter": "sim2real.kalman",
    "LogSchema": "sim2real.logs",
    "MPPI": "sim2real.planning",
    "MujocoSimulator": "sim2real.randomization",
    "ObservePixels": "sim2real.randomization.pictures",
    "Parameter": "sim2real.randomization",
    "ParameterSet": "sim2real.randomization",
    "Plant": "sim2real.plant",
    "Posterior": "sim2real.calibration",
    "Prediction": "sim2real.prediction",
    "Push": "sim2real.randomization.wrappers",
    "Randomization": "sim2real.randomization",
    "RandomizeDynamics": "sim2real.randomization.wrappers",
    "RandomizeInitialState": "sim2real.randomization.wrappers",
    "RecordEpisodes": "sim2real.logs.record",
    "RobotModel": "sim2real.randomization",
    "Sim2RealError": "sim2real.errors",
    "Twin": "sim2real.twin",
    "finetune_dynamics": "sim2real.calibration",
    "gaps": "sim2real.environment_recipe",
    "identify": "sim2real.calibration",
    "make_vec": "sim2real.randomization.vector",
    "read_logs": "sim2real.logs",
    "run": "sim2real.pipeline",
    "to_rsl_rl": "sim2real.randomization.vector",
    "to_stable_baselines": "sim2real.randomization.vector",
    "wrap": "sim2real.environment_recipe",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sim2real' has no attribute {name!r}; it has {', '.join(_HOMES)}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
