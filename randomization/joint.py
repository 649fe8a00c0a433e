"""Parameters that are drawn together: a correlated normal, and samples of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import numpy as np
from scipy import special, stats

from sim2real.errors import ParameterError
from sim2real.randomization.distributions import Normal
from sim2real.randomization.parameters import (
    Array,
    Operation,
    Parameter,
    ParameterSet,
    Values,
    apply_operation,
    name_parts,
    operation_prefix,
)

SYMBOL = "MVN"


class JointNormal(ParameterSet):
    """Parameters with a joint normal distribution, all under one operation.

    Written `{"a, b": "*MVN([1, 1], [[0.01, 0.005], [0.005, 0.02]])"}`: names, means, covariance. `+` adds the
    parameters in their units, `*` multiplies their nominal values.

    Args:
        names: of the parameters, without patterns.
        mean: (P,) of the draws.
        covariance: (P, P), positive definite.
        operation: how a draw becomes a value.
        units: (P,) SI units of the values.

    Raises:
        ParameterError: shapes that do not fit, or a covariance that is not symmetric positive definite.

    Example:
        >>> notation = "*MVN([1, 1], [[0.01, 0.005], [0.005, 0.01]])"
        >>> both = JointNormal.from_notation("dynamics.a.mass, dynamics.b.mass", notation, {})
        >>> both.sample(np.random.default_rng(0), 2)["dynamics.b.mass"].shape
        (2,)
    """

    def __init__(
        self,
        names: tuple[str, ...],
        mean: Array,
        covariance: Array,
        operation: Operation = "set",
        units: tuple[str, ...] | None = None,
    ) -> None:
        mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
        n = len(names)
        if mean.shape != (n,) or covariance.shape != (n, n):
            raise ParameterError(
                f"{SYMBOL} of {n} names needs {n} means and a {n} x {n} covariance, found shapes {mean.shape} and "
                f"{covariance.shape}"
            )
        try:
            self._factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise ParameterError(f"{SYMBOL}: the covariance must be positive definite, found {covariance}") from None
        if not np.array_equal(covariance, covariance.T):
            raise ParameterError(f"{SYMBOL}: the covariance must be symmetric, found {covariance}")
        self._means, self.covariance, self.operation = mean, covariance, operation
        units = units or ("",) * n
        super().__init__(
            tuple(
                Parameter(
                    name=name,
                    unit=unit,
                    distribution=Normal(float(m), float(np.sqrt(variance))),
                    operation=operation,
                )
                for name, unit, m, variance in zip(names, units, mean, np.diag(covariance), strict=True)
            )
        )

    @classmethod
    def from_notation(cls, name: str, text: str, units: Mapping[str, str]) -> JointNormal:
        """Parse the notation `*MVN([...], [[...], ...])` for comma-separated names.

        Raises:
            ParameterError: it cannot be read.
        """
        match = re.fullmatch(rf"\s*([=*+])\s*{SYMBOL}\((.*)\)\s*", text)
        try:
            mean, covariance = json.loads(f"[{match[2]}]") if match else ((), ())
        except ValueError:
            match = None
        if match is None:
            raise ParameterError(
                f"{name}: cannot read {text!r}; expected =, * or + and {SYMBOL}([mean, ...], [[variance, ...], ...])"
            )
        names = tuple(name_parts(name))
        operations: dict[str, Operation] = {"=": "set", "*": "scale", "+": "add"}
        found = tuple(units.get(n, "") for n in names)
        return cls(names, np.array(mean, float), np.array(covariance, float), operations[match[1]], found)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and np.array_equal(self.covariance, getattr(other, "covariance", np.nan))

    __hash__ = ParameterSet.__hash__

    def notations(self) -> dict[str, str]:
        mean = json.dumps(self._means.tolist())
        covariance = json.dumps(self.covariance.tolist())
        return {", ".join(self.names): f"{operation_prefix(self.operation)}{SYMBOL}({mean}, {covariance})"}

    def against(self, nominal: Mapping[str, float]) -> JointNormal:
        """Return the joint distribution of the values themselves."""
        values = np.array([nominal[n] for n in self.names])
        scale = values if self.operation == "scale" else np.ones(len(values))
        mean = apply_operation(self.operation, self._means, values)
        units = tuple(p.unit for p in self.parameters)
        return JointNormal(self.names, mean, self.covariance * np.outer(scale, scale), "set", units)

    def quantile(self, u: Array) -> dict[str, Array]:
        draws = self._means + special.ndtri(u) @ self._factor.T
        return {name: draws[:, i] for i, name in enumerate(self.names)}

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, Array]:
        draws = stats.multivariate_normal(self._means, self.covariance).rvs(size=n, random_state=rng).reshape(n, -1)
        return {name: draws[:, i] for i, name in enumerate(self.names)}

    def log_prob(self, values: Values) -> Array:
        x = np.stack([values[name] for name in self.names], -1)
        return np.atleast_1d(stats.multivariate_normal(self._means, self.covariance).logpdf(x))

    def precision(self) -> Array:
        return np.asarray(np.linalg.inv(self.covariance), float)


class JointEmpirical(ParameterSet):
    """Parameters known by samples of all of them together: a posterior as the next randomization.

    Args:
        parameters: with the marginal distributions of the values.
        samples: (S, P) joint draws of the values, in SI units.
    """

    def __init__(self, parameters: tuple[Parameter, ...], samples: Array) -> None:
        super().__init__(parameters)
        if samples.ndim != 2 or samples.shape[1] != len(parameters) or not np.isfinite(samples).all():
            raise ParameterError(f"{len(parameters)} parameters need finite samples (S, {len(parameters)})")
        self.samples = samples

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and np.array_equal(self.samples, getattr(other, "samples", np.nan))

    __hash__ = ParameterSet.__hash__

    @property
    def covariance(self) -> Array:
        """(P, P)."""
        return np.atleast_2d(np.cov(self.samples.T))

    @property
    def dimension(self) -> int:
        return 1

    def quantile(self, u: Array) -> dict[str, Array]:
        """Return the samples that `u` (n, 1) points at, in the order in which they lie: name -> (n,)."""
        rows = (u[:, 0] * len(self.samples)).astype(int)
        return {name: self.samples[rows, i] for i, name in enumerate(self.names)}

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, Array]:
        """Draw `n` joint values: the samples in random order, as often as needed."""
        rows = np.concatenate([rng.permutation(len(self.samples)) for _ in range(-(-n // len(self.samples)))])[:n]
        return {name: self.samples[rows, i] for i, name in enumerate(self.names)}

    def log_prob(self, values: Values) -> Array:
        """Return the log density of the joint normal with the samples' mean and covariance: (n,)."""
        x = np.stack([values[name] for name in self.names], -1)
        normal = stats.multivariate_normal(self.samples.mean(0), self.covariance, allow_singular=True)
        return np.atleast_1d(normal.logpdf(x))
