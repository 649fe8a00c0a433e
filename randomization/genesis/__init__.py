"""Genesis: the same parameters and stages on a second engine, on a GPU or on the CPU; single precision.

Genesis needs seconds to start and is imported when the first scene is built, not before.
"""

from sim2real.randomization.genesis.env import GenesisVectorEnv
from sim2real.randomization.genesis.model import GenesisModel
from sim2real.randomization.genesis.simulator import GenesisSimulator

__all__ = ["GenesisModel", "GenesisSimulator", "GenesisVectorEnv"]
