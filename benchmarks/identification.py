"""How good is `identify` beside its peers? The same problems and data for it, mujoco.sysid and sbi, on one thread.

    python benchmarks/identification.py [--problems NAME ...] [--tools NAME ...] [--truths N] [--logs FOLDER]
        [--halves] [--quick] [--json FILE]

Simulated problems: truths drawn from the prior of recipes/two_link_arm.yaml, 60 s at 100 Hz, noise of 0.002 rad.
`arm` has all eight parameters; `arm_without_dead_zone` fixes the dead zone at zero, for mujoco.sysid has none;
`arm_correlated` is that with noise correlated over 0.1 s. The error is |found - truth| / prior standard deviation, mean
(and median) over truths and parameters; coverage90 is the share of truths inside the 90 % intervals that are finite.

Real problems (`pendulum`, `double_pendulum`, `qube`, `xl330`), where the folder of the logs exists (by default
../shared/data, beside the checkout): fitted on the recipe's training recordings; the error is the open-loop mean NRMSE
on its validation recordings, from the toolkit's observer with the values found, so that only these differ. Test
recordings are not scored. `--halves` also fits the first and the second halves of all training recordings, and says by
how many half widths h of their 90 % intervals they disagree: the largest |difference| / sqrt(h1^2 + h2^2), finite
intervals only. Above 2 or so these are too narrow.

- ours: `sim2real.calibration.identify` with the settings of the recipe, without its examination of what the posterior
  cannot know, which the peers do not make; simulated recordings in windows as long as motions can be told.
- mujoco_sysid: `mujoco.sysid` (https://github.com/google-deepmind/mujoco), its own optimizer with x_scale="jac", from
  the centre of the prior, parameters as shares of their ranges, residuals in radians, the delay as MuJoCo's own (a
  substep at least), the lag as `filterexact`, intervals by `calculate_intervals`. It fits no start states: simulated
  recordings are replayed whole, from rest, their start angles fitted along, on 2, 6, 20 and 60 s one after the other
  (more often a success than 60 s at once); real ones in windows of half a second, from two-sided parabolas through the
  readings. A dead zone is held at the width that `identify` found, and applied to the commands before all else.
- sbi: neural posterior estimation (Greenberg et al. 2019; https://sbi.readthedocs.io) with the defaults of sbi, from
  2000 simulations and the statistics of `statistics`. One network serves all truths of a simulator: its seconds are
  those of simulating and training once, and of sampling.
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
from _identification_peers import DEAD_ZONE, NOISE, Found, Neural, Problem, Tool, mujoco_sysid
from _surroundings import one_thread, surroundings

from sim2real.calibration import identify
from sim2real.calibration.check import simulate_episode
from sim2real.episodes import Array
from sim2real.preparation import Setup, prepare
from sim2real.randomization import FunctionModel, ParameterSet
from sim2real.recipe import load_recipe
from sim2real.stages import choose_observer

ROOT = Path(__file__).resolve().parent.parent
SIMULATED = ("arm", "arm_without_dead_zone", "arm_correlated")
REAL = {
    "pendulum": "dfki_pendulum",
    "double_pendulum": "dfki_double_pendulum",
    "qube": "quanser_qube",
    "xl330": "xl330",
}
TOOLS = ("ours", "mujoco_sysid", "sbi")
SCORES = ("seconds", "error", "error_median", "coverage90")


def ours(problem: Problem) -> Found:
    """Run `identify` as `sim2real identify` does, but for the examination."""
    setup, clock = problem.setup, time.perf_counter()
    settings = setup.recipe.identify.model_dump()
    if problem.simulated:  # by a model that is right: the longer, the better
        settings["window"] = "auto"
    rng = setup.rng("identify")
    found = identify(
        setup.plant, problem.episodes, problem.prior, channels=setup.channels, examine=False, rng=rng, **settings
    )
    seconds = time.perf_counter() - clock
    low, high = np.transpose([found.interval(name) for name in found.names])
    return Found(found.best, low, high, seconds, "" if found.evidence["settled"] else "not settled")


def attempt(what: str, tool: str, run: Tool, problem: Problem) -> Found | str:
    """Run a tool; return what it found, or why it did not."""
    try:
        found = run(problem)
    except Exception as error:  # a peer may raise anything, and the others go on
        why = f"failed: {type(error).__name__}: {error}"
        print(f"{what:32s} {tool:12s} {why}", flush=True)
        return why
    print(f"{what:32s} {tool:12s} {found.seconds:7.1f} s  {found.trouble or 'done'}", flush=True)
    return found


def truth_of(name: str, setup: Setup, k: int) -> tuple[Problem, Array]:
    """Return the k-th truth of a simulated problem, and its recordings."""
    prior = setup.prior.against(setup.plant.nominal())
    if name != "arm":
        prior = ParameterSet(tuple(p for p in prior if p.name != DEAD_ZONE))
    rng = np.random.default_rng([setup.recipe.seed, k])
    truth = {n: float(v[0]) for n, v in prior.sample(rng, 1).items()}
    noise, correlation = np.full(len(setup.channels), NOISE), 0.1 if name == "arm_correlated" else 0.0
    train, plant = setup.recordings.train, setup.plant
    episodes = [simulate_episode(plant, e, truth, setup.channels, noise, rng, correlation) for e in train]
    return Problem(setup, prior, episodes, simulated=True), np.array(list(truth.values()))


def measure_simulated(name: str, tools: dict[str, Tool], truths: int) -> dict[str, Any]:
    """Let the tools find every truth."""
    setup, out = prepare(load_recipe(ROOT / "recipes" / "two_link_arm.yaml"), threads=1), blank()
    problems = [truth_of(name, setup, k) for k in range(truths)]
    for t, run in tools.items():
        if name == "arm" and t == "mujoco_sysid":
            out["trouble"][t] = ["not applicable: it has no dead zone"]
            continue
        rows = [attempt(f"{name} truth {k + 1}/{truths}", t, run, p) for k, (p, _) in enumerate(problems)]
        out["trouble"][t] = [f if isinstance(f, str) else f.trouble for f in rows]
        done = [(f, truth) for f, (_, truth) in zip(rows, problems, strict=True) if isinstance(f, Found)]
        if not done:
            continue
        errors = [np.abs(f.values - x) / problems[0][0].prior.std for f, x in done]
        inside = [((f.low <= x) & (x <= f.high))[np.isfinite(f.high - f.low)] for f, x in done]
        out["seconds"][t] = float(np.median([f.seconds for f, _ in done]))
        out["error"][t], out["error_median"][t] = float(np.mean(errors)), float(np.median(errors))
        finite = np.concatenate(inside)
        out["coverage90"][t] = float(finite.mean()) if len(finite) else None
    return out


def blank() -> dict[str, Any]:
    """Return a result in which nothing was measured."""
    return {key: dict.fromkeys(TOOLS) for key in SCORES} | {"trouble": {t: [] for t in TOOLS}}


def measure_real(name: str, logs: Path, tools: dict[str, Tool], halves: bool) -> dict[str, Any]:
    """Let the tools fit the training recordings; score what they found on the validation recordings."""
    setup = prepare(load_recipe(ROOT / "recipes" / f"{REAL[name]}.yaml", [f"logs={logs}"]), threads=1)
    prior = setup.prior.against(setup.plant.nominal())
    both, out = {}, blank()
    if DEAD_ZONE in prior.names and "mujoco_sysid" in tools:
        tools = {"ours": ours} | tools  # which finds what mujoco_sysid holds
    held: dict[str, float] = {}
    for t, run in tools.items():
        if t == "mujoco_sysid" and isinstance(setup.plant.model, FunctionModel):
            out["trouble"][t] = ["not applicable: no MJCF has friction that grows with the load"]
            continue
        both[t] = problem = Problem(setup, prior, setup.recordings.train, False, held if t == "mujoco_sysid" else {})
        found = attempt(name, t, run, problem)
        out["trouble"][t] = [found if isinstance(found, str) else found.trouble]
        if isinstance(found, str):
            continue
        values = dict(zip(prior.names, found.values.tolist(), strict=True))
        out["seconds"][t], out["error"][t] = found.seconds, min(choose_observer(setup, values)[1].values())
        if t == "ours" and DEAD_ZONE in values and "mujoco_sysid" in tools:
            held = {DEAD_ZONE: values[DEAD_ZONE]}
            out["held"] = {"mujoco_sysid": held}
            print(f"{name}: mujoco_sysid holds {DEAD_ZONE} at {held[DEAD_ZONE]:.3g}, as ours has found it", flush=True)
    if halves:
        out["halves"] = {t: disagreement(name, t, tools[t], p) for t, p in both.items() if t != "sbi"}
    return out


def disagreement(name: str, tool: str, run: Tool, problem: Problem) -> float | None:
    """Return by how many half widths fits to the first and the second halves of all recordings disagree at most."""
    fits = []
    for half in (1, 2):
        episodes = []
        for e in problem.episodes:
            middle = float(e.observed_at[0] + e.duration / 2)
            other = (middle, np.inf) if half == 1 else (-np.inf, middle)
            episodes.append(replace(e, excluded=(*e.excluded, other)))
        found = attempt(f"{name} half {half}", tool, run, replace(problem, episodes=episodes))
        if isinstance(found, str):
            return None
        fits.append(found)
    a, b = fits
    widths = np.hypot(a.high - a.low, b.high - b.low) / 2
    known = np.isfinite(widths) & (widths > 0)
    return float(np.max(np.abs(a.values - b.values)[known] / widths[known])) if known.any() else None


def missing() -> dict[str, str]:
    """Return what is to be said of the peers that are not installed."""
    out = {}
    try:
        from mujoco.sysid import optimize  # noqa: F401  (the package alone imports without what it needs)
    except ImportError:
        out["mujoco_sysid"] = "not measured: needs pip install 'mujoco[sysid]'"
    try:
        import sbi.inference  # noqa: F401
    except ImportError:
        out["sbi"] = "not measured: needs pip install 'sim2real-toolkit[sbi]'"
    return out


def show(problems: dict[str, Any]) -> None:
    """Print the table."""
    print(f"\n{'problem':22s} {'tool':12s}" + "".join(f"{key:>14s}" for key in (*SCORES, "halves")) + "  in trouble")
    for name, r in problems.items():
        for t in TOOLS:
            numbers = [*(r[key][t] for key in SCORES), r.get("halves", {}).get(t)]
            trouble = [x for x in r["trouble"][t] if x]
            said = f"{len(trouble)} of {len(r['trouble'][t])}: {'; '.join(trouble)}" if trouble else ""
            shown = "".join(f"{'-' if v is None else f'{v:.3g}':>14s}" for v in numbers)
            print(f"{name:22s} {t:12s}{shown}  {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=(*SIMULATED, *REAL), default=(*SIMULATED, *REAL))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--truths", type=int, help="of every simulated problem (default 5, with --quick 1)")
    parser.add_argument("--logs", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real robots")
    parser.add_argument("--halves", action="store_true", help="also fit two halves of the real recordings")
    parser.add_argument("--quick", action="store_true", help="1 truth, and 200 simulations for sbi instead of 2000")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    absent = {t: why for t, why in missing().items() if t in options.tools}
    for t, why in absent.items():
        print(f"{t}: {why}")
    known: tuple[Tool, ...] = (ours, mujoco_sysid, Neural(200 if options.quick else 2000))
    tools = {t: run for t, run in zip(TOOLS, known, strict=True) if t in options.tools and t not in absent}
    problems: dict[str, Any] = {}
    for name in options.problems:
        if name in SIMULATED:
            problems[name] = measure_simulated(name, tools, options.truths or (1 if options.quick else 5))
        elif (options.logs / name).is_dir():
            problems[name] = measure_real(name, options.logs / name, tools, options.halves)
        else:
            print(f"{name}: not measured: {options.logs / name} does not exist; name the folder above it with --logs")
            problems[name] = blank()
        problems[name]["trouble"] |= {t: [why] for t, why in absent.items()}
        if options.json:  # as far as it has got
            result = {
                "problems": problems,
                "quick": options.quick,
                **surroundings("mujoco", "sbi", "torch", "numpy", "scipy"),
            }
            options.json.write_text(json.dumps(result, indent=1))
    show(problems)


if __name__ == "__main__":
    one_thread()
    main()
