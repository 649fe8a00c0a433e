"""How much of what control can do do thirty seconds of the robot bring, where the simulator alone brings little?

    python benchmarks/closed_loop_rounds.py [--tasks NAME ...] [--seeds SEED ...] [--folder FOLDER] [--json FILE]

Four twins stand in for robots: masses, friction, delay or strength are not those of the simulator. A model that looks
back is trained on the simulator alone. Three rounds of `dagger` follow, of ten seconds each, in each of which a
simulator is identified on the recordings so far, and a model is trained on both, behind the gate. What each leaves
plans on the twin from ten starts. The return of a run is how close to its goal the robot was on average, 0 to 1.

- `fallback`: damping alone. `oracle`: the planner with a model that was trained on simulations of the twin itself.
- `before`: the planner with the model of the simulator; `after 10 s`, ...: with that of each round.
- `scratch`: with a model of the same recordings alone.

The share is `(return - fallback) / (oracle - fallback)`, with 90 % intervals over seeds. What is done stays in the
folder: killed, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _recorded_robots import ROOT
from _surroundings import one_thread, surroundings
from torch import Tensor

from sim2real.adapters import Chain, Latency, TorqueLimit
from sim2real.calibration import identify
from sim2real.control import closed_loop
from sim2real.dagger import dagger
from sim2real.episodes import Array, Episode
from sim2real.logs import read_logs
from sim2real.planning import MPPI, Cost, Damping, Quadratic, Sum, Upright, upright_reward
from sim2real.plant import Plant, Values, repeated
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.run_directory import write_json
from sim2real.twin import Twin, excite
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Rehearsal, fit_to_recordings

DELAY = "execution.latency.delay"
DT, SUBSTEP, MEMBERS = 0.02, 0.004, 4
# Of a run that is scored [s], how many of them, and what rounds take [s].
SECONDS, STARTS, ROUNDS, ROUND = 6.0, 10, 3, 10.0


@dataclass(frozen=True)
class Task:
    """A twin, what it has to do, and what the simulator does not know of it.

    Attributes:
        robot: of the bundled ones.
        limit: of the commands.
        velocity: of random starts [rad/s or m/s].
        cost: that is planned with.
        reward: of positions (..., D), 0 to 1.
        values: of the twin; those of the simulator are the robot's own.
        prior: what may differ, as far as a user would think of it.
        stages: of the twin's execution; the simulator has a delay of zero.
        gain: of the fallback.
        spread: half width of start positions.
        horizon: of plans [s].
    """

    robot: str
    limit: float
    velocity: float
    cost: Cost
    reward: Callable[[Tensor], Tensor]
    values: dict[str, float]
    prior: dict[str, str]
    stages: list[Any] = field(default_factory=list)
    gain: float = 0.2
    spread: float = 0.5
    horizon: float = 1.0


def closeness(goal: Array, width: float) -> Callable[[Tensor], Tensor]:
    """Return a reward of 1 at the goal, that falls off over a width."""
    at = torch.as_tensor(goal)
    return lambda q: torch.exp(-((q - at) / width).square().sum(-1))


TASKS = {
    "pendulum": Task(
        "pendulum", 4.0, 5.0, Upright(), upright_reward, {"dynamics.payload.mass": 1.1},
        {"dynamics.payload.mass": "=U(0.2, 2)", DELAY: "=U(0, 0.15)"}, [TorqueLimit(limit=2.8)],
    ),
    "cartpole": Task(
        "cartpole", 20.0, 4.0,
        Sum((Upright(joint=1), Quadratic((0.0, 0.0), position=(0.1, 0.0), velocity=(0.01, 0.0)))),
        lambda q: upright_reward(q, joint=1) * (q[..., 0].abs() < 2.4),
        {"dynamics.cart.mass": 2.0, "dynamics.pole.mass": 0.5},
        {"dynamics.cart.mass": "=U(0.5, 4)", "dynamics.pole.mass": "=U(0.05, 1)", DELAY: "=U(0, 0.15)"},
        [Latency(delay=0.1)], gain=1.0, horizon=1.6,
    ),
    "furuta": Task(
        "furuta", 0.02, 8.0,
        Sum((Upright(joint=1, velocity=0.005), Quadratic((0.0, 0.0), position=(0.05, 0.0), velocity=(0.002, 0.0)))),
        lambda q: upright_reward(q, joint=1),
        {"dynamics.pole.mass": 0.05, "dynamics.arm.damping": 3e-4},
        {"dynamics.pole.mass": "=U(0.01, 0.1)", "dynamics.arm.damping": "=U(0, 0.001)", DELAY: "=U(0, 0.15)"},
        [Latency(delay=0.06)], gain=0.001, horizon=0.6,
    ),
    "two_link_arm": Task(
        "two_link_arm", 4.0, 2.0,
        Quadratic((1.2, -1.0), position=(1.0, 1.0), velocity=(0.05, 0.05), effort=0.002),
        closeness(np.array([1.2, -1.0]), 0.2),
        {"dynamics.lower.mass": 3.0, "dynamics.shoulder.frictionloss": 1.0, "dynamics.elbow.frictionloss": 1.0},
        {"dynamics.lower.mass": "=U(0.5, 5)", "dynamics.shoulder.frictionloss": "=U(0, 2)",
         "dynamics.elbow.frictionloss": "=U(0, 2)", DELAY: "=U(0, 0.15)"},
        [Latency(delay=0.04)], gain=0.5, horizon=0.8,
    ),
}  # fmt: skip


class Setting:
    """A task with its twin, simulator and planner.

    Args:
        task: what to do.
        seed: of models, noise and plans.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self.plant = Plant(RobotModel(task.robot), Chain([Latency(longest=0.15)]), timestep=SUBSTEP, threads=1)
        self.real = Plant(RobotModel(task.robot), Chain(task.stages), timestep=SUBSTEP, threads=1)
        self.limit = np.full(self.plant.actions, task.limit)
        self.twin = Twin(self.real, task.values, period=DT)
        self.channels = [name for name, _ in self.twin.channels.observations]
        self.config = EnsembleConfig(
            self.plant.model.wraps, self.plant.actions, DT, history=7, members=MEMBERS, hidden=(64, 64), lookback=4
        )

    def rehearsal(self, plant: Plant, draws: Values) -> Rehearsal:
        """Return simulations of a plant, each member its own draw of the parameters."""
        joints = self.plant.degrees_of_freedom
        wild = Excitation(tuple(self.limit), (self.task.velocity,) * joints, (np.pi,) * joints)
        return Rehearsal(plant, draws, wild, windows=1500)

    def model(self, rehearsal: Rehearsal) -> EnsembleDynamics:
        """Train on simulations alone; a log of the same plant says how noisy readings are."""
        values = {name: float(v[0]) for name, v in rehearsal.draws.items()}
        sent = excite(np.random.default_rng(self.seed), 6.0, DT, 0.5 * self.limit, (0.5,))
        log = Twin(rehearsal.plant, values, period=DT).record("log", sent, DT)
        return fit_to_recordings(
            EnsembleDynamics(self.config, self.seed), [log], self.channels, rehearsal=rehearsal, recorded=0.0,
            iterations=1500, seed=self.seed,
        )  # fmt: skip

    def learned(self, recordings: Sequence[Episode]) -> EnsembleDynamics:
        """Identify the simulator on recordings; train on them beside simulations of what was found."""
        prior = ParameterSet.parse(self.task.prior, self.plant.units())
        rng = np.random.default_rng(self.seed)
        found = identify(self.plant, recordings, prior, channels=self.channels, rng=rng, examine=False)
        told = ", ".join(f"{name} {value:.3g}" for name, value in found.values.items() if name in prior.names)
        print(f"  identified on {sum(e.duration for e in recordings):.3g} s: {told}", flush=True)
        return fit_to_recordings(
            EnsembleDynamics(self.config, self.seed), recordings, self.channels,
            rehearsal=self.rehearsal(self.plant, found.sample(rng, MEMBERS)), trust=1.0, iterations=1500,
            seed=self.seed,
        )  # fmt: skip

    def planner(self, model: EnsembleDynamics) -> MPPI:
        """Return the controller of a model."""
        return MPPI(model, self.task.cost, self.limit, horizon=self.task.horizon, candidates=100, seed=self.seed)

    def returned(self, policy: Any, model: EnsembleDynamics) -> float:
        """Return how close to the goal a policy keeps the twin, on average."""
        assert model.encoder is not None
        joints = self.plant.degrees_of_freedom
        starts = np.zeros((STARTS, 2 * joints))
        starts[:, :joints] = np.random.default_rng(100 + self.seed).uniform(-1, 1, (STARTS, joints)) * self.task.spread
        run = closed_loop(
            self.twin, policy, model.encoder.estimator(), starts, seconds=SECONDS, period=DT, limit=self.limit,
            history=self.config.history, lookback=self.config.lookback,
        )  # fmt: skip
        return float(self.task.reward(torch.as_tensor(run.states[:, 1:, :joints])).mean())


def measure(setting: Setting, folder: Path) -> dict[str, float]:
    """Go round, and score what each round leaves behind."""
    task, seed = setting.task, setting.seed
    known = setting.plant.nominal()
    model = setting.model(setting.rehearsal(setting.plant, repeated({k: known[k] for k in task.prior}, MEMBERS)))
    true = {**task.values, **{k: v for k, v in setting.real.nominal().items() if k.startswith("execution.")}}
    oracle = setting.model(setting.rehearsal(setting.real, repeated(true, MEMBERS)))
    fallback = Damping(task.gain, setting.limit)
    out = {
        "fallback": setting.returned(fallback, model),
        "oracle": setting.returned(setting.planner(oracle), oracle),
        "before": setting.returned(setting.planner(model), model),
    }
    print(f"{task.robot}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in out.items()), flush=True)
    dagger(
        TwinEnv(setting.twin, setting.limit, DT, spread=task.spread), model, setting.planner, fallback,
        setting.channels, folder, rounds=ROUNDS, seconds=ROUND, episode=2.5, seed=seed, learn=setting.learned,
        patience=ROUNDS + 1,
    )  # fmt: skip
    recorded = []
    for number in range(1, ROUNDS + 1):
        place = folder / f"round-{number:02d}"
        tuned = EnsembleDynamics.load(place / "model")
        recorded += read_logs(place / "logs")
        scratch = EnsembleDynamics(setting.config, seed)
        fit_to_recordings(scratch, recorded, setting.channels, iterations=1500, seed=seed)
        spent = f"{number * ROUND:g} s"
        out[f"after {spent}"] = setting.returned(setting.planner(tuned), tuned)
        out[f"scratch {spent}"] = setting.returned(setting.planner(scratch), scratch)
        print(f"  {spent}: {out[f'after {spent}']:.3f}, scratch {out[f'scratch {spent}']:.3f}", flush=True)
    return out


def shares(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return each row's share of what the oracle gains, with its interval when seeds are drawn anew."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(found), size=(2000, len(found)))
    out = {}
    low, high = (np.array([f[name] for f in found]) for name in ("fallback", "oracle"))
    for name in found[0]:
        gain = np.array([f[name] for f in found]) - low
        draws = gain[drawn].mean(1) / (high - low)[drawn].mean(1)
        out[name] = {
            "return": float(gain.mean() + low.mean()),
            "share": float(gain.mean() / (high - low).mean()),
            "low": float(np.quantile(draws, 0.05)),
            "high": float(np.quantile(draws, 0.95)),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "closed_loop_rounds", help="keeps what is done")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"tasks": {}}
    for name in options.tasks:
        found = []
        for seed in options.seeds:
            file = options.folder / f"{name}-{seed}.json"
            if not file.exists():
                write_json(file, measure(Setting(TASKS[name], seed), options.folder / f"{name}-{seed}"))
            found.append(json.loads(file.read_text()))
        rows = shares(found)
        result["tasks"][name] = {"rows": rows, "seeds": found}
        print(f"\n{name:16s}{'return':>8s}{'share':>8s}   90 % over seeds")
        for row, r in rows.items():
            print(f"{row:16s}{r['return']:8.3f}{r['share']:8.2f}   {r['low']:.2f} to {r['high']:.2f}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
