"""Control, record, fine-tune, gate, and again: half a minute of robot time for a model that was wrong."""

import tempfile

import numpy as np
import torch

from sim2real.adapters import Chain, TorqueLimit
from sim2real.control import closed_loop
from sim2real.dagger import dagger, latest
from sim2real.planning import MPPI, Damping, Upright, upright_reward
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

LIMIT, DT = np.array([4.0]), 0.02


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    # stands in for the robot: twice the payload, and a motor that gives less than it is asked for
    plant = Plant(RobotModel("pendulum"), timestep=0.005)
    real = Plant(RobotModel("pendulum"), Chain([TorqueLimit(limit=2.8)]), timestep=0.005)
    twin = Twin(real, {"dynamics.payload.mass": 0.9}, period=DT)
    robot = TwinEnv(twin, LIMIT, DT)

    config = EnsembleConfig((True,), 1, DT, history=3, members=3, hidden=(48, 48), lookback=4)
    believed = {"dynamics.payload.mass": 0.45}
    log = Twin(plant, believed, period=DT).record("log", excite(np.random.default_rng(0), 6, DT, LIMIT, (0.5,)), DT)
    rehearsal = Rehearsal(plant, repeated(believed, 3), Excitation((4.0,), (5.0,), (3.14,)), windows=400)
    model = EnsembleDynamics(config)
    fit_to_recordings(model, [log], ["position"], rehearsal=rehearsal, recorded=0.0, iterations=400)

    def planner(of: EnsembleDynamics) -> MPPI:
        return MPPI(of, Upright(), LIMIT, candidates=40)

    def upright(of: EnsembleDynamics) -> float:
        assert of.encoder is not None
        run = closed_loop(
            twin, planner(of), of.encoder.estimator(), np.zeros((4, 2)), seconds=5.0, period=DT, limit=LIMIT,
            history=config.history, lookback=config.lookback,
        )  # fmt: skip
        return float(upright_reward(torch.as_tensor(run.states[:, 1:, :1])).mean())

    print(f"before: upright {upright(model):.2f} of the time")
    with tempfile.TemporaryDirectory() as place:
        found = dagger(
            robot, model, planner, Damping(0.2, LIMIT), ["position"], place, rounds=2, seconds=10.0, iterations=120,
            rate=3e-3,
        )  # fmt: skip
        for r in found:
            print(f"round {r.number}, {r.seconds:.0f} s: {r.reason}")
        print(f"after: upright {upright(latest(place)):.2f} of the time")


if __name__ == "__main__":
    main()
