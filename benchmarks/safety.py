"""Does anything get past the safety filter, over a million states and commands, and what does a call cost?

    python benchmarks/safety.py [--robots NAME ...] [--states N] [--seed SEED] [--json FILE]

Robots with inertia up to 20 % off the model's start in random states, within their limits, and are sent random commands
that are anything but safe, through the filter. States from which braking at once does not keep every limit and
clearance are counted and not started in. Every period counts as one state and command, for it ends in a new state.
Violations are those of the simulation, substep by substep: stops, velocities and efforts; and of each period, where
geoms touch, and where they are closer than the clearance. `still` counts where the robot stands.

- `pendulum`, `cartpole`, `two_link_arm`: limits alone.
- `arm_and_post`: the two-link arm beside a post that it must not touch.
- `franka`: limits, the arm itself, a floor and a post; from the assets of genesis-world, with motors for servos.

Then milliseconds a call: limits alone, and with clearances.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from _surroundings import one_thread, surroundings

from sim2real.episodes import Array
from sim2real.estimation import Estimate
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.randomization.mujoco_model import load_spec
from sim2real.safety import Clearance, Limits, SafetyFilter, viable

PERIOD, SUBSTEP, OFF = 0.02, 0.002, 0.2
# Robots that go at once, and periods that each of them goes on for.
PLANTS, PERIODS = 50, 50
COUNTED = ("states", "refused", "interventions", "stops", "velocities", "efforts")


@dataclass
class Shoves:
    """Pushes to one side or the other, by up to half as much again as may be, for some periods at a time."""

    effort: Array
    rng: np.random.Generator
    calls: int = 0

    def reset(self) -> None:
        self.calls = 0

    def act(self, estimate: Estimate, t: float) -> Array:
        if self.calls % 10 == 0:
            self.level = self.rng.choice([-1.5, -1.0, 0.3, 1.0, 1.5], (len(estimate.state), len(self.effort)))
        self.calls += 1
        return np.asarray(self.level * self.effort)


def arm_and_post() -> RobotModel:
    """Return the two-link arm, whose rods collide, beside a post."""
    spec = load_spec("two_link_arm")
    for geom in spec.geoms:
        if geom.name in ("upper_rod", "lower_rod"):
            geom.contype = geom.conaffinity = 1
    post = spec.worldbody.add_geom(name="obstacle", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.04, 0.2, 0])
    post.pos, post.contype, post.conaffinity = [0.42, 0.2, 0.3], 1, 1
    return RobotModel("arm_and_post", spec.compile())


def franka() -> RobotModel | None:
    """Return the Franka arm with motors, on a floor beside a post; None without genesis-world."""
    found = importlib.util.find_spec("genesis")
    if found is None or found.origin is None:
        return None
    spec = mujoco.MjSpec.from_file(str(Path(found.origin).parent / "assets/xml/franka_emika_panda/panda_nohand.xml"))
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    for k, most in enumerate((87, 87, 87, 87, 12, 12, 12), 1):
        motor = spec.add_actuator(name=f"motor{k}", target=f"joint{k}", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.set_to_motor()
        motor.forcerange, motor.forcelimited = [-most, most], 1
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1])
    post = spec.worldbody.add_geom(name="post", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.05, 0.5, 0])
    post.pos = [0.35, -0.55, 0.5]
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)  # what is hit does not hold
    return RobotModel("franka", spec.compile())


def cases() -> dict[str, tuple[RobotModel, Limits]]:
    """Return robots and limits."""
    found = {
        "pendulum": (RobotModel("pendulum"), Limits([8.0], [(-1.5, 1.5)], [6.0])),
        "cartpole": (RobotModel("cartpole"), Limits([20.0], [(-1.0, 1.0)], [2.0])),
        "two_link_arm": (RobotModel("two_link_arm"), Limits([10.0, 10.0], [(-1.5, 1.5), (-2.0, 2.0)], [2.0, 2.0])),
        "arm_and_post": (
            arm_and_post(),
            Limits([10.0, 10.0], [(-1.5, 1.5), (-2.0, 2.0)], [2.0, 2.0], clearance=0.02),
        ),
    }
    arm = franka()
    if arm is not None:
        stops, efforts = [(a + 0.01, b - 0.01) for a, b in arm.joint_stops], [87.0] * 4 + [12.0] * 3
        stops[1], stops[3] = (-1.0, 1.0), (-2.8, -1.2)  # stretched out, 87 N·m do not hold a heavier arm in every way
        found["franka"] = arm, Limits(efforts, stops, [1.0] * 4 + [1.5] * 3, clearance=0.03)
    return found


def closer(clearance: Clearance, states: Array) -> tuple[int, int]:
    """Return in how many states (N, X) geoms that are looked at touch, and are closer than they should be."""
    mj, data = clearance.robot.mj, mujoco.MjData(clearance.robot.mj)
    touch = near = 0
    for q in states[:, : mj.nq]:
        data.qpos[:] = q
        mujoco.mj_kinematics(mj, data)
        least = min(mujoco.mj_geomDistance(mj, data, int(a), int(b), 1.0, None) for a, b in clearance.pairs)
        touch, near = touch + (least <= 0), near + (least < clearance.distance)
    return touch, near


def started(guard: SafetyFilter, limits: Limits, rng: np.random.Generator) -> tuple[Array, int]:
    """Return states to start in, and how many were drawn for them that cannot be braked from."""
    mj, driven = guard.braking.robot.mj, guard.braking.driven
    low, high = np.asarray(limits.position, float).T
    kept: list[Array] = []
    refused = 0
    while sum(len(k) for k in kept) < PLANTS:
        states = np.concatenate([rng.uniform(-np.pi, np.pi, (PLANTS, mj.nv)), rng.normal(size=(PLANTS, mj.nv))], 1)
        states[:, driven] = rng.uniform(low, high, (PLANTS, len(driven)))
        states[:, mj.nv + driven] = rng.uniform(-1, 1, (PLANTS, len(driven))) * limits.velocity
        good = viable(guard, states)
        kept.append(states[good])
        refused += int((~good).sum())
    return np.concatenate(kept)[:PLANTS], refused


def assail(robot: RobotModel, limits: Limits, many: int, seed: int) -> dict[str, int]:
    """Send what is not safe to robots that are not as the model has them, and count what goes wrong."""
    rng = np.random.default_rng(seed)
    guard = SafetyFilter(Shoves(np.asarray(limits.effort), rng), limits, robot, PERIOD, margin=OFF)
    plant = Plant(robot, timestep=SUBSTEP, threads=1)
    low, high = np.asarray(limits.position, float).T
    masses = [m for m in plant.nominal() if m.endswith(".mass") and plant.nominal()[m] > 0]
    out = dict.fromkeys((*COUNTED, "touching", "closer", "still"), 0)
    while out["states"] < many:
        states, refused = started(guard, limits, rng)
        running = plant.start(PLANTS, {m: plant.nominal()[m] * rng.uniform(1 - OFF, 1 + OFF, PLANTS) for m in masses})
        running.reset(states)
        guard.reset()
        out["refused"] += refused
        for k in range(PERIODS):
            before = guard.interventions.get("braking", 0)
            sent = guard.act(Estimate(running.state(), np.zeros((PLANTS, 1, len(limits.effort)))), k * PERIOD)
            path = running.step(np.repeat(sent[:, None], round(PERIOD / SUBSTEP), 1))
            q, v = path[..., robot.driven], path[..., robot.mj.nv + robot.driven]
            out["stops"] += int(((q > high) | (q < low)).any((1, 2)).sum())
            out["velocities"] += int((np.abs(v) > limits.velocity).any((1, 2)).sum())
            out["efforts"] += int((np.abs(sent) > limits.effort).any(1).sum())
            out["interventions"] += guard.interventions.get("braking", 0) - before
            if guard.clearance is not None:
                touch, near = closer(guard.clearance, path[:, -1])
                out["touching"] += touch
                out["closer"] += near
            out["still"] += int((np.abs(path[:, -1, robot.mj.nv + robot.driven]).max(1) < 0.01).sum())
            if guard.stopped is not None:
                raise RuntimeError(f"the filter stopped: {guard.stopped}")
        out["states"] += PLANTS * PERIODS
    return out


def milliseconds(robot: RobotModel, limits: Limits, calls: int = 2000) -> dict[str, float]:
    """Return what a call takes, of one robot that is pushed about."""
    rng = np.random.default_rng(0)
    guard = SafetyFilter(Shoves(np.asarray(limits.effort), rng), limits, robot, PERIOD)
    running = Plant(robot, timestep=SUBSTEP, threads=1).start(1)
    running.reset(started(guard, limits, rng)[0][:1])
    taken = []
    for k in range(calls):
        estimate = Estimate(running.state(), np.zeros((1, 1, len(limits.effort))))
        clock = time.perf_counter()
        sent = guard.act(estimate, k * PERIOD)
        taken.append(1e3 * (time.perf_counter() - clock))
        running.step(np.repeat(sent[:, None], round(PERIOD / SUBSTEP), 1))
    return {"p50": float(np.median(taken)), "p99": float(np.quantile(taken, 0.99))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", default=None)
    parser.add_argument("--states", type=int, default=1_000_000, help="of all robots together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    chosen = {name: case for name, case in cases().items() if options.robots is None or name in options.robots}
    result: dict[str, Any] = {"robots": {}}
    heads = ("states", "refused", "braked", "stops", "speeds", "efforts", "touch", "closer", "still", "ms p50", "p99")
    print(f"{'':14s}" + "".join(f"{h:>9s}" for h in heads) + f"{'without clearance':>19s}", flush=True)
    for name, (robot, limits) in chosen.items():
        r = assail(robot, limits, options.states // len(chosen), options.seed)
        took, alone = milliseconds(robot, limits), milliseconds(robot, replace(limits, clearance=None))
        result["robots"][name] = r | {"ms": took, "ms_limits_only": alone}
        print(
            f"{name:14s}"
            + "".join(f"{r[k]:9d}" for k in (*COUNTED, "touching", "closer", "still"))
            + f"{took['p50']:9.3f}{took['p99']:9.3f}{alone['p50']:11.3f}{alone['p99']:8.3f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(result | surroundings("mujoco", "numpy"), indent=1))


if __name__ == "__main__":
    one_thread()
    main()
