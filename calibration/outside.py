"""Outside forces: stretches of recordings that no logged command explains, a push, a hand, a stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from sim2real.calibration.replay import Replay, replays
from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Array, Episode
from sim2real.plant import Plant

# A force stands out when it is so many robust standard deviations from the usual one, in so many windows running.
OUTSTANDING, RUNNING = 4.0, 3
# What is usual is said by this share of all windows, those with the most similar motion and commands; no fewer than so
# many. And the least that counts as unusual, as a share of the largest command.
SIMILAR, FEWEST, LEAST = 0.05, 30, 0.005
# Of the largest command, the change that shows how motions depend on forces.
PROBE = 0.02
# Gauss-Newton steps of start states and force.
STEPS = 4


@dataclass(frozen=True)
class OutsideForce:
    """A stretch in which something pushed.

    Attributes:
        recording: its name.
        start, stop: on the clock of the recording [s].
        action: the actuator that would have had to do it.
        unit: of the action.
        effort: what it would have had to add, the largest in the stretch.
        usual: robust standard deviation of that in similar motions.
    """

    recording: str
    start: float
    stop: float
    action: str
    unit: str
    effort: float
    usual: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def outside_forces(
    plant: Plant,
    episodes: Sequence[Episode],
    values: Mapping[str, float],
    *,
    channels: Sequence[str],
    of_recordings: Mapping[str, Mapping[str, float]] | None = None,
    window: float = 0.3,
    stride: float = 0.1,
) -> list[OutsideForce]:
    """Find stretches in which commands must have been other than they were, by much more than elsewhere.

    In short windows a constant addition to every action is fitted along with the start state. What is usual depends on
    the motion, for a model is less right when things move fast: additions are compared with those of windows of similar
    speed, command and change of the command, in any recording. Where they stand out in several windows running,
    something else must have acted. Joints without an actuator show only as far as the actuators could have moved them.

    Args:
        plant: the model, with its execution chain.
        episodes: the recordings.
        values: of the parameters.
        channels: the observations that are joint positions.
        of_recordings: `{recording: {parameter: value}}` where a recording has values of its own.
        window: length of a window [s].
        stride: between window starts [s].
    """
    at: list[tuple[int, float]] = []
    efforts, motions = [], []
    for e, episode in enumerate(episodes):
        mine = {**values, **(of_recordings or {}).get(episode.name, {})}
        unknowns = Unknowns(tuple(mine))
        for part in replays(plant, [episode], unknowns, channels=channels, window=window, block=window, stride=stride):
            efforts.append(_additions(part, np.array([mine[n] for n in part.names])))
            motions.append(_motion(part))
            at += [(e, float(t)) for t in part.windows.start_time]
    if not at:
        return []
    found, usual = np.concatenate(efforts), np.zeros((len(at), efforts[0].shape[1]))
    largest = np.max([np.abs(e.actions).max(0) for e in episodes], 0)
    middle = usual.copy()
    for row, near in enumerate(_similar(np.concatenate(motions))):
        middle[row] = np.median(found[near], 0)
        usual[row] = 1.4826 * np.median(np.abs(found[near] - middle[row]), 0) + LEAST * largest
    stands = np.abs(found - middle) > OUTSTANDING * usual
    out = []
    for a in range(found.shape[1]):
        for run in (r for r in _runs(at, stands[:, a], stride) if len(r) >= RUNNING):
            episode = episodes[at[run[0]][0]]
            strongest = run[int(np.argmax(np.abs(found[run, a])))]
            out.append(
                OutsideForce(
                    recording=episode.name,
                    start=at[run[0]][1],
                    stop=at[run[-1]][1] + window,
                    action=episode.channels.actions[a][0],
                    unit=episode.channels.actions[a][1],
                    effort=float(found[strongest, a]),
                    usual=float(usual[strongest, a]),
                )
            )
    return out


def _motion(part: Replay) -> Array:
    """(W, 3) speed, command and change of the command in each window, on a logarithmic scale."""
    w = part.windows
    step = np.where(w.valid[:, 1:, None], np.abs(np.diff(w.positions, axis=1)), 0.0).sum((1, 2))
    command = np.sqrt((w.commands**2).mean((1, 2)))
    change = np.abs(np.diff(w.commands, axis=1)).sum((1, 2))
    each = np.stack([step, command, change], 1)
    return np.asarray(np.log(each + 0.003 * each.max(0) + 1e-12))


def _similar(motions: Array) -> list[NDArray[np.int_]]:
    """Return for each window the rows of those with the most similar motion (N, 3)."""
    scaled = (motions - motions.mean(0)) / (motions.std(0) + 1e-12)
    many = min(len(motions), max(FEWEST, round(SIMILAR * len(motions))))
    _, rows = KDTree(scaled).query(scaled, k=many)
    return list(np.asarray(rows).reshape(len(motions), many))


def own_values(evidence: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return `{recording: {parameter: value}}` of what recordings have of their own, by the evidence of a posterior."""
    found: dict[str, dict[str, float]] = {}
    for name, recordings in evidence.get("of_recordings", {}).items():
        for recording, told in recordings.items():
            found.setdefault(recording, {})[name] = told["mean"]
    for recording, told in evidence.get("recordings_differ", {}).items():
        found.setdefault(recording, {})[told["parameter"]] = told["own"]
    return found


def _additions(part: Replay, parameters: Array) -> Array:
    """(W, A) constant additions to the actions that explain the windows best, with their start states."""
    many, actions = len(part.windows), part.windows.commands.shape[-1]
    size = part.start.shape[1]
    probe = np.maximum(PROBE * np.abs(part.windows.commands).max((0, 1)), 1e-6)
    found = np.zeros((many, actions))
    for _ in range(STEPS):
        residual, by_state = _pushed(part, found).by_start(parameters)
        slopes = [by_state]
        for a in range(actions):
            more = found + probe * (np.arange(actions) == a)
            slopes.append(((_pushed(part, more).residuals_at(parameters) - residual) / probe[a])[..., None])
        j = np.concatenate(slopes, -1).reshape(many, -1, size + actions)
        scale = np.sqrt((j**2).sum(1, keepdims=True)) + 1e-12
        step = -(np.linalg.pinv(j / scale, rcond=1e-4) @ residual.reshape(many, -1, 1))[..., 0] / scale[:, 0]
        part.start, found = part.start + step[:, :size], found + step[:, size:]
    return found


def _pushed(part: Replay, more: Array) -> Replay:
    """Return the replay with additions (W, A) to all commands."""
    w = part.windows
    return replace(part, windows=replace(w, commands=w.commands + more[:, None], before=w.before + more[:, None]))


def _runs(at: list[tuple[int, float]], stands: NDArray[np.bool_], stride: float) -> list[list[int]]:
    """Return rows that stand out, grouped into those that follow one another in one recording."""
    out: list[list[int]] = []
    for row in np.flatnonzero(stands).tolist():
        last = out[-1][-1] if out else None
        if last is not None and at[last][0] == at[row][0] and at[row][1] - at[last][1] < 2.5 * stride:
            out[-1].append(row)
        else:
            out.append([row])
    return out
