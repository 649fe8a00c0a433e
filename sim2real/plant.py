"""A plant: simulated robots behind their execution chain, from commands to states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim2real.adapters import BoundChain, Chain, PlantView
from sim2real.adapters.native import leave_to_engine
from sim2real.errors import NonFiniteError, ParameterError, did_you_mean
from sim2real.randomization import MujocoSimulator, PlantModel, Simulator
from sim2real.randomization.addressing import silent_names

Array = NDArray[np.float64]
Values = Mapping[str, Array]
# How long commands are replayed into a chain, beyond its delays, before its lags are taken to have settled [s].
SETTLING = 0.1


@dataclass(frozen=True)
class Plant:
    """What identification, observers and twins simulate: a robot model behind an execution chain.

    A value: `start(n)` makes n of them to step.

    Attributes:
        model: the robot: a file, or a function.
        chain: what happens to a command before it moves a joint; its native stages are left to the engine.
        timestep: substep of the simulation [s].
        threads: to step on; 0 means all cores.
    """

    model: PlantModel
    chain: Chain = field(default_factory=Chain)
    timestep: float = 0.001
    threads: int = 0

    def __post_init__(self) -> None:
        for stage in self.chain.stages:
            if stage.gap != "execution":
                raise ParameterError(f"stage {stage.name} is one of the {stage.gap}; a plant has the execution alone")
        gives = self.chain.gives
        if gives in ("V", "A") and gives not in self.model.effort_units:
            raise ParameterError(
                f"what comes out of the chain is in {gives}, but {self.model.name} takes "
                f"{', '.join(sorted(set(self.model.effort_units)))}: end with a dc_motor, or a gain with to: N·m"
            )

    @cached_property
    def _simulated(self) -> tuple[PlantModel, Chain]:
        """What is simulated, and the stages in front of it."""
        return leave_to_engine(self.model, self.chain, self.timestep)

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.model.joint_names)

    @property
    def actions(self) -> int:
        return len(self.model.actuator_names)

    @property
    def filling(self) -> float:
        """How much of the commands before an instant its chain must see to be as they left it [s]."""
        return self.chain.longest_delay + SETTLING

    def nominal(self) -> dict[str, float]:
        """Return every parameter's nominal value, of the dynamics and of the execution."""
        model, chain = self._simulated
        return {**model.nominal, **chain.nominal()}

    def units(self) -> dict[str, str]:
        """Return every parameter's unit."""
        model, chain = self._simulated
        return {**model.units, **chain.units()}

    def start(self, n: int, values: Values | None = None) -> RunningPlant:
        """Return n plants with the given parameters (name -> (n,)), nominal where not given."""
        model, chain = self._simulated
        simulator = model.simulate(n, self.timestep, self.threads)
        running = RunningPlant(simulator, chain.bind(n, self.actions, self.timestep), self.model.driven)
        running.write(values or {})
        return running

    def without_chain(self) -> Plant:
        """Return the plant with an empty chain: for measured efforts, which have been through the real one."""
        return Plant(self.model, Chain(), self.timestep, self.threads)


class RunningPlant:
    """n plants at work: a `ParameterStore` over dynamics and execution together.

    Args:
        simulator: of n plants.
        chain: bound to n.
        actuated: (A,) the degree of freedom that each action drives.
    """

    def __init__(self, simulator: Simulator, chain: BoundChain, actuated: NDArray[np.int_]) -> None:
        self.simulator, self.chain, self._actuated = simulator, chain, actuated

    @property
    def n(self) -> int:
        return self.simulator.n

    def nominal(self) -> dict[str, float]:
        return {**self.simulator.nominal(), **self.chain.nominal()}

    def units(self) -> dict[str, str]:
        return {**self.simulator.units(), **self.chain.units()}

    def read(self) -> dict[str, Array]:
        return {**self.simulator.read(), **self.chain.read()}

    def write(self, values: Values, mask: NDArray[np.bool_] | None = None) -> None:
        """Write dynamics into the simulator and the rest into the chain; see `ParameterStore.write`."""
        known, silent = self.nominal(), silent_names(self.simulator)
        for name in values:
            if name in silent:
                raise ParameterError(f"{name} would change nothing: {silent[name]}")
            if name not in known:
                raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, known)}")
        of_chain = self.chain.nominal()
        self.simulator.write({k: v for k, v in values.items() if k not in of_chain}, mask)
        self.chain.write({k: v for k, v in values.items() if k in of_chain}, mask)

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Iterable[str] | None = None) -> None:
        self.simulator.restore(mask, names)
        self.chain.restore(mask, names)

    def set_state(self, state: Array, mask: NDArray[np.bool_] | None = None) -> None:
        self.simulator.set_state(state, mask)

    def state(self) -> Array:
        return self.simulator.state()

    def reset(self, state: Array, before: Array | None = None) -> None:
        """Put every plant into `state` (n, X), its chain as the commands `before` (n, B, A) left it.

        Args:
            state: positions, then velocities.
            before: one command a substep, the last one just before now. Stages with feedback see a plant held still.
        """
        self.simulator.set_state(state)
        self.chain.reset()
        sent = np.zeros((self.n, 0, self.chain.width))
        if before is not None and not self.chain.chain.feedback:
            sent = self.chain.apply(before)
        elif before is not None and before.shape[1]:
            view = self._view()
            sent = np.concatenate([self.chain.apply(row[:, None], view) for row in before.swapaxes(0, 1)], 1)
        if isinstance(self.simulator, MujocoSimulator):
            self.simulator.fill_delays(sent)

    def step(self, commands: Array) -> Array:
        """Send `commands` (n, K, A), one row a substep; return the states after each substep (n, K, X)."""
        if not self.chain.chain.feedback:
            return self.simulator.step(self.chain.apply(commands))
        states = []
        for k in range(commands.shape[1]):
            effort = self.chain.apply(commands[:, k : k + 1], self._view())
            states.append(self.simulator.step(effort))
        return np.concatenate(states, 1)

    def efforts(self, commands: Array) -> Array:
        """Return what the chain makes of `commands` (n, K, A), the plant held still: (n, K, A)."""
        view = self._view() if self.chain.chain.feedback else None
        return np.asarray(self.chain.apply(commands, view))

    def _view(self) -> PlantView:
        state, columns, dof = self.simulator.state(), self._actuated, self.simulator.degrees_of_freedom
        return PlantView(
            position=state[:, columns],
            velocity=state[:, dof + columns],
            effective_inertia=self.simulator.effective_inertia()[:, columns],
            load=self.simulator.bias_effort()[:, columns],
        )


def require_finite(value: Array, what: str) -> Array:
    """Return `value`, or raise a NonFiniteError that says what it is."""
    if not np.isfinite(value).all():
        raise NonFiniteError(f"{what} is not finite ({int((~np.isfinite(value)).sum())} of {value.size} numbers)")
    return value


def repeated(values: Mapping[str, float], n: int) -> dict[str, Array]:
    """Return `{name: number}` as `{name: (n,)}`."""
    return {name: np.full(n, float(value)) for name, value in values.items()}
