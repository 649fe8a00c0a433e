"""Sensitivities over what the data leave open: differences along its axes, as wide as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sim2real.calibration.shooting import Sensitivity, ShootingProblem
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Steps that tell jumps from slopes are so many times as wide as those for the fit.
COARSE = 20.0


def width_of(problem: ShootingProblem) -> Array:
    """(P,) standard deviation of a uniform distribution between the bounds; without limit where there are none."""
    return np.asarray((problem.upper - problem.lower) / np.sqrt(12.0))


def principal_axes(problem: ShootingProblem, told: list[Sensitivity]) -> Array:
    """(P, P) directions, a row each, that are known independently, each as long as its standard deviation."""
    precision = sum(t.precision() for t in told)
    width = np.where(np.isfinite(width_of(problem)), width_of(problem), 100 * problem.steps)
    scaled = (precision + problem.factor.T @ problem.factor) * np.outer(width, width) + np.eye(len(width))
    known, axes = np.linalg.eigh(scaled)
    return np.asarray((axes / np.sqrt(known)).T * width)


@dataclass
class EnsembleProblem(ShootingProblem):
    """A problem whose sensitivities are regressions over an ensemble as wide as what is not yet known.

    A Gauss-Newton step with them is one of unscented Kalman inversion (Huang, Schneider & Stuart 2022): the ensemble
    are the sigma points of what is known after the step before, so it narrows as the fit goes on.
    """

    @classmethod
    def of(cls, problem: ShootingProblem, axes: Array | None = None) -> EnsembleProblem:
        """Return the same problem, fitted with an ensemble of these half axes."""
        fields = {name: getattr(problem, name) for name in ShootingProblem.__dataclass_fields__}
        return cls(**fields | {"axes": axes})

    def sensitivities(self, x: Array) -> list[Sensitivity]:
        """Return what every part says along the axes of what is not yet known, which become those of what is left."""
        rounds = 1
        if self.axes is None:
            self.axes, rounds = principal_axes(self, super().sensitivities(x)), 2
        for _ in range(rounds):
            try:
                told = self.along(x, self.axes)
            except NonFiniteError:  # too wide an ensemble: the local slope serves once more
                told = super().sensitivities(x)
            self.axes = principal_axes(self, told)
        return told


def at_scale(problem: ShootingProblem, best: Array) -> list[Sensitivity]:
    """Return sensitivities at the optimum, by differences as wide as the data leave the parameters free.

    The differences go along the principal axes of what is known (the sigma points of an unscented transform; Julier &
    Uhlmann 1997): where the data hardly see a parameter (a lag far below a substep, a dead zone of zero), or only see
    many of them together, a derivative says nothing of how far they may go before the data do. Where a motion jumps
    with a parameter (friction that sticks or does not), the derivative is as large as the step is small, and says
    nothing either: that sample is left out, for all parameters at once, or what they do together would no longer cancel
    where it does nothing. The problem keeps the axes, from which the next call goes on.
    """
    try:
        if problem.axes is None:
            found = problem.sensitivities(best)
            axes, rounds = principal_axes(problem, found), 2
        else:
            found, axes, rounds = problem.still(best), problem.axes, 1
        for _ in range(rounds):  # only the slopes are simulated again, not what the start states do
            found = [replace(t, by_parameter=s) for t, s in zip(found, problem.secants(best, axes), strict=True)]
            axes = principal_axes(problem, found)
        problem.axes = axes
        coarse = ShootingProblem.sensitivities(replace(problem, steps=COARSE * problem.steps), best)
    except NonFiniteError:  # so far away it diverges
        problem.axes = None
        return problem.sensitivities(best)
    for one, other in zip(found, coarse, strict=True):
        usual = np.quantile(np.abs(other.by_parameter), 0.9, axis=(0, 1, 2))
        jumps = np.abs(one.by_parameter) > 3 * np.abs(other.by_parameter) + usual
        one.by_parameter = np.where(jumps.any(-1, keepdims=True), 0.0, one.by_parameter)
    return found
