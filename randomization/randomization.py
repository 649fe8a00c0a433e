"""Randomizations: parameters and when they are drawn, as values; and the object that carries them out on n plants."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError
from sim2real.randomization.addressing import BoundParameters, match_names, silent_names
from sim2real.randomization.curriculum import Annealing, Automatic, Curriculum, parse_curriculum
from sim2real.randomization.distributions import parse_distribution
from sim2real.randomization.joint import SYMBOL, JointEmpirical, JointNormal
from sim2real.randomization.parameters import Array, Parameter, ParameterSet, ParameterStore
from sim2real.randomization.schedules import Schedule, Uniform, parse_schedule

When = Literal["startup", "reset"] | Schedule | Curriculum


@dataclass(frozen=True)
class Randomization:
    """Parameters, and when they are drawn.

    Attributes:
        parameters: whose names may be patterns.
        when: "startup" draws once, when the environment is first reset or reset with a seed; "reset" before every
            episode; a `Schedule` before every episode and moves within it; a `Curriculum` before every episode, and
            what it draws changes as a training gets on.

    Raises:
        ParameterError: another `when`, or a schedule that moves joint samples, between which there is no way.

    Example:
        >>> Randomization(ParameterSet.parse({"dynamics.*.mass": "*U(0.8, 1.2) each"}))
        Randomization(parameters=ParameterSet(dynamics.*.mass *U(0.8, 1.2) each), when='reset')
    """

    parameters: ParameterSet
    when: When = "reset"

    def __post_init__(self) -> None:
        if not isinstance(self.when, Schedule | Curriculum) and self.when not in ("startup", "reset"):
            raise ParameterError(f"when is startup, reset, a schedule or a curriculum, found {self.when!r}")
        moves = isinstance(self.when, Schedule) and not isinstance(self.when, Uniform)
        if moves and isinstance(self.parameters, JointEmpirical):
            raise ParameterError("joint samples can be drawn at startup, reset or interval, not moved by a schedule")

    def to_config(self) -> dict[str, Any]:
        """Return what `parse_randomizations` reads, as plain data."""
        when = self.when if isinstance(self.when, str) else self.when.to_config()
        if isinstance(self.parameters, JointEmpirical):
            units = {p.name: p.unit for p in self.parameters}
            return {"samples": self.parameters.samples.tolist(), "units": units, "when": when}
        return {"parameters": self.parameters.notations(), "when": when}


Randomizations = (
    Randomization
    | ParameterSet
    | Annealing
    | Mapping[str, str]
    | Sequence[Randomization | ParameterSet | Annealing | Mapping[str, Any]]
)


def parse_randomizations(source: Randomizations) -> tuple[Randomization, ...]:
    """Read randomizations from what people write.

    Args:
        source: `{name: notation}`, drawn at every reset; a `ParameterSet` (a posterior, for instance), likewise; a
            `Randomization`; or a list of these and of `{"parameters": {name: notation}, "when": ...}`, where `when` is
            "startup", "reset", `{"interval": seconds}`, a schedule such as `{"sinusoid": {"period": 3}}`, or
            `{"automatic": {"hold": 150, "lose": 50}}`.

    Raises:
        ParameterError: something else, or a notation that cannot be read.
    """
    if isinstance(source, Randomization):
        return (source,)
    if isinstance(source, ParameterSet):
        return (Randomization(source),)
    if isinstance(source, Annealing):
        return (Randomization(source.parameters, source),)
    items: Any = source
    if isinstance(source, Mapping):
        grouped = "parameters" in source or "samples" in source
        items = [source if grouped else {"parameters": source}] if source else []
    if not isinstance(items, list | tuple):
        raise ParameterError(f"expected {{name: notation}} or a list of randomizations, found {source!r}")
    out: list[Randomization] = []
    for item in items:
        if isinstance(item, Randomization | ParameterSet | Annealing):
            out.extend(parse_randomizations(item))
        elif isinstance(item, Mapping):
            out.extend(_parse_group(item))
        else:
            raise ParameterError(f"expected a randomization, found {item!r}")
    return tuple(out)


def _parse_group(group: Mapping[str, Any]) -> list[Randomization]:
    unknown = sorted(set(group) - {"parameters", "when", "samples", "units"})
    if unknown:
        raise ParameterError(f"a randomization has the keys parameters and when, found {unknown[0]!r}")
    when = group.get("when", "reset")
    if isinstance(when, Mapping):
        when = parse_curriculum(when) if Automatic.kind in when else parse_schedule(when)
    if "samples" in group:
        try:
            samples, units = np.array(group["samples"], float), dict(group["units"])
        except KeyError:
            raise ParameterError("samples need units: {name: unit}, one for each column") from None
        except (TypeError, ValueError):
            raise ParameterError("samples are rows of numbers, all of one length, and units {name: unit}") from None
        if samples.ndim != 2 or samples.shape[1] != len(units) or not np.isfinite(samples).all() or not len(samples):
            raise ParameterError(f"samples must be finite, (S, {len(units)}) for as many units; found {samples.shape}")
        marginals = (parse_distribution(f"N({column.mean()}, {column.std() or 1.0})") for column in samples.T)
        parameters = tuple(
            Parameter(name=name, unit=unit, distribution=d)
            for (name, unit), d in zip(units.items(), marginals, strict=True)
        )
        return [Randomization(JointEmpirical(parameters, samples), when)]
    notations = group.get("parameters")
    if not isinstance(notations, Mapping) or not notations:
        raise ParameterError(f"a randomization needs parameters: {{name: notation}}, found {notations!r}")
    joint = {name: text for name, text in notations.items() if f"{SYMBOL}(" in str(text)}
    alone = {name: str(text) for name, text in notations.items() if name not in joint}
    out = [Randomization(JointNormal.from_notation(name, text, {}), when) for name, text in joint.items()]
    if alone:
        out.insert(0, Randomization(ParameterSet.parse(alone), when))
    return out


def stream(seed: int, role: str, copy: int = 0) -> np.random.Generator:
    """Return a generator of its own for one role of one environment.

    It depends on the environment's seed alone and leaves the environment's generator as it is: with the same seed, a
    wrapped environment starts its episodes in the same states as the bare one.

    Args:
        seed: of the environment.
        role: what the numbers are for.
        copy: tells wrappers of the same role apart.
    """
    key = (zlib.crc32(role.encode()), copy)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


class Randomizer:
    """Carries randomizations out on the n plants of a store, each with its own generator and its own clock.

    Args:
        randomizations: what is drawn, and when.
        store: where the values go.
        n: number of plants.
        dt: control period [s]; used by schedules only.

    Raises:
        ParameterError: a name that the store does not have, or that two randomizations claim.
    """

    def __init__(self, randomizations: Sequence[Randomization], store: ParameterStore, n: int, dt: float) -> None:
        self.store, self.n, self.dt = store, n, dt
        self._groups = [_Group(r, BoundParameters(r.parameters, store), n) for r in randomizations]
        for g in self._groups:
            g.check_limits(limits(store))
        names = [name for g in self._groups for name in g.bound.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ParameterError(f"two randomizations claim {', '.join(twice)}; keep one of them")
        nominal = store.nominal()
        self._nominal = nominal
        self.names = tuple(names)
        self.in_force: dict[str, Array] = {name: np.full(n, nominal[name]) for name in names}
        self._steps = np.zeros(n, int)
        self._forced: dict[str, NDArray[np.bool_]] = {}
        self.moving = any(isinstance(g.when, Schedule) for g in self._groups)
        self.curricula = [g.when for g in self._groups if isinstance(g.when, Curriculum)]

    def __getstate__(self) -> dict[str, Any]:
        # the store belongs to the environment, which may be made anew: whoever copies attaches it again
        return self.__dict__ | {"store": None}

    def draws(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Return what is drawn: name or pattern -> the parameters that it is written to, and its notation."""
        out = {}
        for g in self._groups:
            when = "" if g.when == "reset" else f" at {g.when if isinstance(g.when, str) else g.when.describe()}"
            for p in g.bound.parameters:
                out[p.name] = g.bound.targets[p.name], p.notation + when
        return out

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, Array]:
        """Return `n` draws of everything, name -> (n,), and write none."""
        return {k: v for g in self._groups for k, v in g.bound.values(rng.random((n, g.bound.dimension))).items()}

    def resolve(self, forced: Mapping[str, Any]) -> dict[str, Array]:
        """Return forced values, whose names may be patterns, by name in the store: name -> (n,)."""
        return self._match(forced, np.arange(self.n))

    def begin(
        self,
        streams: Sequence[np.random.Generator],
        mask: NDArray[np.bool_],
        fresh: NDArray[np.bool_],
        forced: Mapping[str, Any] | None = None,
    ) -> None:
        """Draw for the episodes that begin in the plants that `mask` (n,) selects, and write.

        Args:
            streams: a generator for each plant.
            mask: (n,) the plants whose episodes begin.
            fresh: (n,) those of them that start altogether anew, for which startup draws are made too.
            forced: name (or pattern) -> value, one for all or (n,): these are not drawn in this episode.

        Raises:
            ParameterError: a forced value that cannot be written.
        """
        rows = np.flatnonzero(mask)
        self._steps[rows] = 0
        values: dict[str, Array] = {}
        for g in self._groups:
            drawn = rows if g.when != "startup" else np.flatnonzero(mask & fresh)
            for i in drawn.tolist():
                if isinstance(g.when, Curriculum):
                    g.start[i], g.tokens[i] = g.when.draw(streams[i])
                else:
                    g.start[i] = streams[i].random(g.bound.dimension)
            g.phase[rows] = g.start[rows]
            values |= g.values(rows, np.zeros((len(rows), 1)), self._nominal)
        given = self._match(forced or {}, rows)
        self._release(mask)
        self._write(values | given, rows)
        for name in given:
            self._forced.setdefault(name, np.zeros(self.n, bool))[rows] = True

    def ended(self, mask: NDArray[np.bool_], returns: Array, lengths: NDArray[np.int_]) -> None:
        """Tell curricula how the episodes went that have ended in the plants that `mask` (n,) selects.

        Args:
            mask: (n,) where episodes have ended; before `begin` draws for the next ones.
            returns: (n,) sums of rewards.
            lengths: (n,) control steps.
        """
        for g in self._groups:
            if isinstance(g.when, Curriculum):
                told = returns if g.when.of == "return" else lengths
                for i in np.flatnonzero(mask).tolist():
                    g.when.ended(int(g.tokens[i]), float(told[i]))
                g.tokens[mask] = -1

    def advance(self, streams: Sequence[np.random.Generator], mask: NDArray[np.bool_]) -> None:
        """Move the clocks of the plants that `mask` (n,) selects one control period on, and the schedules with them."""
        self._steps[mask] += 1
        if not self.moving:
            return
        time = self._steps * self.dt
        for g in self._groups:
            if not isinstance(g.when, Schedule):
                continue
            due = mask.copy()
            if g.when.every > self.dt:
                passed = np.floor(time / g.when.every + 1e-9)
                due &= passed > np.floor((time - self.dt) / g.when.every + 1e-9)
            rows = np.flatnonzero(due)
            if not len(rows):
                continue
            noise = np.zeros((len(rows), g.bound.dimension))
            if g.when.random:
                for k, i in enumerate(rows.tolist()):
                    noise[k] = streams[i].standard_normal(g.bound.dimension)
            now = time[rows, None]
            g.phase[rows] = g.when.update(g.phase[rows], g.start[rows], now, noise)
            values = g.values(rows, now, self._nominal)
            for name in list(values):
                if name in self._forced:
                    keep = self._forced[name][rows]
                    values[name] = np.where(keep, self.in_force[name][rows], values[name])
            self._write(values, rows)

    def _release(self, mask: NDArray[np.bool_]) -> None:
        """Let go of what was forced upon the plants in `mask`; what is not drawn either goes back to nominal."""
        for name, forced in list(self._forced.items()):
            left = forced & mask
            if name not in self.names and left.any():
                self.store.restore(left, [name])
                self.in_force = self.in_force | {name: np.where(left, self._nominal[name], self.in_force[name])}
            forced[mask] = False
            if not forced.any():
                del self._forced[name]
                self.in_force = {n: v for n, v in self.in_force.items() if n != name or n in self.names}

    def holds(self, name: str) -> NDArray[np.bool_]:
        """Return in which plants (n,) a name of `in_force` is drawn or forced: all, for what is drawn."""
        return np.ones(self.n, bool) if name in self.names else self._forced[name].copy()

    def _match(self, forced: Mapping[str, Any], rows: NDArray[np.int_]) -> dict[str, Array]:
        out: dict[str, Array] = {}
        for pattern, value in forced.items():
            names = match_names(pattern, self._nominal, silent_names(self.store))
            try:
                array = np.asarray(value, float)
            except (TypeError, ValueError):
                raise ParameterError(f"{pattern}: a forced value is a number, found {value!r}") from None
            parts = iter([array] * len(names))
            if array.shape == (len(names),) and array.shape != (self.n,):
                parts = iter(array)  # one for each component of a vector
            elif array.shape not in ((), (self.n,)):
                raise ParameterError(
                    f"{pattern}: expected a number or ({self.n},) values, one a plant, or one for each parameter; "
                    f"found shape {array.shape}"
                )
            for name in names:
                out[name] = np.broadcast_to(next(parts), (self.n,))[rows]
        return out

    def _write(self, values: Mapping[str, Array], rows: NDArray[np.int_]) -> None:
        """Write values name -> (k,) into the k plants `rows`."""
        mask = np.zeros(self.n, bool)
        mask[rows] = True
        full = {}
        for name, value in values.items():
            full[name] = (
                np.array(self.in_force[name]) if name in self.in_force else np.full(self.n, self._nominal[name])
            )
            full[name][rows] = value
            full[name].flags.writeable = False  # infos hold it
        self.store.write(full, mask)
        # a new dictionary, so that an info that holds the old one keeps what was in force then
        self.in_force = self.in_force | full


def limits(store: ParameterStore) -> dict[str, tuple[float, float]]:
    """Return the values that each parameter of a store may take, where it knows."""
    found = getattr(store, "limits", None)
    return dict(found()) if found is not None else {}


class _Group:
    """One randomization at work: the uniform numbers that its draws are made from."""

    def __init__(self, randomization: Randomization, bound: BoundParameters, n: int) -> None:
        self.when, self.bound = randomization.when, bound
        if isinstance(self.when, Curriculum):
            self.when.attach(bound)
        self.tokens = np.full(n, -1)
        self.start = np.zeros((n, bound.dimension))
        self.phase = np.zeros((n, bound.dimension))
        low, high = bound.parameters.bounds
        if bound.dimension == len(low):
            # the ends of an unbounded distribution lie at infinity
            ends = np.array([np.where(np.isfinite(low), 0.0, 1e-3), np.where(np.isfinite(high), 1.0, 1.0 - 1e-3)])
        else:
            ends = np.array([[0.0], [1.0 - 1e-12]])
        self.edges: Array = ends

    def check_limits(self, known: Mapping[str, tuple[float, float]]) -> None:
        """Refuse what would be refused in the middle of a training: draws outside of what makes sense."""
        if isinstance(self.bound.parameters, JointEmpirical):
            return
        # the marginals: of draws that are correlated, no row of uniform numbers holds all the ends
        ends = self.bound.apply({p.name: p.distribution.quantile([1e-6, 1 - 1e-6]) for p in self.bound.parameters})
        for name, (low, high) in known.items():
            for value in ends.get(name, ()):
                if not low <= value <= high:
                    raise ParameterError(
                        f"{name} could be drawn as {value:g}, and must lie between {low:g} and {high:g}: "
                        "choose a distribution that stays inside, TN(mean, deviation, low, high) for instance"
                    )

    def values(self, rows: NDArray[np.int_], time: Array, nominal: Mapping[str, float]) -> dict[str, Array]:
        """Return the values (k,) of the plants `rows` at `time` (k, 1)."""
        if not isinstance(self.when, Schedule):
            return self.bound.values(self.start[rows])
        values = self.bound.values(np.clip(self.when.uniform(self.phase[rows]), *self.edges))
        weight = self.when.weight(time)[:, 0]
        if (weight < 1.0).any():
            return {name: nominal[name] + weight * (value - nominal[name]) for name, value in values.items()}
        return values
