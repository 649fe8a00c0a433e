"""Policies that another process has to find by name, as it does those of a user's own module."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from sim2real.episodes import Array
from sim2real.estimation import Estimate
from sim2real.planning import Damping

PERIOD = 0.02


class Fails:
    """Plans well, and then no more."""

    def __init__(self, how: str, after: int) -> None:
        self.how, self.after, self.calls = how, after, 0

    def reset(self) -> None:
        self.calls = 0

    def act(self, estimate: Estimate, t: float) -> Array:
        self.calls += 1
        if self.calls > self.after:
            if self.how == "throws":
                raise ZeroDivisionError("no way")
            if self.how == "hangs":
                time.sleep(60)
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
        return np.full((1, 1), 0.5)


class Slow:
    """Plans as well as it is slow: its plan says the number of each step."""

    def __init__(self, seconds: float, steps: int = 5) -> None:
        self.seconds, self.steps, self.plan = seconds, steps, None

    def reset(self) -> None: ...

    def act(self, estimate: Estimate, t: float) -> Array:
        import torch

        time.sleep(self.seconds)
        self.plan = (round(t / PERIOD) + torch.arange(self.steps, dtype=torch.float32)).reshape(1, -1, 1)
        return self.plan[:, 0].numpy()


class Camera(Damping):
    def reset(self) -> None:
        raise OSError("camera not found")
