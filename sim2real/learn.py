"""`sim2real learn`: a model of what recordings of an environment show, and how far ahead it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sim2real.episodes import Episode, digest
from sim2real.errors import LogError, NonFiniteError
from sim2real.run_directory import RunDirectory, write_json
from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, Transitions, fit_transitions
from sim2real.world_model.scores import calibration
from sim2real.world_model.transitions import require_steps

# How many steps ahead the model is scored, where recordings are long enough.
AHEAD = (1, 5, 10, 20, 50)
# So many windows say something, so many are enough.
FEW, ENOUGH = 20, 2000
# A batch is so small that an epoch has this many updates, within these bounds.
UPDATES, SMALLEST, LARGEST = 40, 16, 256
# Steps may differ from their median by this share of it.
UNEVEN = 0.05


@dataclass(frozen=True)
class Learned:
    """What has been learned.

    Attributes:
        model: trained.
        scores: an entry for each number of steps ahead, on recordings that were not learned from: `steps`, `seconds`,
            `windows`, `nrmse` (error relative to that of foretelling no change) and what `scores.calibration` returns.
        outcomes: name -> error of what a step brings there, relative to that of foretelling its mean: root mean square
            of rewards, mean square (Brier score) of the probabilities of ends.
        held_out: names of those recordings.
    """

    model: TransitionEnsemble
    scores: list[dict[str, Any]]
    outcomes: dict[str, float]
    held_out: tuple[str, ...]


def learn(
    episodes: Sequence[Episode],
    directory: Path,
    *,
    epochs: int = 60,
    members: int = 5,
    hidden: tuple[int, ...] = (200, 200),
    seed: int = 0,
    again: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Learned:
    """Learn a `TransitionEnsemble` from recordings, and score it on every tenth of them, which it does not see.

    The directory gets `model/`, `metrics.json`, TensorBoard curves, and a checkpoint every epoch, from which the same
    call goes on after a kill.

    Args:
        episodes: two at least, as an environment records them.
        directory: of the run; made when missing.
        epochs: at most.
        members: of the ensemble.
        hidden: widths of the hidden layers.
        seed: of weights and orders.
        again: forget an earlier training in the directory.
        say: called with a line of progress now and then.

    Raises:
        LogError: recordings are too few, unevenly spaced or of different channels, or others than before.
        ModelError: a checkpoint is damaged.
        NonFiniteError: the training diverges.
    """
    if len(episodes) < 2:
        raise LogError(f"expected two recordings at least, one to learn from and one to score, found {len(episodes)}")
    held_out = list(episodes[9::10]) or [episodes[-1]]
    train = [e for e in episodes if not any(e is h for h in held_out)]
    require_steps(episodes)
    timestep = _timestep(episodes)
    run = RunDirectory(directory)
    checkpoint = directory / "checkpoint.safetensors"
    if again:
        run.clear()
        checkpoint.unlink(missing_ok=True)
    data = Transitions.of(train)
    run.belongs_to(digest(episodes, *(repr((e.name, e.channels, e.excluded)) for e in episodes)))
    unseen = Transitions.of(held_out)
    # of what never differs there is nothing to learn
    differ = [n for n, values in data.outcomes.items() if n in unseen.outcomes and values.min() != values.max()]
    config = TransitionConfig(
        data.observations.shape[1],
        data.actions.shape[1],
        timestep,
        members,
        members,
        hidden,
        data.names,
        numbers=tuple(name for name in differ if data.outcomes[name].dtype != bool),
        events=tuple(name for name in differ if data.outcomes[name].dtype == bool),
    )
    model = TransitionEnsemble(config, seed)
    batch = int(np.clip(len(data) // UPDATES, SMALLEST, LARGEST))
    schedule = Schedule(epochs=epochs, batch=batch, seed=seed)
    say(f"{len(data)} transitions of {len(train)} recordings, batches of {batch}")
    curves = directory if find_spec("tensorboard") else None
    if curves is None:
        say("TensorBoard is not installed: no curves are written")
    fit_transitions(model, data, schedule, checkpoint=checkpoint, curves=curves, progress=say)
    model.save(directory / "model")
    scores = ahead(model, held_out, seed=seed)
    came = outcomes(model, unseen, seed=seed)
    names = tuple(e.name for e in held_out)
    told = {"held_out": names, "schedule": asdict(schedule), "scores": scores, "outcomes": came}
    write_json(directory / "metrics.json", told)
    return Learned(model, scores, came, names)


def outcomes(model: TransitionEnsemble, data: Transitions, seed: int = 0) -> dict[str, float]:
    """Score what the heads of a model say of single steps; see `Learned.outcomes`. What never differs is left out."""
    if model.heads is None:
        return {}
    found, out = model.foretell(data.observations, data.actions[:, None], particles=20, seed=seed), {}
    said: dict[str, Any] = {}
    if found.numbers is not None:
        said |= {n: (found.numbers.mean[:, 0, i], 0.5) for i, n in enumerate(model.config.numbers)}
    if found.events is not None:
        said |= {n: (found.events[:, 0, i], 1.0) for i, n in enumerate(model.config.events)}
    for name, (answer, power) in said.items():
        truth = np.asarray(data.outcomes[name], float)
        if truth.std() > 0:
            out[name] = float((((answer.double().numpy() - truth) ** 2).mean() / truth.var()) ** power)
    return out


def ahead(model: TransitionEnsemble, episodes: Sequence[Episode], seed: int = 0) -> list[dict[str, Any]]:
    """Score predictions of recordings several steps ahead, from windows that follow one another; see `Learned.scores`.

    Raises:
        LogError: no recording is long enough for one step.
    """
    out, rng = [], np.random.default_rng(seed)
    for steps in AHEAD:
        windows = [(e, k) for e in episodes for k in range(0, len(e) - steps + 1, steps)]
        windows = [w for w in windows if not w[0].is_excluded(w[0].observed_at[w[1]], w[0].observed_at[w[1] + steps])]
        if len(windows) < (1 if steps == 1 else FEW):
            continue
        windows = windows[:: max(len(windows) // ENOUGH, 1)]
        start, after = (np.stack([e.observations[k + i] for e, k in windows]) for i in (0, steps))
        actions = np.stack([e.actions[k : k + steps] for e, k in windows])
        try:
            found = model.predict(start, actions, particles=20, seed=seed)
        except NonFiniteError:
            if steps == AHEAD[0]:
                raise
            break  # so far ahead it diverges, and further, too
        mean, variance = (v[:, -1].double().numpy() for v in (found.mean, found.variance))
        changes = np.sqrt(((after - start) ** 2).mean(0))
        moving = changes > 0
        error = np.sqrt(((mean - after) ** 2).mean(0))
        # a block is about a second, and never of two recordings
        seconds = [(e.name, int(e.observed_at[k] - e.observed_at[0])) for e, k in windows]
        _, blocks = np.unique([f"{name} {second}" for name, second in seconds], return_inverse=True)
        out.append(
            {
                "steps": steps,
                "seconds": steps * model.config.timestep,
                "windows": len(windows),
                "nrmse": float((error[moving] / changes[moving]).mean()) if moving.any() else 0.0,
                **calibration(mean - after, np.maximum(variance, 1e-18), model.config.names, blocks, rng),
            }
        )
    if not out:
        raise LogError("no recording that was held out has a step to be scored")
    return out


def _timestep(episodes: Sequence[Episode]) -> float:
    steps = np.concatenate([np.diff(e.observed_at) for e in episodes])
    usual = float(np.median(steps))
    uneven = np.abs(steps - usual) > UNEVEN * usual
    if uneven.mean() > UNEVEN:
        raise LogError(
            f"expected steps of one length, found {uneven.mean():.0%} of them further than {UNEVEN:.0%} from "
            f"{usual:g} s; resample the recordings"
        )
    return usual
