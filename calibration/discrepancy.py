"""Discrepancy: what every joint may have that no parameter describes, so that it is not forced into those that are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim2real.calibration.posterior import Posterior
from sim2real.episodes import Array, Episode
from sim2real.errors import ParameterError
from sim2real.plant import Plant
from sim2real.randomization import Parameter, ParameterSet, TruncatedNormal
from sim2real.windows import joint_positions

# Of speeds and angles, the share that lies below those that discrepancies are measured by.
USUAL = 0.9
# Standard deviations of a discrepancy beyond which it is none.
FAR = 10.0


def discrepancies(
    plant: Plant, episodes: Sequence[Episode], prior: ParameterSet, channels: Sequence[str], share: float
) -> list[Parameter]:
    """Return dry friction, viscous friction and a spring for every driven joint, where they are not in the prior.

    Each is normal around its nominal value, never below zero, and as wide as makes the given share of the largest
    effort of the joint's drive at the largest usual speed or angle of the recordings.

    Args:
        plant: of a robot file.
        episodes: the recordings.
        prior: parameters that are fitted anyway.
        channels: the observations that are joint positions.
        share: of the largest effort.

    Raises:
        ParameterError: joints of the plant have no such parameters, or the prior is a posterior.
    """
    if isinstance(prior, Posterior):
        raise ParameterError("discrepancy: expected a prior of independent parameters, found a posterior; leave it out")
    known, out = plant.nominal(), []
    effort, speed, angle = _efforts(plant, episodes), [], []
    for episode in episodes:
        q, t = joint_positions(episode, channels), episode.observed_at
        speed.append(np.abs(np.gradient(q, t, axis=0)))
        angle.append(np.abs(q - np.median(q, 0)))
    usual = {
        "frictionloss": np.ones(len(channels)),
        "damping": np.quantile(np.concatenate(speed), USUAL, axis=0),
        "stiffness": np.quantile(np.concatenate(angle), USUAL, axis=0),
    }
    for a, j in enumerate(plant.model.driven):
        joint = plant.model.joint_names[j]
        for term, size in usual.items():
            name = f"dynamics.{joint}.{term}"
            if name in prior.names or name not in known:
                continue
            width = float(f"{share * effort[a] / max(float(size[j]), 1e-9):.3g}")
            distribution = TruncatedNormal(known[name], width, 0.0, float(f"{known[name] + FAR * width:.3g}"))
            out.append(Parameter(name=name, unit=plant.units()[name], distribution=distribution))
    if not out:
        joints = ", ".join(plant.model.joint_names)
        raise ParameterError(
            f"discrepancy: nothing to add: of the driven joints of {plant.model.name} ({joints}), frictionloss, "
            "damping and stiffness are either in the prior already, or not in the model, as in one that is a function; "
            "leave it out"
        )
    return out


def _efforts(plant: Plant, episodes: Sequence[Episode]) -> Array:
    """(A,) the largest effort on each driven joint, by the nominal chain and gears."""
    known, largest = plant.nominal(), np.zeros(plant.actions)
    for episode in episodes:
        through = plant.without_chain() if episode.action_source == "measured" else plant
        steps = int(episode.duration / plant.timestep)
        commands = episode.commands_at(episode.observed_at[0] + plant.timestep * np.arange(max(steps, 1)))
        largest = np.maximum(largest, np.abs(through.start(1).efforts(commands[None])).max((0, 1)))
    gears = [
        known.get(f"dynamics.{n}.gear", 1.0) * known.get(f"dynamics.{n}.gain", 1.0) for n in plant.model.actuator_names
    ]
    return np.asarray(largest * np.abs(gears))
