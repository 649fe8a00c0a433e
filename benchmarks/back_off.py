"""Does a controller that backs off where its model is wrong or unsure fail less often, and what does it cost it?

    python benchmarks/back_off.py [--tasks NAME ...] [--seeds SEED ...] [--folder FOLDER] [--quick] [--json FILE]

Three twins, those of `closed_loop_rounds.py`, and for each a model that was trained on simulations of the twin itself:
without a shift nothing is wrong with it. Then the robot changes behind its back: `payload` twice, `latency` 40 ms more,
`friction` three times (on the cart-pole next to nothing). `unseen`: a model of simulations that all start slowly, and
that is calm near the goal, has to get there from far.
Ten starts each, 5 s. A run fails when the robot leaves its envelope: positions or speeds that it never reaches as long
as all is well. The rows:

- `none`: the planner alone. `oracle`: knows of the shift, and only brakes from the beginning.
- `disagreement`: only looks less far ahead where members disagree. `surprise`: backs off where they were wrong about
  what has just happened.
- `recalibrated`: both, as `BackOff` has it. Each threshold was calibrated on forty calm runs.

`auroc`: of the largest alarm of a run of the planner alone, before it failed, telling shifted runs from calm ones, and
(`of failures`) those that fail from those that do not. `lost`: of what planning gains over braking, without a shift.

What is done stays in the folder: killed, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _recorded_robots import ROOT
from _surroundings import one_thread, surroundings
from closed_loop_rounds import DT, MEMBERS, SUBSTEP, TASKS, Setting, Task

from sim2real.adapters import Chain, Latency
from sim2real.backing_off import BackOff, Calm, collected
from sim2real.control import Run, closed_loop
from sim2real.episodes import Array
from sim2real.planning import Damping, Policy
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.run_directory import write_json
from sim2real.twin import Twin
from sim2real.world_model import EnsembleDynamics

STARTS, SECONDS, CALM_RUNS = 10, 5.0, 40
FALSE_ALARMS = 0.002
ROWS = ("none", "disagreement", "surprise", "recalibrated", "oracle")


@dataclass(frozen=True)
class Envelope:
    """What a robot does not leave as long as all is well.

    Attributes:
        load: mass that is doubled.
        position: (D,) largest [rad or m].
        velocity: (D,) largest [rad/s or m/s].
        near: states around the goal in which the narrow model is calm: half width of positions, then of velocities.
        goal: (D,) positions there.
    """

    load: str
    position: tuple[float, ...]
    velocity: tuple[float, ...]
    goal: tuple[float, ...]
    near: tuple[float, float] = (0.3, 0.3)

    def left(self, run: Run) -> Array:
        """Return the period in which each run left it, or the number of periods: (n,)."""
        d = len(self.position)
        beyond = (np.abs(run.states) > np.array([*self.position, *self.velocity])).any(-1)
        assert run.states.shape[-1] == 2 * d
        return np.where(beyond.any(1), beyond.argmax(1), run.states.shape[1])


ENVELOPES = {
    # a cable of a turn, a rail; a pole may fall to any side
    "pendulum": Envelope("dynamics.payload.mass", (7.0,), (10.0,), (np.pi,)),
    "cartpole": Envelope("dynamics.pole.mass", (2.0, np.inf), (3.6, 10.0), (0.0, np.pi)),
    "two_link_arm": Envelope("dynamics.lower.mass", (1.7, 1.6), (3.5, 8.0), (1.2, -1.0)),
}


class Trial:
    """A task with its model, and what backing off is calibrated on.

    Args:
        name: of the task.
        seed: of models, noise, starts and plans.
        folder: keeps models.
        quick: for a hundredth of the iterations.
    """

    def __init__(self, name: str, seed: int, folder: Path, quick: bool) -> None:
        self.task: Task = TASKS[name]
        self.envelope, self.seed, self.quick = ENVELOPES[name], seed, quick
        self.setting = Setting(self.task, seed)
        self.place = folder / f"model-{name}-{seed}{'-quick' if quick else ''}"
        self.joints = self.setting.plant.degrees_of_freedom
        self.known = {**self.setting.real.nominal(), **self.task.values}

    def model(self, narrow: bool) -> EnsembleDynamics:
        """Return the model of the twin as it is; `narrow` of simulations that all start slowly."""
        place = self.place.with_name(self.place.name + ("-narrow" if narrow else ""))
        if not place.exists():
            true = {k: v for k, v in self.known.items() if k in self.task.values or k.startswith("execution.")}
            rehearsal = self.setting.rehearsal(self.setting.real, repeated(true, MEMBERS))
            if narrow:
                how = rehearsal.excitation
                rehearsal = replace(rehearsal, excitation=replace(how, velocity=tuple(0.15 * v for v in how.velocity)))
            if self.quick:
                rehearsal = replace(rehearsal, windows=100)
            self.setting.model(rehearsal).save(place)
        return EnsembleDynamics.load(place)

    def twin(self, shift: str) -> Twin:
        """Return the robot after a shift."""
        values, stages = dict(self.task.values), list(self.task.stages)
        if shift == "payload":
            values[self.envelope.load] = 2.0 * self.known[self.envelope.load]
        if shift == "friction":
            values |= {k: 3.0 * v for k, v in self.known.items() if k.endswith(("damping", "frictionloss"))}
        if shift == "latency":
            before = sum(stage.delay for stage in stages if isinstance(stage, Latency))
            stages = [s for s in stages if not isinstance(s, Latency)] + [Latency(delay=before + 0.04)]
        body = Plant(RobotModel(self.task.robot), Chain(stages), timestep=SUBSTEP, threads=1)
        return Twin(body, values, period=DT)

    def starts(self, many: int, near: bool, seed: int) -> Array:
        """Return states to start in: near hanging at rest, or `near` the goal."""
        rng = np.random.default_rng([seed, self.seed])
        states = np.zeros((many, 2 * self.joints))
        if near:
            states[:, : self.joints] = self.envelope.goal
            states += rng.uniform(-1, 1, states.shape) * np.repeat(self.envelope.near, self.joints)
        else:
            states[:, : self.joints] = rng.uniform(-1, 1, (many, self.joints)) * self.task.spread
        return states

    def run(self, policy: Policy, model: EnsembleDynamics, twin: Twin, starts: Array) -> Run:
        """Let a policy loose."""
        assert model.encoder is not None
        config = model.config
        return closed_loop(
            twin, policy, model.encoder.estimator(), starts, seconds=0.6 if self.quick else SECONDS, period=DT,
            limit=self.setting.limit, history=config.history, lookback=config.lookback,
        )  # fmt: skip

    def careful(self, model: EnsembleDynamics, calm: Calm | None) -> BackOff:
        """Return the planner that backs off."""
        return BackOff(self.setting.planner(model), Damping(self.task.gain, self.setting.limit), calm)

    def reward(self, run: Run) -> Array:
        """Return how close to the goal each run was on average: (n,)."""
        return self.task.reward(torch.as_tensor(run.states[:, 1:, : self.joints])).mean(1).numpy()

    def measure(self) -> dict[str, Any]:
        """Return failures and rewards of all rows, and alarms."""
        out: dict[str, Any] = {}
        for narrow, shifts in ((False, ("calm", "payload", "latency", "friction")), (True, ("calm", "unseen"))):
            model = self.model(narrow)
            watched = self.careful(model, None)
            self.run(watched, model, self.twin("calm"), self.starts(CALM_RUNS, narrow, 7))
            calm = Calm.of(collected([watched]), 0.1 if self.quick else FALSE_ALARMS)
            half, never = np.split(collected([watched]), 2, axis=1), np.full(self.joints, np.inf)
            one, other = (Calm.of(doubts, 0.1 if self.quick else FALSE_ALARMS) for doubts in half)
            only = {
                "disagreement": replace(one, scale=np.concatenate([one.scale, never])),
                "surprise": replace(other, scale=np.concatenate([never, other.scale])),
            }
            for shift in shifts:
                twin, near = self.twin(shift), narrow and shift == "calm"
                starts = self.starts(STARTS, near, 100)
                found: dict[str, Any] = {}
                brakes = Damping(self.task.gain, self.setting.limit)
                policies: dict[str, Policy] = {
                    "none": self.careful(model, None),
                    **{name: self.careful(model, c) for name, c in (*only.items(), ("recalibrated", calm))},
                    "oracle": self.careful(model, None) if shift == "calm" else brakes,
                }
                for row, policy in policies.items():
                    run = self.run(policy, model, twin, starts)
                    when = self.envelope.left(run)
                    found[row] = {
                        "failed": (when < run.states.shape[1]).tolist(),
                        "reward": self.reward(run).tolist(),
                        "furthest": np.abs(run.states).max(1).tolist(),
                    }
                    if row == "none":
                        assert isinstance(policy, BackOff)
                        doubts = np.array(policy.doubts)
                        for name, c in (*only.items(), ("recalibrated", calm)):
                            alarms = c.alarm(doubts)
                            alarms[np.arange(len(alarms))[:, None] >= np.maximum(when, 1)] = 0.0
                            found[row].setdefault("alarm", {})[name] = alarms.max(0).tolist()
                if shift == "calm":
                    found["braking"] = {"reward": self.reward(self.run(brakes, model, twin, starts)).tolist()}
                out[f"{shift}{' at low speed' if near else ''}"] = found
        return out


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return shares of failures, AUROCs, and what is lost without a shift."""
    conditions = list(seeds[0])
    calm = [c for c in conditions if c.startswith("calm")]
    shifted = [c for c in conditions if c not in calm]

    def all_of(condition: str, row: str, key: str) -> Array:
        return np.concatenate([np.asarray(s[condition][row][key], float) for s in seeds])

    failures = {c: {row: float(all_of(c, row, "failed").mean()) for row in ROWS} for c in conditions}
    lost = {}
    for row in ROWS:
        each = [
            (all_of(c, "none", "reward").mean() - all_of(c, row, "reward").mean())
            / (all_of(c, "none", "reward").mean() - all_of(c, "braking", "reward").mean())
            for c in calm
        ]
        lost[row] = dict(zip(calm, map(float, each), strict=True))
    auroc: dict[str, Any] = {}
    for row in ("disagreement", "surprise", "recalibrated"):

        def alarms(c: str, row: str = row) -> Array:
            return np.concatenate([np.asarray(s[c]["none"]["alarm"][row]) for s in seeds])

        told: dict[str, float] = {}
        for c in shifted:
            base = alarms("calm at low speed" if c == "unseen" else "calm")
            told[c] = area(base, alarms(c))
        failed = np.concatenate([all_of(c, "none", "failed") for c in conditions]) > 0
        every = np.concatenate([alarms(c) for c in conditions])
        told["of failures"] = area(every[~failed], every[failed]) if 0 < failed.sum() < len(failed) else float("nan")
        auroc[row] = told
    return {"failures": failures, "lost": lost, "auroc": auroc}


def area(low: Array, high: Array) -> float:
    """Return how often one of `high` is above one of `low`, ties counting half."""
    return float((high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(ENVELOPES), default=tuple(ENVELOPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "back_off", help="keeps what is done")
    parser.add_argument("--quick", action="store_true", help="small models, short runs")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"tasks": {}}
    for name in options.tasks:
        seeds = []
        for seed in options.seeds:
            file = options.folder / f"{name}-{seed}{'-quick' if options.quick else ''}.json"
            if not file.exists():
                write_json(file, Trial(name, seed, options.folder, options.quick).measure())
            seeds.append(json.loads(file.read_text()))
        told = summary(seeds)
        print(f"\n{name}: share of runs that fail" + "".join(f"{row:>14s}" for row in ROWS))
        for condition, rows in told["failures"].items():
            print(f"  {condition:27s}" + "".join(f"{rows[row]:14.2f}" for row in ROWS))
        for condition in told["lost"]["none"]:
            print(f"  {'lost, ' + condition:27s}" + "".join(f"{told['lost'][row][condition]:14.1%}" for row in ROWS))
        for row, areas in told["auroc"].items():
            print(f"  AUROC, {row:20s}" + ", ".join(f"{k} {v:.2f}" for k, v in areas.items()))
        result["tasks"][name] = told | {"seeds": seeds}
        if options.json:  # as far as it has got
            options.json.write_text(json.dumps(result | surroundings("mujoco", "torch", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
