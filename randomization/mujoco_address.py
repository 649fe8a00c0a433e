"""Where a parameter of a MuJoCo model lives: one element of a field, several, or a view of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.randomization.parameters import Array


@dataclass(frozen=True)
class Place:
    """An element of a model field: what is stored there is `factor` times the parameter, and `offset`.

    Attributes:
        field: of `MjModel`; "opt.gravity" for an option.
        index: into the field of one plant.
        factor: of the stored number.
        offset: what is stored for a parameter of zero.
    """

    field: str
    index: tuple[int, ...]
    factor: float = 1.0
    offset: float = 0.0

    def stored(self, value: Any) -> Any:
        """Return what is stored for values of the parameter."""
        return self.factor * value + self.offset

    def value(self, stored: Any) -> Any:
        """Return the values of the parameter for what is stored."""
        return (stored - self.offset) / self.factor


@dataclass(frozen=True)
class Address:
    """Where a parameter lives, and what may be written there.

    Attributes:
        places: where the value is stored; all of them are written, the first is read.
        unit: SI unit.
        affects: what a change of it changes, in a few words.
        low, high: the values that make sense to the engine.
        leads: number of the body whose inertia follows the value (its mass, its scale), or -1.
        power: of the value, that the inertia is proportional to.
        soft: whether elements that are also written by name keep what was written there (a scale moves all lengths but
            those).
        view: "", or how three parameters together make the stored row: "second_moment" (of the mass, makes the
            principal moments of inertia) or "rotation" (a rotation vector on top of the orientation in the file).
        component: which of the three it is, where there is a view.
    """

    places: tuple[Place, ...]
    unit: str
    affects: str
    low: float = -np.inf
    high: float = np.inf
    leads: int = -1
    power: int = 1
    soft: bool = False
    view: str = ""
    component: int = 0

    @property
    def place(self) -> Place:
        return self.places[0]


def view_of(view: str, row: Array, nominal_row: Array) -> Array:
    """Return the three parameters (..., 3) that a stored row (..., R) stands for."""
    if view == "second_moment":
        # the moment of inertia about an axis is the sum of the second moments along the other two
        return np.asarray(row.sum(-1, keepdims=True) / 2.0 - row)
    from scipy.spatial.transform import Rotation

    there = Rotation.from_quat(row, scalar_first=True)
    return np.asarray((Rotation.from_quat(nominal_row, scalar_first=True).inv() * there).as_rotvec())


def row_of(view: str, values: Array, nominal_row: Array) -> Array:
    """Return the stored row (..., R) for three parameters (..., 3): the inverse of `view_of`."""
    if view == "second_moment":
        return np.asarray(values.sum(-1, keepdims=True) - values)
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_quat(nominal_row, scalar_first=True) * Rotation.from_rotvec(values)
    return np.asarray(turned.as_quat(scalar_first=True))
