"""Execution and perception effects: stages, and chains of them, for numpy and torch alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim2real.adapters.actuators import (
    DCMotor,
    Drive,
    FirstOrderLag,
    Friction,
    RateLimit,
    SecondOrderLag,
    ServoFriction,
    ThermalDerating,
    TorqueLimit,
    TorqueSpeed,
    VoltageSag,
)
from sim2real.adapters.chain import STAGES, BoundChain, Chain, register_stage
from sim2real.adapters.delay import Latency, PacketLatency
from sim2real.adapters.sensors import Bias, Drift, FilteredDifference
from sim2real.adapters.signals import (
    Backlash,
    DeadZone,
    Gain,
    Hold,
    Noise,
    Quantization,
    Resolution,
    Saturation,
    Stuck,
)
from sim2real.adapters.stage import Context, Field, PlantView, Stage

if TYPE_CHECKING:
    from sim2real.adapters.wrappers import ExecutionGap, PerceptionGap, VectorPerceptionGap

__all__ = [
    "STAGES",
    "Backlash",
    "Bias",
    "BoundChain",
    "Chain",
    "Context",
    "DCMotor",
    "DeadZone",
    "Drift",
    "Drive",
    "ExecutionGap",
    "Field",
    "FilteredDifference",
    "FirstOrderLag",
    "Friction",
    "Gain",
    "Hold",
    "Latency",
    "Noise",
    "PacketLatency",
    "PerceptionGap",
    "PlantView",
    "Quantization",
    "RateLimit",
    "Resolution",
    "Saturation",
    "SecondOrderLag",
    "ServoFriction",
    "Stage",
    "Stuck",
    "ThermalDerating",
    "TorqueLimit",
    "TorqueSpeed",
    "VectorPerceptionGap",
    "VoltageSag",
    "register_stage",
]


def __getattr__(name: str) -> Any:
    # wrappers import Gymnasium, which the stages do not need
    if name in ("ExecutionGap", "PerceptionGap", "VectorPerceptionGap"):
        from sim2real.adapters import wrappers

        return getattr(wrappers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
