"""Go round again with what the robot has just recorded: run, record, fine-tune, gate, repeat (Ross et al. 2011)."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from sim2real.calibration.evidence import OfReadings
from sim2real.calibration.finetune import tune_dynamics
from sim2real.calibration.gate import judge
from sim2real.calibration.tuning import Method, require_method
from sim2real.combination import recalibrate_model
from sim2real.episodes import Episode
from sim2real.errors import LogError, ModelError, did_you_mean
from sim2real.evaluation import HORIZONS, Questions, RecordingPredictor
from sim2real.logs import read_logs
from sim2real.planning import Policy
from sim2real.prediction import Prediction
from sim2real.recorded_robot import RecordedRobot
from sim2real.run_directory import write_json
from sim2real.world_model import EnsembleDynamics, storage
from sim2real.world_model.windows import WARMUP

# Of every so many episodes that are long enough to be scored one is held out; of fewer, the last one.
EVERY = 4
# A round that lowers the error by less than this share brought nothing.
WORTHWHILE = 0.05


@dataclass(frozen=True)
class Round:
    """What came of a round.

    Attributes:
        number: from 1.
        seconds: of robot time in it [s].
        episodes: recorded in it.
        share: of the segments in which the fallback was in command.
        accepted: whether the model that was tuned goes on.
        reason: in words.
        before: CRPS of the model that ran, on all episodes held out so far [rad or m], mean over horizons.
        after: that of the model that goes on.
        parent: digest of the weights of the model that ran.
        model: digest of the weights of the one that goes on.
    """

    number: int
    seconds: float
    episodes: int
    share: float
    accepted: bool
    reason: str
    before: float
    after: float
    parent: str
    model: str


def dagger(
    robot: gym.Env[Any, Any],
    model: EnsembleDynamics,
    planner: Callable[[EnsembleDynamics], Policy],
    fallback: Policy,
    channels: Sequence[str],
    directory: str | Path,
    *,
    names: Sequence[str] | None = None,
    rounds: int = 3,
    seconds: float = 10.0,
    episode: float = 2.5,
    shares: Sequence[float] = (0.5, 0.25, 0.0),
    segment: float = 0.5,
    clock: Literal["simulated", "wall"] = "simulated",
    method: Method | Literal["auto"] = "anchored",
    guard: Callable[[Policy], Policy] = lambda policy: policy,
    replay: OfReadings | Callable[[Sequence[Episode]], OfReadings] | None = None,
    learn: Callable[[Sequence[Episode]], EnsembleDynamics] | None = None,
    patience: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
    **tuning: Any,
) -> list[Round]:
    """Run the current controller, record what happens, tune the model on all of it, and go on with the better one.

    Every round is a directory `round-01`, ... with `logs`, `model` and `round.json`. After a kill the same call goes
    on: episodes that had ended are kept, the one that was cut off lies in `logs/cut_off` and is not used. Where the
    robot does the same for the same seed, as a twin does, the end is that of a run that was not interrupted.

    Args:
        robot: observes at the model's timestep, and takes commands in the units of the logs.
        model: pre-trained, and looks back; it is tuned anew in each round, on all recordings so far.
        planner: makes a controller of a copy of a model.
        fallback: the safe policy that shares the command at first.
        channels: the observations that are joint positions.
        directory: of the rounds.
        names: of the robot's observations, in their order; its own `names` if not given.
        rounds: at most.
        seconds: of robot time a round [s], rounded up to whole episodes.
        episode: length of an episode [s].
        shares: of the fallback, a round; the last one holds for those that follow.
        segment: for how long either of them is in command [s].
        clock: of the recordings; `wall` for hardware, whose steps are never quite alike.
        method: of `tune_dynamics`.
        guard: puts a safety filter, or what else is to stand between, around what is in command; where it says that it
            is `stopped`, with the reason, the call ends.
        replay: simulated windows that are mixed in; or what makes them of all recordings to learn from so far, such as
            those of a simulator that is identified on them. It should do the same for the same recordings.
        learn: trains a model anew on all recordings to learn from so far, in place of tuning the one that was given:
            `fit_to_recordings` beside a simulator that is identified on them, say. Where the robot is far from the
            simulator of before, what looks back has to be learned anew, too, which tuning never touches.
        patience: stop after so many rounds that each lowered the error by less than 5 %.
        seed: of starts, shares and tuning.
        progress: called with a line now and then.
        tuning: what else `tune_dynamics` takes.

    Returns:
        the rounds, those of an earlier call included.

    Raises:
        ModelError: the model does not look back, the method or a setting is not known, or the directory holds rounds of
            another model.
        LogError: the robot does not observe the channels, or at another period; a round is no two episodes, or they are
            too short to be scored.
        NonFiniteError: a policy commanded what is not finite; the episodes before are kept.
    """
    runner = RecordedRobot(robot, channels, names, seconds, episode, segment, clock)
    runner.check(model)
    require_method(method)
    known = [n for n, p in signature(tune_dynamics).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in tuning:
        if name not in known:
            raise ModelError(f"tune_dynamics takes no {name!r}{did_you_mean(name, known)}")
    place, done = Path(directory), finished(directory)
    start = storage.digest(model)
    if done and done[0].parent != start:
        raise ModelError(f"{place} holds rounds of another model: {done[0].parent[:8]}, not {start[:8]}; name another")
    current = latest(directory) if done else copy.deepcopy(model)
    for number in range(len(done) + 1, rounds + 1):
        if _idle(done) >= patience:
            progress(f"stopped: the last {patience} rounds lowered the error by less than {WORTHWHILE:.0%} each")
            break
        folder = place / f"round-{number:02d}"
        share = shares[min(number, len(shares)) - 1] if shares else 0.0
        parent = storage.digest(current)
        _of_one_model(folder / "begun.json", parent)
        progress(f"round {number}: recording")
        policy = planner(copy.deepcopy(current))
        runner.record(policy, fallback, current, folder / "logs", share, seed + 1000 * number, guard)
        train, held = _split(place, number)
        progress(f"round {number}: learning from {sum(e.duration for e in train):.3g} s")
        asked = [Questions.of(e, channels) for e in held]
        if learn is not None:
            tuned = learn(train)
        else:
            real = OfReadings.of(model, train, channels, min(0.5, 0.3 * episode))
            mixed = replay(train) if callable(replay) else replay
            tuned = tune_dynamics(
                model, real, method=method, replay=mixed, seed=seed, progress=progress, **tuning
            ).model
        accepted, reason, crps = judge(current, tuned, _answer(channels), asked, seed)
        current = copy.deepcopy(tuned) if accepted else current
        recalibrate_model(current, RecordingPredictor(current, channels), asked)
        current.save(folder / "model")
        here = read_logs(folder / "logs")
        before = float(np.mean(list(crps["before"].values())))
        after = float(np.mean(list(crps["after"].values()))) if accepted else before
        spent = sum(e.duration for e in here)
        result = Round(
            number, spent, len(here), share, accepted, reason, before, after, parent, storage.digest(current)
        )
        write_json(folder / "round.json", asdict(result))
        progress(f"round {number}: {reason}")
        done.append(result)
    return done


def _of_one_model(file: Path, running: str) -> None:
    """Note which model a round is recorded with; raise a ModelError where it was begun with another one."""
    if file.is_file():
        begun = json.loads(file.read_text())["model"]
        if begun != running:
            raise ModelError(
                f"{file.parent} was begun with another model: {begun[:8]}, not {running[:8]}; take it back, or name "
                "another directory"
            )
    else:
        write_json(file, {"model": running})


def finished(directory: str | Path) -> list[Round]:
    """Return the rounds that have finished, in order."""
    out: list[Round] = []
    for number in range(1, 1000):
        file = Path(directory) / f"round-{number:02d}" / "round.json"
        if not file.is_file():
            return out
        out.append(Round(**json.loads(file.read_text())))
    return out


def latest(directory: str | Path) -> EnsembleDynamics:
    """Return the model that the last finished round goes on with.

    Raises:
        ModelError: no round has finished.
    """
    done = finished(directory)
    if not done:
        raise ModelError(f"no round has finished in {directory}")
    return EnsembleDynamics.load(Path(directory) / f"round-{done[-1].number:02d}" / "model")


def roll_back(directory: str | Path, to: int) -> list[Path]:
    """Take back the rounds after one of them, so that the next call goes on from there; return where they lie now.

    Nothing is deleted: they are moved to `rolled_back`.

    Raises:
        ModelError: there is no such directory, or number.
    """
    if to < 0 or not Path(directory).is_dir():
        raise ModelError(f"expected a directory of rounds and a number from 0, found {directory} and {to}")
    place, moved = Path(directory), []
    later = [n for n in range(to + 1, 1000) if (place / f"round-{n:02d}").is_dir()]
    for number in reversed(later):  # the last one first: what a kill leaves is a shorter run
        folder = place / f"round-{number:02d}"
        aside = place / "rolled_back"
        aside.mkdir(exist_ok=True)
        moved.append(aside / f"{folder.name}-{len(list(aside.iterdir())):03d}")
        shutil.move(folder, moved[-1])
    return moved


def _split(place: Path, until: int) -> tuple[list[Episode], list[Episode]]:
    """Return the episodes of all rounds so far to learn from, and those held out."""
    train: list[Episode] = []
    held: list[Episode] = []
    for number in range(1, until + 1):
        episodes = read_logs(place / f"round-{number:02d}" / "logs")
        scorable = [k for k, e in enumerate(episodes) if e.duration > WARMUP + max(HORIZONS) + e.period]
        out = scorable[EVERY - 1 :: EVERY] or scorable[-1:]
        held += [episodes[k] for k in out]
        train += [e for k, e in enumerate(episodes) if k not in out]
    if not held or not train:
        raise LogError(
            f"{place}: expected episodes to learn from, and one above {WARMUP + max(HORIZONS):.3g} s to hold out, "
            f"found {len(train)} and {len(held)}: they ended early; make the rounds longer, or the robot safer"
        )
    return train, held


def _answer(channels: Sequence[str]) -> Callable[[EnsembleDynamics, Questions], Prediction]:
    return lambda model, questions: RecordingPredictor(model, channels)(questions)


def _idle(done: Sequence[Round]) -> int:
    """Return how many rounds at the end brought nothing."""
    return len(list(takewhile(lambda r: 1.0 - r.after / r.before < WORTHWHILE, reversed(done))))
