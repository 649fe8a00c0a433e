"""Vector environments: n MuJoCo plants on threads, or any environment through Gymnasium's own vectorisation."""

from sim2real.randomization.vector.append import AppendParametersVector
from sim2real.randomization.vector.env import MujocoVectorEnv
from sim2real.randomization.vector.make import make_vec
from sim2real.randomization.vector.robot_tasks import ROBOT_TASKS, robot_task
from sim2real.randomization.vector.rsl_rl import to_rsl_rl
from sim2real.randomization.vector.stable_baselines import checkpoints, resumed, to_stable_baselines
from sim2real.randomization.vector.task import FunctionTask, Plants, Task

__all__ = [
    "ROBOT_TASKS",
    "AppendParametersVector",
    "FunctionTask",
    "MujocoVectorEnv",
    "Plants",
    "Task",
    "checkpoints",
    "make_vec",
    "resumed",
    "robot_task",
    "to_rsl_rl",
    "to_stable_baselines",
]
