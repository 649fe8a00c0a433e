"""A robot at work: episodes under a policy and a fallback that take turns, on disk step by step."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from sim2real.control import Tracker
from sim2real.errors import LogError, ModelError, NonFiniteError, ParameterError
from sim2real.evaluation import HORIZONS
from sim2real.logs import read_logs
from sim2real.logs.record import RecordEpisodes
from sim2real.planning import Policy
from sim2real.randomization.env_parameters import control_period
from sim2real.world_model import EnsembleDynamics
from sim2real.world_model.windows import WARMUP, before_start


@dataclass(frozen=True)
class RecordedRobot:
    """A robot that is run in episodes by a policy and a fallback that take turns, and recorded.

    Attributes:
        env: the robot, a Gymnasium environment.
        channels: the observations that are joint positions.
        names: of its observations, in their order; its own `names` if not given.
        seconds: that are recorded [s], rounded up to whole episodes.
        episode: length of an episode [s].
        segment: for how long either policy is in command [s].
        clock: of the recordings, "simulated" or "wall".
    """

    env: gym.Env[Any, Any]
    channels: Sequence[str]
    names: Sequence[str] | None
    seconds: float
    episode: float
    segment: float
    clock: Literal["simulated", "wall"]

    def check(self, model: EnsembleDynamics) -> None:
        """Raise what can be told before it moves."""
        config = model.config
        if model.encoder is None:
            raise ModelError("rounds need a model that looks back: its own filter says where the robot is")
        least = max(WARMUP, before_start(config)) + max(HORIZONS)
        if self.episode < least:
            raise LogError(
                f"episodes are scored up to {max(HORIZONS):g} s ahead: expected {least:.3g} s or more, found "
                f"{self.episode:g} s"
            )
        if self.seconds <= self.episode:
            raise LogError(
                f"of each round one episode is held out, so there have to be two: expected more than {self.episode:g} "
                f"s, found {self.seconds:g} s; make the round longer, or the episodes shorter"
            )
        with contextlib.suppress(ParameterError):  # a robot that does not say its period is believed
            period = control_period(self.env)
            if not math.isclose(period, config.timestep, rel_tol=1e-3):
                raise LogError(f"the robot is asked every {period:g} s, the model's step is {config.timestep:g} s")
        space = self.env.action_space
        if not isinstance(space, gym.spaces.Box) or space.shape != (config.actions,):
            raise LogError(f"expected a robot that takes {config.actions} numbers, found {space}")
        observed, found = self.observed, self.channels
        known = not isinstance(found, str) and len(found) == config.joints and set(found) <= set(observed)
        if not known:
            expected = f"the names of {config.joints} joint positions among {', '.join(observed)}"
            raise LogError(f"expected {expected}, found {found!r}")

    @property
    def observed(self) -> list[str]:
        """Return what it observes."""
        if self.names is not None:
            return list(self.names)
        try:
            return list(self.env.get_wrapper_attr("names"))
        except AttributeError:
            raise LogError("the robot does not say what it observes; give `names`, one for each number") from None

    def record(
        self, policy: Policy, fallback: Policy, model: EnsembleDynamics, folder: Path, share: float, seed: int
    ) -> None:
        """Record episodes until they last so long together; those that are there count.

        Args:
            policy: mostly in command.
            fallback: in command in this share of the segments.
            model: whose filter says where the robot is.
            folder: of the episodes.
            share: of the segments.
            seed: of starts and shares.
        """
        assert model.encoder is not None
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.part.jsonl"):  # a kill cut it off
            aside = folder / "cut_off"
            aside.mkdir(exist_ok=True)
            shutil.move(part, aside / f"{part.name}.{len(list(aside.iterdir()))}")
        config, observed = model.config, self.observed
        recorder = RecordEpisodes(self.env, folder, names=observed, clock=self.clock, dt=config.timestep)
        tracker = Tracker(
            model.encoder.estimator(), config.timestep,
            history=config.history, actions=config.actions, lookback=config.lookback,
        )  # fmt: skip
        columns = [observed.index(c) for c in self.channels]
        while _seconds(folder) < self.seconds - 0.5 * config.timestep:
            rng = np.random.default_rng([seed, len(list(folder.glob("episode_*.parquet")))])
            tracker.reset()
            policy.reset()
            fallback.reset()
            self._episode(recorder, tracker, policy, fallback, columns, share, rng)

    def _episode(
        self,
        recorder: RecordEpisodes,
        tracker: Tracker,
        policy: Policy,
        fallback: Policy,
        columns: Sequence[int],
        share: float,
        rng: np.random.Generator,
    ) -> None:
        space, dt = self.env.action_space, tracker.period
        assert isinstance(space, gym.spaces.Box)
        observation, _ = recorder.reset(seed=int(rng.integers(2**31)))
        turn, safe = max(round(self.segment / dt), 1), False
        for k in range(round(self.episode / dt)):
            if k % turn == 0:
                safe = bool(rng.uniform() < share)
            estimate = tracker.read(np.asarray(observation, float)[None, columns])
            command = (fallback if safe else policy).act(estimate, k * dt)
            if not np.isfinite(command).all():
                raise NonFiniteError(f"a command that is not finite after {k * dt:.2f} s; it was not sent")
            command = np.clip(command, space.low, space.high)
            tracker.send(command)
            observation, _, terminated, truncated, _ = recorder.step(command[0].astype(space.dtype))
            if terminated or truncated:
                break
        recorder.end()


def _seconds(folder: Path) -> float:
    return sum(e.duration for e in read_logs(folder)) if any(folder.glob("episode_*.parquet")) else 0.0
