"""Swing a pendulum up with nothing but its simulator: plans are tried on MuJoCo, behind the delay of the commands."""

import numpy as np
import torch

from sim2real.adapters import Chain, Latency
from sim2real.control import closed_loop
from sim2real.estimation import ModelObserver
from sim2real.planning import ICEM, OfSimulator, PredictiveSampling, Upright, upright_reward
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin

LIMIT, DT = np.array([3.0]), 0.04


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    plant = Plant(RobotModel("pendulum"), Chain([Latency(delay=0.04)]), timestep=0.01)
    values = {"dynamics.payload.mass": 0.6}
    simulator = OfSimulator(plant, repeated(values, 1), DT)
    for kind in (PredictiveSampling, ICEM):
        policy = kind(simulator, Upright(), LIMIT, horizon=0.8, candidates=30, iterations=2, deadline=100.0)
        run = closed_loop(
            Twin(plant, values, period=DT), policy, ModelObserver(plant.start(1, repeated(values, 1)), bandwidth=30.0),
            np.zeros((1, 2)), seconds=6.0, period=DT, limit=LIMIT, history=2,
        )  # fmt: skip
        upright = float(upright_reward(torch.as_tensor(run.states[0, -50:, :1])).mean())
        print(f"{kind.__name__}: upright {upright:.2f} in the end, {np.median(run.milliseconds):.0f} ms a plan")


if __name__ == "__main__":
    main()
