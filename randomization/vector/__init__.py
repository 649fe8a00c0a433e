"""Vector environments: n MuJoCo plants on threads, or any environment through Gymnasium's own vectorisation."""

from sim2real.randomization.vector.append import AppendParametersVector
from sim2real.randomization.vector.env import MujocoVectorEnv
from sim2real.randomization.vector.make import make_vec
from sim2real.randomization.vector.stable_baselines import to_stable_baselines
from sim2real.randomization.vector.task import FunctionTask, Plants, Task

__all__ = [
    "AppendParametersVector",
    "FunctionTask",
    "MujocoVectorEnv",
    "Plants",
    "Task",
    "make_vec",
    "to_stable_baselines",
]
