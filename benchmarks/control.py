"""How good are plans, and how long do they take, beside mbrl-lib's planners on the same model? One thread.

    python benchmarks/control.py [--tasks NAME ...] [--planners NAME ...] [--starts N] [--mbrl FOLDER] [--folder FOLDER]
        [--quick] [--json FILE]

For each task a `TransitionEnsemble` of 5 members of 3 x 200 learns from 20,000 transitions under random actions. Every
planner plans on that one model, with the environment's own reward as its cost, at every one of 100 steps from the same
starts; what counts is the environment's reward. Rows:

- `icem S x I`, `mppi S x I`: ours, S candidates and I iterations, 10 steps ahead, each judged by one member.
- `icem mean S x I`: each judged by all members.
- `mbrl_cem`: mbrl-lib's CEM with what its examples use: 350 candidates, 15 steps, 5 iterations, 20 particles, each of
  which stays with a member. `mbrl_cem 100`, `mbrl_icem`, `mbrl_mppi`: its planners with less, 4 particles.
- `pytorch_mppi`: of that name, 300 candidates, each judged by one member; temperatures 1, its default, and 0.1.
- `random`: actions at random.

A planner is as good as another where the difference of their returns over the same starts, with its 90 % bootstrap
interval, may be zero or above. Then milliseconds a plan of ours on a model with 17 observations and 6 actions.

Needs mbrl-lib in a folder of its own, see benchmarks/world_model.py, and there, too, without what they depend on,
`pytorch-mppi` and `arm_pytorch_utilities`. What is done stays in the folder, with the name of
the machine: killed, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _surroundings import one_thread, surroundings
from torch import Tensor
from world_model import collect

from sim2real.episodes import Array
from sim2real.estimation import Estimate
from sim2real.planning import ICEM, MPPI, OfObservations, Planner, Policy, Rewarded
from sim2real.run_directory import write_json
from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, fit_transitions

ROOT = Path(__file__).resolve().parent.parent
STEPS, HORIZON = 100, 10
MEMBERS, HIDDEN = 5, (200, 200, 200)
Reward = Callable[[Tensor, Tensor], Tensor]


def pendulum(o: Tensor, a: Tensor) -> Tensor:
    angle = torch.atan2(o[..., 1], o[..., 0])
    return -(angle.square() + 0.1 * o[..., 2].square() + 0.001 * a[..., 0].square())


def cartpole(o: Tensor, a: Tensor) -> Tensor:
    """One a step while the pole stands; softly, so that there is something to climb."""
    return 1 - (o[..., 1] / 0.2).square() - 0.1 * o[..., 0].square()


def reacher(o: Tensor, a: Tensor) -> Tensor:
    return -o[..., 8:10].norm(dim=-1) - 0.1 * a.square().sum(-1)


def halfcheetah(o: Tensor, a: Tensor) -> Tensor:
    return o[..., 8] - 0.1 * a.square().sum(-1)


TASKS: dict[str, tuple[str, Reward]] = {
    "cartpole": ("InvertedPendulum-v5", cartpole),
    "pendulum": ("Pendulum-v1", pendulum),
    "reacher": ("Reacher-v5", reacher),
    "halfcheetah": ("HalfCheetah-v5", halfcheetah),
}


def model_of(name: str, folder: Path, quick: bool) -> TransitionEnsemble:
    """Learn a task's model, or read what was learned."""
    place = folder / f"model-{name}{'-quick' if quick else ''}"
    if not place.exists():
        data = collect(3000 if quick else 20_000, 0, name)
        config = TransitionConfig(data.observations.shape[1], data.actions.shape[1], 0.05, MEMBERS, MEMBERS, HIDDEN)
        model = TransitionEnsemble(config)
        fit_transitions(model, data, Schedule(epochs=5 if quick else 30))
        model.save(place)
    return TransitionEnsemble.load(place)


class Random:
    """Acts at random."""

    def __init__(self, limit: Array) -> None:
        self.limit = limit

    def reset(self) -> None:
        self.rng = np.random.default_rng(0)

    def act(self, estimate: Estimate, t: float) -> Array:
        return self.rng.uniform(-self.limit, self.limit)[None]


class OfMbrl:
    """A planner of mbrl-lib: its optimizer, on our model, as its `ModelEnv` evaluates plans.

    Args:
        model: the same as ours.
        reward: of observations and actions.
        limit: (A,) largest action.
        optimizer: name and settings.
        steps: of plans.
        particles: of each plan.
    """

    def __init__(
        self,
        model: TransitionEnsemble,
        reward: Reward,
        limit: Array,
        optimizer: dict[str, Any],
        steps: int = 15,
        particles: int = 20,
    ) -> None:
        self.model, self.reward, self.limit = model, reward, limit
        self.settings, self.steps, self.particles = optimizer, steps, particles

    def reset(self) -> None:
        import omegaconf
        from mbrl.planning import TrajectoryOptimizer

        torch.manual_seed(0)
        settings = omegaconf.OmegaConf.create({**self.settings, "device": "cpu", "lower_bound": "", "upper_bound": ""})
        self.optimizer = TrajectoryOptimizer(settings, -self.limit, self.limit, self.steps)

    @torch.no_grad()
    def act(self, estimate: Estimate, t: float) -> Array:
        start = torch.as_tensor(estimate.state, dtype=torch.float32)

        def value(plans: Tensor) -> Tensor:
            """Mean return (P,) over particles, each of which stays with a member and draws its noise."""
            many = len(plans)
            each = self.particles // self.model.config.members  # of a member
            state = start.expand(self.model.config.members, many * each, -1)
            sent = plans.repeat_interleave(each, 0).expand(len(state), -1, -1, -1)
            total = torch.zeros(state.shape[:2])
            for k in range(self.steps):
                mean, spread = self.model.step(state, sent[:, :, k])
                state = mean + spread * torch.randn_like(mean)
                total += self.reward(state, sent[:, :, k])
            return total.reshape(len(state), many, each).mean((0, 2))

        return self.optimizer.optimize(value)[:1]


class OfPytorchMppi:
    """pytorch-mppi's planner on our model; its candidates take turns with the members, as ours do.

    Args:
        model: the same as ours.
        reward: of observations and actions.
        limit: (A,) largest action.
        temperature: its `lambda_`.
        candidates: its `num_samples`.
    """

    def __init__(
        self, model: TransitionEnsemble, reward: Reward, limit: Array, temperature: float, candidates: int = 300
    ) -> None:
        self.model, self.reward, self.temperature, self.candidates = model, reward, temperature, candidates
        self.limit = torch.as_tensor(limit, dtype=torch.float32)

    def reset(self) -> None:
        import pytorch_mppi

        torch.manual_seed(0)
        members = self.model.config.members

        def dynamics(state: Tensor, action: Tensor) -> Tensor:
            mean, _ = self.model.step(
                state.reshape(members, -1, state.shape[-1]), action.reshape(members, -1, len(self.limit))
            )
            return mean.reshape(state.shape)

        self.planner = pytorch_mppi.MPPI(
            dynamics, lambda state, action: -self.reward(state, action), self.model.config.observations,
            torch.diag((0.6 * self.limit).square()), self.candidates, HORIZON, lambda_=self.temperature,
            u_min=-self.limit, u_max=self.limit,
        )  # fmt: skip

    @torch.no_grad()
    def act(self, estimate: Estimate, t: float) -> Array:
        return self.planner.command(torch.as_tensor(estimate.state[0], dtype=torch.float32)).numpy()[None]


def planners(model: TransitionEnsemble, reward: Reward, limit: Array, quick: bool) -> dict[str, Policy]:
    """Return every row's planner."""
    cost = Rewarded(reward)
    horizon = HORIZON * OfObservations(model).timestep
    out: dict[str, Policy] = {"random": Random(limit)}
    for kind, make in (("icem", ICEM), ("mppi", MPPI)):
        for many, times in ((40, 1), (40, 3), (100, 3), (200, 4)):
            out[f"{kind} {many} x {times}"] = make(
                model, cost, limit, horizon=horizon, candidates=many, iterations=times
            )
    for many, times in ((20, 3), (40, 3), (60, 4)):
        out[f"icem mean {many} x {times}"] = ICEM(
            model, cost, limit, horizon=horizon, candidates=many, iterations=times, risk="mean"
        )
    out |= {
        "pytorch_mppi": OfPytorchMppi(model, reward, limit, 1.0),
        "pytorch_mppi 0.1": OfPytorchMppi(model, reward, limit, 0.1),
    }
    cem = {"_target_": "mbrl.planning.CEMOptimizer", "elite_ratio": 0.1, "alpha": 0.1, "return_mean_elites": True}
    less = dict(steps=HORIZON, particles=5 * MEMBERS if quick else MEMBERS)
    out |= {
        "mbrl_cem 100": OfMbrl(model, reward, limit, {**cem, "num_iterations": 3, "population_size": 100}, **less),
        "mbrl_icem": OfMbrl(
            model, reward, limit,
            {"_target_": "mbrl.planning.ICEMOptimizer", "num_iterations": 3, "elite_ratio": 0.1, "population_size": 100,
             "population_decay_factor": 1.3, "colored_noise_exponent": 2.0, "keep_elite_frac": 0.1, "alpha": 0.1,
             "population_size_module": 5, "return_mean_elites": True}, **less,
        ),
        "mbrl_mppi": OfMbrl(
            model, reward, limit,
            {"_target_": "mbrl.planning.MPPIOptimizer", "num_iterations": 3, "population_size": 100, "gamma": 0.9,
             "sigma": 1.0, "beta": 0.9}, **less,
        ),
        "mbrl_cem": OfMbrl(model, reward, limit, {**cem, "num_iterations": 5, "population_size": 350}),
    }  # fmt: skip
    return out


def run(name: str, policy: Policy, start: int, steps: int) -> dict[str, Any]:
    """Return the return of an episode, and milliseconds of its plans."""
    env = gym.make(name)
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    observation, _ = env.reset(seed=1000 + start)
    policy.reset()
    total, taken = 0.0, []
    for k in range(steps):
        clock = time.perf_counter()
        action = policy.act(Estimate(np.asarray(observation, float)[None], np.zeros((1, 1, *space.shape))), float(k))
        taken.append(1e3 * (time.perf_counter() - clock))
        sent = np.clip(action[0], space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(sent)
        total += float(reward)
        if terminated or truncated:
            break
    return {"return": total, "ms": taken, "machine": f"{platform.processor()} {platform.node()}"}


def clocks(plans: int) -> dict[str, float]:
    """Return milliseconds of a plan of the default `ICEM`, on a model with 17 observations and 6 actions."""
    model = TransitionEnsemble(TransitionConfig(17, 6, 0.05, MEMBERS, MEMBERS, HIDDEN))
    planner: Planner = ICEM(model, Rewarded(halfcheetah), np.ones(6), horizon=0.5, candidates=100, iterations=3)
    rng, taken = np.random.default_rng(0), []
    for _ in range(plans):
        estimate = Estimate(rng.normal(size=(1, 17)), np.zeros((1, 1, 6)))
        clock = time.perf_counter()
        planner.act(estimate, 0.0)
        taken.append(1e3 * (time.perf_counter() - clock))
    return {"p50": float(np.median(taken)), "p99": float(np.quantile(taken, 0.99))}


def compared(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return the mean difference of returns over the same starts, and its 90 % bootstrap interval."""
    difference, rng = np.array(ours) - np.array(theirs), np.random.default_rng(0)
    draws = difference[rng.integers(len(difference), size=(5000, len(difference)))].mean(1)
    return float(difference.mean()), float(np.quantile(draws, 0.05)), float(np.quantile(draws, 0.95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--planners", nargs="+", help="rows; all of them by default")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--mbrl", type=Path, default=ROOT / ".mbrl", help="folder that mbrl-lib was installed into")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "control", help="keeps what is done")
    parser.add_argument("--quick", action="store_true", help="small models, ten steps")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    sys.path.append(str(options.mbrl))
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"plan_ms": clocks(30 if options.quick else 300), "tasks": {}}
    print(f"a plan of icem 100 x 3: {result['plan_ms']['p50']:.1f} ms, 99 % within {result['plan_ms']['p99']:.1f} ms")
    for task in options.tasks:
        name, reward = TASKS[task]
        model, space = model_of(name, options.folder, options.quick), gym.make(name).action_space
        assert isinstance(space, gym.spaces.Box)
        rows: dict[str, list[dict[str, Any]]] = {}
        for row, policy in planners(model, reward, space.high.astype(float), options.quick).items():
            if options.planners and row not in options.planners:
                continue
            for start in range(options.starts):
                file = options.folder / f"{task}-{row.replace(' ', '')}-{start}{'-quick' if options.quick else ''}.json"
                if not file.exists():
                    write_json(file, run(name, policy, start, 10 if options.quick else STEPS))
                rows.setdefault(row, []).append(json.loads(file.read_text()))
        print(f"\n{task:16s}{'return':>10s}{'ms p50':>9s}{'p99':>9s}   beside mbrl_cem, 90 % over starts")
        told: dict[str, Any] = {"return": {}, "ms": {}}
        for row, found in rows.items():
            returns, taken = [f["return"] for f in found], np.concatenate([f["ms"] for f in found])
            p50, p99 = float(np.median(taken)), float(np.quantile(taken, 0.99))
            told["return"][row], told["ms"][row] = float(np.mean(returns)), {"p50": p50, "p99": p99}
            beside = ""
            if row != "mbrl_cem" and "mbrl_cem" in rows:
                gain, low, high = compared(returns, [f["return"] for f in rows["mbrl_cem"]])
                told.setdefault("beside", {})[row] = [gain, low, high]
                beside = f"   {gain:+.3g} [{low:.3g}, {high:.3g}]"
            print(f"{row:16s}{np.mean(returns):10.3g}{p50:9.1f}{p99:9.1f}{beside}", flush=True)
        if "icem 100 x 3" in rows:
            told["return"]["ours"], told["ms"]["ours"] = (told[k]["icem 100 x 3"] for k in ("return", "ms"))
        result["tasks"][task] = told
        if options.json:  # as far as it has got
            options.json.write_text(json.dumps(result | surroundings("torch", "gymnasium", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
