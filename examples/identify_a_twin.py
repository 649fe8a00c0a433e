"""Identify a pendulum that nobody has measured from a few seconds of its log, and compare with the truth."""

import numpy as np

from sim2real.adapters import Chain, Latency, Quantization
from sim2real.calibration import identify
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

# What the robot is, and what the model of it allows for.
TRUTH = {"dynamics.payload.mass": 0.83, "execution.latency.delay": 0.031}
PRIOR = {"dynamics.payload.mass": "*U(0.4, 3)", "execution.latency.delay": "=U(0, 0.08) s"}


def main() -> None:
    """Run the example."""
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.002)
    robot = Twin(plant, TRUTH, Chain([Quantization(step=2 * np.pi / 4096)]))
    commands = excite(np.random.default_rng(0), seconds=5, hold=0.02, amplitude=np.array([3.0]), frequencies=(0.4, 1.2))
    log = robot.record("log", commands, hold=0.02)
    print(f"recorded {log.duration:g} s, {len(log) + 1} readings of {log.channels.observations[0][0]}")

    prior = ParameterSet.parse(PRIOR, plant.units())
    posterior = identify(
        plant, [log], prior, channels=["position"], tries=8, rng=np.random.default_rng(1), progress=print
    )

    print(f"\n{'parameter':26} {'prior':>12} {'estimate':>10} {'90 % interval':>20} {'truth':>8}")
    for name in posterior.names:
        low, high = posterior.interval(name)
        between = f"{low:.4g} to {high:.4g}"
        print(f"{name:26} {PRIOR[name]:>12} {posterior.values[name]:10.4g} {between:>20} {TRUTH[name]:8.4g}")
    print(f"what is left: {1e3 * posterior.evidence['mean_absolute_error']:.2g} mrad on average")


if __name__ == "__main__":
    main()
