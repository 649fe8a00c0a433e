"""The named parameter: what may differ between simulator and robot, with its unit and its distribution."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.distributions import Distribution, parse_distribution

Array = NDArray[np.float64]
Values = Mapping[str, Array]
Operation = Literal["set", "scale", "add"]
_PREFIX: dict[str, Operation] = {"=": "set", "*": "scale", "+": "add"}
GAPS = ("dynamics", "execution", "perception")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number that may differ between simulator and robot.

    Attributes:
        name: `<gap>.<entity>.<field>`, the gap being dynamics, execution or perception. For randomization it may be a
            pattern: `*` and `?` stand for any characters and any one, commas separate several names, and the name of a
            vector (`dynamics.floor.friction`) stands for all its components (`dynamics.floor.friction[0]`, ...).
        unit: SI unit of the value that is written ("" for a pure number).
        distribution: of the value (`set`), of the factor on the nominal value (`scale`) or of what is added to it
            (`add`).
        operation: how a draw becomes a value; always against the nominal value, never the current one.
        shared: whether one draw serves all that a pattern matches (the default), or each match has its own (`each`).
    """

    name: str
    unit: str
    distribution: Distribution
    operation: Operation = "set"
    shared: bool = True

    def __post_init__(self) -> None:
        for part in name_parts(self.name):
            if part.split(".")[0] not in GAPS or part.count(".") < 2:
                raise ParameterError(
                    f"a parameter is named <gap>.<entity>.<field> with the gap one of {', '.join(GAPS)}; found {part!r}"
                )

    @classmethod
    def parse(cls, name: str, text: str, unit: str | None = None) -> Parameter:
        """Parse the notation `*U(0.8, 1.2)`, `+N(0, 0.01) each`, `=LogU(1e-3, 1e-1) s`.

        The unit is optional and checked; `each` makes every match of a pattern draw for itself.

        Args:
            name: of the parameter.
            text: the notation.
            unit: of the value; None where only the notation says it.

        Raises:
            ParameterError: the notation cannot be read, or names another unit than `unit`.
        """
        match = re.fullmatch(
            r"\s*([=*+])\s*([A-Za-z]+\([^)]*\)|[-+0-9.eE]+)\s*((?:(?!each\b).)*?)\s*(each)?\s*", str(text)
        )
        if match is None:
            raise ParameterError(
                f"{name}: cannot read {text!r}; expected =, * or + (set, scale, add) and a distribution, "
                "for instance *U(0.8, 1.2)"
            )
        operation = _PREFIX[match[1]]
        if unit is None:
            unit = match[3]
        if match[3] not in ("", unit):
            raise ParameterError(f"{name}: the unit is {unit!r}, found {match[3]!r}")
        return cls(
            name=name,
            unit=unit,
            distribution=parse_distribution(match[2]),
            operation=operation,
            shared=match[4] is None,
        )

    @property
    def notation(self) -> str:
        """`*U(0.8, 1.2)`: the operation and the distribution."""
        return f"{operation_prefix(self.operation)}{self.distribution}"

    @property
    def full_notation(self) -> str:
        """`*U(0.8, 1.2) kg each`: all that `parse` reads."""
        return " ".join(x for x in (self.notation, self.unit, "" if self.shared else "each") if x)

    def against(self, nominal: float) -> Parameter:
        """Return the same parameter as a distribution of the value itself (operation `set`).

        Raises:
            ParameterError: a factor on a nominal value that is not positive.
        """
        if self.operation == "set":
            return self
        if self.operation == "scale" and nominal <= 0:
            raise ParameterError(
                f"{self.name}: cannot scale a nominal value of {nominal:g} {self.unit}; set it (=) or add to it (+)"
            )
        scale, shift = (nominal, 0.0) if self.operation == "scale" else (1.0, nominal)
        return replace(self, distribution=self.distribution.affine(scale, shift), operation="set")

    def __str__(self) -> str:
        return f"{self.name} {self.full_notation}"


def operation_prefix(operation: Operation) -> str:
    """Return the sign that stands for an operation in the notation."""
    return next(sign for sign, meaning in _PREFIX.items() if meaning == operation)


def name_parts(name: str) -> list[str]:
    """Split a pattern at its commas."""
    return [part.strip() for part in name.split(",")]


def apply_operation(operation: Operation, draw: Array, nominal: float | Array) -> Array:
    """Return the value that a draw becomes, against a nominal value."""
    if operation == "set":
        return draw
    return nominal * draw if operation == "scale" else nominal + draw


class ParameterSet:
    """Parameters, independent unless a subclass says otherwise.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> prior = ParameterSet.parse({"execution.latency.delay": "=U(0, 0.08)"})
        >>> prior.sample(rng, 3)["execution.latency.delay"].shape
        (3,)
    """

    def __init__(self, parameters: tuple[Parameter, ...]) -> None:
        names = [p.name for p in parameters]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ParameterError(f"each parameter may be named once, found twice: {', '.join(sorted(twice))}")
        self.parameters = parameters

    @classmethod
    def parse(cls, notations: Mapping[str, str], units: Mapping[str, str] | None = None) -> ParameterSet:
        """Parse `{name: notation}`; with `units`, every name must be one of its keys.

        Raises:
            ParameterError: an unknown name (the nearest ones are listed) or a notation that cannot be read.
        """
        parameters = []
        for name, text in notations.items():
            if units is not None and name not in units:
                raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, units)}")
            parameters.append(Parameter.parse(name, text, units[name] if units is not None else None))
        return ParameterSet(tuple(parameters))

    def notations(self) -> dict[str, str]:
        """Return `{name: notation}`, which `parse` reads."""
        return {p.name: p.full_notation for p in self.parameters}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    def against(self, nominal: Mapping[str, float]) -> ParameterSet:
        """Return the set as distributions of the values themselves, given the nominal values."""
        missing = [n for n in self.names if n not in nominal]
        if missing:
            raise ParameterError(f"no parameter named {missing[0]!r}{did_you_mean(missing[0], nominal)}")
        return ParameterSet(tuple(p.against(nominal[p.name]) for p in self.parameters))

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, Array]:
        """Draw `n` times: name -> (n,)."""
        return {p.name: p.distribution.sample(rng, n) for p in self.parameters}

    @property
    def dimension(self) -> int:
        """How many uniform numbers one joint draw is made from."""
        return len(self.parameters)

    def quantile(self, u: Array) -> dict[str, Array]:
        """Return the joint draws that uniform numbers `u` (n, dimension) in [0, 1) stand for: name -> (n,)."""
        return {p.name: p.distribution.quantile(u[:, i]) for i, p in enumerate(self.parameters)}

    def log_prob(self, values: Values) -> Array:
        """Return the log density of `values` (name -> (n,)): (n,)."""
        return np.asarray(np.sum([p.distribution.log_prob(values[p.name]) for p in self.parameters], axis=0))

    @property
    def mean(self) -> Array:
        """(P,) means."""
        return np.array([p.distribution.mean for p in self.parameters])

    @property
    def center(self) -> Array:
        """(P,) what `precision` pulls towards: of a truncated normal the mode, which is not its mean."""
        from sim2real.randomization.distributions import TruncatedNormal

        each = zip(self.parameters, self.mean, strict=True)
        return np.array(
            [p.distribution.mu if isinstance(p.distribution, TruncatedNormal) else mean for p, mean in each]
        )

    @property
    def std(self) -> Array:
        """(P,) standard deviations."""
        return np.array([p.distribution.std for p in self.parameters])

    @property
    def bounds(self) -> tuple[Array, Array]:
        """(P,) lower and (P,) upper ends of the supports."""
        low, high = np.array([p.distribution.support for p in self.parameters]).reshape(-1, 2).T
        return low, high

    def precision(self) -> Array:
        """(P, P) precision of the normal part of the prior; zero where the density is flat or heavy-tailed."""
        from sim2real.randomization.distributions import Normal, TruncatedNormal

        return np.diag(
            [
                p.distribution.sigma**-2 if isinstance(p.distribution, Normal | TruncatedNormal) else 0.0
                for p in self.parameters
            ]
        )

    def __getitem__(self, name: str) -> Parameter:
        for p in self.parameters:
            if p.name == name:
                return p
        raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, self.names)}")

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.parameters == getattr(other, "parameters", None)

    def __hash__(self) -> int:
        return hash(self.parameters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(str(p) for p in self.parameters)})"


@runtime_checkable
class ParameterStore(Protocol):
    """Anything whose parameters can be changed: a simulator of n plants, a chain of stages, an environment."""

    def nominal(self) -> dict[str, float]:
        """Return the nominal value of every parameter, captured once."""
        ...

    def units(self) -> dict[str, str]:
        """Return the SI unit of every parameter."""
        ...

    def write(self, values: Values, mask: NDArray[np.bool_] | None = None) -> None:
        """Write values (name -> (n,)) into the plants that `mask` (n,) selects, all by default.

        Raises:
            ParameterError: an unknown name, a wrong shape, or a value that did not take effect.
        """
        ...

    def read(self) -> dict[str, Array]:
        """Return what is in force: name -> (n,); proof that a write took effect."""
        ...

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Iterable[str] | None = None) -> None:
        """Put what was ever written, or of that only `names`, back to nominal values in the plants in `mask`."""
        ...


def check_values(values: Values, known: Mapping[str, object], n: int) -> None:
    """Raise a ParameterError unless every name is known and every value is a finite (n,) array."""
    for name, value in values.items():
        if name not in known:
            raise ParameterError(f"no parameter named {name!r}{did_you_mean(name, known)}")
        if np.shape(value) != (n,):
            raise ParameterError(f"{name}: expected a value for each of {n} plants, found shape {np.shape(value)}")
        if not np.isfinite(value).all():
            raise ParameterError(
                f"{name}: every value must be finite, found {np.asarray(value)[~np.isfinite(value)][0]}"
            )
