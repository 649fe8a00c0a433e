"""An arm that reaches for a place, knows what calm looks like, and backs off when its load changes behind its back."""

from dataclasses import replace

import numpy as np
import torch

from sim2real.backing_off import BackOff, Calm, collected
from sim2real.control import Run, closed_loop
from sim2real.estimation import ModelObserver
from sim2real.planning import ICEM, Bounds, Hold, Kinematics, Policy, Reach, Sum, closeness
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, fit, simulate

PERIOD, LIMIT, ROBOT = 0.04, np.array([1.5, 1.5]), RobotModel("two_link_arm")
PLANT = Plant(ROBOT, timestep=0.004)
AS_TRAINED = Twin(PLANT, {"dynamics.lower.mass": 1.2}, period=PERIOD)
# the tip of the lower link to a place in its plane, the elbow never far behind its back
COST = Sum(
    (
        Reach(Kinematics(ROBOT, "lower", (0.3, 0.0, 0.045)), goal=(0.25, 0.4, 0.345)),
        Bounds(((-np.inf, np.inf), (-0.5, 2.5))),
    )
)


def let_loose(policy: Policy, twin: Twin, seed: int) -> Run:
    """Run a policy on ten arms, from places near each other."""
    starts = np.random.default_rng(seed).uniform(-0.3, 0.3, (10, 4)) * [1, 1, 0, 0]
    observer = ModelObserver(PLANT.start(10, repeated(AS_TRAINED.values, 10)), bandwidth=30.0)
    return closed_loop(twin, policy, observer, starts, seconds=3.0, period=PERIOD, limit=LIMIT, history=2)


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    config = EnsembleConfig(ROBOT.wraps, 2, PERIOD, history=2, members=3, hidden=(64, 64))
    data = simulate(
        PLANT, repeated(AS_TRAINED.truth, 3), Excitation((1.5, 1.5), (3.0, 3.0), (np.pi, np.pi)), stretches=200,
        steps=20, history=2, timestep=PERIOD, rng=np.random.default_rng(0),
    )  # fmt: skip
    model = fit(EnsembleDynamics(config), data, step_iterations=1500, rollout_iterations=0, rate=0.01)
    planner = ICEM(model, COST, LIMIT, horizon=0.6, candidates=60)
    careful = BackOff(planner, Hold(0.5, LIMIT, stiffness=4.0))

    let_loose(careful, AS_TRAINED, seed=0)  # nothing is wrong: what doubts look like then
    careful.calm = Calm.of(collected([careful]), false_alarms=0.01)
    heavy = replace(AS_TRAINED, truth={"dynamics.lower.mass": 6.0, "dynamics.elbow.armature": 0.1})
    for name, twin in (("as it was in training", AS_TRAINED), ("a heavy forearm on a heavy motor", heavy)):
        run = let_loose(careful, twin, seed=1)
        there = closeness(COST, run.states[:, -20:], PERIOD).mean()
        held = (np.array(careful.shares) < 1.0).mean()
        print(
            f"{name}: closeness to the goal in the end {there:.2f}, less than the plan was sent {held:.0%} of the time"
        )


if __name__ == "__main__":
    main()
