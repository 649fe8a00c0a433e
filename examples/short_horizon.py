"""A pendulum that swings up with a sixth of the horizon: what is still to be paid after a plan is fitted to runs."""

import numpy as np
import torch

from sim2real.control import Run, closed_loop
from sim2real.estimation import ModelObserver
from sim2real.planning import ICEM, Planner, Upright, closeness, fit_value
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, fit, simulate

PERIOD, LIMIT, COST = 0.02, np.array([2.0]), Upright()
PLANT = Plant(RobotModel("pendulum"), timestep=0.005)
VALUES = {"dynamics.payload.mass": 0.546}


def let_loose(planner: Planner, starts: np.ndarray, seconds: float) -> Run:
    """Run a planner from states (n, 2)."""
    observer = ModelObserver(PLANT.start(len(starts), repeated(VALUES, len(starts))), bandwidth=30.0)
    return closed_loop(
        Twin(PLANT), planner, observer, starts, seconds=seconds, period=PERIOD, limit=LIMIT, history=2
    )  # fmt: skip


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    config = EnsembleConfig(PLANT.model.wraps, 1, PERIOD, history=2, members=2, hidden=(48, 48))
    data = simulate(
        PLANT, repeated(VALUES, 2), Excitation((2.0,), (5.0,), (np.pi,)), stretches=100, steps=20, history=2,
        timestep=PERIOD, rng=np.random.default_rng(0),
    )  # fmt: skip
    model = fit(EnsembleDynamics(config), data, step_iterations=800, rollout_iterations=0, rate=0.01)

    def planner(horizon: float, value: object = None) -> Planner:
        return ICEM(model, COST, LIMIT, horizon=horizon, candidates=40, iterations=2, value=value)

    # runs from everywhere, with a horizon that is long enough
    rng = np.random.default_rng(1)
    anywhere = np.stack([rng.uniform(-np.pi, np.pi, 16), rng.normal(0, 4, 16)], 1)
    runs = let_loose(planner(1.2), anywhere, 2.0)
    value = fit_value(COST, runs.states, runs.commands, PLANT.model.wraps, PERIOD)

    hanging = np.array([[0.0, 0.0], [0.3, 0.0]])
    for name, policy in (
        ("1.2 s", planner(1.2)),
        ("0.2 s", planner(0.2)),
        ("0.2 s and a value", planner(0.2, value)),
    ):
        run = let_loose(policy, hanging, 3.0)
        upright = closeness(COST, run.states[:, 1:], PERIOD).mean()
        print(f"{name:>17}: upright {upright:.2f}, {np.median(run.milliseconds):.0f} ms for the two of them")


if __name__ == "__main__":
    main()
