"""No robot file, only logs: a world model that learns from them alone, and how sure it is of a log it has not seen."""

import numpy as np
import torch

from sim2real.adapters import Chain, FirstOrderLag, Noise
from sim2real.combination import recalibrate_model
from sim2real.evaluation import Questions, RecordingPredictor, persistence, score
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, fit_to_recordings


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    # stands in for a robot: a pendulum whose motor lags, which no reading shows
    plant = Plant(RobotModel("pendulum"), Chain([FirstOrderLag(time_constant=0.06)]), timestep=0.005)
    robot = Twin(plant, {"dynamics.payload.mass": 0.8}, Chain([Noise(gap="perception", additive=0.001)]))
    learn, held_out, new = (
        robot.record(name, excite(np.random.default_rng(k), 24, 0.02, np.array([3.0]), (0.5, 1.3)), hold=0.02)
        for k, name in enumerate(("learn", "held_out", "new"))
    )

    config = EnsembleConfig((True,), 1, timestep=0.02, history=4, members=5, hidden=(48, 48), lookback=5, latents=2)
    model = fit_to_recordings(EnsembleDynamics(config), [learn], ["position"], iterations=800, progress=print)

    predict = RecordingPredictor(model, ["position"])
    known, asked = Questions.of(held_out, ["position"]), Questions.of(new, ["position"])
    recalibrate_model(model, predict, [known])  # model.save(folder) keeps it
    rng = np.random.default_rng(0)
    for what, prediction in (("nothing moves", persistence(asked)), ("world model", predict(asked))):
        found = score(prediction, asked, ["hinge"], rng)
        print(f"{what}: mean NRMSE {found['mean_nrmse']:.3f}, 90 % intervals hold {found['coverage90']:.0%}")


if __name__ == "__main__":
    main()
