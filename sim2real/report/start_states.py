"""Start states of windows, fitted to each window by itself for given parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2real.calibration.replay import STATE_STEP, Replay
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError

# Steps of the start states at most.
STEPS = 8
# Residual, in standard deviations, beyond which the loss grows linearly: that of the fit.
ROBUST = 2.0


@dataclass(frozen=True)
class Told:
    """What a replay says at some start states, in standard deviations of the noise.

    Attributes:
        residual: (W, M, D) predicted minus measured.
        slopes: (W, M, D, X) its derivative by the start states.
    """

    residual: Array
    slopes: Array

    def gain(self, damping: Array) -> Array:
        """(W, X, M * D) the Gauss-Newton step of the start states by the residual, damped by (W,)."""
        many, size = len(self.residual), self.slopes.shape[-1]
        weight = 1 / np.sqrt(1 + (self.residual / ROBUST) ** 2)
        slopes = self.slopes.reshape(many, -1, size)
        weighted = np.swapaxes(slopes * weight.reshape(many, -1, 1), 1, 2)
        hessian = weighted @ slopes
        diagonal = np.einsum("wxx->wx", hessian)
        ridge = damping[:, None] * diagonal + 1e-12 * (1 + diagonal)
        return np.asarray(np.linalg.solve(hessian + ridge[..., None] * np.eye(size), weighted))

    def step(self, damping: Array) -> Array:
        """(W, X) the damped step that the start states take."""
        return np.asarray(-(self.gain(damping) @ self.residual.reshape(len(self.residual), -1, 1))[..., 0])

    def where(self, mask: NDArray[np.bool_], other: Told) -> Told:
        """Return these windows where the mask (W,) is true, and the other ones elsewhere."""
        chosen = mask[:, None, None]
        return Told(
            np.where(chosen, self.residual, other.residual),
            np.where(chosen[..., None], self.slopes, other.slopes),
        )


def fitted(part: Replay, parameters: Array, noise: Array) -> tuple[Array, Told]:
    """Fit the start state of each window by itself: Levenberg-Marquardt, every window with its own damping."""
    start, told = part.start, _tell(part, parameters, part.start, noise)
    damping = np.full(len(start), 1e-3)
    for _ in range(STEPS):
        tried = start + told.step(damping)
        try:
            found = _tell(part, parameters, tried, noise)
        except NonFiniteError:
            damping = 100 * damping
            continue
        better = soft_loss(found.residual) < soft_loss(told.residual)
        start, told = np.where(better[:, None], tried, start), found.where(better, told)
        damping = np.where(better, 0.1 * damping, 10 * damping)
    return start, told


def _tell(part: Replay, parameters: Array, start: Array, noise: Array) -> Told:
    size = start.shape[1]
    nudged = start + STATE_STEP * np.concatenate([np.zeros((1, size)), np.eye(size)])[:, None, :]
    residuals = part.residuals(part.run(np.repeat(parameters[None], 1 + size, 0), nudged)) / noise
    return Told(residuals[0], np.moveaxis((residuals[1:] - residuals[0]) / STATE_STEP, 0, -1))


def soft_loss(residual: Array) -> Array:
    """Soft-L1 loss (..., W) of standardised residuals (..., W, M, D)."""
    return np.asarray((np.sqrt(1 + (residual / ROBUST) ** 2) - 1).sum((-2, -1)))
