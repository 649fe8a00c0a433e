"""What is still to be paid after a plan, fitted to runs: with it a short horizon sees far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.planning.costs import Cost, depends_on_time


class FittedValue(nn.Module):
    """Costs still to be paid from states (..., X), as a sum of discounted costs a step: a small network.

    Args:
        wraps: for each joint, whether it turns freely: its angle enters as sine and cosine.
        width: of its two layers.
    """

    middle: Tensor
    scale: Tensor
    level: Tensor

    def __init__(self, wraps: Sequence[bool], width: int = 64) -> None:
        super().__init__()
        self.turning = torch.tensor(list(wraps))
        inputs = 2 * len(wraps) + int(self.turning.sum())
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.register_buffer("middle", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.register_buffer("level", torch.tensor([0.0, 1.0]))  # mean and spread of what is predicted

    def features(self, states: Tensor) -> Tensor:
        """Return the network's inputs before they are normalised: (..., X) -> (..., F)."""
        d = len(self.turning)
        where, speed = states[..., :d], states[..., d:]
        angles = where[..., self.turning]
        return torch.cat([angles.sin(), angles.cos(), where[..., ~self.turning], speed], -1)

    def forward(self, states: Tensor) -> Tensor:
        """Return what is still to be paid: (..., X) -> (...)."""
        inputs = (self.features(states.to(self.scale.dtype)) - self.middle) / self.scale
        out: Tensor = self.level[0] + self.level[1] * self.network(inputs)[..., 0]
        return out


def fit_value(
    cost: Cost,
    states: Array,
    commands: Array,
    wraps: Sequence[bool],
    timestep: float,
    *,
    forgets: float = 1.0,
    iterations: int = 1500,
    seed: int = 0,
) -> FittedValue:
    """Fit what is still to be paid to runs of a policy, such as a planner with a long horizon on the simulator.

    A run's costs are summed from each state on, discounted; after its end, what its last tenth cost on average
    is taken to go on. The states of a run should be those that plans may end in.

    Args:
        cost: that the planner has; not one that depends on time.
        states: (n, T + 1, X) of runs, as `Run.states`.
        commands: (n, T, A).
        wraps: for each joint, whether it turns freely.
        timestep: of the runs, which is that of the planner's model [s].
        forgets: seconds after which a cost counts a factor e less [s].
        iterations: of the fit, on 256 states each.
        seed: of it.

    Returns:
        a `value` for planners.

    Raises:
        ModelError: a run has a state or cost that is not finite, the shapes do not match, runs have no step, or the
            cost depends on time.
    """
    n, many = commands.shape[:2]
    if depends_on_time(cost):
        raise ModelError("a value is of states alone: the cost depends on time, as tracking a path does")
    if forgets <= 0 or many < 1:
        raise ModelError(
            f"expected runs of a step or more, and to forget after some seconds, found {many} and {forgets:g}"
        )
    if states.shape[:2] != (n, many + 1) or states.shape[2] != 2 * len(wraps):
        raise ModelError(
            f"expected states (n, T + 1, 2 D) of D = {len(wraps)} joints for commands {commands.shape}, found "
            f"{states.shape}"
        )
    reached = torch.as_tensor(states, dtype=torch.float32)
    paid = cost(reached[:, 1:], torch.as_tensor(commands, dtype=torch.float32))
    if not (torch.isfinite(paid).all() and torch.isfinite(reached).all()):
        raise ModelError("a run has a state or a cost that is not finite: leave it out")
    discount = float(np.exp(-timestep / forgets))
    left = paid[:, -max(many // 10, 1) :].mean(1) / (1 - discount)
    togo = [left]
    for k in range(many - 1, -1, -1):
        left = paid[:, k] + discount * left
        togo.append(left)
    target, inputs = torch.stack(togo[::-1], 1).flatten(), reached.flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = FittedValue(wraps)
    features = value.features(inputs)
    value.middle, value.scale = features.mean(0), features.std(0).clamp_min(1e-6)
    value.level = torch.stack([target.mean(), target.std().clamp_min(1e-6)])
    adam = torch.optim.Adam(value.network.parameters(), 3e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in range(iterations):
        picked = torch.randint(len(target), (256,), generator=generator)
        loss = ((value(inputs[picked]) - target[picked]) / value.level[1]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        slower.step()
    return value.requires_grad_(False)
