"""Which parameters of a store a pattern means, and the values that joint draws become there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.parameters import (
    Array,
    Parameter,
    ParameterSet,
    ParameterStore,
    apply_operation,
    name_parts,
)


def match_names(pattern: str, known: Iterable[str], silent: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the names that a pattern means, in the order of `known`.

    `*` stands for any characters, `?` for any one; commas separate patterns; a name that is not there itself but has
    components (`a.friction[0]`, `a.friction[1]`) means them all.

    Args:
        pattern: what is looked for.
        known: the names that there are.
        silent: names that are refused, and why.

    Raises:
        ParameterError: a part of the pattern matches nothing; the nearest names are listed.
    """
    known = list(known)
    found: set[str] = set()
    for part in name_parts(pattern):
        matches = _matches(part, known)
        if not matches:
            refused = _matches(part, list(silent or {}))
            if silent and refused:
                raise ParameterError(f"{refused[0]} would change nothing: {silent[refused[0]]}")
            raise ParameterError(f"no parameter named {part!r}{did_you_mean(part, known)}")
        found.update(matches)
    return tuple(n for n in known if n in found)


def _matches(part: str, names: list[str]) -> list[str]:
    if part in names:
        return [part]
    expression = re.escape(part).replace(r"\*", ".*").replace(r"\?", ".")
    whole, component = re.compile(expression), re.compile(expression + r"\[\d+\]")
    return [n for n in names if whole.fullmatch(n)] or [n for n in names if component.fullmatch(n)]


def silent_names(store: ParameterStore) -> dict[str, str]:
    """Return the names that a store knows and refuses, and why, if it has any."""
    found = getattr(store, "silent", None)
    return dict(found()) if found is not None else {}


class BoundParameters:
    """A `ParameterSet` whose names were found in a store.

    Args:
        parameters: with names that may be patterns.
        store: where they are looked up; nominal values are taken from it.

    Raises:
        ParameterError: a pattern that matches nothing, mixes units under `=` or `+`, names another unit, or would
            change nothing because it scales zero.
    """

    def __init__(self, parameters: ParameterSet, store: ParameterStore) -> None:
        self._nominal, units = store.nominal(), store.units()
        self.targets: dict[str, tuple[str, ...]] = {}
        expanded = []
        for p in parameters:
            targets = match_names(p.name, self._nominal, silent_names(store))
            self._check(p, targets, units)
            if p.operation == "scale":  # of several, those that a factor cannot change are left alone
                targets = tuple(t for t in targets if self._nominal[t] != 0)
            if p.shared or len(targets) == 1:
                expanded.append(p)
                self.targets[p.name] = targets
            else:
                expanded.extend(replace(p, name=target, shared=True) for target in targets)
                self.targets.update({target: (target,) for target in targets})
        names = [p.name for p in expanded]
        self.parameters = parameters if names == list(parameters.names) else ParameterSet(tuple(expanded))
        self.names = tuple(target for targets in self.targets.values() for target in targets)
        twice = sorted({n for n in self.names if self.names.count(n) > 1})
        if twice:
            raise ParameterError(f"two parameters of one randomization mean {', '.join(twice)}; keep one of them")

    def nominal(self, name: str) -> float:
        """Return the nominal value of the first parameter that a draw is written to."""
        return self._nominal[self.targets[name][0]]

    @property
    def dimension(self) -> int:
        """How many uniform numbers one joint draw is made from."""
        return self.parameters.dimension

    def values(self, u: Array) -> dict[str, Array]:
        """Return the values that uniform numbers `u` (n, dimension) stand for: name in the store -> (n,)."""
        return self.apply(self.parameters.quantile(u))

    def apply(self, draws: Mapping[str, Array]) -> dict[str, Array]:
        """Return the values that draws (name or pattern -> (n,)) become: name in the store -> (n,)."""
        return {
            target: apply_operation(p.operation, draws[p.name], self._nominal[target])
            for p in self.parameters
            for target in self.targets[p.name]
        }

    def _check(self, p: Parameter, targets: tuple[str, ...], units: Mapping[str, str]) -> None:
        found = sorted({units[t] for t in targets})
        if p.operation != "scale" and len(found) > 1:
            raise ParameterError(
                f"{p.name} matches parameters of different units ({', '.join(repr(u) for u in found)}); scale them "
                "(*), or name them one by one"
            )
        if p.unit and found != [p.unit]:
            raise ParameterError(f"{p.name}: the unit is {found[0]!r}, found {p.unit!r}")
        if p.operation == "scale" and all(self._nominal[t] == 0 for t in targets):
            raise ParameterError(
                f"{p.name}: the nominal value is 0, which no factor changes; set it (=) or add to it (+)"
            )
