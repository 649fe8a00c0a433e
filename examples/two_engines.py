"""The same parameters on two engines: how far MuJoCo and Genesis part, and a batch of environments on either.

python examples/two_engines.py
"""

import time

import numpy as np
import torch

from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.randomization.genesis import GenesisModel
from sim2real.randomization.vector import make_vec
from sim2real.simulators import compare_simulators, excitation, told

PRIOR = {"dynamics.pole.mass": "*U(0.5, 2)", "dynamics.hinge.damping": "*U(0.5, 2)"}


def main() -> None:
    """Run the example."""
    torch.set_num_threads(1)
    plants = Plant(RobotModel("cartpole"), threads=1), Plant(GenesisModel("cartpole"))
    prior = ParameterSet.parse(PRIOR, plants[0].units()).against(plants[0].nominal())
    rng = np.random.default_rng(0)
    found = compare_simulators(
        plants,
        prior.sample(rng, 8),
        excitation(8, 1.0, 0.01, np.array([5.0]), rng),
        np.zeros((8, 4)),
        seconds=1.0,
        names=("mujoco", "genesis"),
        explain={p.name: p.distribution.std for p in prior},
    )
    for line in told(found):
        print(line)
    for engine in ("batch", "genesis"):
        envs = make_vec("cartpole", 256, parameters=PRIOR, vectorization=engine, max_episode_steps=100)
        _, infos = envs.reset(seed=0)
        # actions may be tensors on Genesis, and results are
        actions = torch.zeros(256, 1) if engine == "genesis" else np.zeros((256, 1), np.float32)
        clock = time.perf_counter()
        for _ in range(30):
            observation, *_ = envs.step(actions)
        rate = 30 * 256 / (time.perf_counter() - clock)
        masses = infos["parameters"]["dynamics.pole.mass"]
        print(
            f"{engine:8s}{type(observation).__name__:8s} {rate:8,.0f} steps a second, "
            f"pole masses {masses.min():.3f} to {masses.max():.3f} kg"
        )


if __name__ == "__main__":
    main()
