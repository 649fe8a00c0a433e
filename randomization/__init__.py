"""Parameters, their distributions, and the simulators that take them."""

from sim2real.randomization.curriculum import Annealing, Automatic, Curriculum
from sim2real.randomization.distributions import (
    Categorical,
    Distribution,
    Empirical,
    Fixed,
    LogNormal,
    LogUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    parse_distribution,
)
from sim2real.randomization.function_model import FunctionModel, FunctionParameter, load_function
from sim2real.randomization.joint import JointEmpirical, JointNormal
from sim2real.randomization.mujoco_model import RobotModel
from sim2real.randomization.mujoco_simulator import MujocoSimulator
from sim2real.randomization.parameters import Parameter, ParameterSet, ParameterStore
from sim2real.randomization.randomization import Randomization, parse_randomizations
from sim2real.randomization.simulator import PlantModel, Simulator

__all__ = [
    "Annealing",
    "Automatic",
    "Categorical",
    "Curriculum",
    "Distribution",
    "Empirical",
    "Fixed",
    "FunctionModel",
    "FunctionParameter",
    "JointEmpirical",
    "JointNormal",
    "LogNormal",
    "LogUniform",
    "MujocoSimulator",
    "Normal",
    "Parameter",
    "ParameterSet",
    "ParameterStore",
    "PlantModel",
    "Randomization",
    "RobotModel",
    "Simulator",
    "TruncatedNormal",
    "Uniform",
    "load_function",
    "parse_distribution",
    "parse_randomizations",
]
