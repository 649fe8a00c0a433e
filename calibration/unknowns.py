"""The unknowns of a fit: parameters that all recordings share, and parameters of which each recording has its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array, Episode
from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization import ParameterSet


@dataclass(frozen=True)
class Unknowns:
    """U unknowns of a fit, made from P parameters.

    Attributes:
        parameters: (P,) names.
        own: those of which every recording has its own (the payload, the friction of the day).
        recordings: names.

    Raises:
        ParameterError: `own` names what is not among the parameters.
    """

    parameters: tuple[str, ...]
    own: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.own:
            if name not in self.parameters:
                raise ParameterError(
                    f"own: {name!r} is not among the parameters to fit{did_you_mean(name, self.parameters)}"
                )

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        """The parameter of each unknown, and the recording that it belongs to, "" for all of them."""
        each = [(n, recording) for n in self.parameters if n in self.own for recording in self.recordings]
        return [(n, "") for n in self.parameters if n not in self.own] + each

    @property
    def names(self) -> tuple[str, ...]:
        """(U,) names, for messages."""
        return tuple(f"{name} of {recording}" if recording else name for name, recording in self._pairs)

    @property
    def source(self) -> NDArray[np.int_]:
        """(U,) the parameter that each unknown is a copy of: `vector[source]` spreads a vector over the unknowns."""
        return np.array([self.parameters.index(name) for name, _ in self._pairs], int)

    def columns(self, names: Sequence[str], recording: str) -> NDArray[np.int_]:
        """Return which unknowns a recording takes the values of some parameters from."""
        return np.array([self._pairs.index((n, recording if n in self.own else "")) for n in names], int)

    def apart(self, episodes: Sequence[Episode]) -> list[list[Episode]]:
        """Group recordings by what they are replayed with: measured apart from commanded, each alone if it must."""
        groups = [[e for e in episodes if (e.action_source == "measured") == measured] for measured in (False, True)]
        return [[e] for some in groups for e in some] if self.own else [some for some in groups if some]

    def precision(self, precision: Array) -> Array:
        """(U, U) precision of the unknowns from that of the parameters (P, P); copies know nothing of one another."""
        out = precision[np.ix_(self.source, self.source)]
        copies = np.array([bool(recording) for _, recording in self._pairs])
        alone = np.diag(np.diag(out))
        out[copies], out[:, copies] = alone[copies], alone[:, copies]
        return out

    def fold(self, values: Array, rng: np.random.Generator) -> Array:
        """(S, P) draws of the parameters from draws of the unknowns (S, U): those of a recording taken at random."""
        chosen = rng.integers(max(len(self.recordings), 1), size=len(values))
        by_recording = [values[:, self.columns(self.parameters, r)] for r in self.recordings or ("",)]
        return np.stack(by_recording)[chosen, np.arange(len(values))]

    def of_recordings(self, best: Array, draws: Array) -> dict[str, dict[str, dict[str, object]]]:
        """Return `{parameter: {recording: {mean, interval90}}}` of those that recordings have of their own."""
        found: dict[str, dict[str, dict[str, object]]] = {}
        for u, (name, recording) in enumerate(self._pairs):
            if recording:
                interval = np.quantile(draws[:, u], [0.05, 0.95]).tolist()
                found.setdefault(name, {})[recording] = {"mean": float(best[u]), "interval90": interval}
        return found


@dataclass(frozen=True)
class Marginals:
    """A prior spread over the unknowns, each for itself.

    Attributes:
        prior: of the parameters.
        unknowns: of the fit.
    """

    prior: ParameterSet
    unknowns: Unknowns

    def quantile(self, u: Array) -> Array:
        """(C, U) unknowns from uniform numbers (C, U) in [0, 1)."""
        each = [self.prior.parameters[i].distribution.quantile(u[:, k]) for k, i in enumerate(self.unknowns.source)]
        return np.stack(each, 1)

    def log_prob(self, x: Array) -> Array:
        """(C,) log density of unknowns (C, U)."""
        each = [self.prior.parameters[i].distribution.log_prob(x[:, k]) for k, i in enumerate(self.unknowns.source)]
        return np.asarray(np.sum(each, 0))
