"""How much of what a model was trained on recordings see: against counting."""

from __future__ import annotations

import numpy as np
import torch

from sim2real.input_space import compare
from sim2real.world_model import Stretches


def stretches(position: np.ndarray, velocity: np.ndarray, command: np.ndarray) -> Stretches:
    states = torch.as_tensor(np.stack([position, velocity], -1))[None, :, None]
    return Stretches(states, torch.as_tensor(command)[None, :, None, None], torch.arange(len(position)))


def grid(low: float, high: float) -> np.ndarray:
    """The middles of ten cells, and the ends."""
    return np.concatenate([[low], low + (high - low) * (np.arange(10) + 0.5) / 10, [high]])


def test_cells_are_counted() -> None:
    q, v = (x.ravel() for x in np.meshgrid(grid(-2.0, 2.0), grid(-1.0, 1.0)))
    trained = stretches(q, v, np.resize(grid(0.0, 5.0), len(q)))
    # positions of the lower half, velocities of all: half of the cells; commands of two cells, and beyond
    half = q < 0
    recorded = stretches(q[half], v[half], np.resize([0.1, 0.7, 7.0, 0.2], half.sum()))
    joint, motor = compare(trained, recorded, [False], ["hinge"], ["motor"])
    assert (joint.name, joint.share, joint.outside) == ("hinge", 0.5, 0.0)
    assert joint.trained == ((-2.0, 2.0), (-1.0, 1.0))
    np.testing.assert_allclose(joint.recorded[0], (-2.0, -0.2))
    assert (motor.name, motor.share) == ("motor", 0.2)
    assert abs(motor.outside - 0.25) < 0.01
    np.testing.assert_allclose(motor.recorded[0], (0.1, 7.0))


def test_whole_turns_are_one_and_the_same_where_a_joint_turns_freely() -> None:
    q = np.linspace(-3.1, 3.1, 200)
    trained, turned = stretches(q, 0 * q, q), stretches(q + 4 * np.pi, 0 * q, q)
    assert compare(trained, turned, [True], ["hinge"], ["motor"])[0].share == 1.0
    assert compare(trained, turned, [False], ["hinge"], ["motor"])[0].outside == 1.0
