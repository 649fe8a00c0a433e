"""The peers that identification.py measures, mujoco.sysid and sbi, on the same problems and recordings."""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import mujoco
import numpy as np
import torch

from sim2real.adapters import Chain
from sim2real.episodes import Array, Episode
from sim2real.errors import NonFiniteError
from sim2real.plant import Plant
from sim2real.preparation import Setup
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.randomization.mujoco_model import load_spec
from sim2real.randomization.mujoco_parameters import LiveModel, MujocoParameters
from sim2real.windows import Windows, at_offsets, cut_windows, joint_positions, regular_starts

DEAD_ZONE = "execution.dead_zone.width"
NOISE = 0.002  # of simulated readings, and in sbi's simulations of real ones, whose encoder steps are like it [rad]
STUCK = 1.1  # a fit that leaves so many times the noise of simulated readings is in a local minimum
WINDOW, SMOOTHING = 0.5, 0.08  # of real recordings, and the span that a window's start is read from [s]
GROWING = (2.0, 6.0, 20.0, 60.0)  # what of simulated recordings mujoco.sysid is given, one after the other [s]
START = 0.01  # how far the start of a simulated recording may be from its first reading, at most [rad]
# The stages that MuJoCo's actuators have too, and their parameters.
IN_ENGINE = {"latency": "delay", "lag": "time_constant", "gain": "gain"}


@dataclass(frozen=True)
class Replay:
    """W stretches of recordings that go through one plant, and the states (W, X) that they start from."""

    plant: Plant
    windows: Windows
    start: Array
    commanded: bool

    def run(self, names: Sequence[str], candidates: Array) -> Array:
        """Return positions (C, W, M, D) at the recorded samples for candidates (C, P)."""
        n, many, known = len(candidates), len(self.windows), self.plant.nominal()
        values = {k: np.repeat(candidates[:, i], many) for i, k in enumerate(names) if k in known}
        running = self.plant.start(n * many, values)
        running.reset(np.tile(self.start, (n, 1)), np.tile(self.windows.before, (n, 1, 1)))
        states = running.step(np.tile(self.windows.commands, (n, 1, 1))).reshape(n, many, -1, self.start.shape[1])
        start = np.repeat(self.start[None], n, 0)
        return at_offsets(states, start, self.windows.offset)[..., : self.start.shape[1] // 2]


@dataclass(frozen=True)
class Problem:
    """What is to be identified, and from what.

    Attributes:
        setup: the recipe's.
        prior: over values.
        episodes: the recordings.
        simulated: whether they are: from rest, with a known noise.
        held: what a tool that lacks a parameter takes for it.
    """

    setup: Setup
    prior: ParameterSet
    episodes: list[Episode]
    simulated: bool
    held: dict[str, float] = field(default_factory=dict)

    def replays(self) -> list[Replay]:
        """Cut the recordings: whole, or in windows; measured actions go past the chain."""
        out, plant, channels = [], self.setup.plant, self.setup.channels
        length = min(e.duration for e in self.episodes) if self.simulated else WINDOW
        for commanded in (True, False):
            some = [e for e in self.episodes if (e.action_source == "commanded") == commanded]
            cut = [regular_starts(e, stride=length, length=length) for e in some]
            if any(len(c) for c in cut):
                windows = cut_windows(
                    some, cut, channels=channels, length=length, before=plant.filling, timestep=plant.timestep
                )
                start = [smoothed(e, channels, i, self.simulated) for e, c in zip(some, cut, strict=True) for i in c]
                out.append(Replay(plant if commanded else plant.without_chain(), windows, np.stack(start), commanded))
        return out


def smoothed(episode: Episode, channels: Sequence[str], i: int, rest: bool) -> Array:
    """Return the state at sample i: at rest, or of a parabola through the readings on both sides of it."""
    t, q = episode.observed_at - episode.observed_at[i], joint_positions(episode, channels)
    if rest:
        return np.concatenate([q[i], np.zeros(q.shape[1])])
    near = np.abs(t) <= SMOOTHING / 2 + 1e-9
    near[max(i - 2, 0) : i + 3] = True
    return np.linalg.lstsq(np.vander(t[near], 3, increasing=True), q[near], rcond=None)[0][:2].ravel()


@dataclass(frozen=True)
class Found:
    """What a tool has found: values, the ends of their 90 % intervals (NaN for what is held), and what went wrong."""

    values: Array
    low: Array
    high: Array
    seconds: float
    trouble: str = ""


Tool = Callable[[Problem], Found]


class Engine:
    """A robot for mujoco.sysid, whose actuators delay, lag and amplify as the chain does, and what it replays."""

    def __init__(self, problem: Problem, replay: Replay) -> None:
        plant, self.replay, spec = problem.setup.plant, replay, load_spec(problem.setup.plant.model.name)
        stages = {s.kind: s for s in plant.chain.stages} if replay.commanded else {}
        self.names = {kind: stages[kind].parameter(f) for kind, f in IN_ENGINE.items() if kind in stages}
        spec.option.timestep, spec.option.integrator = plant.timestep, mujoco.mjtIntegrator.mjINT_EULER
        for actuator in spec.actuators:
            if "latency" in stages:
                longest = problem.prior[self.names["latency"]].distribution.support[1]
                actuator.delay, actuator.interp = plant.timestep, 1
                actuator.nsample = int(np.ceil(longest / plant.timestep)) + 2
            if "lag" in stages:
                actuator.dyntype, actuator.actearly = mujoco.mjtDyn.mjDYN_FILTEREXACT, True
        self.model = spec.compile()
        self.fields = RobotModel(plant.model.name, self.model).fields
        late = [stages[kind] for kind in ("latency", "lag") if kind in stages]
        self.line = Chain(late).bind(len(replay.windows), plant.actions, plant.timestep)
        self.start = np.stack([self.full_state(*row) for row in zip(replay.start, replay.windows.before, strict=True)])

    def full_state(self, start: Array, before: Array) -> Array:
        """Return all that a window (state `start`, commands `before` it) starts from, but for the lag."""
        m, d = self.model, mujoco.MjData(self.model)
        d.qpos[:], d.qvel[:] = np.split(start, 2)
        for k in np.flatnonzero(m.actuator_history[:, 0]):
            size, at = int(m.actuator_history[k, 0]), int(m.actuator_historyadr[k]) + 1
            times = m.opt.timestep * np.arange(-size, 0)
            d.history[at : at + 1 + 2 * size] = [size - 1, *times, *before[-size:, k]]  # the first: where the newest is
        out = np.empty(mujoco.mj_stateSize(m, mujoco.mjtState.mjSTATE_FULLPHYSICS))
        mujoco.mj_getState(m, d, out, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        return out

    def states(self, values: dict[str, float], shift: Array) -> Array:
        """Return what the windows start from, (W, S): joints moved by `shift`, the lag as it was left."""
        m, out = self.model, self.start.copy()
        out[:, 1 : 1 + m.nq] += shift
        if m.na:
            self.line.reset()
            self.line.write({n: np.full(len(out), values[n]) for n in self.line.nominal() if n in values})
            out[:, 1 + m.nq + m.nv :][:, : m.na] = self.line.apply(self.replay.windows.before)[:, -1]
        return out

    def build(self, values: dict[str, float]) -> mujoco.MjModel:
        """Return the model with values of its parameters."""
        model = copy.copy(self.model)
        dynamics = {n: np.array([v]) for n, v in values.items() if n in self.fields.addresses}
        MujocoParameters(self.fields, LiveModel(model)).write(dynamics)
        places = (model.actuator_delay, model.actuator_dynprm[:, 0], model.actuator_gainprm[:, 0])
        for kind, place in zip(IN_ENGINE, places, strict=True):
            if kind in self.names:
                place[:] = values[self.names[kind]]
        return model

    def recorded(self, seconds: float) -> list[Any]:
        """Return the first seconds of every window as mujoco.sysid wants them, padded samples with a weight of 0."""
        from mujoco.sysid import SystemTrajectory, TimeSeries

        w, dt = self.replay.windows, self.model.opt.timestep
        steps = min(round(seconds / dt), w.commands.shape[1])
        valid = w.valid & (w.offset > 0) & (w.offset <= steps + 1e-6)
        most = int(np.flatnonzero(valid.any(0))[-1]) + 1
        out = []
        for u, at, q, counts in zip(w.commands, w.offset[:, :most], w.positions, valid[:, :most], strict=True):
            sent = TimeSeries(dt * np.arange(steps + 1), np.concatenate([u[:steps], u[steps - 1 : steps]]))
            # times have to increase, also where a window is padded
            read = TimeSeries(dt * at + 1e-9 * np.arange(most), np.column_stack([q[:most], counts]))
            out.append(SystemTrajectory(self.model, sent, read, self.start[0], None))
        return out


class Fit:
    """What mujoco.sysid fits: residuals of parameters, which are given as shares of the ranges of their priors."""

    def __init__(self, problem: Problem) -> None:
        setup, edge = problem.setup, problem.held.get(DEAD_ZONE, 0.0)
        self.names = [n for n in problem.prior.names if n not in problem.held]
        ends = np.array([problem.prior[n].distribution.support for n in self.names])
        # MuJoCo takes a delay of less than a substep for one
        self.low = np.maximum(ends[:, 0], [setup.plant.timestep if ".delay" in n else -np.inf for n in self.names])
        self.width = ends[:, 1] - self.low
        self.joints = len(setup.channels)
        self.engines = [Engine(problem, behind_dead_zone(r, edge)) for r in problem.replays()]

    def values(self, parameters: Any) -> dict[str, float]:
        """Return the values that shares stand for."""
        shares = np.clip([float(parameters[n].value[0]) for n in self.names], 0.0, 1.0)
        return dict(zip(self.names, (self.low + self.width * shares).tolist(), strict=True))

    def rollout(self, engine: Engine, param_dicts: list[Any], **kw: Any) -> Any:
        """Simulate from where the parameters say that the windows start."""
        from mujoco.sysid import sysid_rollout

        shifts = [START * p["start"].value if "start" in p else np.zeros(self.joints) for p in param_dicts]
        starts = [engine.states(self.values(p), s) for p, s in zip(param_dicts, shifts, strict=True)]
        return sysid_rollout(**kw | {"initial_states": np.concatenate(starts)})

    def difference(self, _: Any, __: Any, measured: Any, *___: Any, state: Array) -> tuple[Array, Any, Any]:
        """Compare with states, which carry their own time; mujoco.sysid's sensors are a substep older than theirs."""
        q = [np.interp(measured.times, state[:, 0], state[:, 1 + j]) for j in range(self.joints)]
        found = np.stack(q, 1) - measured.data[:, : self.joints]
        return found * measured.data[:, self.joints :], measured, measured

    def residual(self, x: Array, parameters: Any, recorded: list[Any]) -> tuple[list[Array], list[Any], list[Any]]:
        """Return the residuals [rad] of what every engine has recorded, for one `x` or for each of its columns."""
        from mujoco.sysid import model_residual

        out = []
        for engine, some in zip(self.engines, recorded, strict=True):
            r, _, _ = model_residual(
                x,
                parameters,
                lambda p, engine=engine: engine.build(self.values(p)),
                some,
                modify_residual=self.difference,
                custom_rollout=lambda engine=engine, **kw: self.rollout(engine, **kw),
                n_threads=1,
                resample_true=False,
            )
            # for several columns and windows, each window has a column of its own there
            out.append(r if x.ndim == 1 else r.T.reshape(x.shape[1], -1).T)
        return out, [], []


def behind_dead_zone(replay: Replay, edge: float) -> Replay:
    """Return the replay with commands that have been through a dead zone."""
    w = replay.windows
    if not replay.commanded:
        return replay
    before, commands = (u - np.clip(u, -edge, edge) for u in (w.before, w.commands))
    return replace(replay, windows=replace(w, before=before, commands=commands))


def mujoco_sysid(problem: Problem) -> Found:
    """Fit with mujoco.sysid, on more and more of simulated recordings."""
    from mujoco import sysid

    clock, fit, trouble = time.perf_counter(), Fit(problem), ""
    parameters = sysid.ParameterDict({n: sysid.Parameter(n, 0.5, 0.0, 1.0) for n in fit.names})
    if problem.simulated:
        parameters.add(sysid.Parameter("start", np.zeros(fit.joints), -np.ones(fit.joints), np.ones(fit.joints)))
    for seconds in GROWING if problem.simulated else (WINDOW,):
        recorded, said = [engine.recorded(seconds) for engine in fit.engines], io.StringIO()
        residual = partial(fit.residual, recorded=recorded)
        parameters, result = sysid.optimize(parameters, residual, verbose=False, output=said, x_scale="jac", eps=1e-5)
        trouble = "maximum iterations reached" if "maximum iterations" in said.getvalue() else ""
    left = np.concatenate(residual(parameters.as_vector(), parameters)[0])
    read = left != 0  # padding is not evidence
    _, half = sysid.calculate_intervals([left[read]], result.jac[read], alpha=0.1)
    rms = float(np.sqrt(np.mean(left[read] ** 2)))
    if problem.simulated and rms > STUCK * NOISE:
        trouble = f"stuck: leaves {rms:.2g} rad of noise of {NOISE:g} rad"
    elif not np.isfinite(half).all():
        trouble = f"{(~np.isfinite(half)).sum()} of {len(half)} intervals are infinite"
    values = problem.held | fit.values(parameters)
    reach = dict(zip(fit.names, fit.width * half[: len(fit.names)], strict=True))
    best, h = (np.array([of.get(n, np.nan) for n in problem.prior.names]) for of in (values, reach))
    return Found(best, best - h, best + h, time.perf_counter() - clock, trouble)


class Neural:
    """sbi's neural posterior estimation, which trains once for all the recordings that one simulator makes."""

    def __init__(self, simulations: int) -> None:
        self.simulations = simulations
        self.trained: dict[tuple[str, ...], tuple[Any, float]] = {}

    def __call__(self, problem: Problem) -> Found:
        clock, replays = time.perf_counter(), problem.replays()
        simulator = (problem.setup.recipe.name, *problem.prior.names)
        if simulator not in self.trained:
            self.trained[simulator] = self.train(problem, replays), time.perf_counter() - clock
            clock = time.perf_counter()
        posterior, seconds = self.trained[simulator]
        observed = np.concatenate([statistics(r, r.windows.positions[None]) for r in replays], 1)
        x = torch.as_tensor(observed[0]).float()
        drawn = posterior.sample((1000,), x=x, show_progress_bars=False, max_sampling_time=120.0).numpy()
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        return Found(drawn.mean(0), low, high, seconds + time.perf_counter() - clock)

    def train(self, problem: Problem, replays: list[Replay]) -> Any:
        """Simulate draws from the prior, with noise, and train on the statistics of what comes out."""
        from sbi.inference import NPE
        from sbi.utils import BoxUniform

        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        theta = np.stack(list(problem.prior.sample(rng, self.simulations).values()), 1)
        batches = np.array_split(theta, max(self.simulations // 25, 1))
        x = np.concatenate([simulated(replays, problem.prior.names, rows, rng) for rows in batches])
        low, high = (torch.as_tensor(end).float() for end in problem.prior.bounds)
        inference = NPE(prior=BoxUniform(low, high), show_progress_bars=False)
        inference.append_simulations(torch.as_tensor(theta).float(), torch.as_tensor(x).float())
        with contextlib.redirect_stdout(io.StringIO()):
            inference.train()
        return inference.build_posterior()


def simulated(replays: list[Replay], names: Sequence[str], candidates: Array, rng: np.random.Generator) -> Array:
    """Return the statistics of noisy simulations (C, S); NaN, which sbi leaves out, where one diverges."""
    out = []
    for replay in replays:
        try:
            q = replay.run(names, candidates)
        except NonFiniteError:
            if len(candidates) > 1:
                return np.concatenate([simulated(replays, names, row[None], rng) for row in candidates])
            q = np.full((1, *replay.windows.positions.shape), np.nan)
        out.append(statistics(replay, q + NOISE * rng.normal(size=q.shape)))
    return np.concatenate(out, 1)


def statistics(replay: Replay, positions: Array) -> Array:
    """Return statistics (C, S) of positions (C, W, M, D).

    Of short windows the changes over each half of them; of long ones, of every angle in every two seconds, its spread,
    and the mean, the spread and the correlation in time of its changes over 0.1 s.
    """
    w, length = replay.windows, replay.plant.timestep * replay.windows.commands.shape[1]
    every = 0.1 if length > 2 else length / 2
    ends = np.arange(0.0, length + 1e-6, every) / replay.plant.timestep
    offset = np.where(w.valid, w.offset, np.inf)
    q = positions[:, np.arange(len(w))[:, None], np.abs(offset[:, None] - ends[:, None]).argmin(-1)]
    change = np.diff(q, axis=2)
    if length <= 2:
        return change.reshape(len(q), -1)
    pieces = int(length / 2)
    q, change = (x[:, :, : 20 * pieces].reshape(len(x), -1, 20, x.shape[-1]) for x in (q, change))
    centred = change - change.mean(2, keepdims=True)
    correlation = (centred[:, :, 1:] * centred[:, :, :-1]).mean(2) / np.maximum((centred**2).mean(2), 1e-12)
    spreads = [np.log(x.std(2) + 1e-3) for x in (q, change)]
    return np.concatenate([*spreads, change.mean(2), correlation], -1).reshape(len(q), -1)
