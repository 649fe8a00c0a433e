"""Adaptation: an old posterior and a few seconds of new logs; which parameter moved, and how surely?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim2real.calibration.identify import identify
from sim2real.calibration.posterior import Posterior, shrunk_precision
from sim2real.episodes import Array, Episode
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet

# A change is believed when freeing one parameter takes away at least this share of the error left by the old posterior.
WORTHWHILE = 0.2
# What is said to have moved where it takes all parameters; and the seconds a parameter that are needed to say so.
ALL, ENOUGH = "all", 0.75
# Standard deviations, of both posteriors together, from which on a parameter has left its old posterior.
SURELY = 3.0


@dataclass(frozen=True)
class Adaptation:
    """What a few seconds of new logs say.

    Attributes:
        posterior: to go on with.
        moved: name of the parameter that moved, "" where the old posterior explains the logs as well, or `ALL` where it
            takes several.
        was: its value before; of all parameters, for `ALL`, see `before`.
        errors: mean absolute error of the replay [rad or m] when each parameter alone may move; "" for none, and `ALL`
            for all of them, where the logs are long enough to try that.
        before: the old values.
    """

    posterior: Posterior
    moved: str
    was: float
    errors: dict[str, float]
    before: Mapping[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """Say it in words."""
        if not self.moved:
            return "No parameter moved beyond what the old posterior left open: it explains the new logs as well."
        if self.moved == ALL:
            return self._several()
        p = self.posterior[self.moved]
        low, high = self.posterior.interval(self.moved)
        now = self.posterior.values[self.moved]
        others = {k: v for k, v in self.errors.items() if k not in (self.moved, "")}
        second = min(others, key=lambda k: others[k]) if others else ""
        text = (
            f"{self.moved} moved from {self.was:.3g} to {now:.3g} {p.unit} (90 % interval {low:.3g} to {high:.3g}"
            + (f", a factor of {now / self.was:.2f}" if self.was else "")
            + f"): alone it takes the replay error from {self.errors['']:.2g} to {self.errors[self.moved]:.2g}"
        )
        return text + (f"; the next best explanation, {second}, leaves {others[second]:.2g}." if second else ".")

    def _several(self) -> str:
        """Name the parameters whose old values are outside of the new intervals, the surest first."""
        told = []
        for name, was in self.before.items():
            (low, high), now = self.posterior.interval(name), self.posterior.values[name]
            sure = abs(now - was) / max(high - low, 1e-300)
            if not low <= was <= high:
                unit = self.posterior[name].unit
                told.append(
                    (sure, f"{name} from {was:.3g} to {now:.3g} {unit}".rstrip() + f" ({low:.3g} to {high:.3g})")
                )
        listed = "; ".join(text for _, text in sorted(told, reverse=True)) or "none surely by itself"
        beginning = f"Several parameters moved, with 90 % intervals: {listed}. "
        if not _worthwhile(self.errors, ALL, ""):
            return beginning + "The new logs moved them although the old posterior held them."
        single = min((e, n) for n, e in self.errors.items() if n not in ("", ALL))
        return beginning + (
            f"All together take the replay error from {self.errors['']:.2g} to {self.errors[ALL]:.2g}; the best alone, "
            f"{single[1]}, leaves {single[0]:.2g}."
        )

    def to_json(self) -> dict[str, Any]:
        return {"moved": self.moved, "was": self.was, "errors": self.errors, "sentence": self.sentence()}


def _worthwhile(errors: Mapping[str, float], freed: str, than: str) -> bool:
    """Whether freeing something was tried, and takes away enough of the error that something else leaves."""
    return freed in errors and errors[freed] < (1 - WORTHWHILE) * errors[than]


def _left(old: Posterior, new: Posterior) -> bool:
    """Whether a parameter is further from its old posterior than that and the new one allow for."""
    spread = np.sqrt(np.diag(old.covariance) + np.diag(new.covariance))
    return bool((np.abs(new.best - old.best) > SURELY * np.maximum(spread, 1e-300)).any())


class _Freed(ParameterSet):
    """An old posterior in which some parameters are free again, as they were in the prior."""

    def __init__(self, posterior: Posterior, free: Sequence[str]) -> None:
        super().__init__(tuple(posterior.prior[p.name] if p.name in free else p for p in posterior))
        kept = [i for i, p in enumerate(posterior) if p.name not in free]
        self._mean = posterior.best
        full = np.zeros((len(posterior), len(posterior)))
        if kept:
            # what is known of the others must not depend on the value that the freed ones had
            full[np.ix_(kept, kept)] = shrunk_precision(posterior.covariance[np.ix_(kept, kept)])
        self._precision = full

    @property
    def mean(self) -> Array:
        return self._mean

    def precision(self) -> Array:
        return self._precision

    def against(self, nominal: object) -> ParameterSet:
        return self


def adapt(
    plant: Plant,
    posterior: Posterior,
    episodes: Sequence[Episode],
    *,
    channels: Sequence[str],
    window: float | str = 0.5,
    stride: float = 0.25,
    rng: np.random.Generator,
    progress: Callable[[str], None] = lambda _: None,
) -> Adaptation:
    """Explain new logs by letting one parameter move from an old posterior, or all of them.

    Each parameter in turn is given its prior back while the others keep what is known of them; the one that explains
    the logs best is the one that moved. One cause for one change: a few seconds cannot tell more. Where there are more
    seconds than three quarters of the number of parameters, all of them are freed as well, from their old values. The
    old posterior holds the others softly: logs that say much move them all the same, and that is told as well.

    Args:
        plant: the model.
        posterior: from earlier logs.
        episodes: the new logs, seconds long.
        channels: the observations that are joint positions.
        window: length of a window [s].
        stride: between window starts [s].
        rng: generator of every draw.
        progress: called with a line at each step.

    Returns:
        the new posterior, and what moved.
    """
    # measured actions say nothing of the execution: it stays as it was, and out of the fit
    commanded = any(e.action_source == "commanded" for e in episodes)
    free = [n for n in posterior.names if commanded or not n.startswith("execution.")]
    known = posterior.marginal(free)
    found: dict[str, Posterior] = {}

    def fitted(prior: ParameterSet, rounds: int = 1) -> Posterior:
        return identify(
            plant,
            episodes,
            prior,
            channels=channels,
            window=window,
            stride=stride,
            tries=8,
            starts=1,
            rounds=rounds,
            examine=False,
            rng=rng,
        )

    found[""] = fitted(known)
    for name in free:
        found[name] = fitted(_Freed(known, [name]))
        progress(f"if only {name} moved: error {found[name].evidence['mean_absolute_error']:.2g}")
    errors = {name: float(p.evidence["mean_absolute_error"]) for name, p in found.items()}
    best = min(errors, key=lambda name: errors[name])
    if not _worthwhile(errors, best, ""):
        best = ""
    if sum(e.duration for e in episodes) > ENOUGH * len(free) > ENOUGH:
        found[ALL] = fitted(_Freed(known, free), rounds=4)
        errors[ALL] = float(found[ALL].evidence["mean_absolute_error"])
        progress(f"if all parameters moved: error {errors[ALL]:.2g}")
        if _worthwhile(errors, ALL, best):
            best = ALL
    if not best and _left(known, found[""]):
        best = ALL
    chosen = found.get(best, found[""])
    values, samples = posterior.best.copy(), chosen.samples
    if not commanded:
        samples = np.stack(list(posterior.sample(rng, len(samples)).values()), 1)
    columns = [posterior.names.index(n) for n in free]
    values[columns], samples[:, columns] = chosen.best, chosen.samples
    renewed = Posterior(posterior.prior, values, samples, chosen.noise, chosen.evidence)
    return Adaptation(renewed, best, posterior.values.get(best, 0.0), errors, {n: posterior.values[n] for n in free})
