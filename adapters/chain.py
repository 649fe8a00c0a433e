"""A chain of stages: the same object in identification, in simulation, in a twin and in front of hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from sim2real.adapters.execution import DeadZone, FirstOrderLag, Friction, Latency, TorqueLimit
from sim2real.adapters.perception import FilteredDifference, Quantization
from sim2real.adapters.stage import Context, PlantView, Signal, Stage, State
from sim2real.errors import ParameterError, RecipeError, did_you_mean

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (Latency, DeadZone, TorqueLimit, FirstOrderLag, Friction, Quantization, FilteredDifference)
}


class Chain:
    """Stages in the order in which the signal meets them, with their nominal parameters.

    Example:
        >>> chain = Chain([Latency(delay=0.02), DeadZone(width=0.1)])
        >>> line = chain.bind(n=4, width=1, dt=0.001)
        >>> line.write({"execution.latency.delay": np.array([0.0, 0.01, 0.02, 0.03])})
        >>> line.apply(np.ones((4, 5, 1))).shape
        (4, 5, 1)
    """

    def __init__(self, stages: Sequence[Stage] = ()) -> None:
        self.stages = tuple(stages)
        names = [(s.gap, s.name) for s in self.stages]
        twice = [name for gap, name in names if names.count((gap, name)) > 1]
        if twice:
            raise ParameterError(f"two stages are named {twice[0]!r}; give one of them another `name`")

    @classmethod
    def from_config(cls, stages: Sequence[Mapping[str, Any]]) -> Chain:
        """Build a chain from `[{stage: latency, delay: 0.02}, ...]`, as a recipe holds it.

        Raises:
            RecipeError: an unknown stage or argument.
            ParameterError: an argument outside its range.
        """
        built = []
        for config in stages:
            arguments = dict(config)
            kind = str(arguments.pop("stage", ""))
            if kind not in STAGES:
                raise RecipeError(f"no stage named {kind!r}{did_you_mean(kind, STAGES)}")
            known = [f.name for f in fields(STAGES[kind])]
            for key in arguments:
                if key not in known:
                    raise RecipeError(f"stage {kind} has no argument {key!r}{did_you_mean(key, known)}")
            built.append(STAGES[kind](**arguments))
        return cls(built)

    def nominal(self) -> dict[str, float]:
        """Return every parameter's nominal value: name -> number."""
        return {name: value for stage in self.stages for name, value in stage.nominal().items()}

    def units(self) -> dict[str, str]:
        """Return every parameter's unit: name -> unit."""
        return {s.parameter(f): field.unit for s in self.stages for f, field in s.FIELDS.items()}

    @property
    def feedback(self) -> bool:
        """Whether a stage needs the plant's motion, so that substeps go through one at a time."""
        return any(s.feedback for s in self.stages)

    @property
    def longest_delay(self) -> float:
        """The most that its delay lines can hold a signal back, together [s]."""
        return sum(s.longest for s in self.stages if isinstance(s, Latency))

    def bind(self, n: int, width: int, dt: float, like: Signal | None = None) -> BoundChain:
        """Return the chain for n signals of `width` channels at substeps of `dt` seconds.

        Args:
            n: number of signals.
            width: channels of each.
            dt: length of a substep [s].
            like: an array whose namespace, type and device the signals have; float64 numpy by default.
        """
        return BoundChain(self, n, width, dt, np.zeros(0) if like is None else like)

    def __repr__(self) -> str:
        return f"Chain({', '.join(repr(s) for s in self.stages)})"


class BoundChain:
    """A chain at work on n signals: a `ParameterStore` with state."""

    def __init__(self, chain: Chain, n: int, width: int, dt: float, like: Signal) -> None:
        self.chain, self.n, self.width, self.dt = chain, n, width, dt
        self._xp = array_api_compat.array_namespace(like)
        self._like = like
        self._values = {name: self._full(value) for name, value in chain.nominal().items()}
        self._states = self._initial()

    def _full(self, value: float) -> Signal:
        device = array_api_compat.device(self._like)
        return self._xp.full((self.n, 1), value, dtype=self._like.dtype, device=device)

    def _context(self, stage: Stage, plant: PlantView | None = None) -> Context:
        parameters = {f: self._values[stage.parameter(f)] for f in stage.FIELDS}
        return Context(dt=self.dt, parameters=parameters, xp=self._xp, plant=plant)

    def _initial(self) -> list[State]:
        states, width = [], self.width
        for stage in self.chain.stages:
            states.append(stage.init(self.n, width, self._context(stage)))
            width = stage.output_width(width)
        return states

    def nominal(self) -> dict[str, float]:
        return self.chain.nominal()

    def units(self) -> dict[str, str]:
        return self.chain.units()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_xp": None}  # a module

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_xp": array_api_compat.array_namespace(state["_like"])}

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take."""
        out = {s.parameter(f): (field.low, field.high) for s in self.chain.stages for f, field in s.FIELDS.items()}
        for stage in self.chain.stages:
            if isinstance(stage, Latency):
                out[stage.parameter("delay")] = (0.0, stage.longest)
        return out

    def write(self, values: Mapping[str, Signal], mask: NDArray[np.bool_] | None = None) -> None:
        """Write parameters: name -> (n,), or (n, width) for one value a channel; in the rows that `mask` (n,) selects.

        Raises:
            ParameterError: an unknown name, a wrong shape, or a value outside the field's range.
        """
        xp = self._xp
        ranges = {s.parameter(f): field for s in self.chain.stages for f, field in s.FIELDS.items()}
        device, checked = array_api_compat.device(self._like), {}
        for name, value in values.items():
            if name not in ranges:
                raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, ranges)}")
            new = xp.asarray(value, dtype=self._like.dtype, device=device, copy=True)
            if tuple(new.shape) not in ((self.n,), (self.n, 1), (self.n, self.width)):
                raise ParameterError(
                    f"{name}: expected ({self.n},) or ({self.n}, {self.width}) values, found shape {tuple(new.shape)}"
                )
            new = new[:, None] if new.ndim == 1 else new
            field = ranges[name]
            if not bool(xp.all((new >= field.low) & (new <= field.high))):
                raise ParameterError(
                    f"{name}: expected values in [{field.low:g}, {field.high:g}] {field.unit}, found one outside or NaN"
                )
            if mask is not None:
                new = xp.where(xp.asarray(mask, device=device)[:, None], new, self._values[name])
            checked[name] = new
        self._values.update(checked)

    def read(self) -> dict[str, Signal]:
        """Return what is in force: name -> (n,), or (n, width) where channels differ."""
        copies = {k: self._xp.asarray(v, copy=True) for k, v in self._values.items()}
        return {k: v[:, 0] if v.shape[1] == 1 else v for k, v in copies.items()}

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Iterable[str] | None = None) -> None:
        """Put all parameters, or `names`, back to their nominal values, in the rows that `mask` (n,) selects."""
        nominal = self.nominal()
        chosen = nominal.keys() if names is None else nominal.keys() & set(names)
        self.write({name: self._full(nominal[name])[:, 0] for name in chosen}, mask)

    def reset(self, mask: NDArray[np.bool_] | None = None) -> None:
        """Put the rows that `mask` (n,) selects back to rest, all by default."""
        if mask is None:
            self._states = self._initial()
            return
        rows = self._xp.asarray(mask, device=array_api_compat.device(self._like))
        self._states = [
            stage.reset(state, rows, self._context(stage))
            for stage, state in zip(self.chain.stages, self._states, strict=True)
        ]

    def apply(self, signal: Signal, plant: PlantView | None = None) -> Signal:
        """Pass `signal` (n, K, width), one row a substep, through every stage: (n, K, width')."""
        for i, stage in enumerate(self.chain.stages):
            self._states[i], signal = stage.apply(self._states[i], signal, self._context(stage, plant))
        return signal
