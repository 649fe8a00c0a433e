"""Bayesian linear regression of the last layer of a world model: in closed form, at once or reading by reading."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sim2real.calibration.evidence import Evidence
from sim2real.calibration.tuning import SMALLEST
from sim2real.world_model.ensemble import EnsembleDynamics


def design(model: EnsembleDynamics, state: Tensor, commands: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the last layer sees, a one appended, and what it gets wrong: (M, N, H + 1) and (M, N, 2 D), float64.

    Args:
        model: whose features are frozen.
        state: (M, N, X) before a step.
        commands: (M, N, L, A), the last one in force during it.
        after: (M, N, 2 D) states.
    """
    with torch.no_grad():
        seen = model.dynamics.last_hidden(model.features(state, commands))
        said = torch.baddbmm(model.dynamics.biases[-1], seen, model.dynamics.weights[-1])
    size = after.shape[-1]
    wrong = model.raw_target(state[..., :size], after) / model.target_scale - said[..., :size]
    ones = torch.ones(*seen.shape[:-1], 1)
    return torch.cat([seen, ones], -1).double(), wrong.double()


def prior_sizes(model: EnsembleDynamics) -> Tensor:
    """Return the standard deviation of the prior of each row of the last layer, bias last: (H + 1,), float64."""
    layer = (model.dynamics.weights[-1], model.dynamics.biases[-1])
    weight, bias = (float(p.detach().square().mean().sqrt().clamp_min(SMALLEST)) for p in layer)
    sizes = torch.full((layer[0].shape[1] + 1,), weight, dtype=torch.float64)
    sizes[-1] = bias
    return sizes


def shift(model: EnsembleDynamics, change: Tensor) -> None:
    """Add to the means of the last layer: (M, H + 1, 2 D), bias last. Variances and latents stay."""
    size = change.shape[-1]
    with torch.no_grad():
        model.dynamics.weights[-1][..., :size] += change[:, :-1].float()
        model.dynamics.biases[-1][..., :size] += change[:, -1:].float()


def regress_last_layer(model: EnsembleDynamics, real: Evidence, weight: Tensor, anchor: float) -> EnsembleDynamics:
    """Return the model with the posterior mean of the last layer, each member under its own weights of windows (M, N).

    Prior: the weights as they are, each give or take the size of its layer over the root of `anchor`. Noise: what the
    model as it is gets wrong.
    """
    tuned = copy.deepcopy(model)
    tuned.recalibration = None
    x, y = design(model, *real.steps(model))
    w = weight.double()[..., None]
    noise = (w * y.square()).sum(1) / w.sum(1)
    # the same factor on all weights of a row: scaled by the prior, the normal equations share their eigenvectors
    scale = prior_sizes(model)
    scaled = x * scale
    values, vectors = torch.linalg.eigh(scaled.mT @ (w * scaled))
    right = vectors.mT @ (scaled.mT @ (w * y))
    change = vectors @ (right / (values.clamp_min(0)[..., None] + anchor * noise[:, None] + 1e-12))
    shift(tuned, scale[:, None] * change)
    return tuned
