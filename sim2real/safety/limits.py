"""Hard limits, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.errors import ModelError


@dataclass(frozen=True)
class Limits:
    """Hard limits of the joints that actuators drive, in their order.

    Attributes:
        effort: (A,) largest command [N·m or N].
        position: (A, 2) [rad or m], infinite where there is none.
        velocity: (A,) [rad/s or m/s], infinite where there is none; finite where a position is limited.
        rate: (A,) largest change of a command in a second [N·m/s or N/s], infinite where there is none.
        free: velocity up to which joints that nothing drives are reckoned with [rad/s or m/s]; beyond it, the others
            only brake.
        clearance: to obstacles and to itself, by the geoms of the robot file that collide [m]; None does not look.
        workspace: corners ((x, y, z), (x, y, z)) of a box that what collides stays within, by the clearance [m].

    Raises:
        ModelError: shapes disagree, a limit is not positive, a joint with stops has no limit of velocity, or a
            workspace has no clearance.
    """

    effort: Sequence[float]
    position: Sequence[tuple[float, float]] = ()
    velocity: Sequence[float] = ()
    rate: Sequence[float] = ()
    free: float = 10.0
    clearance: float | None = None
    workspace: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        many = len(self.effort)
        nothing: dict[str, Any] = {"position": (-np.inf, np.inf), "velocity": np.inf, "rate": np.inf}
        for name, value in nothing.items():
            given = np.asarray(getattr(self, name), float)
            filled = given if len(given) else np.asarray([value] * many)
            if len(filled) != many:
                raise ModelError(f"limits of {many} actuators: expected as many of {name}, found {len(given)}")
            object.__setattr__(self, name, filled)
        object.__setattr__(self, "effort", np.asarray(self.effort, float))
        stops = np.asarray(self.position).reshape(many, 2)
        if not (stops[:, 0] < stops[:, 1]).all():
            raise ModelError(f"the lower stop of a joint is below the upper one, found {stops.tolist()}")
        if min(*self.effort, *self.velocity, *self.rate, self.free) <= 0:
            raise ModelError("limits of effort, velocity and rate are above zero")
        if self.workspace is not None and self.clearance is None:
            raise ModelError("a workspace is kept by a clearance, which may be 0.0 m: give one")
        if self.clearance is not None and not np.isfinite(self.velocity).all():
            raise ModelError("a clearance needs a limit of every velocity: how else could the robot stop in time?")
        if not np.isfinite(np.asarray(self.velocity)[np.isfinite(stops).any(1)]).all():
            raise ModelError("a joint with stops needs a limit of its velocity: how else could it stop in time?")
