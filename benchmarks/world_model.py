"""How fast does a `TransitionEnsemble` learn beside mbrl-lib? The same transitions and networks, one thread.

    python benchmarks/world_model.py [--mbrl FOLDER] [--epochs N] [--quick] [--json FILE]

20,000 transitions of HalfCheetah-v5 (17 observations, 6 actions, actions held for a few steps each) to learn from, and
5,000 of another seed to score on. 7 members of 4 x 200 SiLU units, batches of 256 a member, a tenth held out. The score
is the negative log likelihood of the change of an observation in its own unit, mean over members and observations.

- seconds_to_equal_nll: training time, without that of scoring, until the score is as low as the lowest that mbrl-lib
  comes to within its own epochs; ours with the default `Schedule` but for its number of epochs (8, so that its falling
  rate has fallen when mbrl-lib's mark is to be reached), mbrl-lib with what its own examples use: inputs normalised,
  learned bounds of the variance, Adam 1e-3, weight decay 5e-5, stopped after 5 epochs without a smaller squared error.
- gemm_fraction: time of the matrix products of an update by themselves (forward, and backward by inputs and by weights)
  over that of the whole update (activations, likelihood, prior and Adam besides), measured by turns.

mbrl-lib (https://github.com/facebookresearch/mbrl-lib) pins what the toolkit does not want, so it is read from a folder
of its own:
    pip install --no-deps --target .mbrl mbrl==0.2.0 hydra-core omegaconf 'antlr4-python3-runtime==4.9.*' termcolor tqdm
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _surroundings import one_thread, surroundings

from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, Transitions, fit_transitions
from sim2real.world_model.network import gaussian_nll
from sim2real.world_model.transition_training import Updates, held_out_nll

ROOT = Path(__file__).resolve().parent.parent
MEMBERS, HIDDEN, BATCH = 7, (200, 200, 200, 200), 256
# Seconds of training and the score then, an entry an epoch.
Curve = list[tuple[float, float]]


def collect(many: int, seed: int, name: str = "HalfCheetah-v5") -> Transitions:
    """Record transitions of an environment under random actions, held for a few steps each."""
    env, rng = gym.make(name), np.random.default_rng(seed)
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    seen, _ = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = []
    action = np.zeros(space.shape)
    while len(rows) < many:
        if rng.random() < 0.3:
            action = rng.uniform(space.low, space.high)
        after, _, terminated, truncated, _ = env.step(action.astype(np.float32))
        rows.append((seen, action, after))
        seen = env.reset()[0] if terminated or truncated else after
    return Transitions(*(np.array(column) for column in zip(*rows, strict=True)))


class Clock:
    """Seconds since it was made, less those that are spent on scoring."""

    def __init__(self) -> None:
        self.begun, self.curve = time.perf_counter(), Curve()

    def score(self, nll: Callable[[], float]) -> None:
        """Note the score now; what that takes does not count."""
        now = time.perf_counter()
        self.curve.append((now - self.begun, nll()))
        self.begun += time.perf_counter() - now


def ours(train: Transitions, test: Transitions, epochs: int) -> Curve:
    """Train a `TransitionEnsemble`."""
    config = TransitionConfig(train.observations.shape[1], train.actions.shape[1], 0.05, MEMBERS, 5, HIDDEN)
    model, clock, rows = TransitionEnsemble(config), Clock(), np.arange(len(test))

    def nll() -> float:
        return float(held_out_nll(model, test, rows).mean() + torch.log(model.change_scale).mean())

    fit_transitions(model, train, Schedule(epochs=epochs, batch=BATCH), progress=lambda _: clock.score(nll))
    return clock.curve


def mbrl(train: Transitions, test: Transitions, epochs: int) -> Curve:
    """Train mbrl-lib's ensemble."""
    import mbrl.util.common as common
    from mbrl.models import GaussianMLP, ModelTrainer, OneDTransitionRewardModel
    from mbrl.util import ReplayBuffer

    many, width, actions = len(train), train.observations.shape[1], train.actions.shape[1]
    torch.manual_seed(0)
    network = GaussianMLP(
        width + actions, width, "cpu", num_layers=len(HIDDEN), ensemble_size=MEMBERS, hid_size=HIDDEN[0],
        activation_fn_cfg={"_target_": "torch.nn.SiLU"}, learn_logvar_bounds=True,
    )  # fmt: skip
    model = OneDTransitionRewardModel(network, normalize=True, learned_rewards=False, num_elites=5)
    buffer = ReplayBuffer(many, (width,), (actions,), rng=np.random.default_rng(0))
    for seen, action, after in zip(train.observations, train.actions, train.following, strict=True):
        buffer.add(seen, action, after, 0.0, False, False)
    model.update_normalizer(buffer.get_all())
    train_rows, held = common.get_basic_buffer_iterators(
        buffer, BATCH, 0.1, ensemble_size=MEMBERS, shuffle_each_epoch=True
    )
    trainer, clock = ModelTrainer(model, optim_lr=1e-3, weight_decay=5e-5), Clock()
    x = torch.as_tensor(np.concatenate([test.observations, test.actions], 1), dtype=torch.float32)
    y = torch.as_tensor(test.following - test.observations, dtype=torch.float32)

    def nll() -> float:
        with torch.no_grad():
            mean, log_variance = network(model.input_normalizer.normalize(x).float(), use_propagation=False)
        return float(gaussian_nll(mean - y, log_variance).mean()) + 0.5 * float(np.log(2 * np.pi))

    trainer.train(train_rows, held, num_epochs=epochs, patience=5, callback=lambda *_: clock.score(nll), silent=True)
    return clock.curve


def gemm_fraction(train: Transitions, repetitions: int) -> dict[str, float]:
    """Time whole updates and their matrix products alone, by turns."""
    config = TransitionConfig(train.observations.shape[1], train.actions.shape[1], 0.05, MEMBERS, 5, HIDDEN)
    model = TransitionEnsemble(config)
    model.normalise(train)
    updates = Updates(model, Schedule(batch=BATCH), len(train))
    rows = np.random.default_rng(0).integers(len(train), size=(MEMBERS, BATCH))
    x, y = model.normalised(train, rows)
    layers = []
    for weight in model.network.weights:
        width_in, width_out = weight.shape[1:]
        layers.append(
            [torch.randn(MEMBERS, *s) for s in ((BATCH, width_in), (width_in, width_out), (BATCH, width_out))]
        )

    def products() -> None:
        for k, (inputs, weights, slopes) in enumerate(layers):
            torch.bmm(inputs, weights)
            torch.bmm(inputs.transpose(1, 2), slopes)
            if k:
                torch.bmm(slopes, weights.transpose(1, 2))

    both: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for seconds, work in zip(both, (products, lambda: updates.take(x, y, 0.5)), strict=True):
            clock = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - clock)
    alone, whole = (float(np.median(s[len(s) // 10 :])) for s in both)
    return {
        "gemm_fraction": alone / whole,
        "milliseconds_of_products": 1e3 * alone,
        "milliseconds_of_update": 1e3 * whole,
    }


def reached(curve: Curve, mark: float) -> float | None:
    """Return the seconds at which a score was first as low as a mark."""
    return next((seconds for seconds, nll in curve if nll <= mark), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbrl", type=Path, default=ROOT / ".mbrl", help="folder that mbrl-lib was installed into")
    parser.add_argument("--epochs", type=int, default=60, help="of mbrl-lib at most")
    parser.add_argument("--quick", action="store_true", help="4,000 transitions, 6 epochs of mbrl-lib")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    many, epochs = (4_000, 6) if options.quick else (20_000, options.epochs)
    train, test = collect(many, 0), collect(many // 4, 1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # torch loads much with the first one, for both
    result: dict[str, Any] = gemm_fraction(train, 30 if options.quick else 200)
    print(", ".join(f"{k} {v:.3g}" for k, v in result.items()), flush=True)
    curves = {"ours": ours(train, test, 8)}
    sys.path.append(str(options.mbrl))
    try:
        curves["mbrl"] = mbrl(train, test, epochs)
    except ImportError as error:
        result["trouble"] = f"mbrl-lib was not measured ({error}); see the top of this script for how to install it"
        print(result["trouble"])
    for name, curve in curves.items():
        print(f"{name}: " + ", ".join(f"{nll:.3f} after {s:.1f} s" for s, nll in curve[:: max(len(curve) // 8, 1)]))
    mark = min(nll for _, nll in curves["mbrl"]) if "mbrl" in curves else None
    result |= {
        "nll": mark,
        "seconds_to_equal_nll": {k: None if mark is None else reached(c, mark) for k, c in curves.items()},
        "curves": curves,
        **surroundings("torch", "gymnasium", "mujoco"),
    }
    print(f"{'':24s}{'ours':>10s}{'mbrl-lib':>10s}")
    for key, values in (
        ("seconds to equal NLL", result["seconds_to_equal_nll"]),
        ("lowest NLL", {k: min(nll for _, nll in c) for k, c in curves.items()}),
    ):
        shown = ["-" if values.get(k) is None else f"{values[k]:.3g}" for k in ("ours", "mbrl")]
        print(f"{key:24s}{shown[0]:>10s}{shown[1]:>10s}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    one_thread()
    main()
