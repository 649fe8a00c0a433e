"""A model of the observations of any environment: what comes next, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from sim2real.errors import LogError, ModelError
from sim2real.prediction import LEVEL, Prediction
from sim2real.world_model import storage
from sim2real.world_model.network import BatchedMLP, bounded
from sim2real.world_model.scores import half_width
from sim2real.world_model.transitions import CHUNK, Numbers, Rows, Transitions

# Log variances of normalised changes lie between these.
LOG_VARIANCE = (-20.0, 2.0)
# By so much recalibration may stretch or shrink the noise.
STRETCH = (0.01, 20.0)


@dataclass(frozen=True)
class TransitionConfig:
    """Architecture of a `TransitionEnsemble`.

    Attributes:
        observations: O, how many numbers are observed.
        actions: A.
        timestep: of the environment [s].
        members: of the ensemble.
        elites: members that predict, the best on held-out transitions.
        hidden: widths of the hidden layers.
        names: of the observations; numbered where not given.
    """

    observations: int
    actions: int
    timestep: float
    members: int = 7
    elites: int = 5
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.elites <= self.members:
            raise ModelError(f"expected between 1 and {self.members} elites, as many as members, found {self.elites}")
        if min(self.observations, self.actions, *self.hidden, 1) < 1:
            raise ModelError(
                f"expected widths of one at least, found {self.observations} observations, {self.actions} actions and "
                f"hidden layers {self.hidden}"
            )
        names = self.names or tuple(f"observation {i}" for i in range(self.observations))
        object.__setattr__(self, "names", names)


class TransitionEnsemble(nn.Module):
    """An ensemble of M Gaussian networks that predict the change of observations over a step of an environment.

    Inputs and changes are normalised, so that an observation in thousandths is learned as well as one in thousands.
    Where the state is the positions and velocities of joints, `EnsembleDynamics` is the better model, for it has their
    kinematics; this one is for observations that mean anything.

    Tensors are float32. M members, B plants, O observations, A actions.

    Args:
        config: the architecture.
        seed: of the initial weights, which also are what members are anchored to.
    """

    def __init__(self, config: TransitionConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        size, inputs = config.observations, config.observations + config.actions
        generator = torch.Generator().manual_seed(seed)
        self.network = BatchedMLP(config.members, inputs, 2 * size, tuple(config.hidden), generator)
        # normalisers: set once by `normalise`, never trained
        self.register_buffer("input_mean", torch.zeros(inputs))
        self.register_buffer("input_scale", torch.ones(inputs))
        self.register_buffer("change_mean", torch.zeros(size))
        self.register_buffer("change_scale", torch.ones(size))
        # factor on the standard deviation of the noise, from held-out transitions
        self.register_buffer("stretch", torch.ones(size))
        self.register_buffer("elites", torch.arange(config.elites))

    input_mean: Tensor
    input_scale: Tensor
    change_mean: Tensor
    change_scale: Tensor
    stretch: Tensor
    elites: Tensor

    def normalise(self, data: Transitions) -> None:
        """Set the normalisers from all transitions, read piece by piece.

        Raises:
            LogError: the transitions are not of this many observations and actions.
        """
        self.require(data)
        seen, sent, after = data.observations, data.actions, data.following
        found = [_moments(len(data), values.__getitem__) for values in (seen, sent)]
        for buffer, moments in ((self.input_mean, 0), (self.input_scale, 1)):
            buffer.copy_(torch.as_tensor(np.concatenate([f[moments] for f in found])))
        mean, scale = _moments(len(data), lambda rows: after[rows] - seen[rows])
        self.change_mean.copy_(torch.as_tensor(mean))
        self.change_scale.copy_(torch.as_tensor(scale))

    def require(self, data: Transitions) -> None:
        """Raise a LogError where transitions are of another width than the model."""
        found = (data.observations.shape[1], data.actions.shape[1])
        if found != (self.config.observations, self.config.actions):
            raise LogError(
                f"the model has {self.config.observations} observations and {self.config.actions} actions, the data "
                f"{found[0]} and {found[1]}"
            )

    def normalised(self, data: Transitions, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return what the networks see of some rows (...), (..., O + A), and what they are to answer, (..., O)."""
        device = self.input_mean.device
        observed = data.observations[rows]
        inputs = np.concatenate([observed, data.actions[rows]], -1)
        change = data.following[rows] - observed
        x, y = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (inputs, change))
        return (x - self.input_mean) / self.input_scale, (y - self.change_mean) / self.change_scale

    def answer(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the normalised changes, (M, B, O) each, for inputs (M, B, O + A)."""
        mean, log_variance = self.network(inputs).chunk(2, -1)
        return mean, bounded(log_variance, *LOG_VARIANCE)

    def step(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Advance one step.

        Args:
            observations: (M, B, O).
            actions: (M, B, A).

        Returns:
            mean of the next observations and their standard deviation, recalibrated, (M, B, O) each.
        """
        inputs = (torch.cat([observations, actions], -1) - self.input_mean) / self.input_scale
        mean, log_variance = self.answer(inputs)
        after = observations + self.change_mean + mean * self.change_scale
        return after, torch.exp(0.5 * log_variance) * self.change_scale * self.stretch

    @torch.no_grad()
    def predict(self, observations: np.ndarray, actions: np.ndarray, particles: int = 8, seed: int = 0) -> Prediction:
        """Predict what follows a sequence of actions, by trajectory sampling with members kept (TSinf).

        Args:
            observations: (B, O) at the start.
            actions: (B, H, A).
            particles: trajectories of each elite; its mean is followed besides.
            seed: of the sampled noise.

        Returns:
            a Prediction of the observations after each step: (B, H, O).

        Raises:
            ModelError: shapes do not fit the model.
            NonFiniteError: the model diverges.
        """
        size, width = self.config.observations, self.config.actions
        if observations.shape[1:] != (size,) or actions.shape[::2] != (len(observations), width):
            raise ModelError(
                f"expected observations (B, {size}) and actions (B, H, {width}), found {observations.shape} and "
                f"{actions.shape}"
            )
        if particles < 2 or not actions.shape[1]:
            raise ModelError(f"expected two particles and one step at least, found {particles} and {actions.shape[1]}")
        device, members, many = self.input_mean.device, self.config.members, len(observations)
        generator = torch.Generator(device).manual_seed(seed)
        # the first of 1 + particles trajectories follows the means
        state = torch.as_tensor(observations, dtype=torch.float32, device=device).repeat(1 + particles, 1)
        state = state.expand(members, -1, -1)
        sent = torch.as_tensor(actions, dtype=torch.float32, device=device).repeat(1 + particles, 1, 1)
        path = []
        for k in range(actions.shape[1]):
            state, spread = self.step(state, sent[:, k].expand(members, -1, -1))
            kick = torch.randn(state.shape, generator=generator, device=device) * spread
            kick[:, :many] = 0.0
            state = state + kick
            path.append(state)
        found = torch.stack(path, -2)[self.elites].reshape(len(self.elites), 1 + particles, many, -1, size)
        horizon = self.config.timestep * torch.arange(1, actions.shape[1] + 1)
        within = found[:, 1:].var(1, unbiased=True)
        return Prediction.from_members(found[:, 0], within, horizon).require_finite("the model of transitions")

    @torch.no_grad()
    def recalibrate(self, data: Transitions, rows: Rows) -> None:
        """Stretch each observation's noise so that the 90 % interval of a step holds 90 % of held-out transitions."""
        parts = []
        for first in range(0, len(rows), CHUNK):
            x, y = self.normalised(data, rows[first : first + CHUNK])
            mean, log_variance = (v[self.elites] for v in self.answer(x.expand(self.config.members, -1, -1)))
            found = ((mean.mean(0) - y) ** 2, torch.exp(log_variance).mean(0), mean.var(0, unbiased=False))
            parts.append([v.double().cpu().numpy() for v in found])
        error2, noise, apart = (np.concatenate([p[i] for p in parts]) for i in range(3))
        half = half_width(LEVEL)

        def inside(stretch: float, i: int) -> float:
            return float((error2[:, i] <= half**2 * (np.exp(2 * stretch) * noise[:, i] + apart[:, i])).mean()) - LEVEL

        low, high = np.log(STRETCH)
        for i in range(len(self.stretch)):
            a, b = inside(low, i), inside(high, i)
            best = low if a >= 0 else high if b <= 0 else optimize.bisect(inside, low, high, (i,), xtol=1e-3)
            self.stretch[i] = float(np.exp(best))

    def save(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a directory, which is made."""
        storage.save(self, asdict(self.config), directory)

    @classmethod
    def load(cls, directory: str | Path) -> TransitionEnsemble:
        """Read what `save` wrote.

        Raises:
            ModelError: files are missing, damaged or of another format.
        """
        return storage.load(cls, TransitionConfig, directory)


def _moments(many: int, values: Callable[[slice], Numbers]) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation of columns that are read piece by piece; one where a column never changes."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for first in range(0, many, CHUNK):
        some = np.asarray(values(slice(first, first + CHUNK)), float)
        apart, total = some.mean(0) - mean, count + len(some)
        squares = squares + ((some - some.mean(0)) ** 2).sum(0) + apart**2 * count * len(some) / total
        mean, count = mean + apart * len(some) / total, total
    spread = np.sqrt(squares / count)
    return mean, np.where(spread > 1e-9 * np.maximum(1.0, np.abs(mean)), spread, 1.0)
