"""Where will a real robot be 0.1 to 1 s later, and is it there as often as was said? By simulator, networks and both.

    python benchmarks/calibration_of_uncertainty.py [--robots NAME ...] [--transitions N ...] [--seeds SEED ...]
        [--test] [--mbrl FOLDER] [--logs FOLDER] [--folder FOLDER] [--quick] [--json FILE]

Everything is learned from N transitions of a robot's training recordings, the beginnings of as many as give 0.8 s each
(all of all where N is 0). Scored are the validation recordings, crossed: recalibrated on windows that start in every
other second, scored on those between; with `--test` also the test recordings and those of a changed robot, which
nothing is told of, recalibrated on the validation recordings. A simulator is recalibrated on the training recordings
as well, for its few parameters do not remember them. The rows:

- `nothing moves`, `keeps its speed`, and `linear`: ridge regression of the next change of position on the last 4
  changes, the last 6 commands, sines and cosines of the angles, rolled out, its penalty chosen on the recordings that
  are scored, in its favour.
- `plain networks`: five of 2 x 128 on the same inputs, by likelihood, each at its best epoch on the validation
  recordings; `mbrl-lib`: its ensemble on the same (see benchmarks/world_model.py for how to install it).
- `simulator`: identified, from the model-based observer, with posterior draws.
- `logs alone`: `fit_to_recordings`, the same settings for every robot.
- `rehearsed`: the same beside simulations, each member on its own posterior draw.
- `combined`: the last three and `keeps its speed` by `CombinedPredictor`; without a robot file, what there is of them.

Of each horizon (1, 5, 10 and 20 steps of the model, 0.1, 0.2, 0.5 and 1 s): RMSE [rad], NRMSE, CRPS [rad], coverage of
the 90 % intervals, and that of the worst joint. Of the horizons in seconds together: mean NRMSE, the coverage with its
90 % interval over seconds, and how well the epistemic part of the uncertainty ranks windows by error
(`scores.detection`: AUROC of the largest twentieth; errors relative to how far joints get).

What was answered stays in the folder: killed, the script goes on where it was, and nothing is learned again for another
way to recalibrate or to score.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _prediction_peers import Linear, Mbrl, PlainEnsemble
from _recorded_robots import ROBOTS, ROOT, Robot, configuration, present, some
from _surroundings import one_thread, surroundings
from numpy.typing import NDArray
from torch import Tensor

from sim2real.calibration import identify
from sim2real.combination import CombinedPredictor, extrapolates
from sim2real.episodes import Array
from sim2real.evaluation import (
    HORIZONS,
    ConstantVelocity,
    Predictor,
    Questions,
    RecordingPredictor,
    persistence,
    score,
    start_covariance,
)
from sim2real.kalman import KalmanFilter
from sim2real.prediction import Prediction
from sim2real.preparation import Setup
from sim2real.stages import choose_observer, excitation, simulator_predictor
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Rehearsal, fit_to_recordings
from sim2real.world_model.scores import block_interval, detection, inside

LEARNED = ("simulator", "logs alone", "rehearsed")
ROWS = ("nothing moves", "keeps its speed", "linear", "plain networks", "mbrl-lib", *LEARNED, "combined")


def certain(mean: Array, asked: Questions) -> Prediction:
    """Return a prediction that says nothing of its errors."""
    positions = torch.as_tensor(mean)
    nothing = torch.zeros_like(positions)
    return Prediction(positions, nothing, nothing, asked.horizon)


def timed(seconds: dict[str, float], name: str, work: Callable[[], Predictor]) -> Predictor:
    """Do some work and note how long it took [s]."""
    clock = time.perf_counter()
    found = work()
    seconds[name] = time.perf_counter() - clock
    return found


def identified(setup: Setup, seed: int, config: EnsembleConfig) -> tuple[Predictor, Rehearsal]:
    """Identify a simulator; return it, and what a model can rehearse with it."""
    rng, channels = setup.rng(f"identify {seed}"), setup.channels
    settings = setup.recipe.identify.model_dump()
    settings["window"] = min(float(settings["window"]), 0.5 * max(e.duration for e in setup.recordings.train))
    found = identify(
        setup.plant, setup.recordings.train, setup.prior, channels=channels, rng=rng, examine=False, **settings
    )
    observer = choose_observer(setup, found.values)[0]
    covariance = start_covariance(setup.plant, found.values, observer, setup.recordings.validation, channels)
    simulator = simulator_predictor(setup, found.values, found.sample(rng, 16), observer, covariance)
    return simulator, Rehearsal(setup.plant, found.sample(rng, config.members), excitation(setup, config.timestep))


def learned(robot: Robot, seed: int, quick: bool, seconds: dict[str, float]) -> dict[str, Predictor]:
    """Return what is learned from the training recordings of a robot."""
    config = configuration(robot)

    def network(rehearsal: Rehearsal | None) -> Predictor:
        model = EnsembleDynamics(config, seed)
        iterations = 200 if quick else 3000
        fit_to_recordings(model, robot.commanded, robot.channels, rehearsal=rehearsal, iterations=iterations, seed=seed)
        return RecordingPredictor(model, robot.channels)

    out: dict[str, Predictor] = {}
    if robot.setup is not None:
        clock = time.perf_counter()
        out["simulator"], rehearsal = identified(robot.setup, seed, config)
        seconds["simulator"] = time.perf_counter() - clock
        out["rehearsed"] = timed(seconds, "rehearsed", partial(network, rehearsal))
    out["logs alone"] = timed(seconds, "logs alone", partial(network, None))
    return out


def guesses(
    robot: Robot, asked: Sequence[Questions], seed: int, quick: bool, seconds: dict[str, float]
) -> dict[str, Predictor]:
    """Return what models are measured against."""
    train, held = robot.commanded, robot.recordings.validation
    shape = (robot.channels, robot.wraps, robot.dt)

    def error(one: Linear) -> float:
        return float(np.mean([np.mean((one(q) - q.truth) ** 2) for q in asked]))

    best = min((Linear(*shape).fit(train, 10.0**p) for p in range(-8, 0)), key=error)
    out: dict[str, Predictor] = {
        "nothing moves": persistence,
        "keeps its speed": ConstantVelocity(KalmanFilter.fit(train, robot.channels), robot.channels),
        "linear": lambda q: certain(best(q), q),
    }
    updates = 200 if quick else 5000
    for name, kind in (("plain networks", PlainEnsemble), ("mbrl-lib", Mbrl)):
        if name != "mbrl-lib" or mbrl_is_here():
            out[name] = timed(seconds, name, lambda kind=kind: kind(*shape).fit(train, held, seed, updates))  # type: ignore[misc]
    return out


def mbrl_is_here() -> bool:
    """Return whether mbrl-lib can be imported."""
    try:
        import mbrl.models  # noqa: F401
    except ImportError:
        return False
    return True


def crossed(fit: Callable[[Sequence[Questions]], Predictor], asked: Sequence[Questions]) -> list[Prediction]:
    """Answer every other second with what is fitted to the seconds between, both ways.

    A recording of a second is one such second: those take turns.
    """
    odd = [(q.blocks() + k) % 2 == 1 for k, q in enumerate(asked)]
    parts = []
    for held in (True, False):
        predictor = fit([some(q, o == held) for q, o in zip(asked, odd, strict=True) if (o == held).any()])
        parts.append(
            [predictor(some(q, o != held)) if (o != held).any() else None for q, o in zip(asked, odd, strict=True)]
        )
    out = []
    for o, *both in zip(odd, *parts, strict=True):
        joined, order = (
            Prediction.concatenate([p for p in both if p is not None]),
            np.argsort(np.argsort(o, kind="stable")),
        )
        out.append(Prediction(joined.mean[order], joined.aleatoric[order], joined.epistemic[order], joined.horizon))
    return out


@dataclass(frozen=True)
class Kept:
    """A predictor whose answers are on file.

    Attributes:
        answers: recording -> starts (W,) and mean, aleatoric and epistemic (W, H, D).
        extrapolates: as the predictor that gave them.
    """

    answers: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]
    extrapolates: bool

    @classmethod
    def of(cls, predictor: Predictor, asked: Sequence[Questions]) -> Kept:
        """Ask a predictor."""
        answers = {}
        for q in asked:
            p = predictor(q)
            answers[q.episode.name] = (torch.as_tensor(q.starts), p.mean, p.aleatoric, p.epistemic)
        return cls(answers, extrapolates(predictor))

    def __call__(self, asked: Questions) -> Prediction:
        starts, *parts = self.answers[asked.episode.name]
        rows = torch.searchsorted(starts, torch.as_tensor(asked.starts))
        mean, aleatoric, epistemic = (part[rows] for part in parts)
        return Prediction(mean, aleatoric, epistemic, asked.horizon)


def answered(robot: Robot, seed: int, quick: bool, file: Path) -> tuple[dict[str, Kept], dict[str, float]]:
    """Learn and answer all questions about a robot, or read from a file what was answered before; and seconds taken."""
    if not file.exists():
        seconds: dict[str, float] = {}
        models = learned(robot, seed, quick, seconds)
        held = robot.questions(robot.recordings.validation)
        models |= guesses(robot, held, seed, quick, seconds)
        unseen = [*held, *robot.questions(robot.recordings.test), *robot.questions(robot.changed)]
        train = robot.questions(robot.recordings.train)
        kept = {n: Kept.of(p, [*unseen, *(train if extrapolates(p) else ())]) for n, p in models.items()}
        parts = {name: (k.answers, k.extrapolates) for name, k in kept.items()}
        torch.save((parts, seconds), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    parts, seconds = torch.load(file, weights_only=True)
    return {name: Kept(*part) for name, part in parts.items()}, seconds


def measure(robot: Robot, test: bool, rows: dict[str, Kept], seconds: dict[str, float]) -> dict[str, Any]:
    """Recalibrate and score what was answered of a robot."""
    held, train = robot.questions(robot.recordings.validation), robot.questions(robot.recordings.train)
    splits = {"validation": held}
    if test:
        splits |= {"test": robot.questions(robot.recordings.test), "shift": robot.questions(robot.changed)}
    together = {name: [one] for name, one in rows.items()} | {
        "combined": [rows[name] for name in (*LEARNED, "keeps its speed") if name in rows]
    }
    out: dict[str, Any] = {split: {} for split, asked in splits.items() if asked}
    for name, predictors in together.items():
        fit = partial(CombinedPredictor.fit, predictors, trained_on=train)
        for split, scores in out.items():
            asked = splits[split]
            answers = crossed(fit, asked) if split == "validation" else list(map(fit(held), asked))
            pairs = joined(asked, answers) if robot.pooled else apart(asked, answers)
            for recording, q, answer in pairs:
                found = scored(answer, q, robot.joints) | {"seconds": seconds.get(name)}
                scores.setdefault(recording, {})[name] = found
    return out


@dataclass(frozen=True)
class Joined(Questions):
    """Questions about several recordings.

    Attributes:
        parts: about each.
    """

    parts: list[Questions] = field(default_factory=list)

    def blocks(self) -> NDArray[np.int_]:
        first, out = 0, []
        for q in self.parts:
            out.append(first + q.blocks())
            first = int(out[-1].max()) + 1
        return np.concatenate(out)


Answered = tuple[str, Questions, Prediction]


def apart(asked: Sequence[Questions], answers: Sequence[Prediction]) -> list[Answered]:
    """Return questions and answers by recording."""
    return [(q.episode.name, q, a) for q, a in zip(asked, answers, strict=True)]


def joined(asked: Sequence[Questions], answers: Sequence[Prediction]) -> list[Answered]:
    """Return questions and answers of all recordings as if they were one; blocks are of a second, none of two."""
    parts = {key: np.concatenate([getattr(q, key) for q in asked]) for key in ("starts", "offsets", "now", "truth")}
    one = Joined(asked[0].episode, **parts, horizons=asked[0].horizons, parts=list(asked))
    return [(f"{len(asked)} recordings", one, Prediction.concatenate(answers))]


def scored(answer: Prediction, q: Questions, joints: Sequence[str]) -> dict[str, Any]:
    """Return what is told of an answer."""
    found = score(answer, q, joints, np.random.default_rng(0))
    protocol = [q.horizons.index(h) for h in HORIZONS]
    mean, truth = answer.mean.double().numpy()[:, protocol], q.truth[:, protocol]
    away = np.maximum(np.abs(truth - q.now[:, None]).mean(0), 1e-9)
    size = (np.abs(mean - truth) / away).mean((1, 2))
    unsure = (answer.epistemic.double().sqrt().numpy()[:, protocol] / away).mean((1, 2))
    variance = np.maximum(answer.variance.double().numpy()[:, protocol], 1e-10)
    covered = inside(mean - truth, variance, 0.9).mean((1, 2))
    row: dict[str, Any] = {
        "mean_nrmse": float(np.mean([list(found[f"{h:g}"]["nrmse"].values()) for h in HORIZONS])),
        "coverage90": float(covered.mean()),
        "coverage90_interval": list(block_interval(covered, q.blocks(), np.random.default_rng(0))),
        "detection": detection(unsure, size),
    }
    for h in q.horizons:
        one = found[f"{h:g}"]
        row[f"{h:g}"] = {
            "rmse": one["rmse"],
            "nrmse": one["nrmse"],
            "crps": one["crps"],
            "coverage90": one["coverage"]["0.9"],
            "coverage90_interval": one["coverage90_interval"],
            "worst_channel_coverage90": min(one["coverage90_by_channel"].values()),
        }
    return row


def show(split: str, recordings: dict[str, Any]) -> None:
    """Print a table for each recording."""
    heads = f"{'mean NRMSE':>12s}{'covers 90 %':>13s}{'by chance':>15s}{'worst joint':>13s}{'detects':>9s}{'CRPS':>20s}"
    for recording, rows in recordings.items():
        print(f"\n{recording:18s}{heads}  {split}")
        for name in ROWS:
            if name not in rows:
                continue
            r = rows[name]
            low, high = r["coverage90_interval"]
            worst = min(r[f"{h:g}"]["worst_channel_coverage90"] for h in HORIZONS)
            crps = " ".join(f"{r[f'{h:g}']['crps']:.2g}" for h in HORIZONS)
            print(
                f"{name:18s}{r['mean_nrmse']:12.4f}{r['coverage90']:13.2f}{f'{low:.2f} to {high:.2f}':>15s}"
                f"{worst:13.2f}{r['detection']:9.2f}    {crps}",
                flush=True,
            )


def summary(seeds: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    """Return the means over seeds and recordings of a split: {row: {horizon: scores, "mean_nrmse": ...}}."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for found in seeds:
        for recording in found[split].values():
            for name, row in recording.items():
                rows.setdefault(name, []).append(row)

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: mean([v[key] for v in values]) for key in values[0]}
        return None if values[0] is None else np.mean(values, 0).tolist()

    return {name: mean(of) for name, of in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=tuple(ROBOTS))
    parser.add_argument("--transitions", nargs="+", type=int, default=[0], help="all of them by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--test", action="store_true", help="score the test recordings")
    parser.add_argument("--mbrl", type=Path, default=ROOT / ".mbrl", help="folder that mbrl-lib was installed into")
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "uncertainty", help="keeps what is done")
    parser.add_argument("--quick", action="store_true", help="200 iterations instead of 3000")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    sys.path.append(str(options.mbrl))
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    robots: dict[str, Any] = {}
    for name, robot in present(options.robots, options.logs):
        for many in options.transitions:
            seeds = []
            for seed in options.seeds:
                kind = "-quick" if options.quick else ""
                file = options.folder / f"{name}-{many or 'all'}-{seed}{kind}.pt"
                less = robot.reduced(many) if many else robot
                seeds.append(measure(less, options.test, *answered(less, seed, options.quick, file)))
                print(f"\n{name}, {many or 'all'} transitions, seed {seed}")
                for split, recordings in seeds[-1].items():
                    show(split, recordings)
            scored_on = "test" if options.test else "validation"
            robots.setdefault(name, {})[str(many or "all")] = summary(seeds, scored_on) | {"seeds": seeds}
            if options.json:  # as far as it has got
                told = {"robots": robots, "quick": options.quick}
                options.json.write_text(json.dumps(told | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
