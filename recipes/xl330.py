"""A pendulum on a Dynamixel XL330 position servo, as a function: no robot file has friction that grows with the load.

The servo's controller is a gain in counts on the error, its motor a resistance behind a duty cycle, its friction that
of Duclusaud et al. 2024 ("Extended Friction Models for the Physics Simulation of Servo Actuators"): dry, viscous,
Stribeck, and a share of the load that the gears carry, here the larger of the torques on their two sides. The gain is
a second action: it is zero while the motor is free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sim2real.randomization import FunctionModel, FunctionParameter

# Duty cycle for an error of one radian at a gain of one: 4096 counts a turn, over 256 and 885 (the servo's manual).
DUTY = 4096 / (2 * math.pi) / 256 / 885
SUPPLY = 7.4  # [V]


def step(x: Any, u: Any, p: Mapping[str, Any], dt: float) -> Any:
    """Semi-implicit step of n servos: x (n, 2) angle [rad] and speed, u (n, 2) goal [rad] and gain [1]."""
    q, v, goal, gain = x[:, :1], x[:, 1:], u[:, :1], u[:, 1:]
    volts = SUPPLY * np.clip(gain * DUTY * (goal - q - p["servo.offset"]), -1, 1)
    motor = np.where(gain > 0, p["motor.constant"] * (volts - p["motor.constant"] * v) / p["motor.resistance"], 0.0)
    load = p["link.weight"] * np.sin(q)
    inertia = p["link.inertia"]
    most = p["servo.dry"] + p["servo.viscous"] * np.abs(v) + p["servo.load"] * np.maximum(np.abs(motor), np.abs(load))
    most = most + p["servo.stribeck"] * np.exp(-np.abs(v) / 0.2)
    stop = inertia * v / dt + motor - load
    v = v + dt * (motor - load - np.clip(stop, -most, most)) / inertia
    return np.concatenate([q + dt * v, v], 1)


servo = FunctionModel(
    step,
    {
        "dynamics.link.inertia": FunctionParameter(0.0066, "kg·m²", 1e-5),
        "dynamics.link.weight": FunctionParameter(0.49, "N·m", 0.0),
        "dynamics.motor.constant": FunctionParameter(0.34, "N·m/A", 1e-3),
        "dynamics.motor.resistance": FunctionParameter(3.7, "Ω", 1e-2),
        "dynamics.servo.offset": FunctionParameter(0.0, "rad"),
        "dynamics.servo.dry": FunctionParameter(0.01, "N·m", 0.0),
        "dynamics.servo.viscous": FunctionParameter(0.005, "N·m·s/rad", 0.0),
        "dynamics.servo.load": FunctionParameter(0.2, "1", 0.0),
        "dynamics.servo.stribeck": FunctionParameter(0.01, "N·m", 0.0),
    },
    joint_names=("hinge",),
    actuator_names=("goal", "gain"),
    effort_units=("rad", "1"),
    name="xl330",
)
