"""A chain compiled to one loop: the kernels of its stages, one after the other, for one signal and channel at a time.

numba compiles the same kernels that numpy and torch apply to whole arrays; delay lines become rings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.adapters import noise
from sim2real.adapters.chain import BoundChain, Chain, ChainState
from sim2real.adapters.delay import Latency
from sim2real.adapters.stage import PlantView, Signal, Stage, State
from sim2real.errors import ParameterError, require
from sim2real.randomization.mujoco_simulator import available_threads

Array = NDArray[np.float64]
ENOUGH = 4096  # numbers in a call from which a second thread pays


class FusedChain(BoundChain):
    """A `BoundChain` in float64 numpy that is compiled at its first call, which takes some seconds.

    Args:
        chain, n, width, dt, seed: as for `Chain.bind`.
        threads: to run on where there are many signals; 0 means all the cores of this process.

    Raises:
        ParameterError: stages that are no functions of one substep and no plain delay.
        MissingExtraError: numba is not installed.
    """

    def __init__(self, chain: Chain, n: int, width: int, dt: float, seed: int = 0, threads: int = 0) -> None:
        require("numba", "fused")
        for stage in chain.stages:
            if isinstance(stage, Latency) and type(stage)._received is not Latency._received:
                raise ParameterError(
                    f"{stage.gap}.{stage.name}: packets cannot be fused into a loop; bind the chain without fused=True"
                )
        super().__init__(chain, n, width, dt, np.zeros(0), seed)
        self.threads = threads or available_threads()
        # threads of Python, which wait asleep: those of OpenMP spin, and take the cores from the engine
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._parts = self._cut()
        self.reset()

    def _cut(self) -> list[_Part]:
        """Cut the chain behind the stages that append channels."""
        parts, first = [], 0
        for i, stage in enumerate(self.chain.stages):
            if stage.appends or i == len(self.chain.stages) - 1:
                parts.append(_Part(self, first, i + 1))
                first = i + 1
        return parts

    def write(self, values: Any, mask: NDArray[np.bool_] | None = None) -> None:
        super().write(values, mask)
        self._forget()

    def seed(self, seeds: Sequence[int] | NDArray[np.int_], mask: NDArray[np.bool_] | None = None) -> None:
        super().seed(seeds, mask)
        self._forget()

    def load(self, saved: Any) -> None:
        super().load(saved)
        self._forget()

    def _forget(self) -> None:
        """Let the loops be given new numbers: parameters or seeds are others now."""
        for part in self._parts:
            part.stale = True

    def reset(self, mask: NDArray[np.bool_] | None = None) -> None:
        rows = slice(None) if mask is None else self._rows(mask)
        for part in self._parts:
            part.memory[rows] = 0.0
            part.seen[rows] = 0
            for line in part.lines:
                line[rows] = 0.0

    @property
    def state(self) -> ChainState:
        return self._count, tuple(state for part in self._parts for state in part.states())

    @state.setter
    def state(self, state: ChainState) -> None:
        self._count, states = np.array(state[0], np.int64), list(state[1])
        for part in self._parts:
            part.take([states.pop(0) for _ in part.stages])

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a fused chain holds compiled code: pickle its `chain` and what `save()` returns")

    def apply(self, signal: Signal, plant: PlantView | None = None, mask: NDArray[np.bool_] | None = None) -> Array:
        if mask is not None:
            before = self.state
            signal = self.apply(signal, plant)
            self.state = self._merged(self._rows(mask), self.state, before)
            return signal  # type: ignore[no-any-return]
        self._check_shape(signal)
        if self.chain.feedback and (plant is None or signal.shape[1] != 1):
            raise ParameterError("a chain with feedback needs the plant's motion, one substep at a time")
        motion = () if plant is None else (plant.position, plant.velocity, plant.effective_inertia, plant.load)
        for part in self._parts:
            signal = part.run(signal, self._count, motion if part.feedback else ())
        if self._draws:
            self._count = self._count + signal.shape[1]
        return signal  # type: ignore[no-any-return]


class _Part:
    """Stages in a row on signals of one width, at most the last of which appends channels."""

    def __init__(self, line: FusedChain, first: int, stop: int) -> None:
        self._line, self._slots = line, range(first, stop)
        self.stages: tuple[Stage, ...] = line.chain.stages[first:stop]
        n, self.width = line.n, line._widths[first]
        self.feedback = any(stage.feedback for stage in self.stages)
        self.memory = np.zeros((n, self.width, sum(s.memory for s in self.stages)))
        self.lines = [np.zeros((n, self.width, s.length(line.dt) + 1)) for s in self.stages if isinstance(s, Latency)]
        self.seen = np.zeros(n, np.int64)
        self.head, self.stale = 0, True
        self._loop: Any = None
        self._source, self._names = _write(self.stages, [len(line._contexts[i].coefficients) for i in self._slots])

    def _pack(self) -> None:
        contexts = [self._line._contexts[i] for i in self._slots]
        shape = (self._line.n, self.width)
        numbers = [np.broadcast_to(c, shape) for context in contexts for c in context.coefficients]
        self._numbers = np.stack(numbers, -1).astype(float) if numbers else np.zeros((*shape, 0))
        streams = [pair for context in contexts for pair in context.identities]
        self._keys = np.stack([key for key, _ in streams], 1) if streams else np.zeros((shape[0], 0), np.int64)
        self._lanes = np.stack([lane for _, lane in streams], 1) if streams else np.zeros((shape[0], 0), np.int64)
        self.stale = False

    def run(self, signal: Signal, count: NDArray[np.int64], motion: tuple[Array, ...]) -> Array:
        if self.stale:
            self._pack()
        n, steps, width = signal.shape
        out = np.empty((n, steps, 2 * width if self.stages[-1].appends else width))
        if self._loop is None:
            self._loop = _compile(self._source, self._names)
        random = (self._keys, self._lanes, count) if self._keys.shape[1] else ()
        rings = (self.head, self.seen, *self.lines) if self.lines else ()
        given = (signal, out, self.memory, self._numbers, *random, *motion, *rings)
        pool = self._line.pool
        if pool is None or n * steps * width < ENOUGH:
            self._loop(0, n, *given)
        else:
            edges = np.linspace(0, n, self._line.threads + 1).astype(int).tolist()
            for done in [pool.submit(self._loop, a, b, *given) for a, b in itertools.pairwise(edges)]:
                done.result()
        self.head += steps
        self.seen += steps
        return out

    def states(self) -> list[State]:
        """Return the states of its stages as a chain that is not fused holds them."""
        out: list[State] = []
        lines, at = iter(self.lines), 0
        for stage in self.stages:
            if isinstance(stage, Latency):
                line = next(lines)
                size, length = line.shape[2], stage.length(self._line.dt)
                order = (self.head - length + np.arange(length)) % size
                seen = np.broadcast_to(self.seen[:, None, None].astype(float), (len(line), 1, self.width)).copy()
                out.append((line[:, :, order].swapaxes(1, 2).copy(), seen))
            else:
                out.append(tuple(self.memory[:, :, at + k].copy() for k in range(stage.memory)))
                at += stage.memory
        return out

    def take(self, states: list[State]) -> None:
        """Put its stages into states as a chain that is not fused holds them."""
        lines, at = iter(self.lines), 0
        self.head = 0
        for stage, state in zip(self.stages, states, strict=True):
            if isinstance(stage, Latency):
                line = next(lines)
                size, length = line.shape[2], stage.length(self._line.dt)
                line[...] = 0.0
                line[:, :, np.arange(-length, 0) % size] = np.asarray(state[0]).swapaxes(1, 2)
                self.seen = np.asarray(state[1])[:, 0, 0].astype(np.int64)
            else:
                for k in range(stage.memory):
                    self.memory[:, :, at + k] = state[k]
                at += stage.memory


def _write(stages: Sequence[Stage], coefficients: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Return the source of the loop of stages with so many coefficients each, and what its names stand for."""
    from numba import njit

    from sim2real.adapters import scalars

    names: dict[str, Any] = {"np": np, "TINY": noise.TINY}
    load, body, store = [], [], []
    memory = number = draw = lines = 0
    for q, stage in enumerate(stages):
        if isinstance(stage, Latency):
            load += [f"d{q} = int(numbers[i, j, {number}])", f"f{q} = numbers[i, j, {number + 1}]"]
            number += 2
            line, size = f"line{lines}", f"line{lines}.shape[2]"
            lines += 1
            fill = [f"if k == 0 and seen[i] == 0: {line}[i, j, :] = u"] if stage.start == "hold" else []
            code = [
                *fill,
                f"at = (head + k) % {size}",
                f"{line}[i, j, at] = u",
                f"near = {line}[i, j, (at - d{q}) % {size}]",
                f"y = near + f{q} * ({line}[i, j, (at - d{q} - 1) % {size}] - near)",
            ]
        else:
            names[f"kernel{q}"] = njit(stage.kernel(scalars))
            held = [f"m{memory + k}" for k in range(stage.memory)]
            load += [f"m{memory + k} = memory[i, j, {memory + k}]" for k in range(stage.memory)]
            store += [f"memory[i, j, {memory + k}] = m{memory + k}" for k in range(stage.memory)]
            many = coefficients[q]
            load += [f"c{number + k} = numbers[i, j, {number + k}]" for k in range(many)]
            given = [f"c{number + k}" for k in range(many)]
            code, drawn = [], []
            for kind in stage.DRAWS:
                channel = "" if stage.together else " + j"
                code.append(f"left, right = words(keys[i, {draw}], lanes[i, {draw}]{channel}, count[i] + k)")
                uniform = "((left >> 8) + 0.5) * TINY"
                if kind == "normals":
                    code += [
                        f"radius = np.sqrt(-2.0 * np.log({uniform}))",
                        "angle = TURN * (((right >> 8) + 0.5) * TINY)",
                        f"e{draw}, o{draw} = radius * np.cos(angle), radius * np.sin(angle)",
                    ]
                    drawn += [f"e{draw}", f"o{draw}"]
                else:
                    code.append(f"e{draw} = {uniform}")
                    drawn.append(f"e{draw}")
                draw += 1
            motion = "(q[i, j], v[i, j], inertia[i, j], load[i, j])" if stage.feedback else "()"
            code.append(f"y, s = kernel{q}(u, {_tuple(held)}, {_tuple(given)}, {_tuple(drawn)}, {motion})")
            code += [f"{name} = s[{k}]" for k, name in enumerate(held)]
            memory, number = memory + stage.memory, number + many
        body += code
        if stage.appends:
            body += ["out[i, k, j] = u", "out[i, k, width + j] = y"]
        elif stage.channels is not None:
            body += [f"if {' or '.join(f'j == {c}' for c in stage.channels)}: u = y"]
        else:
            body += ["u = y"]
    if not stages[-1].appends:
        body += ["out[i, k, j] = u"]
    names |= {"words": njit(noise.words), "TURN": 2.0 * np.pi}
    arguments = ["signal", "out", "memory", "numbers"]
    arguments += ["keys", "lanes", "count"] if draw else []
    arguments += ["q", "v", "inertia", "load"] if any(stage.feedback for stage in stages) else []
    arguments += ["head", "seen", *(f"line{k}" for k in range(lines))] if lines else []
    text = [
        f"def loop(first, last, {', '.join(arguments)}):",
        " _, steps, width = signal.shape",
        " for i in range(first, last):",
        "  for j in range(width):",
        *(f"   {row}" for row in load),
        "   for k in range(steps):",
        "    u = signal[i, k, j]",
        *(f"    {row}" for row in body),
        *(f"   {row}" for row in store),
    ]
    return "\n".join(text), names


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _compile(source: str, names: dict[str, Any]) -> Any:
    import numba

    scope = dict(names)
    exec(compile(source, "<fused chain>", "exec"), scope)
    return numba.njit(nogil=True, error_model="numpy")(scope["loop"])
