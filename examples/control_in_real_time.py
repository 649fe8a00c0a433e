"""Swing a simulated robot up by the clock, then let the planner hang: the filter brakes, and nothing is delayed.

python examples/control_in_real_time.py
"""

import time

import numpy as np

from sim2real.control import Tracker
from sim2real.control_loop import ControlLoop, Paced
from sim2real.estimation import ModelObserver
from sim2real.planning import OfSimulator, PlannerProcess, PredictiveSampling, Upright
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.safety import Limits, SafetyFilter
from sim2real.twin import Twin
from sim2real.twin_env import TwinEnv

PERIOD, LIMIT = 0.04, np.array([12.0])


class HangsAfter:
    """A planner that stops answering after some seconds, as a planner may."""

    def __init__(self, planner, seconds):
        self.planner, self.seconds = planner, seconds
        self.plan = None

    def reset(self):
        self.planner.reset()

    def act(self, estimate, t):
        if t > self.seconds:
            time.sleep(3600)
        command = self.planner.act(estimate, t)
        self.plan = self.planner.plan
        return command


def run(plant, policy, seconds):
    guard = SafetyFilter(policy, Limits([12.0], velocity=[12.0]), plant.model, PERIOD)
    observer = ModelObserver(plant.start(1), bandwidth=30.0)
    robot = TwinEnv(Twin(plant, {"dynamics.payload.mass": 0.6}, period=PERIOD), LIMIT, PERIOD, spread=0.1)
    loop = ControlLoop(Paced(robot, PERIOD), guard, Tracker(observer, PERIOD, history=2, actions=1), channels=[0])
    timing = loop.run(seconds, seed=0)
    told = timing.to_json()
    print(
        f"  {told['periods']} periods at {told['rate_hz']:.1f} Hz, command after {told['command_ms_p50']:.1f} ms, "
        f"99 % within {told['command_ms_p99']:.1f} ms; angle at last {np.degrees(timing.readings[-1, 0]):.0f} degrees"
    )
    print(f"  stopped: {guard.stopped}")


if __name__ == "__main__":  # the planner's process imports this file, too
    plant = Plant(RobotModel("pendulum"), timestep=0.004, threads=1)
    simulator = OfSimulator(plant, repeated({"dynamics.payload.mass": 0.6}, 1), PERIOD)
    planner = PredictiveSampling(simulator, Upright(), LIMIT, horizon=0.6)
    for name, policy in (
        ("a planner that works", planner),
        ("one that hangs after a second", HangsAfter(planner, 1.0)),
    ):
        apart = PlannerProcess(policy, PERIOD)
        print(name)
        run(plant, apart, 4.0)
        apart.close()
