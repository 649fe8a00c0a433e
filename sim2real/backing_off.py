"""Backing off where the model is unsure or wrong: less of the plan, then none of it, until it can be believed again."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.planning.planner import Planner
from sim2real.planning.policy import Policy
from sim2real.world_model.ensemble import EnsembleDynamics

# Periods that doubts are averaged over.
SMOOTHED = 5
# Of the horizon, before less of the plan is sent.
SHORTEST = 1 / 3


@dataclass(frozen=True)
class Calm:
    """What doubts look like while everything is as it was in training.

    Attributes:
        scale: (C,) what each doubt is seldom above.
        threshold: what the largest of them, in those units, stays below.
    """

    scale: Array
    threshold: float

    @classmethod
    def of(cls, doubts: Array, false_alarms: float = 0.01) -> Calm:
        """Calibrate on doubts (N, C) of runs in which nothing was wrong (split conformal; Vovk et al. 2005).

        Of a further period of such runs the alarm goes off with this probability at most, if periods are alike; half of
        the doubts, every other one, give the scale, the others the threshold.

        Raises:
            ModelError: there are too few for so rare an alarm, or the rate is not between 0 and 1.
        """
        if not 0 < false_alarms < 1:
            raise ModelError(f"expected a rate of false alarms between 0 and 1, found {false_alarms:g}")
        if len(doubts) and not (doubts > 0).any(0).all():
            raise ModelError("a doubt was never above zero in calm runs: they were too short for it to be known")
        scale = np.quantile(doubts[::2], 1 - false_alarms, axis=0).clip(1e-12) if len(doubts) else np.ones(1)
        largest = np.sort((doubts[1::2] / scale).max(1))
        rank = math.ceil((len(largest) + 1) * (1 - false_alarms))
        if rank > len(largest):
            raise ModelError(
                f"false alarms of {false_alarms:g} need {2 * math.ceil(1 / false_alarms)} periods of calm runs or "
                f"more, found {len(doubts)}; run longer, or allow more"
            )
        return cls(scale, float(largest[rank - 1]))

    def alarm(self, doubts: Array) -> Array:
        """Return the largest doubt as a share of the threshold: (..., C) -> (...); above one it is an alarm."""
        return np.asarray((doubts / self.scale).max(-1) / self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"scale": self.scale.tolist(), "threshold": self.threshold}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Calm:
        """Return what `to_json` gave."""
        return cls(np.array(document["scale"]), float(document["threshold"]))


class Doubts:
    """How much members disagree about what is planned, and how wrong they all were about what has just happened.

    Disagreement knows where the model has seen little; surprise knows that the robot has changed. Neither knows both.

    Args:
        model: that plans.
        ahead: how far it is asked, and later judged [s].
    """

    def __init__(self, model: EnsembleDynamics, ahead: float = 0.2) -> None:
        self.model = model
        self.steps = max(round(ahead / model.config.timestep), 1)
        self.reset()

    def reset(self) -> None:
        """Forget what was known."""
        self._starts: list[tuple[Tensor, Array]] = []
        self._sent: list[Array] = []
        self._recent: list[Array] = []

    def seen(self, estimate: Estimate, planned: Array) -> Array:
        """Return doubts (n, 2 D) of each joint, averaged over a few periods: disagreement, then surprise.

        Surprise is how far each joint is from where the model says that it should be, from where it was a while ago,
        under the commands that were sent since; zero as long as it cannot be known.

        Args:
            estimate: what is known now.
            planned: (n, T, A) what is planned to be sent.
        """
        joints, back = self.model.config.joints, self.model.config.history - 1
        now = estimate.state[:, :joints]
        if self._starts:
            self._sent = [*self._sent[-self.steps + 1 :], estimate.commands[:, -1]]
        with torch.no_grad():
            start = self.model.begin(estimate)
            past = estimate.commands[:, estimate.commands.shape[1] - back :]
            ahead = self._led(start, past, planned[:, : self.steps])
            surprise = np.zeros_like(now)
            if len(self._starts) == self.steps:
                since = self._led(*self._starts[0], np.stack(self._sent, 1))
                surprise = np.abs(now - since.mean(0))
        self._starts = [*self._starts[-self.steps + 1 :], (start, past.copy())]
        self._recent = [*self._recent[-SMOOTHED + 1 :], np.concatenate([ahead.std(0, ddof=1), surprise], 1)]
        return np.asarray(np.mean(self._recent, 0))

    def _led(self, start: Tensor, past: Array, commands: Array) -> Array:
        """Return where each member says that commands lead to: (M, n, D)."""
        sent = torch.as_tensor(np.concatenate([past, commands], 1), dtype=torch.float32)
        path = self.model.rollout(start, sent.expand(len(start), *sent.shape))
        return np.asarray(path[:, :, -1, : self.model.config.joints].double().numpy())


class BackOff:
    """A `Policy` that follows a planner as far as its model can be believed, and a fallback beyond.

    Up to the alarm the plan is sent as it is. From there to one and a half of it the planner looks ever less far ahead,
    down to a third of its horizon: that goes for disagreement as for surprise. Surprise alone takes the plan away: from
    one and a half to twice of the alarm, ever less of the plan is sent and more of the fallback; then the fallback
    alone. Members that disagree have seen little here, and the fallback need be no safer; a surprise has happened. It
    goes back to the plan only after the alarm has stayed well below for a while.

    Args:
        planner: on an `EnsembleDynamics`.
        fallback: a safe policy.
        calm: of `Calm.of`; without it nothing is backed off from, and `doubts` is collected for `Calm.of`.
        ahead: see `Doubts`.
        release: share of the alarm that it has to stay below [1].
        hold: for so long [periods].

    Attributes:
        doubts: (n, 2 D) of each period so far.
        shares: (n,) of the plan in what was sent, of each period so far.
        plan: (n, T, A) what is planned to be sent; None before the first period.
        settling: periods at the beginning of a run in which surprise cannot be known yet.

    Raises:
        ModelError: the planner is not on an `EnsembleDynamics`.
    """

    def __init__(
        self,
        planner: Planner,
        fallback: Policy,
        calm: Calm | None = None,
        *,
        ahead: float = 0.2,
        release: float = 0.7,
        hold: int = 10,
    ) -> None:
        if not isinstance(planner.model, EnsembleDynamics):
            raise ModelError(
                f"backing off needs a planner on an EnsembleDynamics, found {type(planner.model).__name__}"
            )
        self.planner, self.fallback, self.calm = planner, fallback, calm
        self.release, self.hold = release, hold
        self._doubts = Doubts(planner.model, ahead)
        self.settling, self._deadline, self._took = self._doubts.steps, planner.deadline, 0.0
        self.reset()

    def reset(self) -> None:
        """Forget the past, and what was collected."""
        self.planner.reset()
        self.fallback.reset()
        self._doubts.reset()
        self.doubts: list[Array] = []
        self.shares: list[Array] = []
        self._sight, self._plan = (_Trust(self.release, self.hold) for _ in range(2))
        self.plan: Tensor | None = None

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return commands (n, A)."""
        if self._deadline is not None:
            # knowing doubts takes time, too
            self.planner.deadline = max(self._deadline - self._took, 0.0)
        if self._sight.left is not None:
            longest = self.planner.steps
            self.planner.ahead = torch.as_tensor(np.ceil(longest * looked_ahead(self._sight.left)).astype(int))
        wanted = self.planner.act(estimate, t)
        assert self.planner.plan is not None
        self.plan = self.planner.plan
        clock = time.perf_counter()
        self.doubts.append(self._doubts.seen(estimate, self.plan.double().numpy()))
        self._took = max(0.9 * self._took, 1e3 * (time.perf_counter() - clock))
        if self.calm is None:
            self.shares.append(np.ones(len(wanted)))
            return wanted
        share = self._share(self.doubts[-1], self.calm)
        self.shares.append(share)
        safe = self.fallback.act(estimate, t)
        sent = np.asarray(safe + share[:, None] * (wanted - safe))
        # where it backs off, the plan is not to be followed further
        as_planned = torch.as_tensor(share == 1.0)[:, None, None]
        self.plan = torch.where(as_planned, self.plan, torch.as_tensor(sent, dtype=self.plan.dtype)[:, None])
        return sent

    def _share(self, doubts: Array, calm: Calm) -> Array:
        """Return how much of the plan to send (n,): twice the trust that surprise alone leaves."""
        surprise = np.where(np.arange(doubts.shape[-1]) < doubts.shape[-1] // 2, 0.0, doubts)
        self._sight.after(calm.alarm(doubts))
        return np.minimum(2.0 * self._plan.after(calm.alarm(surprise)), 1.0)


class _Trust:
    """What is left of it: lost at once, from an alarm of one to twice of it, and regained after a while below."""

    def __init__(self, release: float, hold: int) -> None:
        self.release, self.hold = release, hold
        self.left: Array | None = None

    def after(self, alarm: Array) -> Array:
        """Return what an alarm (n,) leaves: (n,) from zero to one."""
        if self.left is None:
            self.left, self._below = np.ones(len(alarm)), np.zeros(len(alarm), int)
        self._below = np.where(alarm < self.release, self._below + 1, 0)
        self.left = np.where(self._below >= self.hold, 1.0, np.minimum(self.left, np.clip(2.0 - alarm, 0.0, 1.0)))
        return self.left


def looked_ahead(trust: Array) -> Array:
    """Return the share of its horizon that a planner is to look ahead (n,): less while the trust is above a half."""
    return np.asarray(SHORTEST + (1 - SHORTEST) * np.clip(2.0 * trust - 1.0, 0.0, 1.0))


def collected(runs: Sequence[BackOff]) -> Array:
    """Return the doubts (N, C) of calm runs, of all their periods and plants, for `Calm.of`.

    Raises:
        ModelError: the runs ended before surprise could be known.
    """
    short = [run for run in runs if len(run.doubts) <= run.settling]
    if short or not runs:
        periods = short[0].settling if short else 0
        raise ModelError(f"calm runs have to be longer than the {periods} periods that surprise looks back")
    return np.concatenate([np.concatenate(run.doubts) for run in runs])
