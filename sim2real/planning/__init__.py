"""Policies: planners on world models and simulators, fallbacks, and the costs that planners minimise.

- `costs.py`: what a step costs
- `foresight.py`: where plans lead, by a world model of either kind or the simulator
- `objective.py`: both together: what a plan costs, and how members' doubts count
- `planner.py`: what planners share; `mppi.py`, `icem.py` and `shooting.py` improve plans
- `process.py`: any of them in a process of its own
- `policy.py`: what all of them are
"""

from sim2real.planning.costs import Cost, Quadratic, Sum, Upright, upright_reward
from sim2real.planning.foresight import Foresight, OfObservations, OfSimulator, OfStates, foresight
from sim2real.planning.icem import ICEM
from sim2real.planning.mppi import MPPI
from sim2real.planning.objective import Objective
from sim2real.planning.planner import Planner
from sim2real.planning.policy import Damping, Policy
from sim2real.planning.process import PlannerProcess
from sim2real.planning.shooting import GradientShooting, PredictiveSampling

__all__ = [
    "ICEM",
    "MPPI",
    "Cost",
    "Damping",
    "Foresight",
    "GradientShooting",
    "Objective",
    "OfObservations",
    "OfSimulator",
    "OfStates",
    "Planner",
    "PlannerProcess",
    "Policy",
    "PredictiveSampling",
    "Quadratic",
    "Sum",
    "Upright",
    "foresight",
    "upright_reward",
]
