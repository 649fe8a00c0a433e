"""World models from logs alone, on the validation recordings of real robots: where are they better than their peers?

    python benchmarks/logs_alone.py [--robots NAME ...] [--logs FOLDER] [--seeds N] [--quick] [--json FILE]

`nothing moves` and `keeps its speed` need no training; `linear` is ridge regression of the next change of position on
the last 4 changes, the last 6 commands, sines and cosines of the angles, rolled out, its penalty chosen on the
recordings that are scored, in its favour. `ours` is `fit_to_recordings` with the same settings for every robot.
Open-loop mean NRMSE 0.1, 0.2, 0.5 and 1 s ahead; `coverage90` after recalibration on every other second, scored on the
seconds between. Test recordings are not scored.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sim2real.episodes import Array, Episode, resample
from sim2real.evaluation import HORIZONS, Questions, RecordingPredictor, persistence, score
from sim2real.prediction import Prediction, Recalibration
from sim2real.preparation import Setup, prepare
from sim2real.recipe import load_recipe
from sim2real.windows import joint_positions
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, fit_to_recordings
from sim2real.world_model.encoder import angles
from sim2real.world_model.windows import causal_states

ROOT = Path(__file__).resolve().parent.parent
# recipe, and the model's step [s]
ROBOTS = {
    "qube": ("quanser_qube", 0.008),
    "pendulum": ("dfki_pendulum", 0.01),
    "double_pendulum": ("dfki_double_pendulum", 0.01),
}
BACK, SENT = 4, 6


def nrmse(positions: Array, asked: Questions) -> float:
    """Return the mean NRMSE of predicted positions (W, H, D)."""
    spread = np.maximum((asked.truth - asked.now[:, None]).std(0), 1e-9)
    return float((np.sqrt(((positions - asked.truth) ** 2).mean(0)) / spread).mean())


class Linear:
    """Ridge regression of the next change of position, rolled out."""

    def __init__(self, setup: Setup, dt: float, penalty: float) -> None:
        self.dt, self.wraps, self.channels = dt, setup.plant.model.wraps, setup.channels
        x, y = [], []
        for episode in commanded(setup):
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


def commanded(setup: Setup) -> list[Episode]:
    """Return the training recordings that say what was asked for."""
    return [e for e in setup.recordings.train if e.action_source == "commanded"]


def measure(robot: str, logs: Path, seeds: int, quick: bool) -> dict[str, Any]:
    """Train on the training recordings, score on the validation recordings."""
    recipe, dt = ROBOTS[robot]
    setup = prepare(load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [f"logs={logs}"]), threads=1)
    asked = [Questions.of(e, setup.channels) for e in setup.recordings.validation]
    out: dict[str, Any] = {q.episode.name: {} for q in asked}
    models = []
    for seed in range(seeds):
        clock = time.perf_counter()
        joints, actions = setup.plant.model.wraps, setup.plant.actions
        config = EnsembleConfig(joints, actions, dt, history=6, hidden=(128, 128), lookback=8, latents=4)
        model = EnsembleDynamics(config, seed)
        fit_to_recordings(model, commanded(setup), setup.channels, iterations=200 if quick else 3000, seed=seed)
        print(f"{robot}: trained in {time.perf_counter() - clock:.0f} s", flush=True)
        models.append((model, time.perf_counter() - clock))
    linear = [Linear(setup, dt, 10.0**p) for p in range(-8, 0)]
    for q in asked:
        rows = out[q.episode.name]
        states = causal_states(models[0][0].encoder.estimator(), q.episode, setup.channels)[q.starts]  # type: ignore[union-attr]
        d = len(setup.channels)
        rows["nothing moves"] = nrmse(persistence(q).mean.numpy(), q)
        rows["keeps its speed"] = nrmse(q.now[:, None] + q.offsets[..., None] * states[:, None, d:], q)
        rows["linear"] = min(nrmse(one(q), q) for one in linear)
        found = [RecordingPredictor(m, setup.channels)(q) for m, _ in models]
        rows["ours"] = [nrmse(p.mean.numpy(), q) for p in found]
        rows["coverage90"] = [crossed(p, q, setup) for p in found]
        rows["seconds"] = [seconds for _, seconds in models]
    return out


def crossed(prediction: Prediction, asked: Questions, setup: Setup) -> float:
    """Return the coverage of one half of the seconds after recalibration on the other, both ways."""
    odd, held = asked.blocks() % 2 == 1, 0.0
    for rows, rest in ((odd, ~odd), (~odd, odd)):
        known, new = (
            Prediction(p.mean[r], p.aleatoric[r], p.epistemic[r], p.horizon)
            for p, r in ((prediction, rows), (prediction, rest))
        )
        calibrated = Recalibration.fit(known, torch.as_tensor(asked.truth[rows])).apply(new)
        some = {key: getattr(asked, key)[rest] for key in ("starts", "offsets", "now", "truth")}
        scored = score(calibrated, replace(asked, **some), setup.plant.model.joint_names, np.random.default_rng(0))
        held += scored["coverage90"] * rest.sum()
    return float(held / len(odd))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", choices=ROBOTS, default=tuple(ROBOTS))
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="200 iterations instead of 3000")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    robots: dict[str, Any] = {}
    for robot in options.robots:
        if not (options.logs / robot).is_dir():
            print(f"{robot}: not measured: {options.logs / robot} does not exist; name the folder above it with --logs")
            continue
        robots[robot] = measure(robot, options.logs / robot, options.seeds, options.quick)
        for recording, rows in robots[robot].items():
            print(f"{robot} {recording}")
            for name, value in rows.items():
                print(f"  {name:16s} " + ", ".join(f"{v:.3g}" for v in (value if isinstance(value, list) else [value])))
        if options.json:
            options.json.write_text(
                json.dumps({"robots": robots, "horizons": HORIZONS, "quick": options.quick}, indent=1)
            )


if __name__ == "__main__":
    main()
