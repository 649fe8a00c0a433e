"""Execution and perception effects: stages, and chains of them, for numpy and torch alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim2real.adapters.chain import STAGES, BoundChain, Chain
from sim2real.adapters.execution import DeadZone, FirstOrderLag, Friction, Latency, TorqueLimit
from sim2real.adapters.perception import FilteredDifference, Quantization
from sim2real.adapters.stage import Context, Field, PlantView, Stage

if TYPE_CHECKING:
    from sim2real.adapters.wrappers import ExecutionGap

__all__ = [
    "STAGES",
    "BoundChain",
    "Chain",
    "Context",
    "DeadZone",
    "ExecutionGap",
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


def __getattr__(name: str) -> Any:
    # wrappers import Gymnasium, which the stages do not need
    if name == "ExecutionGap":
        from sim2real.adapters.wrappers import ExecutionGap

        return ExecutionGap
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
