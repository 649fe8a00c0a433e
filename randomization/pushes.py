"""Pushes from outside: a wrench on a body, at random times, for one environment or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.distributions import Distribution, Fixed, parse_distribution
from sim2real.randomization.parameters import Array


@dataclass(frozen=True)
class Wrench:
    """What pushes are like.

    Attributes:
        body: number of the body that is pushed.
        force: strength in a random horizontal direction (1), along the axes of the world (3), or none (0) [N].
        torque: about the axes of the world (3), or none (0) [N·m].
        every: time from the end of a push to the next [s].
        duration: of a push [s].
    """

    body: int
    force: tuple[Distribution, ...]
    torque: tuple[Distribution, ...]
    every: Distribution
    duration: float

    @classmethod
    def from_arguments(
        cls,
        env: Any,
        body: str,
        force: Any = (),
        torque: Any = (),
        every: str | float = "U(2, 4)",
        duration: float = 0.1,
    ) -> Wrench:
        """Read notations against an environment, or anything else with a MuJoCo `model`.

        Raises:
            ParameterError: no such body, or a number of notations that makes no sense.
        """
        import mujoco

        force, torque = _as_notations(force), _as_notations(torque)
        model = getattr(env, "model", None)
        if not isinstance(model, mujoco.MjModel):
            raise ParameterError(f"pushes need a MuJoCo model, which {type(env).__name__} has not")
        names = [model.body(i).name for i in range(1, model.nbody)]
        if body not in names:
            raise ParameterError(f"no body named {body!r}{did_you_mean(body, names)}")
        forces = force
        if len(forces) not in (0, 1, 3) or len(torque) not in (0, 3) or not len(forces) + len(torque):
            raise ParameterError(
                "a push is a force (one notation for a horizontal push in a random direction, or three for the axes) "
                f"and a torque (three), found {len(forces)} and {len(torque)} notations"
            )
        wait = parse_distribution(every) if isinstance(every, str) else Fixed(float(every))
        if not (np.isfinite(duration) and duration > 0) or not wait.support[0] >= 0:
            raise ParameterError(
                "a push needs a positive duration and times between pushes that are not negative, "
                f"found duration={duration:g} s, every={every}"
            )
        return cls(
            int(model.body(body).id),
            tuple(parse_distribution(f) for f in forces),
            tuple(parse_distribution(t) for t in torque),
            wait,
            float(duration),
        )


def _as_notations(given: Any) -> tuple[str, ...]:
    """Return notations as a tuple of texts; numbers are notations too."""
    return tuple(str(x) for x in given) if isinstance(given, list | tuple | np.ndarray) else (str(given),)


def check_push(arguments: Mapping[str, Any]) -> None:
    """Raise a ParameterError unless a mapping holds arguments of `Push`."""
    known = ("body", "force", "torque", "every", "duration")
    for key in arguments:
        if key not in known:
            raise ParameterError(f"a push has no {key!r}{did_you_mean(key, known)}")
    if "body" not in arguments:
        raise ParameterError("a push needs a body: {body: torso, force: 'U(20, 60)'}")


class PushSchedule:
    """When n environments are pushed, and how.

    Args:
        wrench: what pushes are like.
        n: number of environments.
        dt: control period [s].
    """

    def __init__(self, wrench: Wrench, n: int, dt: float) -> None:
        self._wrench, self._dt = wrench, dt
        self._steps_on = max(1, int(np.ceil(wrench.duration / dt - 1e-9)))
        # so many whole steps last longer than the push: the force is less, the impulse the same
        self._share = wrench.duration / (self._steps_on * dt)
        self._wait = np.zeros(n)  # until the next push [s]
        self._on = np.zeros(n, int)  # steps that the present push still lasts
        self._applied = np.zeros((n, 6))

    def begin(self, streams: Sequence[np.random.Generator], mask: NDArray[np.bool_]) -> None:
        """Begin the episodes of the environments that `mask` (n,) selects."""
        for i in np.flatnonzero(mask).tolist():
            self._wait[i] = self._wrench.every.quantile(streams[i].random())
            self._on[i] = 0
            self._applied[i] = 0.0

    def next(self, streams: Sequence[np.random.Generator], mask: NDArray[np.bool_]) -> Array:
        """Return the wrench of the next control step: (n, 6), force [N] and torque [N·m] along the world's axes."""
        w = self._wrench
        ends = mask & (self._on == 1)
        self._on[mask & (self._on > 0)] -= 1
        for i in np.flatnonzero(ends).tolist():
            self._applied[i] = 0.0
            self._wait[i] = w.every.quantile(streams[i].random())
        waiting = mask & (self._on == 0)
        starts = waiting & (self._wait < self._dt / 2)
        self._wait[waiting] -= self._dt
        for i in np.flatnonzero(starts).tolist():
            u = streams[i].random(1 + len(w.force) + len(w.torque))
            force = [float(d.quantile(x)) for d, x in zip(w.force, u[1:], strict=False)]
            torque = [float(d.quantile(x)) for d, x in zip(w.torque, u[1 + len(w.force) :], strict=True)]
            if len(force) == 1:
                force = [force[0] * np.cos(2 * np.pi * u[0]), force[0] * np.sin(2 * np.pi * u[0]), 0.0]
            self._applied[i] = self._share * np.array([*(force or [0.0] * 3), *(torque or [0.0] * 3)])
            self._on[i] = self._steps_on
        return self._applied
