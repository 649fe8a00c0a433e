"""A robot at work: episodes under a policy and a fallback that take turns, on disk step by step."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from sim2real.control import Tracker
from sim2real.control_loop import ControlLoop
from sim2real.episodes import Array
from sim2real.errors import LogError, ModelError, ParameterError, SafetyError
from sim2real.estimation import Estimate
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
        self,
        policy: Policy,
        fallback: Policy,
        model: EnsembleDynamics,
        folder: Path,
        share: float,
        seed: int,
        guard: Callable[[Policy], Policy] = lambda mixed: mixed,
    ) -> None:
        """Record episodes until they last so long together; those that are there count.

        Args:
            policy: mostly in command.
            fallback: in command in this share of the segments.
            model: whose filter says where the robot is.
            folder: of the episodes.
            share: of the segments.
            seed: of starts and shares.
            guard: what stands between both and the robot, such as a `SafetyFilter`.

        Raises:
            SafetyError: the guard says that it is `stopped`; the episode is kept.
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
        mixed = Turns(policy, fallback, share, max(round(self.segment / config.timestep), 1))
        sent = guard(mixed)
        columns = [observed.index(c) for c in self.channels]
        loop = ControlLoop(recorder, sent, tracker, columns, self.clock)
        while _seconds(folder) < self.seconds - 0.5 * config.timestep:
            rng = np.random.default_rng([seed, len(list(folder.glob("episode_*.parquet")))])
            mixed.rng = rng
            loop.run(self.episode, seed=int(rng.integers(2**31)))
            recorder.end()
            stopped = getattr(sent, "stopped", None)
            if stopped is not None:
                raise SafetyError(f"the robot was stopped: {stopped}; mend it, and go on with the same command")


class Turns:
    """A policy and its fallback that take turns in command: a `Policy`.

    Args:
        policy: mostly in command.
        fallback: in this share of the segments.
        share: of the segments.
        steps: of a segment.

    Attributes:
        rng: that decides whose turn it is.
    """

    def __init__(self, policy: Policy, fallback: Policy, share: float, steps: int) -> None:
        self.policy, self.fallback, self.share, self.steps = policy, fallback, share, steps
        self.rng, self._calls, self._now = np.random.default_rng(0), 0, policy

    def reset(self) -> None:
        self.policy.reset()
        self.fallback.reset()
        self._calls = 0

    def act(self, estimate: Estimate, t: float) -> Array:
        if self._calls % self.steps == 0:
            turn = self.fallback if self.rng.uniform() < self.share else self.policy
            if turn is not self._now:
                turn.reset()  # what it remembers is of before the other's turn
            self._now = turn
        self._calls += 1
        return self._now.act(estimate, t)


def _seconds(folder: Path) -> float:
    return sum(e.duration for e in read_logs(folder)) if any(folder.glob("episode_*.parquet")) else 0.0
