"""A recipe made real: the robot loaded, the twin recorded or the logs read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from sim2real.adapters import Chain
from sim2real.episodes import Episode, digest
from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel, load_function
from sim2real.recipe import Recipe
from sim2real.twin import Twin, excite


@dataclass(frozen=True)
class Shift:
    """A changed robot: the seconds to adapt to, and the recordings in which to score what comes after them."""

    name: str
    adapt_to: Episode
    recordings: list[Episode]

    def after(self, recording: Episode) -> float:
        """Return the seconds of a recording that are not scored: those adapted to, where it begins with them."""
        many = len(self.adapt_to.observed_at)
        begins_so = np.array_equal(recording.observations[:many], self.adapt_to.observations)
        return self.adapt_to.duration if begins_so else 0.0


@dataclass(frozen=True)
class Recordings:
    """What the pipeline learns from, chooses on, and is scored on."""

    train: list[Episode]
    validation: list[Episode]
    test: list[Episode]
    shift: list[Shift]

    @property
    def commanded(self) -> list[Episode]:
        """Return the training recordings that say what was asked for: only they tell of the execution."""
        return [e for e in self.train if e.action_source == "commanded"]

    def fingerprint(self) -> str:
        """Return a digest of every number in the recordings."""
        changed = [e for s in self.shift for e in (s.adapt_to, *s.recordings)]
        return digest((*self.train, *self.validation, *self.test, *changed))


@dataclass(frozen=True)
class Setup:
    """A recipe made real.

    Attributes:
        recipe: what was asked for.
        plant: the robot model behind the chain of the recipe, all nominal.
        prior: over the parameters, as the recipe has it.
        channels: the observations that are joint positions.
        twin: the robot to discover, where there is one.
        recordings: to learn from and to be scored on.
    """

    recipe: Recipe
    plant: Plant
    prior: ParameterSet
    channels: list[str]
    twin: Twin | None
    recordings: Recordings

    def rng(self, stage: str) -> np.random.Generator:
        """Return the generator of a stage: the same whether or not the stages before it were resumed."""
        return np.random.default_rng([self.recipe.seed, zlib.crc32(stage.encode())])


def prepare(recipe: Recipe, threads: int = 0) -> Setup:
    """Load the robot, and record the twin or read the logs.

    Raises:
        Sim2RealError: what the recipe names does not exist or cannot be read.
    """
    robot = load_function(recipe.robot) if ":" in recipe.robot else RobotModel(recipe.robot)
    plant = Plant(robot, Chain.from_config(recipe.execution), recipe.timestep, threads)
    prior = ParameterSet.parse(recipe.parameters, plant.units())
    prior.against(plant.nominal())
    twin = _twin(recipe, plant)
    if twin is not None:
        recordings = record_twin(twin, recipe)
    else:
        recordings = read_recordings(recipe)
    names = [n for n, _ in recordings.train[0].channels.observations]
    channels = list(recipe.positions)
    if len(channels) != plant.degrees_of_freedom:
        raise LogError(
            f"the robot has {plant.degrees_of_freedom} joints ({', '.join(plant.model.joint_names)}), but `positions:` "
            f"names {len(channels)} observations ({', '.join(channels)}); the recordings have {', '.join(names)}"
        )
    for channel in channels:
        recordings.train[0].channels.column(channel)
    actions = len(recordings.train[0].channels.actions)
    if actions != plant.actions:
        raise LogError(f"the robot has {plant.actions} actuators, the recordings {actions} actions")
    return Setup(recipe, plant, prior, channels, twin, recordings)


def _twin(recipe: Recipe, plant: Plant) -> Twin | None:
    section = recipe.twin
    if section is None:
        return None
    chain = plant.chain if section.execution is None else Chain.from_config(section.execution)
    body = Plant(plant.model, chain, section.timestep or plant.timestep, plant.threads)
    return Twin(body, section.parameters, Chain.from_config(section.perception), section.period)


def record_twin(twin: Twin, recipe: Recipe) -> Recordings:
    """Record a twin: one log, split in time for training and validation, and another one for testing."""
    assert recipe.twin is not None
    settings = recipe.twin.record
    rng = np.random.default_rng([recipe.seed, zlib.crc32(b"record")])
    limit = np.full(twin.plant.actions, recipe.control.limit)
    log, test = (
        twin.record(name, excite(rng, seconds, settings.hold, limit, settings.frequencies), settings.hold)
        for name, seconds in (("recording", settings.seconds), ("test_recording", settings.test_seconds))
    )
    cut = settings.seconds * (1 - settings.validation_share)
    return Recordings(
        [log.slice(0, cut, "recording (training part)")],
        # a gap, so that no window of one part touches the other
        [log.slice(cut + 0.1, settings.seconds, "recording (validation part)")],
        [test],
        [],
    )


def read_recordings(recipe: Recipe) -> Recordings:
    """Read the logs that a recipe names."""
    assert recipe.split is not None
    assert recipe.logs is not None
    assert recipe.log_schema is not None
    split, schema = recipe.split, LogSchema.load(recipe.log_schema)
    changed = [n for s in split.shift for n in (s.adapt_to, *s.recordings)]
    names = [*split.train, *split.validation, *split.test, *changed]
    by_name = {e.name: e for e in read_logs(recipe.logs, schema, list(dict.fromkeys(names)))}
    return Recordings(
        [by_name[n] for n in split.train],
        [by_name[n] for n in split.validation],
        [by_name[n] for n in split.test],
        [
            Shift(s.adapt_to, by_name[s.adapt_to].slice(0, s.seconds), [by_name[n] for n in s.recordings])
            for s in split.shift
        ],
    )
