"""Policies: planners on the world model, fallbacks, and the costs that planners minimise."""

from sim2real.planning.costs import Cost, Quadratic, Sum, Upright, upright_reward
from sim2real.planning.mppi import MPPI
from sim2real.planning.policy import Damping, Policy

__all__ = ["MPPI", "Cost", "Damping", "Policy", "Quadratic", "Sum", "Upright", "upright_reward"]
