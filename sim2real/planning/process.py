"""A planner in a process of its own: what is slow or dies there delays nothing here."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from sim2real.episodes import Array
from sim2real.errors import ModelError, SafetyError
from sim2real.estimation import Estimate
from sim2real.planning.policy import Policy

# How long a process may take to start, or to forget [s]: it imports torch, and unpickles the model.
STARTING = 120.0
# How long the first plan may take, for which some planners get ready [s]: nothing has been commanded yet.
FIRST = 10.0
# How long a process that is to end may take [s].
ENDING = 1.0


class PlannerProcess:
    """A `Policy` that lets another one plan in a process of its own, and never waits for it longer than it may.

    The first plan is waited for. Of those that follow, one that is late for its period is not: what the plan before
    said for now is sent instead, for a few periods. After that, or where the planner failed, `act` raises a
    SafetyError, upon which a `SafetyFilter` around it brakes. `reset` starts a process anew that has hung or died. As
    `spawn` has it, a script that makes one keeps what it does under `if __name__ == "__main__":`.

    Args:
        policy: for one plant or n; a `Planner`, or another policy that can be pickled. Only what has a `plan` (n, T, A)
            can be followed when it is late.
        period: of the loop, and of a step of the plan [s].
        wait: how long `act` waits for the plan of its estimate [s]; three quarters of a period if not given.
        patience: periods that a plan before may be followed.
        threads: of torch in the process.

    Attributes:
        followed: how often a plan before was followed.

    Raises:
        ModelError: the policy cannot be pickled, or fails to start.
    """

    def __init__(
        self,
        policy: Policy,
        period: float,
        *,
        wait: float | None = None,
        patience: int = 3,
        threads: int = 1,
    ) -> None:
        if period <= 0 or patience < 0:
            raise ModelError("the period of a planner's process is above zero, and its patience not below")
        self.policy, self.patience, self.threads = policy, patience, threads
        self.wait = 0.75 * period if wait is None else wait
        self.followed = 0
        self._process: Any = None
        self._asked: int | None = None  # number of the estimate that is being planned for
        self._plan: Array | None = None
        self._forget()

    def reset(self) -> None:
        """Forget the past, wait until the process is ready, and start it where it is not there or does not answer."""
        self._forget()
        if self._process is not None and self._answers(ENDING):
            return
        self.close()
        name = type(self.policy).__name__
        try:
            # as bytes: torch would move what a pipe sends to shared memory, under the feet of whoever looks at it
            written = pickle.dumps(self.policy)
        except Exception as error:  # whatever pickle says of what it cannot do
            raise ModelError(f"{name} cannot be sent to a process of its own: {error}") from None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.threads), daemon=True)
        self._process.start()
        theirs.close()
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(written)
        if not self._answers(STARTING):
            self.close()
            raise ModelError(f"the process of {name} did not start within {STARTING:g} s, or has died")

    def act(self, estimate: Estimate, t: float) -> Array:
        """Return the commands (n, A) of the plan for this estimate, or else of the plan before.

        Raises:
            SafetyError: the planner failed or its process has died, or there is no plan for now.
        """
        if self._process is None:
            raise SafetyError("the planner's process is not running: reset it first")
        self._now += 1
        until = time.perf_counter() + (FIRST if self._plan is None else self.wait)
        while True:
            self._collect()
            if self._known == self._now:
                break
            if self._asked is None:
                self._tell((self._now, estimate, t))
                self._asked = self._now
            if not self._pipe.poll(max(until - time.perf_counter(), 0.0)):
                break
        age = self._now - self._known
        if self._plan is None or age > self.patience or age >= self._plan.shape[1]:
            raise SafetyError(f"no plan for {age} period{'s' * (age > 1)}: the planner is too slow, or hangs")
        self.followed += age > 0
        return np.array(self._plan[:, age])

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(ENDING)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(ENDING)
        self._pipe.close()
        self._process = None

    def _forget(self) -> None:
        self._now = self._known = 0  # numbers of this estimate, and of the one whose plan is known
        self._asked = self._plan = None

    def _collect(self) -> None:
        """Take in a plan that has come."""
        try:
            while self._pipe.poll():
                number, plan, failed = self._pipe.recv()
                self._asked = None
                if failed:
                    raise SafetyError(f"the planner failed: {failed}")
                if number <= self._now:
                    self._known, self._plan = number, plan
        except (EOFError, OSError):
            raise SafetyError(self._dead()) from None

    def _tell(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise SafetyError(self._dead()) from None

    def _dead(self) -> str:
        self._process.join(ENDING / 20)
        return f"the planner's process has died (exit code {self._process.exitcode})"

    def _answers(self, within: float) -> bool:
        """Return whether the process forgets its past and says so; raise a ModelError where it says that it cannot."""
        until, found = time.perf_counter() + within, None
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send(None)
            while self._pipe.poll(max(until - time.perf_counter(), 0.0)):
                found = self._pipe.recv()
                if found is None:
                    return True
                if isinstance(found, str):
                    break
        if isinstance(found, str):
            self.close()
            raise ModelError(f"{type(self.policy).__name__} failed in its process: {found}")
        return False


def _serve(pipe: Connection, threads: int) -> None:
    """Plan for whoever is at the other end of the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the loop brakes first
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError):
        try:
            policy: Policy = pickle.loads(pipe.recv_bytes())
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
            return
        while True:
            asked = pipe.recv()
            if asked is None:
                try:
                    policy.reset()
                except Exception as error:
                    pipe.send(f"{type(error).__name__}: {error}")
                    return
                pipe.send(None)
                continue
            number, estimate, t = asked
            try:
                command = np.asarray(policy.act(estimate, t), float)
                plan = getattr(policy, "plan", None)
                plan = command[:, None] if plan is None else plan.double().numpy()
                pipe.send((number, plan, None))
            except Exception as error:  # whatever it is, the other end has to know
                pipe.send((number, None, f"{type(error).__name__}: {error}"))
