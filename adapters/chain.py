"""A chain of stages: the same object in identification, in simulation, in a twin and in front of hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from sim2real.adapters import noise
from sim2real.adapters.actuators import (
    DCMotor,
    Drive,
    FirstOrderLag,
    Friction,
    RateLimit,
    SecondOrderLag,
    ServoFriction,
    ThermalDerating,
    TorqueLimit,
    TorqueSpeed,
    VoltageSag,
)
from sim2real.adapters.delay import Latency, PacketLatency
from sim2real.adapters.sensors import Bias, Drift, FilteredDifference
from sim2real.adapters.signals import (
    Backlash,
    DeadZone,
    Gain,
    Hold,
    Noise,
    Quantization,
    Resolution,
    Saturation,
    Stuck,
)
from sim2real.adapters.stage import Context, PlantView, Signal, Stage, State, choose, plain
from sim2real.errors import ParameterError, RecipeError, did_you_mean

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        Latency,
        PacketLatency,
        Hold,
        Stuck,
        Resolution,
        Noise,
        Gain,
        Saturation,
        DeadZone,
        Backlash,
        RateLimit,
        FirstOrderLag,
        SecondOrderLag,
        Drive,
        VoltageSag,
        DCMotor,
        TorqueSpeed,
        ThermalDerating,
        TorqueLimit,
        Friction,
        ServoFriction,
        Quantization,
        Bias,
        Drift,
        FilteredDifference,
    )
}


def register_stage(stage: type[Stage]) -> type[Stage]:
    """Let recipes, `Chain.from_config` and wrappers find a stage of one's own by its `kind`; a decorator of the class.

    Raises:
        ParameterError: there is another stage of that kind.
    """
    known = STAGES.setdefault(stage.kind, stage)
    if (known.__module__, known.__qualname__) != (stage.__module__, stage.__qualname__):
        raise ParameterError(f"there is a stage {stage.kind!r} already, {known.__qualname__}; give yours another kind")
    STAGES[stage.kind] = stage
    return stage


# Counts and states of all stages: what a chain at work is, beside its parameters.
ChainState = tuple[Signal, tuple[State, ...]]


class Chain:
    """Stages in the order in which the signal meets them, with their nominal parameters.

    Args:
        stages: in order.
        unit: of the signal that comes in, where it is known: "V", "N·m", "rad". Units are checked along the chain.

    Raises:
        ParameterError: two stages of one name, or an order that cannot be.

    Example:
        >>> chain = Chain([Latency(delay=0.02), DeadZone(width=0.1)])
        >>> line = chain.bind(n=4, width=1, dt=0.001)
        >>> line.write({"execution.latency.delay": np.array([0.0, 0.01, 0.02, 0.03])})
        >>> line.apply(np.ones((4, 5, 1))).shape
        (4, 5, 1)
    """

    def __init__(self, stages: Sequence[Stage] = (), unit: str | None = None) -> None:
        self.stages = tuple(stages)
        self._check_order(unit)
        names = [(s.gap, s.name) for s in self.stages]
        twice = [name for gap, name in names if names.count((gap, name)) > 1]
        if twice:
            raise ParameterError(f"two stages are named {twice[0]!r}; give one of them another `name`")

    def _check_order(self, unit: str | None) -> None:
        """Refuse orders that cannot be: of units, of execution and perception, and of what acts at the joint itself."""
        given_by = "the command"
        for before, stage in zip((None, *self.stages), self.stages, strict=False):
            if before is not None and (before.gap, stage.gap) == ("perception", "execution"):
                raise ParameterError(
                    f"stage {stage.name} of the execution comes after {before.name} of the perception; a command meets "
                    "its stages before the plant, a reading after it: make two chains"
                )
            if before is not None and before.last and not stage.last and stage.gap == "execution":
                raise ParameterError(
                    f"stage {before.name} acts at the joint itself, so that nothing can come between: put "
                    f"{stage.name} in front of it"
                )
            if (
                before is not None
                and before.native
                and (not stage.native or (stage.ENGINE or 0) <= (before.ENGINE or 0))
            ):
                raise ParameterError(
                    f"stage {before.name} is native, and MuJoCo models a latency, then a torque limit, then friction, "
                    f"behind all else: {stage.name} cannot come after it"
                )
            if unit and stage.takes and stage.takes != unit:
                raise ParameterError(
                    f"stage {stage.name} takes {stage.takes}, but {given_by} is in {unit}; change the order, or put a "
                    f'gain with to: "{stage.takes}" between them'
                )
            if known := stage.gives or stage.takes:
                unit, given_by = known, f"what comes out of {stage.name}"

    @classmethod
    def from_config(cls, stages: Sequence[Mapping[str, Any]], gap: str = "") -> Chain:
        """Build a chain from `[{stage: latency, delay: 0.02}, ...]`, as a recipe holds it.

        Args:
            stages: in order.
            gap: "execution" or "perception", of those stages that can be in both and do not say.

        Raises:
            RecipeError: an unknown stage or argument.
            ParameterError: an argument outside its range.
        """
        if isinstance(stages, str | Mapping) or not all(isinstance(config, Mapping) for config in stages):
            raise RecipeError(f"expected a list of stages such as [{{stage: latency, delay: 0.02}}], found {stages!r}")
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
            if gap in STAGES[kind].GAPS:
                arguments.setdefault("gap", gap)
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
    def native(self) -> tuple[Stage, ...]:
        """The stages that MuJoCo models, where it simulates what comes after the chain."""
        return tuple(s for s in self.stages if s.native)

    def outside_engine(self) -> Chain:
        """Return the chain of the stages that are not native."""
        return Chain([s for s in self.stages if not s.native]) if self.native else self

    @property
    def takes(self) -> str | None:
        """The unit of what comes in, where the stages say."""
        for stage in self.stages:
            if stage.takes or stage.gives:
                return stage.takes
        return None

    @property
    def in_effort(self) -> bool:
        """Whether what comes out is the effort at a joint, and not whatever came in."""
        return self.feedback or any("N·m" in (stage.takes, stage.gives) for stage in self.stages)

    @property
    def gives(self) -> str | None:
        """The unit that comes out, where the stages say."""
        return next((unit for stage in reversed(self.stages) if (unit := stage.gives or stage.takes)), None)

    @property
    def longest_delay(self) -> float:
        """The most that its delay lines can hold a signal back, together [s]."""
        return sum(s.longest for s in self.stages if isinstance(s, Latency))

    def bind(
        self, n: int, width: int, dt: float, like: Signal | None = None, seed: int = 0, fused: bool = False
    ) -> BoundChain:
        """Return the chain for n signals of `width` channels at substeps of `dt` seconds.

        Args:
            n: number of signals.
            width: channels of each.
            dt: length of a substep [s].
            like: an array whose namespace, type and device the signals have; float64 numpy by default.
            seed: of what is random; signal i is seeded with `seed + i`.
            fused: compile the chain to one loop with numba; for numpy in float64, without `packets`. Several times as
                fast, but compiling takes some seconds.

        Raises:
            ParameterError: no signal, no channel or no substep.
        """
        if n < 1 or width < 1 or not (np.isfinite(dt) and dt > 0):
            raise ParameterError(
                f"a chain is bound to at least one signal and channel and a substep above 0 s; found n={n}, "
                f"width={width}, dt={dt}"
            )
        if fused:
            from sim2real.adapters.fused import FusedChain

            if like is not None and not (isinstance(like, np.ndarray) and like.dtype == np.float64):
                raise ParameterError("a fused chain is for numpy arrays of float64; bind without fused=True for others")
            return FusedChain(self, n, width, dt, seed)
        return BoundChain(self, n, width, dt, np.zeros(0) if like is None else like, seed)

    def __repr__(self) -> str:
        return f"Chain({', '.join(repr(s) for s in self.stages)})"


class BoundChain:
    """A chain at work on n signals: a `ParameterStore` with state."""

    def __init__(self, chain: Chain, n: int, width: int, dt: float, like: Signal, seed: int = 0) -> None:
        self.chain, self.n, self.width, self.dt = chain, n, width, dt
        self._xp = array_api_compat.array_namespace(like)
        self._like = like
        self._widths = [width]
        for stage in chain.stages:
            self._widths.append(stage.output_width(self._widths[-1]))
        self._draws = any(stage.DRAWS for stage in chain.stages)
        self._values = {name: self._full(value) for name, value in chain.nominal().items()}
        self._seeds = np.arange(seed, seed + n, dtype=np.int64).astype(np.uint64)
        self._contexts = [self._context(stage) for stage in chain.stages]
        self._count = self._integers(np.zeros(n, np.int64))
        self._states = self._initial()

    def _full(self, value: float) -> Signal:
        device = array_api_compat.device(self._like)
        return self._xp.full((self.n, 1), value, dtype=self._like.dtype, device=device)

    def _integers(self, values: NDArray[np.int64]) -> Signal:
        return self._xp.asarray(values, dtype=self._xp.int64, device=array_api_compat.device(self._like))

    def _context(self, stage: Stage, plant: PlantView | None = None) -> Context:
        """Return what surrounds a stage; what follows from parameters and seeds is computed here, once."""
        parameters = {f: self._values[stage.parameter(f)] for f in stage.FIELDS}
        width = self._widths[self.chain.stages.index(stage)] if stage in self.chain.stages else self.width
        channels = None
        if stage.channels is not None:
            if max(stage.channels) >= width:
                raise ParameterError(
                    f"{stage.gap}.{stage.name}: acts on channel {max(stage.channels)}, counted from 0, but "
                    f"the signal has {width}"
                )
            chosen = np.isin(np.arange(width), stage.channels)
            channels = self._xp.asarray(chosen, device=array_api_compat.device(self._like))
        streams = [noise.identities(self._seeds, f"{stage.gap}.{stage.name}.{k}") for k in range(len(stage.DRAWS))]
        context = Context(
            dt=self.dt,
            parameters=parameters,
            xp=self._xp,
            kernel=None if isinstance(stage, Latency) else stage.kernel(self._xp),
            identities=tuple((self._integers(key), self._integers(lane)) for key, lane in streams),
            channels=channels,
            plant=plant,
            count=self._integers(np.zeros(self.n, np.int64)),
        )
        context.update(parameters, stage.coefficients(self._xp, self.dt, parameters))
        stage.prepare(context)
        return context

    def _initial(self) -> tuple[State, ...]:
        return tuple(
            stage.init(self.n, width, context)
            for stage, width, context in zip(self.chain.stages, self._widths[:-1], self._contexts, strict=True)
        )

    def nominal(self) -> dict[str, float]:
        return self.chain.nominal()

    def units(self) -> dict[str, str]:
        return self.chain.units()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_xp": None, "_contexts": None}  # modules and functions

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_xp": array_api_compat.array_namespace(state["_like"])}
        self._contexts = [self._context(stage) for stage in self.chain.stages]

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the smallest and largest value that each parameter may take."""
        return {name: both for stage in self.chain.stages for name, both in stage.limits().items()}

    def write(self, values: Mapping[str, Signal], mask: NDArray[np.bool_] | None = None) -> None:
        """Write parameters: name -> (n,), or (n, width) for one value a channel; in the rows that `mask` (n,) selects.

        Gradients flow through tensors that are written.

        Raises:
            ParameterError: an unknown name, a wrong shape, or a value outside the field's range. Nothing is written.
        """
        xp = self._xp
        stages = self.chain.stages
        owners = {s.parameter(f): (i, f) for i, s in enumerate(stages) for f in s.FIELDS}
        device, checked = array_api_compat.device(self._like), {}
        for name, value in values.items():
            if name not in owners:
                raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, owners)}")
            at, key = owners[name]
            if array_api_compat.is_torch_array(value) and array_api_compat.is_torch_array(self._like):
                new = value.to(device=device, dtype=self._like.dtype).clone()
            else:
                new = xp.asarray(value, dtype=self._like.dtype, device=device, copy=True)
            width = self._widths[at]
            if tuple(new.shape) not in ((self.n,), (self.n, 1), (self.n, width)):
                raise ParameterError(
                    f"{name}: expected ({self.n},) or ({self.n}, {width}) values, found shape {tuple(new.shape)}"
                )
            new = new[:, None] if new.ndim == 1 else new
            field = stages[at].FIELDS[key]
            if not bool(xp.all((new >= field.low) & (new <= field.high))):
                raise ParameterError(
                    f"{name}: expected values in [{field.low:g}, {field.high:g}] {field.unit}, found one outside or NaN"
                )
            if mask is not None:
                new = xp.where(self._rows(mask)[:, None], new, self._values[name])
            checked[name] = new
        touched = sorted({owners[name][0] for name in checked})
        for at in touched:
            names = {f: stages[at].parameter(f) for f in stages[at].FIELDS}
            stages[at].check({f: checked.get(name, self._values[name]) for f, name in names.items()})
        self._values.update(checked)
        for at in touched:
            context, stage = self._contexts[at], stages[at]
            parameters = {f: self._values[stage.parameter(f)] for f in stage.FIELDS}
            context.update(parameters, stage.coefficients(xp, self.dt, parameters))
            stage.prepare(context)

    def read(self) -> dict[str, Signal]:
        """Return what is in force: name -> (n,), or (n, width) where channels differ."""
        copies = {k: self._xp.asarray(v, copy=True) for k, v in self._values.items()}
        return {k: v[:, 0] if v.shape[1] == 1 else v for k, v in copies.items()}

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Iterable[str] | None = None) -> None:
        """Put all parameters, or `names`, back to their nominal values, in the rows that `mask` (n,) selects."""
        nominal = self.nominal()
        chosen = nominal.keys() if names is None else nominal.keys() & set(names)
        self.write({name: self._full(nominal[name])[:, 0] for name in chosen}, mask)

    def seed(self, seeds: Sequence[int] | NDArray[np.int_], mask: NDArray[np.bool_] | None = None) -> None:
        """Begin what is random anew: `seeds` (n,), whole numbers of up to 64 bits; in the rows of `mask`, or all."""
        if np.shape(seeds) != (self.n,):
            raise ParameterError(f"expected a seed for each of {self.n} signals, found shape {np.shape(seeds)}")
        rows = np.ones(self.n, bool) if mask is None else np.asarray(mask)
        self._rows(rows)
        new = np.array([int(s) % 2**64 for s in seeds], np.uint64)
        self._seeds = np.where(rows, new, self._seeds)
        self._contexts = [self._context(stage) for stage in self.chain.stages]
        self._count = self._xp.where(self._rows(rows), self._integers(np.zeros(self.n, np.int64)), self._count)

    def _rows(self, mask: NDArray[np.bool_]) -> Signal:
        found = np.asarray(plain(mask))
        if found.dtype != np.bool_ or found.shape != (self.n,):
            raise ParameterError(f"a mask is ({self.n},) booleans, found {found.dtype} of shape {found.shape}")
        return self._xp.asarray(mask, device=array_api_compat.device(self._like))

    def reset(self, mask: NDArray[np.bool_] | None = None) -> None:
        """Put the rows that `mask` (n,) selects back to rest, all by default. What is random goes on; see `seed`."""
        if mask is None:
            self._states = self._initial()
            return
        rows = self._rows(mask)
        self._states = tuple(
            stage.reset(state, rows, context)
            for stage, state, context in zip(self.chain.stages, self._states, self._contexts, strict=True)
        )

    @property
    def state(self) -> ChainState:
        """What it is in the midst of: the count of substeps (n,) and the states of the stages."""
        return self._count, self._states

    @state.setter
    def state(self, state: ChainState) -> None:
        self._count, self._states = state

    def save(self) -> dict[str, NDArray[Any]]:
        """Return state, seeds and parameters as plain arrays, for `numpy.savez` or a checkpoint."""
        count, states = self.state
        out = {f"state.{i}.{k}": np.array(plain(x)) for i, state in enumerate(states) for k, x in enumerate(state)}
        out |= {f"parameter.{name}": np.array(plain(value)) for name, value in self._values.items()}
        return out | {"count": np.array(plain(count)), "seeds": self._seeds.copy(), "substep": np.array(self.dt)}

    def load(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go on where another chain of the same stages, rows and channels was when it was saved.

        Raises:
            ParameterError: it was another chain.
        """
        mine = self.save()
        if saved.keys() != mine.keys():
            raise ParameterError(
                f"what was saved is of another chain: expected {', '.join(mine)}; found {', '.join(saved)}"
            )
        for name, value in mine.items():
            if name[0] == "s" and saved[name].shape != value.shape:
                raise ParameterError(
                    "what was saved is of other rows, channels or delay lines: expected "
                    f"{name} of shape {value.shape}, found {saved[name].shape}"
                )
        if (substep := float(saved["substep"])) != self.dt:
            raise ParameterError(f"what was saved ran at substeps of {substep} s, this chain does at {self.dt} s")
        device = array_api_compat.device(self._like)

        def back(name: str) -> Signal:
            return self._xp.asarray(saved[name], dtype=self._like.dtype, device=device, copy=True)

        self._seeds = np.asarray(saved["seeds"], np.uint64)
        self._values = {name: back(f"parameter.{name}") for name in self._values}
        self._contexts = [self._context(stage) for stage in self.chain.stages]
        states = tuple(
            tuple(back(f"state.{i}.{k}") for k in range(len(state))) for i, state in enumerate(self.state[1])
        )
        self.state = self._integers(np.asarray(saved["count"], np.int64)), states

    def transform(self, state: ChainState, signal: Signal, plant: PlantView | None = None) -> tuple[ChainState, Signal]:
        """Return the state after `signal` (n, K, width), one row a substep, and what comes out: (n, K, width').

        Pure; `torch.compile` and `torch.func` take it.
        """
        count, states = state
        out = []
        for stage, before, context in zip(self.chain.stages, states, self._contexts, strict=True):
            context.plant, context.count = plant, count
            after, signal = stage.apply(before, signal, context)
            out.append(after)
        return (count + signal.shape[1] if self._draws else count, tuple(out)), signal

    def apply(self, signal: Signal, plant: PlantView | None = None, mask: NDArray[np.bool_] | None = None) -> Signal:
        """Pass `signal` (n, K, width), one row a substep, through every stage: (n, K, width').

        Rows outside of `mask` (n,) are as if nothing had been sent; what is returned for them means nothing.

        Raises:
            ParameterError: a signal of another shape, or a stage that needs the motion of a plant and is not given it.
        """
        self._check_shape(signal)
        before = self.state
        after, signal = self.transform(before, signal, plant)
        if mask is not None:
            rows = self._rows(mask)
            after = self._merged(rows, after, before)
        self.state = after
        return signal

    def _check_shape(self, signal: Signal) -> None:
        if signal.ndim != 3 or signal.shape[0] != self.n or signal.shape[1] < 1 or signal.shape[2] != self.width:
            raise ParameterError(
                f"expected a signal ({self.n}, substeps, {self.width}), found shape {tuple(signal.shape)}"
            )

    def _merged(self, rows: Signal, yes: ChainState, no: ChainState) -> ChainState:
        states = tuple(
            tuple(choose(self._xp, rows, a, b) for a, b in zip(new, old, strict=True))
            for new, old in zip(yes[1], no[1], strict=True)
        )
        return choose(self._xp, rows, yes[0], no[0]), states
