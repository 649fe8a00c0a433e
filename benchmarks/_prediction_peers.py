"""What world models are measured against on recorded robots: autoregressions, linear, of plain networks, of mbrl-lib.

All three see the last `BACK` changes of position, the last `SENT` commands, sines and cosines of the angles that turn
freely (the others as they are), and predict the next change of position; rolled out, they see their own predictions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array, Episode, resample
from sim2real.evaluation import Questions
from sim2real.prediction import Prediction
from sim2real.windows import joint_positions
from sim2real.world_model.encoder import angles
from sim2real.world_model.network import BatchedMLP, bounded, gaussian_nll

BACK, SENT = 4, 6
MEMBERS, HIDDEN, TRAJECTORIES = 5, (128, 128), 8
# A step further than this is cut off, so that a rollout that diverges stays a number [rad].
FURTHEST = 1.0


def spread(x: Array) -> Array:
    """Return the standard deviation of inputs (N, F), infinite for one that never changes: it is not looked at."""
    found = x.std(0)
    return np.where(found <= 1e-9 * np.abs(x.mean(0)), np.inf, found)


class Autoregression(ABC):
    """The inputs and the rollout that the three share.

    Args:
        channels: the observations that are joint positions.
        wraps: for each joint, whether it turns freely.
        dt: of a step [s].
    """

    def __init__(self, channels: Sequence[str], wraps: Sequence[bool], dt: float) -> None:
        self.channels, self.wraps, self.dt = list(channels), list(wraps), dt

    def pairs(self, episodes: Sequence[Episode]) -> tuple[Array, Array]:
        """Return inputs (N, F) and the changes that follow (N, D)."""
        x, y = [], []
        for episode in episodes:
            even = resample(episode, self.dt)
            q, u = joint_positions(even, self.channels), even.actions
            for k in range(max(BACK, SENT), min(len(q) - 1, len(u))):
                x.append(self.features(q[None, k - BACK : k + 1], u[None, k - SENT + 1 : k + 1])[0])
                y.append(q[k + 1] - q[k])
        return np.stack(x), np.stack(y)

    def features(self, q: Array, u: Array) -> Array:
        """Return inputs (N, F) of positions (N, BACK + 1, D) and commands (N, SENT, A)."""
        changes = np.diff(q, axis=1).reshape(len(q), -1)
        seen = angles(torch.as_tensor(q[:, -1]), self.wraps).numpy()
        return np.concatenate([changes, seen, u.reshape(len(u), -1)], 1)

    @abstractmethod
    def change(self, x: Array, trajectory: int) -> Array:
        """Return the next change of position (N, D) of inputs (N, F) along one of the sampled trajectories."""

    def paths(self, asked: Questions, trajectories: int) -> Array:
        """Return positions when asked for, (S, W, H, D)."""
        t, q = asked.episode.observed_at, joint_positions(asked.episode, self.channels)
        begin, steps = t[asked.starts][:, None], int(np.ceil(asked.offsets.max() / self.dt))
        past = begin - self.dt * np.arange(BACK, -1, -1)
        before = np.stack([np.interp(past, t, q[:, d]) for d in range(q.shape[1])], -1)
        sent = asked.episode.commands_at(begin + self.dt * (np.arange(-SENT + 1, steps) + 0.5))
        clock, out = self.dt * np.arange(steps + 1), []
        for trajectory in range(trajectories):
            path = before
            for k in range(steps):
                change = self.change(self.features(path[:, -BACK - 1 :], sent[:, k : k + SENT]), trajectory)
                path = np.concatenate([path, (path[:, -1] + np.clip(change, -FURTHEST, FURTHEST))[:, None]], 1)
            found = np.empty((len(path), asked.offsets.shape[1], path.shape[2]))
            for w, d in np.ndindex(len(path), path.shape[2]):
                found[w, :, d] = np.interp(asked.offsets[w], clock, path[w, BACK:, d])
            out.append(found)
        return np.stack(out)


class Linear(Autoregression):
    """Ridge regression."""

    def fit(self, episodes: Sequence[Episode], penalty: float) -> Linear:
        """Solve for the weights."""
        a, b = self.pairs(episodes)
        self.scale = spread(a)
        a = np.concatenate([a / self.scale, np.ones((len(a), 1))], 1)
        self.weights = np.linalg.lstsq(a.T @ a + penalty * len(a) * np.eye(a.shape[1]), a.T @ b)[0]
        return self

    def change(self, x: Array, trajectory: int) -> Array:
        return np.concatenate([x / self.scale, np.ones((len(x), 1))], 1) @ self.weights

    def __call__(self, asked: Questions) -> Array:
        return self.paths(asked, 1)[0]


class PlainEnsemble(Autoregression):
    """Networks that predict mean and log variance of a step, each with the epoch best on held-out recordings."""

    def fit(self, episodes: Sequence[Episode], held_out: Sequence[Episode], seed: int, updates: int) -> PlainEnsemble:
        """Train by likelihood with Adam, its rate falling from 1e-3."""
        (x, y), (x_held, y_held) = self.pairs(episodes), self.pairs(held_out)
        self.mean, self.scale = x.mean(0), spread(x)
        self.unit = np.maximum(y.std(0), 1e-9)
        parts = (self._inputs(x), y / self.unit, self._inputs(x_held), y_held / self.unit)
        self._train(*map(self._tensor, parts), seed, updates)
        self.noise = np.random.default_rng(seed)
        return self

    def _inputs(self, x: Array) -> Array:
        return (x - self.mean) / self.scale

    @staticmethod
    def _tensor(x: Array) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float32)

    def _train(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, seed: int, updates: int) -> None:
        generator, d = torch.Generator().manual_seed(seed), y.shape[1]
        network = BatchedMLP(MEMBERS, x.shape[1], 2 * d, HIDDEN, generator)
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)

        def nll(inputs: Tensor, target: Tensor) -> Tensor:
            out = network(inputs)
            return gaussian_nll(target - out[..., :d], bounded(out[..., d:], -12.0, 2.0)).mean((1, 2))

        lowest = torch.full((MEMBERS,), torch.inf)
        best = [p.detach().clone() for p in network.parameters()]
        every = max(len(x) // 256, 20)
        for k in range(updates):
            rows = torch.randint(len(x), (MEMBERS, min(256, len(x))), generator=generator)
            optimiser.zero_grad()
            nll(x[rows], y[rows]).sum().backward()
            optimiser.step()
            falling.step()
            if k % every == every - 1:
                with torch.no_grad():
                    held = nll(x_held.expand(MEMBERS, -1, -1), y_held)
                    better = held < lowest
                    lowest = torch.where(better, held, lowest)
                    for kept, p in zip(best, network.parameters(), strict=True):
                        kept[better] = p[better]
        with torch.no_grad():
            for kept, p in zip(best, network.parameters(), strict=True):
                p.copy_(kept)
        self.network = network

    def _outputs(self, x: Array, member: int) -> tuple[Array, Array]:
        """Return mean and log variance of what one member says of normalised inputs."""
        with torch.no_grad():
            out = self.network(self._tensor(x).expand(MEMBERS, -1, -1))[member].double()
        d = out.shape[1] // 2
        return out[:, :d].numpy(), bounded(out[:, d:], -12.0, 2.0).numpy()

    def member(self, trajectory: int) -> int:
        """Return the member that a trajectory's next step is taken from: always the same."""
        return trajectory // TRAJECTORIES

    def change(self, x: Array, trajectory: int) -> Array:
        mean, log_variance = self._outputs(self._inputs(x), self.member(trajectory))
        return self.unit * (mean + np.exp(0.5 * log_variance) * self.noise.normal(size=mean.shape))

    def __call__(self, asked: Questions) -> Prediction:
        found = self.paths(asked, MEMBERS * TRAJECTORIES)
        found = torch.as_tensor(found.reshape(MEMBERS, TRAJECTORIES, *found.shape[1:]))
        return Prediction.from_members(found.mean(1), found.var(1), asked.horizon)


class Mbrl(PlainEnsemble):
    """mbrl-lib's ensemble as its examples train it, on the same inputs; each step is drawn from another member (TS1).

    Positions are in units of how far they get in a step: mbrl-lib does not scale what is predicted.
    """

    def _train(self, x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, seed: int, updates: int) -> None:
        from mbrl.models import GaussianMLP, ModelTrainer, OneDTransitionRewardModel
        from mbrl.types import TransitionBatch
        from mbrl.util.replay_buffer import BootstrapIterator, TransitionIterator

        wide = x.shape[1] - y.shape[1]

        def batch(inputs: Tensor, target: Tensor) -> TransitionBatch:
            # mbrl-lib takes what follows to be as wide as what was seen
            padded = torch.nn.functional.pad(target, (0, wide)).numpy()
            return TransitionBatch(inputs.numpy(), np.zeros((len(inputs), 0)), padded, *[np.zeros(len(inputs))] * 3)

        class Narrow(OneDTransitionRewardModel):
            def _process_batch(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
                seen, target = super()._process_batch(batch)
                return seen, target[..., : target.shape[-1] - wide]

        torch.manual_seed(seed)
        self.mbrl = GaussianMLP(
            x.shape[1], y.shape[1], "cpu", num_layers=len(HIDDEN), ensemble_size=MEMBERS, hid_size=HIDDEN[0],
            activation_fn_cfg={"_target_": "torch.nn.SiLU"}, learn_logvar_bounds=True,
        )  # fmt: skip
        model = Narrow(self.mbrl, target_is_delta=False, normalize=False, learned_rewards=False)
        trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=5e-5)
        rng = np.random.default_rng(seed)
        rows = BootstrapIterator(batch(x, y), min(256, len(x)), MEMBERS, shuffle_each_epoch=True, rng=rng)
        held = TransitionIterator(batch(x_held, y_held), 256)
        epochs = max(updates * 256 // len(x), 1)
        trainer.train(rows, held, num_epochs=epochs, patience=5, silent=True)

    def _outputs(self, x: Array, member: int) -> tuple[Array, Array]:
        with torch.no_grad():
            mean, log_variance = self.mbrl(self._tensor(x), use_propagation=False)
        return mean[member].double().numpy(), log_variance[member].double().numpy()

    def member(self, trajectory: int) -> int:
        return int(self.noise.integers(MEMBERS))
