"""Chains by name."""

from __future__ import annotations

from typing import Any, Literal

from sim2real.errors import ParameterError

Config = list[dict[str, Any]]
# steps of delay, standard deviation of the noise, steps that an action is held, probability and steps of failures
CHALLENGES = {"easy": (3, 0.1, 1, 0.01, 1), "medium": (6, 0.3, 2, 0.05, 5), "hard": (9, 1.0, 3, 0.1, 10)}


def real_world_rl(level: Literal["easy", "medium", "hard"], period: float) -> tuple[Config, Config]:
    """Return the stages of the execution and of the perception in a challenge of the Real-World RL suite.

    What that suite does to actions and observations (Dulac-Arnold et al., "An empirical investigation of the challenges
    of real-world reinforcement learning", 2020): delays, Gaussian noise, actions that are repeated, readings that are
    stuck or dropped. Delayed rewards, perturbed physics and additional observations are no part of it.

    Args:
        level: "easy", "medium" or "hard".
        period: of control [s]; the suite counts in control steps.

    Raises:
        ParameterError: another level.
    """
    if level not in CHALLENGES:
        raise ParameterError(f"a challenge is easy, medium or hard, found {level!r}")
    delay, additive, repeated, probability, steps = CHALLENGES[level]
    latency = {"stage": "latency", "delay": delay * period, "longest": (delay + 1) * period}
    failure = {"stage": "stuck", "probability": probability, "duration": steps * period, "period": period}
    execution = [
        {"stage": "hold", "period": repeated * period},
        {"stage": "noise", "additive": additive},
        latency,
    ]
    perception = [
        {"stage": "noise", "additive": additive},
        {**failure, "name": "dropped", "fill": "zeros"},
        failure,
        {**latency, "start": "hold"},
    ]
    return execution, perception
