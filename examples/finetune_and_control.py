"""Pre-train a world model on an identified pendulum, fine-tune it on the robot's log, swing the robot up with it."""

import numpy as np
import torch

from sim2real.adapters import Chain, Latency, Quantization, TorqueLimit
from sim2real.calibration import finetune_dynamics, identify
from sim2real.control import closed_loop
from sim2real.estimation import ModelObserver, Observation
from sim2real.evaluation import EnsemblePredictor, Questions, start_covariance
from sim2real.planning import MPPI, Upright, upright_reward
from sim2real.plant import Plant, repeated
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, fit, from_episodes, simulate

# The model knows of a delay, but not of what the motor cannot do: identification is led astray by that, and the rest is
# for fine-tuning to learn.
TRUTH = {"dynamics.payload.mass": 0.83, "execution.latency.delay": 0.03, "execution.torque_limit.limit": 1.5}
PRIOR = {"dynamics.payload.mass": "*U(0.4, 3)", "execution.latency.delay": "=U(0, 0.08) s"}
LIMIT = np.array([3.0])
CHANNELS = ["position"]


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)  # batches are small: more threads would only wait for one another
    robot = Twin(
        Plant(RobotModel("pendulum"), Chain([Latency(), TorqueLimit()]), timestep=0.002),
        TRUTH,
        Chain([Quantization(step=2 * np.pi / 4096)]),
    )
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.002)
    log = robot.record("log", excite(np.random.default_rng(0), 20, 0.02, LIMIT, (0.35, 0.8, 1.7)), 0.02)
    learn_from, held_out = log.slice(0, 14), log.slice(14.1, 20)

    prior = ParameterSet.parse(PRIOR, plant.units())
    posterior = identify(plant, [learn_from], prior, channels=CHANNELS, tries=8, starts=1, rng=np.random.default_rng(1))
    for name, value in posterior.values.items():
        low, high = posterior.interval(name)
        print(f"{name} = {value:.4g} ({low:.4g} to {high:.4g}), truth {TRUTH[name]:g}")

    # each member learns one plant of the posterior, so that their disagreement is the posterior's
    config = EnsembleConfig(plant.model.wraps, plant.actions, timestep=0.02, history=4, members=3, hidden=(48, 48))
    draws = posterior.sample(np.random.default_rng(2), config.members)
    excitation = Excitation((LIMIT[0],), (5.0,), (np.pi,))
    data = simulate(
        plant, draws, excitation, stretches=200, steps=25, history=4, timestep=0.02, rng=np.random.default_rng(3)
    )
    observation = Observation(span=0.1, bandwidth=45.0)
    model = fit(EnsembleDynamics(config), data, step_iterations=1200, rollout_iterations=0, rate=0.01)
    covariance = start_covariance(plant, posterior.values, observation, [learn_from], CHANNELS)
    model.start_covariance.copy_(torch.as_tensor(covariance))

    found = finetune_dynamics(
        model,
        from_episodes([learn_from], CHANNELS, steps=30, history=4, timestep=0.02),
        answer=lambda m, q: EnsemblePredictor(m, plant, posterior.values, observation, CHANNELS)(q),
        held_out=[Questions.of(held_out, CHANNELS, stride=5)],
        replay=data,
        iterations=100,
        batch=32,
        rate=5e-3,
    )
    print(f"fine-tuning {found.reason}")

    run = closed_loop(
        robot,
        MPPI(found.model, Upright(), LIMIT, candidates=150),
        ModelObserver(plant.start(1, repeated(posterior.values, 1)), observation.bandwidth),
        np.zeros((1, 2)),
        seconds=6.0,
        period=config.timestep,
        limit=LIMIT,
        history=config.history,
    )
    upright = upright_reward(torch.as_tensor(run.states[0, :, :1]))
    for second in range(6):
        print(f"  upright in second {second + 1}: {100 * float(upright[50 * second : 50 * second + 50].mean()):3.0f} %")
    print(f"{np.median(run.milliseconds):.0f} ms from reading to command (median)")


if __name__ == "__main__":
    main()
