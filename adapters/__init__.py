"""Execution and perception effects: stages, and chains of them, for numpy and torch alike."""

from sim2real.adapters.chain import STAGES, BoundChain, Chain
from sim2real.adapters.execution import DeadZone, FirstOrderLag, Friction, Latency, TorqueLimit
from sim2real.adapters.perception import FilteredDifference, Quantization
from sim2real.adapters.stage import Context, Field, PlantView, Stage

__all__ = [
    "STAGES",
    "BoundChain",
    "Chain",
    "Context",
    "DeadZone",
    "Field",
    "FilteredDifference",
    "FirstOrderLag",
    "Friction",
    "Latency",
    "PlantView",
    "Quantization",
    "Stage",
    "TorqueLimit",
]
