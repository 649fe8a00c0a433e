"""Where will a real robot be 0.1 to 1 s later, and is it there as often as was said? By simulator, networks and both.

    python benchmarks/calibration_of_uncertainty.py [--robots NAME ...] [--transitions N ...] [--seeds K] [--test]
        [--logs FOLDER] [--quick] [--json FILE]

Everything is learned from N transitions of a robot's training recordings, the beginnings of as many as give 0.8 s each
(all of all by default). Scored are the validation recordings, crossed: recalibrated on windows that start in every
other second, scored on those between; with `--test` also the test recordings and those of a changed robot, which
nothing is told of, recalibrated on the validation recordings. A simulator is recalibrated on the training recordings
as well, for its few parameters do not remember them. The rows:

- `nothing moves`, `keeps its speed`, and `linear`: ridge regression of the next change of position on the last 4
  changes, the last 6 commands, sines and cosines of the angles, rolled out, its penalty chosen on the recordings that
  are scored, in its favour.
- `simulator`: identified, from the model-based observer, with posterior draws.
- `logs alone`: `fit_to_recordings`, the same settings for every robot.
- `rehearsed`: the same beside simulations, each member on its own posterior draw.
- `combined`: the last three by `CombinedPredictor`.

Of each horizon: RMSE [rad], NRMSE, CRPS [rad], coverage of the 90 % intervals, and that of the worst joint; of all:
mean NRMSE, the coverage with its 90 % interval over seconds, and how well the epistemic part of the uncertainty ranks
windows by error (`scores.detection`: AUROC of the largest twentieth; errors relative to how far joints get).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _surroundings import one_thread, surroundings
from numpy.typing import NDArray

from sim2real.calibration import identify
from sim2real.combination import CombinedPredictor
from sim2real.episodes import Array, Episode, resample
from sim2real.errors import LogError
from sim2real.evaluation import (
    HORIZONS,
    Predictor,
    Questions,
    RecordingPredictor,
    persistence,
    score,
    start_covariance,
)
from sim2real.prediction import Prediction
from sim2real.preparation import Setup, prepare
from sim2real.recipe import load_recipe
from sim2real.stages import choose_observer, excitation, simulator_predictor
from sim2real.windows import joint_positions
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Rehearsal, fit_to_recordings
from sim2real.world_model.encoder import angles
from sim2real.world_model.scores import detection
from sim2real.world_model.windows import causal_states

ROOT = Path(__file__).resolve().parent.parent
# recipe, and the model's step [s]
ROBOTS = {
    "qube": ("quanser_qube", 0.008),
    "pendulum": ("dfki_pendulum", 0.01),
    "double_pendulum": ("dfki_double_pendulum", 0.01),
}
ROWS = ("nothing moves", "keeps its speed", "linear", "simulator", "logs alone", "rehearsed", "combined")
BACK, SENT = 4, 6
# Of a recording that is not used whole [s].
LEAST = 0.8


class Linear:
    """Ridge regression of the next change of position, rolled out."""

    def __init__(self, setup: Setup, dt: float, penalty: float) -> None:
        self.dt, self.wraps, self.channels = dt, setup.plant.model.wraps, setup.channels
        x, y = [], []
        for episode in commanded(setup.recordings.train):
            q, u = self._on_clock(episode)
            for k in range(max(BACK, SENT), min(len(q) - 1, len(u))):
                x.append(self._features(q[None, k - BACK : k + 1], u[None, k - SENT + 1 : k + 1])[0])
                y.append(q[k + 1] - q[k])
        a, b = np.stack(x), np.stack(y)
        self.scale = np.maximum(a.std(0), 1e-9)
        a = np.concatenate([a / self.scale, np.ones((len(a), 1))], 1)
        self.weights = np.linalg.solve(a.T @ a + penalty * len(a) * np.eye(a.shape[1]), a.T @ b)

    def _on_clock(self, episode: Episode) -> tuple[Array, Array]:
        even = resample(episode, self.dt)
        return joint_positions(even, self.channels), even.actions

    def _features(self, q: Array, u: Array) -> Array:
        changes = np.diff(q, axis=1).reshape(len(q), -1)
        seen = angles(torch.as_tensor(q[:, -1]), self.wraps).numpy()
        return np.concatenate([changes, seen, u.reshape(len(u), -1)], 1)

    def __call__(self, asked: Questions) -> Array:
        t, q = asked.episode.observed_at, joint_positions(asked.episode, self.channels)
        begin, steps = t[asked.starts][:, None], int(np.ceil(asked.offsets.max() / self.dt))
        past = begin - self.dt * np.arange(BACK, -1, -1)
        path = np.stack([np.interp(past, t, q[:, d]) for d in range(q.shape[1])], -1)
        sent = asked.episode.commands_at(begin + self.dt * (np.arange(-SENT + 1, steps) + 0.5))
        for k in range(steps):
            z = self._features(path[:, -BACK - 1 :], sent[:, k : k + SENT]) / self.scale
            change = np.concatenate([z, np.ones((len(z), 1))], 1) @ self.weights
            path = np.concatenate([path, (path[:, -1] + np.clip(change, -1, 1))[:, None]], 1)
        clock = self.dt * np.arange(steps + 1)
        found = np.empty((len(path), asked.offsets.shape[1], path.shape[2]))
        for w, d in np.ndindex(len(path), path.shape[2]):
            found[w, :, d] = np.interp(asked.offsets[w], clock, path[w, BACK:, d])
        return found


def commanded(episodes: Sequence[Episode]) -> list[Episode]:
    """Return the recordings that say what was asked for."""
    return [e for e in episodes if e.action_source == "commanded"]


def first(episodes: Sequence[Episode], transitions: int, dt: float) -> list[Episode]:
    """Return the beginnings of recordings that hold so many transitions together, of as many as give `LEAST` each."""
    seconds = transitions * dt
    many = min(max(int(seconds / LEAST), 1), len(episodes))
    some = [episodes[k * len(episodes) // many] for k in range(many)]
    return [e.slice(0.0, min(seconds / many, e.duration)) for e in some]


def certain(mean: Array) -> Prediction:
    """Return a prediction that says nothing of its errors."""
    positions = torch.as_tensor(mean)
    nothing = torch.zeros_like(positions)
    return Prediction(positions, nothing, nothing, torch.tensor(HORIZONS, dtype=torch.float64))


def learned(setup: Setup, dt: float, seed: int, quick: bool) -> tuple[dict[str, Predictor], dict[str, float]]:
    """Return what is learned from the training recordings of a setup, and how long that took [s]."""
    train, channels, seconds = setup.recordings.train, setup.channels, {}
    clock = time.perf_counter()
    settings = setup.recipe.identify.model_dump()
    rng = setup.rng(f"identify {seed}")
    found = identify(setup.plant, train, setup.prior, channels=channels, rng=rng, examine=False, **settings)
    observer = choose_observer(setup, found.values)[0]
    covariance = start_covariance(setup.plant, found.values, observer, setup.recordings.validation, channels)
    simulator = simulator_predictor(setup, found.values, found.sample(rng, 16), observer, covariance)
    seconds["simulator"] = time.perf_counter() - clock
    config = EnsembleConfig(
        setup.plant.model.wraps, setup.plant.actions, dt, history=6, hidden=(128, 128), lookback=8, latents=4
    )
    rehearsal = Rehearsal(setup.plant, found.sample(rng, config.members), excitation(setup, setup.plant))
    out: dict[str, Predictor] = {"simulator": simulator}
    for name, simulated in (("logs alone", None), ("rehearsed", rehearsal)):
        clock = time.perf_counter()
        model = EnsembleDynamics(config, seed)
        fit_to_recordings(
            model, commanded(train), channels, rehearsal=simulated, iterations=200 if quick else 3000, seed=seed
        )
        seconds[name] = time.perf_counter() - clock
        out[name] = RecordingPredictor(model, channels)
    return out, seconds


def guesses(setup: Setup, dt: float, asked: Sequence[Questions], model: EnsembleDynamics) -> dict[str, Predictor]:
    """Return the predictors that need no model."""
    assert model.encoder is not None
    estimator, d = model.encoder.estimator(), len(setup.channels)

    def keeps(q: Questions) -> Prediction:
        states = causal_states(estimator, q.episode, setup.channels)[q.starts]
        return certain(q.now[:, None] + q.offsets[..., None] * states[:, None, d:])

    def error(one: Linear) -> float:
        return float(np.mean([np.mean((one(q) - q.truth) ** 2) for q in asked]))

    best = min((Linear(setup, dt, 10.0**p) for p in range(-8, 0)), key=error)
    return {"nothing moves": persistence, "keeps its speed": keeps, "linear": lambda q: certain(best(q))}


def questions(episodes: Sequence[Episode], channels: Sequence[str]) -> list[Questions]:
    """Return what recordings ask, as far as they are long enough to ask."""
    out = []
    for e in episodes:
        with contextlib.suppress(LogError):
            out.append(Questions.of(e, channels))
    return out


def some(q: Questions, rows: NDArray[np.bool_]) -> Questions:
    """Return some of the questions."""
    return replace(q, **{key: getattr(q, key)[rows] for key in ("starts", "offsets", "now", "truth")})


def crossed(fit: Callable[[Sequence[Questions]], Predictor], asked: Sequence[Questions]) -> list[Prediction]:
    """Answer every other second with what is fitted to the seconds between, both ways."""
    odd = [q.blocks() % 2 == 1 for q in asked]
    parts = []
    for held in (True, False):
        predictor = fit([some(q, o == held) for q, o in zip(asked, odd, strict=True)])
        parts.append([predictor(some(q, o != held)) for q, o in zip(asked, odd, strict=True)])
    out = []
    for o, even_part, odd_part in zip(odd, *parts, strict=True):
        both, order = Prediction.concatenate([even_part, odd_part]), np.argsort(np.argsort(o, kind="stable"))
        out.append(Prediction(both.mean[order], both.aleatoric[order], both.epistemic[order], both.horizon))
    return out


def measure(robot: str, logs: Path, transitions: int | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Learn, recalibrate and score one robot with one amount of data."""
    recipe, dt = ROBOTS[robot]
    setup = prepare(load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [f"logs={logs}"]), threads=1)
    if transitions is not None:
        train = first(commanded(setup.recordings.train), transitions, dt)
        setup = replace(setup, recordings=replace(setup.recordings, train=train))
    held = [Questions.of(e, setup.channels) for e in setup.recordings.validation]
    train = questions(setup.recordings.train, setup.channels)
    models, seconds = learned(setup, dt, seed, options.quick)
    print(f"{robot}, seed {seed}: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()), flush=True)
    out: dict[str, Any] = {}
    changed = [e for shift in setup.recordings.shift for e in shift.recordings]
    splits = {"validation": held}
    if options.test:
        for split, episodes in (("test", setup.recordings.test), ("shift", changed)):
            splits[split] = [Questions.of(e, setup.channels) for e in episodes]
    for split, asked in splits.items():
        rows = guesses(setup, dt, asked, models["logs alone"].model) | models  # type: ignore[attr-defined]
        together = {name: [p] for name, p in rows.items()}
        together["combined"] = [models[name] for name in ("simulator", "logs alone", "rehearsed")]
        for name, predictors in together.items():
            fit = partial(CombinedPredictor.fit, predictors, trained_on=train)
            answers = crossed(fit, asked) if split == "validation" else list(map(fit(held), asked))
            for q, answer in zip(asked, answers, strict=True):
                found = scored(answer, q, setup.plant.model.joint_names) | {"seconds": seconds.get(name)}
                out.setdefault(q.episode.name, {"split": split})[name] = found
    return out


def scored(answer: Prediction, q: Questions, joints: Sequence[str]) -> dict[str, Any]:
    """Return what is told of an answer."""
    found = score(answer, q, joints, np.random.default_rng(0))
    row: dict[str, Any] = {key: found[key] for key in ("mean_nrmse", "coverage90", "coverage90_interval")}
    away = np.maximum(np.abs(q.truth - q.now[:, None]).mean(0), 1e-9)
    size = (np.abs(answer.mean.double().numpy() - q.truth) / away).mean((1, 2))
    unsure = (answer.epistemic.double().sqrt().numpy() / away).mean((1, 2))
    row["detection"] = detection(unsure, size)
    for h in HORIZONS:
        one = found[f"{h:g}"]
        row[f"{h:g}"] = {
            "rmse": one["rmse"],
            "nrmse": one["nrmse"],
            "crps": one["crps"],
            "coverage90": one["coverage"]["0.9"],
            "worst_channel_coverage90": min(one["coverage90_by_channel"].values()),
        }
    return row


def show(recordings: dict[str, Any]) -> None:
    """Print a table for each recording."""
    for recording, rows in recordings.items():
        heads = (
            f"{'mean NRMSE':>12s}{'covers 90 %':>13s}{'by chance':>15s}{'worst joint':>13s}{'detects':>9s}{'CRPS':>20s}"
        )
        print(f"\n{recording:18s}{heads}  {rows['split']}")
        for name in ROWS:
            r = rows[name]
            low, high = r["coverage90_interval"]
            worst = min(r[f"{h:g}"]["worst_channel_coverage90"] for h in HORIZONS)
            crps = " ".join(f"{r[f'{h:g}']['crps']:.2g}" for h in HORIZONS)
            print(
                f"{name:18s}{r['mean_nrmse']:12.4f}{r['coverage90']:13.2f}{f'{low:.2f} to {high:.2f}':>15s}"
                f"{worst:13.2f}{r['detection']:9.2f}    {crps}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=tuple(ROBOTS))
    parser.add_argument("--transitions", nargs="+", type=int, default=[None], help="all of them by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="score the test recordings")
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--quick", action="store_true", help="200 iterations instead of 3000")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    robots: dict[str, Any] = {}
    for robot in options.robots:
        if not (options.logs / robot).is_dir():
            print(f"{robot}: not measured: {options.logs / robot} does not exist; name the folder above it with --logs")
            continue
        for many in options.transitions:
            for seed in range(options.seeds):
                found = measure(robot, options.logs / robot, many, seed, options)
                show(found)
                robots.setdefault(robot, {}).setdefault(str(many or "all"), []).append(found)
                if options.json:  # as far as it has got
                    told = {"robots": robots, "quick": options.quick}
                    options.json.write_text(json.dumps(told | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
