"""Adaptation: an old posterior and a few seconds of new logs; which parameter moved, and how surely?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.calibration.identify import identify
from sim2real.calibration.posterior import Posterior, shrunk_precision
from sim2real.episodes import Array, Episode
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet

# A change is believed when freeing one parameter takes away at least this share of the error left by the old posterior.
WORTHWHILE = 0.2


@dataclass(frozen=True)
class Adaptation:
    """What a few seconds of new logs say.

    Attributes:
        posterior: to go on with.
        moved: name of the parameter that moved, or "" where the old posterior explains the logs as well.
        was: its value before.
        errors: mean absolute error of the replay [rad or m] when each parameter alone may move; "" for none.
    """

    posterior: Posterior
    moved: str
    was: float
    errors: dict[str, float]

    def sentence(self) -> str:
        """Say it in words."""
        if not self.moved:
            return "No parameter moved: the old posterior explains the new logs as well."
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

    def to_json(self) -> dict[str, Any]:
        return {"moved": self.moved, "was": self.was, "errors": self.errors, "sentence": self.sentence()}


class _Freed(ParameterSet):
    """An old posterior in which one parameter is free again, as it was in the prior."""

    def __init__(self, posterior: Posterior, free: str) -> None:
        super().__init__(tuple(posterior.prior[p.name] if p.name == free else p for p in posterior))
        kept = [i for i, p in enumerate(posterior) if p.name != free]
        self._mean = posterior.best
        full = np.zeros((len(posterior), len(posterior)))
        if kept:
            # what is known of the others must not depend on the value that the freed one had
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
    window: float = 0.5,
    stride: float = 0.25,
    rng: np.random.Generator,
    progress: Callable[[str], None] = lambda _: None,
) -> Adaptation:
    """Explain new logs by letting one parameter move from an old posterior.

    Each parameter in turn is given its prior back while the others keep what is known of them; the one that explains
    the logs best is the one that moved. One cause for one change: a few seconds cannot tell more.

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

    def fitted(prior: ParameterSet) -> Posterior:
        return identify(
            plant,
            episodes,
            prior,
            channels=channels,
            window=window,
            stride=stride,
            tries=8,
            starts=1,
            rounds=1,
            rng=rng,
        )

    found[""] = fitted(known)
    for name in free:
        found[name] = fitted(_Freed(known, name))
        progress(f"if only {name} moved: error {found[name].evidence['mean_absolute_error']:.2g}")
    errors = {name: float(p.evidence["mean_absolute_error"]) for name, p in found.items()}
    best = min(errors, key=lambda name: errors[name])
    if errors[best] > (1 - WORTHWHILE) * errors[""]:
        best = ""
    chosen = found[best]
    values, samples = posterior.best.copy(), chosen.samples
    if not commanded:
        samples = np.stack(list(posterior.sample(rng, len(samples)).values()), 1)
    columns = [posterior.names.index(n) for n in free]
    values[columns], samples[:, columns] = chosen.best, chosen.samples
    renewed = Posterior(posterior.prior, values, samples, chosen.noise, chosen.evidence)
    return Adaptation(renewed, best, posterior.values[best] if best else 0.0, errors)
