"""Before fine-tuning: do recordings go where the model has been trained, and how much of that do they see?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.world_model import Stretches

# Cells along each axis of what a model was trained on.
CELLS = 10


@dataclass(frozen=True)
class Seen:
    """One part of a model's input space: the positions and velocities of a joint, or the commands of an actuator.

    Attributes:
        name: of the joint or the actuator, and the units of its axes.
        trained: for each of its axes, least and most in training.
        recorded: the same in the recordings.
        share: of the cells that training fills, those that recordings visit.
        outside: share of what was recorded that lies in no cell that training fills.
    """

    name: str
    trained: tuple[tuple[float, float], ...]
    recorded: tuple[tuple[float, float], ...]
    share: float
    outside: float


def compare(
    trained: Stretches,
    recorded: Stretches,
    wraps: Sequence[bool],
    joints: Sequence[str],
    actuators: Sequence[str],
) -> list[Seen]:
    """Compare what a model was trained on with recordings, part by part.

    Args:
        trained: simulated stretches.
        recorded: of real recordings.
        wraps: for each joint, whether it turns freely: whole turns are then one and the same.
        joints: their names.
        actuators: their names.
    """
    d = len(joints)
    (states, commands), (real_states, real_commands) = (
        tuple(x.flatten(0, 2).double().numpy() for x in (s.states, s.commands)) for s in (trained, recorded)
    )
    out = []
    for j, name in enumerate(joints):
        both = [s[:, [j, d + j]].copy() for s in (states, real_states)]
        if wraps[j]:
            for s in both:
                s[:, 0] = (s[:, 0] + np.pi) % (2 * np.pi) - np.pi
        out.append(_part(name, *both))
    return [*out, *(_part(n, commands[:, [k]], real_commands[:, [k]]) for k, n in enumerate(actuators))]


def _part(name: str, trained: Array, recorded: Array) -> Seen:
    low, high = trained.min(0), trained.max(0)
    width = np.maximum(high - low, 1e-12)

    def cells(values: Array) -> NDArray[np.int_]:
        found = np.floor((values - low) / width * CELLS).astype(int)
        found[values == high] = CELLS - 1
        inside = ((found >= 0) & (found < CELLS)).all(1)
        return np.where(inside, found @ CELLS ** np.arange(found.shape[1]), -1)

    filled = np.unique(cells(trained))
    visited = cells(recorded)
    ends = [tuple(zip(v.min(0).tolist(), v.max(0).tolist(), strict=True)) for v in (trained, recorded)]
    share = np.isin(filled, visited).mean()
    return Seen(name, ends[0], ends[1], float(share), float((~np.isin(visited, filled)).mean()))
