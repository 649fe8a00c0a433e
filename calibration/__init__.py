"""Identification, and dynamics-only fine-tuning."""

from sim2real.calibration.adapt import Adaptation, adapt
from sim2real.calibration.check import Check, check
from sim2real.calibration.diagnose import Finding, diagnose
from sim2real.calibration.evidence import OfReadings
from sim2real.calibration.finetune import FinetuneResult, Tuned, finetune_dynamics, tune_dynamics
from sim2real.calibration.gate import gate, judge
from sim2real.calibration.identify import identify
from sim2real.calibration.online import Adapting, OnlineLastLayer
from sim2real.calibration.outside import OutsideForce, outside_forces, own_values
from sim2real.calibration.posterior import Posterior

__all__ = [
    "Adaptation",
    "Adapting",
    "Check",
    "Finding",
    "FinetuneResult",
    "OfReadings",
    "OnlineLastLayer",
    "OutsideForce",
    "Posterior",
    "Tuned",
    "adapt",
    "check",
    "diagnose",
    "finetune_dynamics",
    "gate",
    "identify",
    "judge",
    "outside_forces",
    "own_values",
    "tune_dynamics",
]
