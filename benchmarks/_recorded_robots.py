"""The recorded robots that world models are measured on, with a robot file or without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from sim2real.episodes import Episode
from sim2real.errors import LogError
from sim2real.evaluation import HORIZONS, Questions
from sim2real.logs import LogSchema, read_logs
from sim2real.preparation import Recordings, Setup, prepare
from sim2real.recipe import load_recipe
from sim2real.world_model import EnsembleConfig

ROOT = Path(__file__).resolve().parent.parent
# recipe, and the model's step [s]
RECIPES = {
    "qube": ("quanser_qube", 0.008),
    "pendulum": ("dfki_pendulum", 0.01),
    "double_pendulum": ("dfki_double_pendulum", 0.01),
    "xl330": ("xl330", 0.01),
}
ROBOTS = (*RECIPES, "schunk")
# Whose recordings are of one kind.
POOLED = ("xl330", "schunk")
# A robot without a file: what is logged of it is the torque that its motors report.
SCHUNK = """
files: {time: "{name}/time.csv", motion: "{name}/trajectory.csv", torque: "{name}/input.csv"}
csv: {header: false}
time: {column: "time[0]", unit: s}
observations: {"q*": {column: "motion[*]", unit: rad}}
actions: {"torque*": {column: "torque[*]", unit: N·m}}
action_source: measured
"""
# How far ahead is asked [steps of the model], beside `HORIZONS`.
STEPS = (1, 5, 10, 20)
# Of a recording that is not used whole [s].
LEAST = 0.8


@dataclass(frozen=True)
class Robot:
    """A recorded robot.

    Attributes:
        recordings: of it.
        channels: the observations that are joint positions.
        joints: their names.
        wraps: for each, whether it turns freely.
        actions: how many.
        dt: step of the models [s].
        setup: its recipe, where there is a robot file.
        pooled: whether its recordings are scored as if they were one.
    """

    recordings: Recordings
    channels: list[str]
    joints: Sequence[str]
    wraps: tuple[bool, ...]
    actions: int
    dt: float
    setup: Setup | None = None
    pooled: bool = False

    @property
    def commanded(self) -> list[Episode]:
        """Return the training recordings that say what was asked for, or all of them where none does."""
        return self.recordings.commanded or self.recordings.train

    @property
    def changed(self) -> list[Episode]:
        """Return the recordings of the robot after something changed."""
        return [e for shift in self.recordings.shift for e in shift.recordings]

    def questions(self, episodes: Sequence[Episode]) -> list[Questions]:
        """Return what recordings ask, as far as they are long enough to ask."""
        horizons = sorted({round(k * self.dt, 6) for k in STEPS} | set(HORIZONS))
        out = []
        for e in episodes:
            with contextlib.suppress(LogError):
                out.append(Questions.of(e, self.channels, horizons=horizons))
        return out

    def reduced(self, transitions: int) -> Robot:
        """Return the robot with so many transitions to learn from: beginnings of recordings, `LEAST` or more each."""
        seconds = transitions * self.dt
        many = min(max(int(seconds / LEAST), 1), len(self.commanded))
        some = [self.commanded[k * len(self.commanded) // many] for k in range(many)]
        recordings = replace(self.recordings, train=[e.slice(0.0, min(seconds / many, e.duration)) for e in some])
        return replace(self, recordings=recordings, setup=self.setup and replace(self.setup, recordings=recordings))


def load(name: str, logs: Path) -> Robot:
    """Read the recordings of a robot."""
    if name in RECIPES:
        recipe, dt = RECIPES[name]
        setup = prepare(load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [f"logs={logs}"]), threads=1)
        model = setup.plant.model
        return Robot(
            setup.recordings,
            setup.channels,
            model.joint_names,
            model.wraps,
            setup.plant.actions,
            dt,
            setup,
            name in POOLED,
        )
    joints = [f"q{k}" for k in range(6)]
    numbers = {
        "train": [k for k in range(1, 81) if k % 4 and k % 8 != 2],
        "validation": list(range(2, 81, 8)),
        "test": list(range(4, 81, 4)),
    }
    parts = {
        part: read_logs(logs, LogSchema.load(yaml.safe_load(SCHUNK)), [f"run_{k:03d}" for k in some])
        for part, some in numbers.items()
    }
    return Robot(Recordings(**parts, shift=[]), joints, joints, (False,) * 6, 6, 0.02, pooled=True)


def present(names: Sequence[str], logs: Path) -> Iterator[tuple[str, Robot]]:
    """Read robots one after the other; say of which there are no recordings."""
    for name in names:
        if (logs / name).is_dir():
            yield name, load(name, logs / name)
        else:
            print(f"{name}: not measured: {logs / name} does not exist; name the folder above it with --logs")


def configuration(robot: Robot) -> EnsembleConfig:
    """Return the architecture of models that look back, the same for every robot."""
    return EnsembleConfig(robot.wraps, robot.actions, robot.dt, history=6, hidden=(128, 128), lookback=8, latents=4)


def some(q: Questions, rows: NDArray[np.bool_]) -> Questions:
    """Return some of the questions."""
    return replace(q, **{key: getattr(q, key)[rows] for key in ("starts", "offsets", "now", "truth")})
