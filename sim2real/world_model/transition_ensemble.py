"""A model of the observations of any environment: what comes next, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from sim2real.errors import LogError, ModelError, NonFiniteError
from sim2real.prediction import LEVEL, Prediction
from sim2real.world_model import storage
from sim2real.world_model.heads import OutcomeHeads
from sim2real.world_model.network import BatchedMLP, bounded
from sim2real.world_model.scores import half_width
from sim2real.world_model.transitions import CHUNK, Numbers, Rows, Transitions

Propagation = Literal["trajectories", "moments"]
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
        numbers: names of outcomes of a step that heads foretell as numbers, such as `reward`.
        events: names of outcomes that heads foretell as probabilities, such as `terminated`, or what is unsafe.
    """

    observations: int
    actions: int
    timestep: float
    members: int = 7
    elites: int = 5
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    names: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    events: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.elites <= self.members:
            raise ModelError(f"expected between 1 and {self.members} elites, as many as members, found {self.elites}")
        if min(self.observations, self.actions, *self.hidden, 1) < 1:
            raise ModelError(
                f"expected widths of one at least, found {self.observations} observations, {self.actions} actions and "
                f"hidden layers {self.hidden}"
            )
        twice = sorted({n for n in (*self.numbers, *self.events) if (*self.numbers, *self.events).count(n) > 1})
        if twice:
            raise ModelError(f"an outcome is a number or an event, once; found twice: {', '.join(twice)}")
        names = self.names or tuple(f"observation {i}" for i in range(self.observations))
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Foretold:
    """What follows a sequence of actions.

    Attributes:
        observations: (B, H, O).
        numbers: (B, H, numbers) of each step; none without heads for them.
        events: (B, H, events) probability that the event has happened by then; none without heads for them.
    """

    observations: Prediction
    numbers: Prediction | None
    events: Tensor | None


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
        self.heads: OutcomeHeads | None = None
        if config.numbers or config.events:
            many = len(config.numbers), len(config.events)
            self.heads = OutcomeHeads(config.members, inputs + size, *many, generator)
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

    def predict(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        particles: int = 8,
        seed: int = 0,
        propagation: Propagation = "trajectories",
    ) -> Prediction:
        """Predict what follows a sequence of actions.

        Args:
            observations: (B, O) at the start.
            actions: (B, H, A).
            particles: trajectories of each elite; its mean is followed besides.
            seed: of the sampled noise.
            propagation: `trajectories` keep their member (TSinf; Chua et al. 2018); with `moments` all of them are
                drawn anew after each step from a normal distribution with their mean and covariance, so that spread
                stays of one piece: what members disagree about in the last step is then epistemic, all before it
                aleatoric.

        Returns:
            a Prediction of the observations after each step: (B, H, O).

        Raises:
            ModelError: shapes do not fit the model.
            NonFiniteError: the model diverges.
        """
        _, found = self._propagate(observations, actions, particles, seed, propagation)
        return self._prediction(found[:, :, :, 1:], propagation)

    def foretell(self, observations: np.ndarray, actions: np.ndarray, particles: int = 8, seed: int = 0) -> Foretold:
        """Predict, along the same trajectories, observations and the outcomes that the model has heads for.

        Arguments and errors are those of `predict`.
        """
        sent, found = self._propagate(observations, actions, particles, seed, "trajectories")
        if self.heads is None:
            raise ModelError("the model has no heads: name numbers or events in its TransitionConfig")
        sampled = found[:, 1:]
        before, change = sampled[..., :-1, :], sampled.diff(dim=-2)
        seen = [(torch.cat([before, sent.expand(*before.shape[:-1], -1)], -1) - self.input_mean) / self.input_scale]
        seen += [(change - self.change_mean) / self.change_scale]
        inputs = torch.cat(seen, -1)
        # every member has its heads: those of the others are not asked
        shape = inputs.shape[:-1]
        full = torch.zeros(self.config.members, shape[1:].numel(), inputs.shape[-1], device=inputs.device)
        full[self.elites] = inputs.flatten(1, -2)
        with torch.no_grad():
            said = self.heads(full)
        mean, variance, probability = (v[self.elites].unflatten(1, shape[1:]) for v in said)
        numbers = events = None
        if self.config.numbers:
            within = variance.mean(1) + mean.var(1, unbiased=False)
            numbers = Prediction.from_members(mean.mean(1), within, self._horizon(shape[-1]))
        if self.config.events:
            events = (1 - (1 - probability).cumprod(-2)).mean((0, 1))
        return Foretold(self._prediction(found[:, :, :, 1:], "trajectories"), numbers, events)

    def _horizon(self, steps: int) -> Tensor:
        return self.config.timestep * torch.arange(1, steps + 1)

    def _prediction(self, found: Tensor, propagation: Propagation) -> Prediction:
        """Return what trajectories (elites, 1 + particles, B, H, O) say, the first of which follow the means."""
        horizon = self._horizon(found.shape[-2])
        sampled = found[:, 1:]
        if propagation == "trajectories":
            prediction = Prediction.from_members(found[:, 0], sampled.var(1, unbiased=True), horizon)
        else:
            means = sampled.mean(1)
            epistemic = means.var(0, unbiased=False)
            total = sampled.flatten(0, 1).var(0, unbiased=True)
            prediction = Prediction(means.mean(0), (total - epistemic).clamp_min(0), epistemic, horizon)
        return prediction.require_finite("the model of transitions")

    @torch.no_grad()
    def _propagate(
        self, observations: np.ndarray, actions: np.ndarray, particles: int, seed: int, propagation: Propagation
    ) -> tuple[Tensor, Tensor]:
        """Return actions (B, H, A) and the trajectories of elites (E, 1 + particles, B, 1 + H, O), start included."""
        size, width = self.config.observations, self.config.actions
        if observations.shape[1:] != (size,) or actions.shape[::2] != (len(observations), width):
            raise ModelError(
                f"expected observations (B, {size}) and actions (B, H, {width}), found {observations.shape} and "
                f"{actions.shape}"
            )
        if particles < 2 or not actions.shape[1]:
            raise ModelError(f"expected two particles and one step at least, found {particles} and {actions.shape[1]}")
        if propagation not in get_args(Propagation):
            raise ModelError(f"expected a propagation of {' or '.join(get_args(Propagation))}, found {propagation!r}")
        device, members, many = self.input_mean.device, self.config.members, len(observations)
        generator = torch.Generator(device).manual_seed(seed)
        # the first of 1 + particles trajectories follows the means
        state = torch.as_tensor(observations, dtype=torch.float32, device=device).repeat(1 + particles, 1)
        state = state.expand(members, -1, -1)
        sent = torch.as_tensor(actions, dtype=torch.float32, device=device)
        path = [state]
        for k in range(actions.shape[1]):
            state, spread = self.step(state, sent[:, k].repeat(1 + particles, 1).expand(members, -1, -1))
            # moments: the same noise for all members, or they would seem to disagree
            shared = propagation == "moments"
            white = torch.randn(state.shape[shared:], generator=generator, device=device).expand(state.shape).clone()
            white[:, :many] = 0.0
            state = state + white * spread
            path.append(state)
            if propagation == "moments":
                state = self._matched(state, many, generator)
        found = torch.stack(path, -2)[self.elites]
        return sent, found.reshape(len(self.elites), 1 + particles, many, -1, size)

    def _matched(self, state: Tensor, many: int, generator: torch.Generator) -> Tensor:
        """Draw trajectories (M, (1 + particles) B, O) anew from the moments of the elites'; the first are the mean."""
        members, rows, size = state.shape
        cloud = state[self.elites].reshape(len(self.elites), rows // many, many, size)[:, 1:].flatten(0, 1)
        if not torch.isfinite(cloud).all():
            raise NonFiniteError("the model of transitions diverged; train it on more or cleaner data")
        mean = cloud.mean(0)
        left = (cloud - mean) / self.change_scale
        covariance = torch.einsum("nbi,nbj->bij", left, left) / (len(cloud) - 1)
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp_min(0).sqrt()[:, None]).float()
        white = torch.randn(rows // many, many, size, generator=generator, device=state.device)
        white[0] = 0.0
        drawn = torch.einsum("bij,pbj->pbi", root, white) * self.change_scale + mean
        return drawn.reshape(rows, size).expand(members, -1, -1)

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
