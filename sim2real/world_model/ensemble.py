"""The world model: a probabilistic ensemble of one-step dynamics, rolled out for as long as is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sim2real.errors import ModelError, NonFiniteError
from sim2real.estimation import Estimate
from sim2real.prediction import Prediction, Recalibration
from sim2real.world_model import storage
from sim2real.world_model.encoder import StartEncoder, angles
from sim2real.world_model.folded import LATENT, Folded
from sim2real.world_model.network import BatchedMLP, bounded, input_scale


@dataclass(frozen=True)
class EnsembleConfig:
    """Architecture of an `EnsembleDynamics`.

    Attributes:
        wraps: for each joint, whether its angle matters only modulo 2 pi (it is then seen as sine and cosine).
        actions: width of a command.
        timestep: of the model and of its commands [s].
        history: commands that the network sees, the one about to act included; must span latency and lag.
        members: of the ensemble.
        hidden: widths of the hidden layers.
        lookback: positions before the present one that correct the estimate that a rollout starts from, a model step
            apart; 0 to start from the estimate as it is.
        latents: numbers beside positions and velocities that a rollout carries along; they need a lookback.
    """

    wraps: tuple[bool, ...]
    actions: int
    timestep: float
    history: int = 4
    members: int = 5
    hidden: tuple[int, ...] = (64, 64)
    lookback: int = 0
    latents: int = 0

    def __post_init__(self) -> None:
        if self.latents and not self.lookback:
            raise ModelError(f"{self.latents} latents need a lookback that says what they start from")

    @property
    def joints(self) -> int:
        return len(self.wraps)

    @property
    def features(self) -> int:
        return sum(2 if w else 1 for w in self.wraps) + self.joints + self.latents + self.history * self.actions


class EnsembleDynamics(nn.Module):
    """An ensemble of M networks that predict the next state from the state and a short history of commands.

    The state is the causal estimate of joint positions and velocities (`StateEstimator`), which carries the history of
    the observations. Each network returns, normalised, the change of the velocities over a step and what the positions
    do beyond the mean velocity of the step, with a log variance for each: positions come from velocities by design.

    With a `recalibration` (`recalibrate_model` of `sim2real.combination`), predictions have the variances that were
    found on held-out recordings. It is saved with the model, and dropped when weights are trained.

    Tensors are float32. M members, B rollouts, X = 2 D state numbers, A actions, L commands of history.

    Args:
        config: the architecture.
        seed: of the initial weights.
    """

    def __init__(self, config: EnsembleConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        d = config.joints
        outputs = 4 * d + config.latents
        self.dynamics = BatchedMLP(config.members, config.features, outputs, tuple(config.hidden), generator)
        self.encoder: StartEncoder | None = None
        if config.lookback:
            seen = (config.history - 1) * config.actions
            self.encoder = StartEncoder(config.members, config.wraps, config.lookback, seen, config.latents, generator)
        # normalisers: set once by `normalise`, never trained
        self.register_buffer("feature_mean", torch.zeros(config.features))
        self.register_buffer("feature_scale", torch.ones(config.features))
        self.register_buffer("target_scale", torch.ones(2 * d))
        self.register_buffer("log_variance_low", torch.full((2 * d,), -14.0))
        self.register_buffer("log_variance_high", torch.full((2 * d,), 2.0))
        # covariance of the error of the state estimate that predictions start from, (X, X)
        self.register_buffer("start_covariance", torch.zeros(2 * d, 2 * d))
        self.recalibration: Recalibration | None = None

    feature_mean: Tensor
    feature_scale: Tensor
    target_scale: Tensor
    log_variance_low: Tensor
    log_variance_high: Tensor
    start_covariance: Tensor

    def features(self, state: Tensor, commands: Tensor) -> Tensor:
        """Return the normalised input of the networks.

        Args:
            state: (..., X), or (..., X + Z) with latents.
            commands: (..., L, A), oldest first, the last one about to act.
        """
        d = self.config.joints
        raw = torch.cat([angles(state[..., :d], self.config.wraps), state[..., d:], commands.flatten(-2)], -1)
        return (raw - self.feature_mean) / self.feature_scale

    def normalise(self, state: Tensor, commands: Tensor, following: Tensor) -> None:
        """Set the normalisers from transitions: states (N, X), commands (N, L, A), next states (N, X)."""
        self.feature_mean.zero_()
        self.feature_scale.fill_(1.0)
        raw = self.features(state, commands)
        self.feature_mean.copy_(raw.mean(0))
        self.feature_scale.copy_(input_scale(raw))
        self.target_scale.copy_(self.raw_target(state, following).std(0).clamp_min(1e-9))

    def raw_target(self, state: Tensor, following: Tensor) -> Tensor:
        """Return what the networks predict, not normalised: velocity change, position beyond the mean velocity."""
        d, dt = self.config.joints, self.config.timestep
        change = following - state
        velocity = 0.5 * (state[..., d : 2 * d] + following[..., d : 2 * d])
        return torch.cat([change[..., d : 2 * d], change[..., :d] - dt * velocity], -1)

    def step(self, state: Tensor, commands: Tensor) -> tuple[Tensor, Tensor]:
        """Advance one model step.

        Args:
            state: (M, B, X).
            commands: (M, B, L, A), the last one about to act.

        Returns:
            mean of the next state (M, B, X), and the log variances of the normalised targets (M, B, X).
        """
        d, dt = self.config.joints, self.config.timestep
        out = self.dynamics(self.features(state, commands))
        target, log_variance = out[..., : 2 * d] * self.target_scale, out[..., 2 * d : 4 * d]
        log_variance = bounded(log_variance, self.log_variance_low, self.log_variance_high)
        q, v, latents = state[..., :d], state[..., d : 2 * d], state[..., 2 * d :]
        v_next = v + target[..., :d]
        q_next = q + dt * 0.5 * (v + v_next) + target[..., d:]
        return torch.cat([q_next, v_next, latents + LATENT * out[..., 4 * d :]], -1), log_variance

    def rollout(self, state: Tensor, commands: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Roll members out side by side, each along its own trajectory.

        Args:
            state: (M, B, X) at the start.
            commands: (M, B, L - 1 + H, A) or broadcastable: the history, then one command a step.
            noise: generator of the aleatoric noise of each step; without it the means are followed.

        Returns:
            (M, B, H, X) states after each step.
        """
        d, history, folded = self.config.joints, self.config.history, Folded.of(self)
        sent = commands.unfold(-2, history, 1).transpose(-1, -2).flatten(-2)
        sent = sent.expand(*state.shape[:2], *sent.shape[2:])
        if noise is None:
            return folded.path(state, sent)
        path = []
        for seen in sent.unbind(-2):
            state, log_variance = folded.step(state, seen)
            kick = torch.randn(log_variance.shape, generator=noise)
            kick = kick * torch.exp(0.5 * bounded(log_variance, self.log_variance_low, self.log_variance_high))
            state = state + kick @ folded.increments[: 2 * d]
            path.append(state)
        return torch.stack(path, -2)

    def begin(self, estimate: Estimate) -> Tensor:
        """Return what rollouts start from, (M, B, X) or (M, B, X + Z): the estimate, or what the encoder makes of it.

        Raises:
            ModelError: the estimate knows too few commands or positions.
        """
        m, back, lookback = self.config.members, self.config.history - 1, self.config.lookback
        if estimate.commands.shape[1] < back:
            raise ModelError(f"the model needs the last {back} commands, the estimate has {estimate.commands.shape[1]}")
        state = torch.as_tensor(estimate.state, dtype=torch.float32).expand(m, *estimate.state.shape)
        if self.encoder is None:
            return state
        if estimate.positions is None or estimate.positions.shape[1] < lookback:
            known = 0 if estimate.positions is None else estimate.positions.shape[1]
            raise ModelError(f"the model needs the last {lookback} positions, the estimate has {known}")
        past, sent = (
            torch.as_tensor(x[:, x.shape[1] - many :], dtype=torch.float32).expand(m, -1, -1, -1)
            for x, many in ((estimate.positions, lookback), (estimate.commands, back))
        )
        start: Tensor = self.encoder(state, past, sent, self.config.timestep)
        return start

    @torch.no_grad()
    def predict(self, estimate: Estimate, actions: np.ndarray, particles: int = 16, seed: int = 0) -> Prediction:
        """Predict the states that follow a sequence of commands, by trajectory sampling with members kept (TSinf).

        Args:
            estimate: of B plants: states (B, X) and the last L - 1 commands or more.
            actions: (B, H, A) commands to come, one a model step.
            particles: trajectories a member; the first follows the means.
            seed: of the sampled noise and starts.

        Returns:
            a Prediction of the states after each step: (B, H, X).

        Raises:
            ModelError: the estimate knows too few commands.
            NonFiniteError: the model diverges.
        """
        m, back = self.config.members, self.config.history - 1
        begun = self.begin(estimate)
        past = estimate.commands[:, estimate.commands.shape[1] - back :]
        commands = torch.as_tensor(np.concatenate([past, actions], 1), dtype=torch.float32)
        many, size = estimate.state.shape
        generator = torch.Generator().manual_seed(seed)
        values, vectors = torch.linalg.eigh(self.start_covariance)
        root = vectors * values.clamp_min(0).sqrt()
        kicks = torch.randn(m, particles, many, size, generator=generator) @ root.T
        kicks = nn.functional.pad(kicks, (0, begun.shape[-1] - size))
        means = self.rollout(begun, commands.expand(m, *commands.shape))[..., :size]
        sampled = self.rollout(
            (begun[:, None] + kicks).reshape(m, particles * many, -1),
            commands.repeat(particles, 1, 1).expand(m, -1, -1, -1),
            noise=generator,
        )[..., :size].reshape(m, particles, many, -1, size)
        if not torch.isfinite(means).all():
            raise NonFiniteError("the world model diverged: its mean prediction is not finite; train it on more data")
        within = sampled.var(1, unbiased=True)
        horizon = self.config.timestep * torch.arange(1, actions.shape[1] + 1)
        prediction = Prediction.from_members(means, within, horizon)
        return prediction if self.recalibration is None else _recalibrated(prediction, self.recalibration)

    def anchors(self) -> list[Tensor]:
        """Return a copy of the trainable weights: what fine-tuning is anchored to."""
        return [p.detach().clone() for p in self.dynamics.parameters()]

    def first(self, members: int) -> EnsembleDynamics:
        """Return a copy of the first members, not recalibrated."""
        fewer = EnsembleDynamics(replace(self.config, members=members))
        networks = ("dynamics.", "encoder.network.")
        fewer.load_state_dict({n: t[:members] if n.startswith(networks) else t for n, t in self.state_dict().items()})
        return fewer

    def save(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, and `recalibration.json`, into a directory, which is made."""
        storage.save_recalibration(None, directory)  # that of another model must not outlive a kill in between
        storage.save(self, asdict(self.config), directory)
        storage.save_recalibration(self.recalibration, directory)

    @classmethod
    def load(cls, directory: str | Path) -> EnsembleDynamics:
        """Read what `save` wrote.

        Raises:
            ModelError: files are missing, damaged or of another format.
        """
        model = storage.load(cls, EnsembleConfig, directory)
        model.recalibration = storage.load_recalibration(directory, model.config.joints)
        return model


def _recalibrated(prediction: Prediction, recalibration: Recalibration) -> Prediction:
    """Return a prediction of states whose positions have recalibrated variances; velocities are stretched as they are.

    Of how sure a velocity is no recording tells.
    """
    none = np.zeros_like(recalibration.floor)
    whole = replace(
        recalibration,
        scale=np.concatenate([recalibration.scale] * 2, 1),
        floor=np.concatenate([recalibration.floor, none], 1),
    )
    return whole.apply(prediction)
