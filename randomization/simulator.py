"""What a simulator is to the toolkit: n plants whose parameters and states can be set, and that can be stepped."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim2real.randomization.parameters import Array, ParameterStore


@runtime_checkable
class Simulator(ParameterStore, Protocol):
    """n plants, each with a state of X numbers: positions, then velocities (SI units, float64)."""

    @property
    def n(self) -> int:
        """Number of plants."""
        ...

    @property
    def timestep(self) -> float:
        """Length of a substep [s]."""
        ...

    @property
    def degrees_of_freedom(self) -> int:
        """Number of positions, and of velocities: X / 2."""
        ...

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        """Set the plants that `mask` (n,) selects, all by default, to their rows of `state` (n, X)."""
        ...

    def state(self) -> Array:
        """Return the states (n, X)."""
        ...

    def step(self, effort: Array) -> Array:
        """Apply `effort` (n, K, A), one row a substep; return the state after each substep (n, K, X).

        Raises:
            NonFiniteError: a plant left the finite numbers.
        """
        ...

    def effective_inertia(self) -> Array:
        """Return what each joint resists an effort with, the others being free to move (n, X / 2).

        The inverse of the diagonal of the inverse joint-space inertia, at the present state.
        """
        ...

    def bias_effort(self) -> Array:
        """Return the effort that gravity, springs and motion ask for at the present state (n, X / 2)."""
        ...


class PlantModel(Protocol):
    """What can be simulated: a robot file (`RobotModel`), or a function (`FunctionModel`)."""

    @property
    def name(self) -> str: ...

    @property
    def joint_names(self) -> tuple[str, ...]: ...

    @property
    def joint_units(self) -> tuple[str, ...]: ...

    @property
    def actuator_names(self) -> tuple[str, ...]: ...

    @property
    def effort_units(self) -> tuple[str, ...]: ...

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each position matters only modulo 2 pi."""
        ...

    @property
    def driven(self) -> NDArray[np.int_]:
        """(A,) the degree of freedom that each actuator drives."""
        ...

    @property
    def nominal(self) -> dict[str, float]:
        """Every parameter's nominal value: name -> number."""
        ...

    @property
    def units(self) -> dict[str, str]:
        """Every parameter's unit."""
        ...

    def simulate(self, n: int, timestep: float, threads: int = 0) -> Simulator:
        """Return n plants to step."""
        ...
