"""Adapt a command: send one through a chain of execution stages, with numpy and with torch, and compare."""

import numpy as np
import torch

from sim2real.adapters import Chain, DeadZone, FirstOrderLag, Latency, TorqueLimit


def main() -> None:
    """Run the example."""
    chain = Chain(
        [
            Latency(delay=0.0125),
            DeadZone(width=0.1),
            FirstOrderLag(time_constant=0.008),
            TorqueLimit(limit=1.0),
        ]
    )
    for name, value in chain.nominal().items():
        print(f"{name:32} {value:g} {chain.units()[name]}")

    # three motors that differ in their delay, half a second of commands, one a millisecond
    n, steps, dt = 3, 500, 0.001
    delays = np.array([0.0, 0.0125, 0.03])
    time = dt * np.arange(steps)
    command = np.tile(np.where(time >= 0.1, 2.0, 0.0)[None, :, None], (n, 1, 1))

    with_numpy = chain.bind(n, width=1, dt=dt)
    with_numpy.write({"execution.latency.delay": delays})
    arrived = with_numpy.apply(command)

    with_torch = chain.bind(n, width=1, dt=dt, like=torch.zeros(0, dtype=torch.float64))
    with_torch.write({"execution.latency.delay": delays})
    tensor = with_torch.apply(torch.tensor(command))

    for delay, effort in zip(delays, arrived[:, :, 0], strict=True):
        first, whole = time[np.argmax(effort > 0)], time[np.argmax(effort > 0.999)]
        print(f"delay {1e3 * delay:4.1f} ms: first effect at {first:.3f} s, at its limit at {whole:.3f} s")
    difference = np.abs(arrived - tensor.numpy()).max()
    print(f"numpy and torch differ by {difference:.1e}: {'equal' if difference < 1e-12 else 'NOT EQUAL'}")


if __name__ == "__main__":
    main()
