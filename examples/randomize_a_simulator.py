"""Randomize a simulator: a thousand pendulums with their own payloads, friction and delays, and one command for all."""

import numpy as np

from sim2real.adapters import Chain, Latency
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel

RANDOMIZATION = {
    "dynamics.payload.mass": "*U(0.7, 1.3)",  # times the value in the robot file; the inertia follows
    "dynamics.hinge.damping": "*LogN(1, 0.3)",
    "execution.latency.delay": "=U(0, 0.04) s",
}


def main() -> None:
    """Run the example."""
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.002)
    randomization, nominal = ParameterSet.parse(RANDOMIZATION, plant.units()), plant.nominal()
    for parameter in randomization:
        print(f"{parameter.name:26} {parameter.notation:14} nominal {nominal[parameter.name]:g} {parameter.unit}")

    n, seconds = 1000, 1.0
    values = randomization.against(nominal).sample(np.random.default_rng(0), n)
    pendulums = plant.start(n, values)

    time = plant.timestep * np.arange(round(seconds / plant.timestep))
    torque = 1.5 * np.sign(np.sin(2 * np.pi * 1.1 * time))  # pumps the swing up [N·m]
    states = pendulums.step(np.tile(torque[None, :, None], (n, 1, 1)))

    swing = np.degrees(np.abs(states[:, :, 0]).max(1))
    low, middle, high = np.quantile(swing, [0.05, 0.5, 0.95])
    print(f"\nswing of {n} pendulums after {seconds:g} s: {middle:.1f} deg, 90 % within {low:.1f} to {high:.1f} deg")
    for name, value in values.items():
        print(f"  correlation with {name:26} {np.corrcoef(value, swing)[0, 1]:+.2f}")


if __name__ == "__main__":
    main()
