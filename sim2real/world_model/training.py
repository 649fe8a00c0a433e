"""Training of the ensemble: likelihood of single steps, and squared error of rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sim2real.errors import NonFiniteError
from sim2real.world_model.dataset import Stretches
from sim2real.world_model.ensemble import EnsembleDynamics
from sim2real.world_model.network import gaussian_nll, hardness


def batches(data: Stretches, members: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw stretches for every member: states (M, size, T + 1, X), commands (M, size, .., A), rows (M, size)."""
    many = data.states.shape[1]
    rows = torch.randint(many, (members, size), generator=generator)
    if data.states.shape[0] == 1:
        return data.states[0][rows], data.commands[0][rows], rows
    member = torch.arange(members)[:, None]
    return data.states[member, rows], data.commands[member, rows], rows


def step_loss(model: EnsembleDynamics, states: Tensor, commands: Tensor, weight: Tensor) -> Tensor:
    """Negative log likelihood of one step, weighted by the detached variance to the power 0.5 (Seitzer et al. 2022).

    Args:
        states: (M, B, 2, X).
        commands: (M, B, L, A).
        weight: (M, B).
    """
    mean, log_variance = model.step(states[..., 0, :], commands)
    target = model.raw_target(states[..., 0, :], states[..., 1, :]) / model.target_scale
    found = model.raw_target(states[..., 0, :], mean) / model.target_scale
    return (weight[..., None] * gaussian_nll(target - found, log_variance) * hardness(log_variance, 0.5)).mean()


def rollout_loss(model: EnsembleDynamics, states: Tensor, commands: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """Squared error of a mean rollout, in units of `scale` (T, X), Huber beyond one unit.

    Args:
        states: (M, B, T + 1, X).
        commands: (M, B, L - 1 + T, A).
        scale: (T, X).
        weight: (M, B).
    """
    path = model.rollout(states[..., 0, :], commands)
    error = (path - states[..., 1:, :]) / scale
    huber = torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")
    return (weight[..., None, None] * huber).mean()


def change_scale(data: Stretches) -> Tensor:
    """Return the standard deviation of the change over 1 .. T steps: (T, X)."""
    return (data.states[:, :, 1:] - data.states[:, :, :1]).flatten(0, 1).std(0).clamp_min(1e-6)


def optimise(
    model: EnsembleDynamics,
    loss: Callable[[int], Tensor],
    iterations: int,
    rate: float,
    progress: Callable[[int, float], None] = lambda i, value: None,
    parameters: Sequence[Tensor] | None = None,
) -> None:
    """Minimise `loss(iteration)` with Adam, the rate falling to zero along a cosine; over the dynamics if not told.

    A recalibration of the model as it was before is dropped.

    Raises:
        NonFiniteError: the loss diverges.
    """
    model.recalibration = None
    parameters = list(model.dynamics.parameters() if parameters is None else parameters)
    adam = torch.optim.Adam(parameters, rate)
    total = 11 if iterations == 10 else max(iterations, 2)  # a warm-up of exactly one step is divided by zero in torch
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=total, pct_start=0.1, cycle_momentum=False)
    for i in range(iterations):
        value = loss(i)
        if not torch.isfinite(value):
            raise NonFiniteError(f"the training loss is not finite at iteration {i}; lower the rate or mend the data")
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        adam.step()
        schedule.step()
        if i % 50 == 0 or i == iterations - 1:
            progress(i, float(value.detach()))


def fit(
    model: EnsembleDynamics,
    data: Stretches,
    *,
    step_iterations: int = 2000,
    rollout_iterations: int = 300,
    batch: int = 256,
    rollout_batch: int = 64,
    rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> EnsembleDynamics:
    """Train a fresh model on stretches: single steps first, then whole rollouts.

    Args:
        model: whose normalisers and weights are set.
        data: what to learn from.
        step_iterations: with the likelihood of single steps.
        rollout_iterations: with the error of rollouts over all steps of a stretch, beside the likelihood.
        batch: transitions a member in an iteration.
        rollout_batch: stretches a member in a rollout iteration.
        rate: peak learning rate.
        seed: of the draws.
        progress: called with a line now and then.
    """
    generator = torch.Generator().manual_seed(seed)
    history, members = model.config.history, model.config.members
    flat_states, flat_commands = data.states[:, :, :2].flatten(0, 1), data.commands[:, :, :history].flatten(0, 1)
    model.normalise(flat_states[:, 0], flat_commands, flat_states[:, 1])
    model.log_variance_low.fill_(-14.0)
    scale, ones = change_scale(data), torch.ones(members, batch)

    def single(states: Tensor, commands: Tensor) -> Tensor:
        k = int(torch.randint(data.steps, (1,), generator=generator))
        return step_loss(model, states[:, :, k : k + 2], commands[:, :, k : k + history], ones[:, : states.shape[1]])

    def first(_: int) -> Tensor:
        states, commands, _rows = batches(data, members, batch, generator)
        return single(states, commands)

    def second(_: int) -> Tensor:
        states, commands, _rows = batches(data, members, rollout_batch, generator)
        weight = torch.ones(states.shape[:2])
        return 30 * rollout_loss(model, states, commands, scale, weight) + 0.1 * single(states, commands)

    def tell(what: str, of: int) -> Callable[[int, float], None]:
        return lambda i, value: progress(f"{what} {i + 1}/{of}: loss {value:.3f}")

    optimise(model, first, step_iterations, rate, tell("step", step_iterations))
    optimise(model, second, rollout_iterations, 0.3 * rate, tell("rollout", rollout_iterations))
    return model


def rollout_error(model: EnsembleDynamics, data: Stretches, at: Sequence[int]) -> list[float]:
    """Return the root mean squared error of mean rollouts after `at` steps, in units of the change over them."""
    with torch.no_grad():
        members = model.config.members
        states = data.states.expand(members, -1, -1, -1)
        path = model.rollout(states[:, :, 0], data.commands.expand(members, -1, -1, -1))
        error = ((path - states[:, :, 1:]) / change_scale(data)).square().mean((0, 1, 3)).sqrt()
    return [float(error[k - 1]) for k in at]
