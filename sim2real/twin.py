"""Twins: a simulated robot that stands in for the real one, different from the model in ways nobody is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sim2real.adapters import Chain
from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import ParameterError, did_you_mean
from sim2real.plant import Plant, RunningPlant


@dataclass(frozen=True)
class Twin:
    """A robot to be discovered, as a value.

    Attributes:
        plant: its robot model and execution chain.
        truth: its parameters, where they differ from the plant's nominal ones [SI].
        perception: what its sensors do to the joint positions.
        period: between readings [s].

    Raises:
        ParameterError: `truth` names what the plant does not have, or `period` is no whole number of its substeps.
    """

    plant: Plant
    truth: Mapping[str, float] = field(default_factory=dict)
    perception: Chain = field(default_factory=Chain)
    period: float = 0.01

    def __post_init__(self) -> None:
        known = self.plant.nominal()
        for name in self.truth:
            if name not in known:
                raise ParameterError(f"twin: no parameter named {name!r}{did_you_mean(name, known)}")
        _whole("period", self.period, self.plant.timestep)

    @property
    def values(self) -> dict[str, float]:
        """Every parameter of its plant: name -> number."""
        return {**self.plant.nominal(), **self.truth}

    @property
    def channels(self) -> Channels:
        """Names and units of what it logs: positions, then velocities where its sensors report them."""
        model, many = self.plant.model, self.plant.degrees_of_freedom
        units, efforts = model.joint_units, model.effort_units
        width = many
        for stage in self.perception.stages:
            width = stage.output_width(width)
        one = many == 1
        observed = [("position" if one else f"{j}.position", u) for j, u in zip(model.joint_names, units, strict=True)]
        if width > many:
            observed += [
                ("velocity" if one else f"{j}.velocity", f"{u}/s")
                for j, u in zip(model.joint_names, units, strict=True)
            ]
        actions = [("effort" if one else f"{a}.effort", u) for a, u in zip(model.actuator_names, efforts, strict=True)]
        return Channels(tuple(observed), tuple(actions))

    def start(self, states: Array, seed: int = 0) -> RunningTwin:
        """Return n twins in `states` (n, X), with their sensors settled; `seed` is that of the sensors' noise."""
        return RunningTwin(self, states, seed)

    def record(self, name: str, commands: Array, hold: float, start: Array | None = None) -> Episode:
        """Send `commands` (N, A), each held for `hold` seconds, to one twin; log every `period`.

        Args:
            name: of the episode.
            commands: [effort].
            hold: a multiple of the period [s].
            start: (X,) state, hanging at rest by default.

        Raises:
            ParameterError: `hold` is no whole number of periods.
        """
        x = np.zeros(2 * self.plant.degrees_of_freedom) if start is None else start
        running = self.start(x[None])
        sent = np.repeat(commands, _whole("hold", hold, self.period), 0)
        readings = [running.reading[0]]
        for u in sent:
            readings.append(running.step(u[None], self.period)[0])
        t: Array = self.period * np.arange(len(sent) + 1, dtype=np.float64)
        return Episode(name, t, np.stack(readings), t[:-1], sent, "commanded", self.channels)


class RunningTwin:
    """n twins at work. Only `reading` may be shown to what is being tested; `state()` is for scoring it."""

    def __init__(self, twin: Twin, states: Array, seed: int = 0) -> None:
        n, dof = len(states), twin.plant.degrees_of_freedom
        self._twin = twin
        self._plant: RunningPlant = twin.plant.start(n, {k: np.full(n, v) for k, v in twin.truth.items()})
        self._plant.reset(states)
        self._sensors = twin.perception.bind(n, dof, twin.plant.timestep, seed=seed)
        settled = np.repeat(states[:, None, :dof], 50, 1)
        self.reading: Array = self._sensors.apply(settled)[:, -1]

    def step(self, command: Array, seconds: float) -> Array:
        """Hold `command` (n, A) for some time; return the reading at its end (n, O)."""
        steps = _whole("control period", seconds, self._twin.plant.timestep)
        states = self._plant.step(np.repeat(command[:, None], steps, 1))
        self.reading = self._sensors.apply(states[..., : states.shape[-1] // 2])[:, -1]
        return self.reading

    def state(self) -> Array:
        """Return the true states (n, X)."""
        return self._plant.state()


def _whole(what: str, seconds: float, unit: float) -> int:
    """Return how many of `unit` there are in `seconds`, or say that they do not divide."""
    many = round(seconds / unit)
    if many < 1 or abs(many * unit - seconds) > 1e-6 * unit:
        raise ParameterError(f"twin: the {what} of {seconds:g} s is no whole number of {unit:g} s")
    return many


def excite(
    rng: np.random.Generator, seconds: float, hold: float, amplitude: Array, frequencies: tuple[float, ...]
) -> Array:
    """Return commands (N, A) that excite a robot: sines of random phase and strength, random steps, clipped.

    Args:
        rng: generator.
        seconds: length.
        hold: time that each command is held [s].
        amplitude: (A,) largest command.
        frequencies: of the sines [Hz].
    """
    steps, width = round(seconds / hold), len(amplitude)
    t = hold * np.arange(steps)[:, None]
    out = np.zeros((steps, width))
    for f in frequencies:
        out += rng.uniform(0.2, 0.6, width) * np.sin(2 * np.pi * f * t + rng.uniform(0, 2 * np.pi, width))
    every = max(round(0.4 / hold), 1)
    out += np.repeat(rng.uniform(-0.5, 0.5, (steps // every + 1, width)), every, 0)[:steps]
    return np.clip(out, -1, 1) * amplitude
