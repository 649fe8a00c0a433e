"""Two days of logs, another payload on the second, somebody leaning on the robot: what does identification notice?"""

from dataclasses import replace

import numpy as np

from sim2real.adapters import Chain, Latency
from sim2real.calibration import diagnose, identify, outside_forces, own_values
from sim2real.calibration.check import simulate_episode
from sim2real.episodes import Episode
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, DELAY = "dynamics.payload.mass", "execution.latency.delay"
PRIOR = {MASS: "*U(0.4, 3)", DELAY: "=U(0, 0.06) s"}
PAYLOAD = {"monday": 0.6, "tuesday": 1.1}  # kg


def record(plant: Plant, day: str, seed: int) -> Episode:
    """Record 20 s; on Tuesday from 12 s to 13 s something pushes that is in no log."""
    rng, truth = np.random.default_rng(seed), {MASS: PAYLOAD[day], DELAY: 0.02}
    asked = Twin(plant, truth).record(day, excite(rng, 20, 0.02, np.array([2.0]), (0.5, 1.3)), hold=0.02)
    pushed = asked.actions.copy()
    if day == "tuesday":
        pushed[(asked.commanded_at >= 12) & (asked.commanded_at < 13)] += 1.5
    seen = simulate_episode(plant, replace(asked, actions=pushed), truth, ["position"], np.array([0.002]), rng)
    return replace(seen, actions=asked.actions)


def main() -> None:
    """Run the example."""
    plant = Plant(RobotModel("pendulum"), Chain([Latency()]), timestep=0.005)
    logs = [record(plant, day, seed) for seed, day in enumerate(PAYLOAD)]
    prior, rng = ParameterSet.parse(PRIOR, plant.units()), np.random.default_rng(1)
    settings = {"channels": ["position"], "tries": 4, "starts": 1}

    print("one payload for both days:")
    together = identify(plant, logs, prior, rng=rng, **settings)
    for finding in diagnose(together):
        print(f"  {finding.code}: {finding.what}")

    print("a payload for each day:")
    apart = identify(plant, logs, prior, own=[MASS], rng=rng, **settings)
    for day, told in apart.evidence["of_recordings"][MASS].items():
        low, high = told["interval90"]
        print(f"  {day}: {told['mean']:.3f} kg (90 % interval {low:.3f} to {high:.3f}), in truth {PAYLOAD[day]}")
    own = own_values(apart.evidence)
    for force in outside_forces(plant, logs, apart.values, channels=["position"], of_recordings=own):
        when = f"from {force.start:.1f} to {force.stop:.1f} s"
        print(f"  something pushed on {force.recording} {when}: {force.effort:+.1f} N·m")


if __name__ == "__main__":
    main()
