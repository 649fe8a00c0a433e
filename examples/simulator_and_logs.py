"""Which to believe, an identified simulator or what was learned from logs? Both, each as far as it knows."""

import numpy as np
import torch

from sim2real.adapters import Chain, FirstOrderLag, Noise
from sim2real.calibration import identify
from sim2real.combination import CombinedPredictor
from sim2real.distillation import distill, practise
from sim2real.estimation import Observation
from sim2real.evaluation import Predictor, Questions, RecordingPredictor, SimulatorPredictor, score
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    # stands in for a robot: a pendulum whose motor lags, of which the simulator knows nothing
    real = Plant(RobotModel("pendulum"), Chain([FirstOrderLag(time_constant=0.06)]), timestep=0.005)
    robot = Twin(real, {"dynamics.payload.mass": 0.8}, Chain([Noise(gap="perception", additive=0.001)]))
    learn, held_out, new = (
        robot.record(name, excite(np.random.default_rng(k), seconds, 0.02, np.array([3.0]), (0.5, 1.3)), hold=0.02)
        for k, (name, seconds) in enumerate((("learn", 12), ("held_out", 16), ("new", 16)))
    )
    known, asked = Questions.of(held_out, ["position"]), Questions.of(new, ["position"])

    plant = Plant(RobotModel("pendulum"), timestep=0.005)
    prior = ParameterSet.parse({"dynamics.payload.mass": "*U(0.3, 3)"}, plant.units())
    posterior = identify(plant, [learn], prior, channels=["position"], rng=rng)
    simulator = SimulatorPredictor(
        plant, posterior.values, posterior.sample(rng, 16), np.zeros((2, 2)), Observation(0.1, 50.0), ["position"]
    )

    config = EnsembleConfig((True,), 1, timestep=0.02, history=4, members=5, hidden=(48, 48), lookback=5, latents=2)
    excitation = Excitation(command=(3.0,), velocity=(5.0,), position=(3.14,))
    rehearsal = Rehearsal(plant, posterior.sample(rng, config.members), excitation, windows=500)

    def network(rehearsal: Rehearsal | None) -> RecordingPredictor:
        model = EnsembleDynamics(config)
        fit_to_recordings(model, [learn], ["position"], rehearsal=rehearsal, iterations=200)
        return RecordingPredictor(model, ["position"])

    parts: dict[str, Predictor] = {"simulator": simulator, "logs": network(None), "rehearsed": network(rehearsal)}
    rows = {name: [part] for name, part in parts.items()} | {"together": list(parts.values())}
    for name, predictors in rows.items():
        answer = CombinedPredictor.fit(predictors, [known])(asked)
        found = score(answer, asked, ["hinge"], rng)
        print(f"{name}: mean NRMSE {found['mean_nrmse']:.3f}, 90 % intervals hold {found['coverage90']:.0%}")

    # one ensemble, without a simulator inside, that says what all of them say together: for a planner
    teacher = CombinedPredictor.fit(list(parts.values()), [known], [Questions.of(learn, ["position"])])
    twin = Twin(plant, posterior.values, period=config.timestep)
    practice = practise(twin, excitation, ["position"], hold=config.timestep, rng=rng)
    one = distill(teacher, EnsembleDynamics(config, 1), [learn], practice, [held_out], ["position"], iterations=200)
    print(f"distilled: mean NRMSE {one.student:.3f} where its teacher has {one.teacher:.3f}")


if __name__ == "__main__":
    main()
