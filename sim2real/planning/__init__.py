"""Policies: planners on world models and simulators, fallbacks, and the costs that planners minimise.

- `costs.py`: what a step costs, and what is close to the goal; `reaching.py`: places in space; `named_costs.py`: by
  name
- `foresight.py`: where plans lead, by a world model of either kind or the simulator
- `objective.py`: both together: what a plan costs, and how members' doubts count
- `planner.py`: what planners share; `mppi.py`, `icem.py` and `shooting.py` improve plans
- `process.py`: any of them in a process of its own
- `policy.py`: what all of them are; `fallbacks.py`: what needs no model
- `value.py`: what is still to be paid after a plan, fitted to runs
"""

from sim2real.planning.costs import (
    Bounds,
    Cost,
    Effort,
    Goal,
    Quadratic,
    Rewarded,
    Sum,
    Track,
    Upright,
    closeness,
    upright_reward,
)
from sim2real.planning.fallbacks import Damping, Hold
from sim2real.planning.foresight import Foresight, OfObservations, OfSimulator, OfStates, foresight
from sim2real.planning.icem import ICEM
from sim2real.planning.mppi import MPPI
from sim2real.planning.named_costs import named_cost
from sim2real.planning.objective import Objective
from sim2real.planning.planner import Planner
from sim2real.planning.policy import Policy
from sim2real.planning.process import PlannerProcess
from sim2real.planning.reaching import Kinematics, Reach
from sim2real.planning.shooting import GradientShooting, PredictiveSampling
from sim2real.planning.value import FittedValue, fit_value

__all__ = [
    "ICEM",
    "MPPI",
    "Bounds",
    "Cost",
    "Damping",
    "Effort",
    "FittedValue",
    "Foresight",
    "Goal",
    "GradientShooting",
    "Hold",
    "Kinematics",
    "Objective",
    "OfObservations",
    "OfSimulator",
    "OfStates",
    "Planner",
    "PlannerProcess",
    "Policy",
    "PredictiveSampling",
    "Quadratic",
    "Reach",
    "Rewarded",
    "Sum",
    "Track",
    "Upright",
    "closeness",
    "fit_value",
    "foresight",
    "named_cost",
    "upright_reward",
]
