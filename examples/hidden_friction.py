"""A joint sticks more than its model: what do the parameters become, and what if friction is allowed for?"""

import numpy as np

from sim2real.adapters import Chain, Latency, Noise
from sim2real.calibration import Posterior, diagnose, identify
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

TRUTH = {"dynamics.payload.mass": 0.8, "dynamics.hinge.damping": 0.12, "execution.latency.delay": 0.02}
HIDDEN = {"dynamics.hinge.frictionloss": 0.2}  # N·m; the robot file says 0.05
PRIOR = {
    "dynamics.payload.mass": "*U(0.4, 3)",
    "dynamics.hinge.damping": "=U(0, 0.5)",
    "execution.latency.delay": "=U(0, 0.06) s",
}


def show(what: str, posterior: Posterior) -> None:
    """Print the intervals beside the truth, and what the logs ask for."""
    print(f"{what} (windows of {posterior.evidence['window']:.3g} s):")
    for name, true in TRUTH.items():
        low, high = posterior.interval(name)
        print(
            f"  {name:26s} {low:.4f} to {high:.4f}, in truth {true:.4f}"
            + ("" if low <= true <= high else "  <- outside")
        )
    for finding in diagnose(posterior):
        print(f"  {finding}")


def main() -> None:
    """Run the example."""
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.005)
    rng = np.random.default_rng(0)
    robot = Twin(plant, TRUTH | HIDDEN, Chain([Noise(gap="perception", additive=0.002)]))
    log = robot.record("log", excite(rng, 16, 0.02, np.array([4.0]), (0.5, 1.3)), hold=0.02)
    prior = ParameterSet.parse(PRIOR, plant.units())
    settings = {"channels": ["position"], "tries": 8, "starts": 1}
    show("as the model is", identify(plant, [log], prior, rng=rng, **settings))
    show(
        "with 2 % of the largest torque left open", identify(plant, [log], prior, discrepancy=0.02, rng=rng, **settings)
    )
    grown = identify(plant, [log], prior, discrepancy=0.02, window="auto", rng=rng, **settings)
    show("the same in windows as long as they may be", grown)


if __name__ == "__main__":
    main()
