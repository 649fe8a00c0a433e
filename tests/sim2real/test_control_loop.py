"""The loop around a robot: what breaks in it never reaches the robot, and the clock is told as it was."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sim2real.control import Tracker
from sim2real.control_loop import ControlLoop, Paced, Timing
from sim2real.episodes import Array
from sim2real.errors import LogError, ModelError, NonFiniteError, SafetyError
from sim2real.estimation import DerivativeFilter, Estimate
from sim2real.logs import read_logs
from sim2real.logs.record import RecordEpisodes
from sim2real.planning import MPPI, Damping, OfSimulator, PlannerProcess, Policy, PredictiveSampling, Upright
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.safety import Limits, SafetyFilter
from sim2real.twin import Twin
from sim2real.twin_env import TwinEnv
from sim2real.world_model import EnsembleConfig, EnsembleDynamics

sys.path.insert(0, str(Path(__file__).parent / "in_a_process"))  # spawned processes are given this path, too
from failing_policies import PERIOD, Camera, Fails, Slow

LIMIT = np.array([8.0])


def twin() -> TwinEnv:
    plant = Plant(RobotModel("pendulum"), timestep=0.002, threads=1)
    return TwinEnv(Twin(plant, period=0.02), LIMIT, PERIOD)


def tracker() -> Tracker:
    return Tracker(DerivativeFilter(), PERIOD, history=2, actions=1)


def filtered(policy: Policy) -> SafetyFilter:
    return SafetyFilter(policy, Limits([8.0], [(-1.5, 1.5)], [6.0]), RobotModel("pendulum"), PERIOD)


class Steady:
    """Pushes, and says what it would push later."""

    def reset(self) -> None:
        self.calls = 0

    def act(self, estimate: Estimate, t: float) -> Array:
        self.calls += 1
        return np.full((1, 1), 3.0 * np.sin(2 * t))


class Broken(gym.Wrapper[Any, Any, Any, Any]):
    """A robot whose readings break after some steps."""

    def __init__(self, env: gym.Env[Any, Any], how: str, after: int) -> None:
        super().__init__(env)
        self.how, self.after, self.calls, self.last = how, after, 0, np.zeros(1)

    def step(self, action: Any) -> Any:
        reading, *others = self.env.step(action)
        self.calls += 1
        if self.calls > self.after:
            if self.how == "nan":
                reading = np.full_like(reading, np.nan)
            elif self.how == "late" and self.calls == self.after + 1:
                time.sleep(0.5)
            elif self.how == "frozen":
                reading = self.last
            elif self.how == "shuffled":
                reading = reading + np.random.default_rng(self.calls).choice([-1.3, 1.3])
        self.last = reading
        return reading, *others


@pytest.mark.parametrize(
    ("how", "within", "why"),
    [("nan", 1, "not finite"), ("late", 1, "late"), ("frozen", 6, "have not changed"), ("shuffled", 1, "jump")],
)
def test_readings_that_break_stop_the_robot_and_it_stands(how: str, within: int, why: str) -> None:
    env, after = twin(), 40
    guard = filtered(Steady())
    robot = Broken(Paced(env, PERIOD) if how == "late" else env, how, after)
    stops: list[int] = []
    inner = guard.act

    def watched(estimate: Estimate, t: float) -> Array:
        sent = inner(estimate, t)
        if guard.stopped is not None:
            stops.append(robot.calls)
        return sent

    guard.act = watched  # type: ignore[method-assign]
    ControlLoop(robot, guard, tracker(), [0], "wall" if how == "late" else "simulated").run(1.6, seed=1)
    assert guard.stopped is not None
    assert why in guard.stopped
    assert after < stops[0] <= after + within
    state = env._running.state()[0]  # type: ignore[union-attr]
    assert abs(state[1]) < 0.3
    assert abs(state[0]) < (1.53 if how == "frozen" else 1.5)  # for the time that it took to be found out


@pytest.mark.parametrize(
    ("how", "why"),
    [("throws", "no way"), ("hangs", "no plan for 1 period"), ("dies", "has died (exit code -9)")],
)
def test_a_planner_that_fails_never_reaches_the_robot(how: str, why: str) -> None:
    env, planner = twin(), PlannerProcess(Fails(how, 20), PERIOD, wait=0.2)
    guard = filtered(planner)
    timing = ControlLoop(Paced(env, PERIOD), guard, tracker(), [0]).run(1.2, seed=2)
    planner.close()
    assert guard.stopped is not None
    assert why in guard.stopped
    assert np.isfinite(timing.commands).all()
    assert abs(env._running.state()[0, 1]) < 0.05  # type: ignore[union-attr]
    # the loop went on; the one period that waited for the plan is the only one that may be late by that much
    assert len(timing.commands) == 60
    assert timing.milliseconds.max() < 1e3 * (planner.wait + 0.5)
    assert np.median(timing.milliseconds) < 20


@pytest.fixture
def slow() -> Iterator[PlannerProcess]:
    process = PlannerProcess(Slow(0.15), PERIOD, wait=0.02, patience=20)
    yield process
    process.close()


def test_a_plan_that_is_late_is_followed_as_it_was_planned_for_now(slow: PlannerProcess) -> None:
    estimate = Estimate(np.zeros((1, 2)), np.zeros((1, 2, 1)))
    slow.reset()
    slow.wait = 2.0
    assert slow.act(estimate, 0.0)[0, 0] == 0
    slow.wait = 0.0
    # the plan for now takes 0.15 s; until it is here, the one of before says what was planned for now
    for k in (1, 2, 3):
        assert slow.act(estimate, k * PERIOD)[0, 0] == k
    assert slow.followed == 3
    time.sleep(0.5)
    slow.wait = 2.0
    assert slow.act(estimate, 4 * PERIOD)[0, 0] == 4
    # what is beyond the plan is not made up
    slow.wait = 0.0
    for k in range(5, 9):
        assert slow.act(estimate, k * PERIOD)[0, 0] == k
    with pytest.raises(SafetyError, match="no plan for 5 periods"):
        slow.act(estimate, 9 * PERIOD)


def test_patience_has_an_end_and_a_reset_starts_what_hangs_anew() -> None:
    process = PlannerProcess(Fails("hangs", 1), PERIOD, wait=0.02, patience=0)
    estimate = Estimate(np.zeros((1, 2)), np.zeros((1, 2, 1)))
    process.reset()
    process.wait = 5.0
    assert process.act(estimate, 0.0) == 0.5
    process.wait = 0.02
    with pytest.raises(SafetyError, match="no plan for 1 period:"):
        process.act(estimate, PERIOD)
    first = process._process.pid
    process.reset()
    assert process._process.pid != first
    process.wait = 5.0
    assert process.act(estimate, 0.0) == 0.5
    process.close()


def test_planners_plan_in_a_process_as_they_do_here() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.005, threads=1)
    simulator = OfSimulator(plant, repeated({"dynamics.payload.mass": 0.6}, 1), PERIOD)
    estimate = Estimate(np.array([[0.3, 0.1]]), np.zeros((1, 2, 1)))

    def planner() -> PredictiveSampling:
        return PredictiveSampling(simulator, Upright(), LIMIT, horizon=0.3, seed=4)

    here, there = planner(), planner()
    here.act(estimate, 0.0)  # it has plants at work by now, which cannot be sent
    here.reset()
    process = PlannerProcess(there, PERIOD, wait=20.0)
    process.reset()
    for k in range(3):
        np.testing.assert_array_equal(process.act(estimate, k * PERIOD), here.act(estimate, k * PERIOD))
    assert process.followed == 0
    process.close()


def test_a_model_that_is_sent_stays_where_it_is() -> None:
    model = EnsembleDynamics(EnsembleConfig((True,), 1, PERIOD, history=2, members=2, hidden=(8,)))
    views = [p.detach().numpy() for p in model.parameters()]
    before = [v.copy() for v in views]
    process = PlannerProcess(MPPI(model, Upright(), LIMIT, horizon=0.2, candidates=10), PERIOD, wait=20.0)
    process.reset()
    process.act(Estimate(np.array([[0.3, 0.1]]), np.zeros((1, 2, 1))), 0.0)
    process.close()
    assert not any(p.is_shared() for p in model.parameters())
    for view, expected in zip(views, before, strict=True):
        np.testing.assert_array_equal(view, expected)


def test_what_fails_to_start_says_why() -> None:
    process = PlannerProcess(Camera(0.1, LIMIT), PERIOD)
    with pytest.raises(ModelError, match="Camera failed in its process: OSError: camera not found"):
        process.reset()
    with pytest.raises(SafetyError, match="not running"):
        process.act(Estimate(np.zeros((1, 2)), np.zeros((1, 2, 1))), 0.0)


def test_a_planner_of_one_period_and_a_bit_is_never_far_behind(slow: PlannerProcess) -> None:
    estimate = Estimate(np.zeros((1, 2)), np.zeros((1, 2, 1)))
    slow.reset()
    slow.wait = 0.9 * 0.13
    for k in range(8):
        begun = time.perf_counter()
        # what was planned for now, whenever it was: plans of this planner say the number of each of their steps
        assert slow.act(estimate, k * PERIOD)[0, 0] == k
        time.sleep(max(0.13 - (time.perf_counter() - begun), 0))
    assert slow.followed < 8


def test_what_cannot_be_sent_to_a_process_is_refused() -> None:
    class Local(Damping):
        pass

    with pytest.raises(ModelError, match="Local cannot be sent to a process of its own"):
        PlannerProcess(Local(0.1, LIMIT), PERIOD).reset()
    with pytest.raises(ModelError, match="above zero"):
        PlannerProcess(Damping(0.1, LIMIT), 0.0)


def test_the_loop_keeps_its_rate_and_tells_of_the_periods_that_were_late() -> None:
    class Stumbles(Steady):
        def act(self, estimate: Estimate, t: float) -> Array:
            if self.calls in (20, 30):
                time.sleep(0.06)
            return super().act(estimate, t)

    timing = ControlLoop(Paced(twin(), PERIOD), Stumbles(), tracker(), [0]).run(1.0, seed=0)
    told = timing.to_json()
    assert told["periods"] == 50
    assert told["missed"] >= 2
    late = np.flatnonzero(timing.jitter > 30)
    assert list(late) == [20, 30]
    assert timing.milliseconds[20] > 60
    # a late period is not made up for by short ones
    assert timing.jitter.min() > -5
    assert np.all(np.diff(timing.times) > 0)


def test_the_clock_is_told_as_it_was() -> None:
    times = np.array([0.0, 0.02, 0.04, 0.063, 0.083])
    told = Timing(0.02, times, np.array([1.0, 2.0, 3.0, 4.0]), np.zeros((4, 1)), np.zeros((5, 1)))
    np.testing.assert_allclose(told.jitter, [0, 0, 3, 0], atol=1e-9)
    assert told.missed == 1
    assert told.to_json()["rate_hz"] == pytest.approx(4 / 0.083)
    assert told.to_json()["command_ms_p50"] == 3.0


def test_what_the_loop_did_is_recorded_and_drawn(tmp_path: Path) -> None:
    recorder = RecordEpisodes(twin(), tmp_path / "logs", names=["position"], dt=PERIOD)
    timing = ControlLoop(recorder, filtered(Steady()), tracker(), [0], "simulated").run(0.4, seed=0)
    recorder.end()
    (episode,) = read_logs(tmp_path / "logs")
    np.testing.assert_allclose(episode.actions, timing.commands, rtol=1e-6)
    np.testing.assert_allclose(episode.observations, timing.readings, rtol=1e-6)
    timing.write_curves(tmp_path / "curves")
    assert any((tmp_path / "curves").iterdir())


def test_an_interrupt_brakes_first() -> None:
    class Interrupted(gym.Wrapper[Any, Any, Any, Any]):
        """Somebody presses Ctrl-C while the robot moves."""

        calls = 0

        def step(self, action: Any) -> Any:
            self.calls += 1
            if self.calls == 30:
                raise KeyboardInterrupt
            return self.env.step(action)

    env, guard = twin(), filtered(Steady())
    robot = Interrupted(Paced(env, PERIOD))
    with pytest.raises(KeyboardInterrupt):
        ControlLoop(robot, guard, tracker(), [0]).run(20.0, seed=3)
    assert guard.stopped == "interrupted"
    assert 70 < robot.calls < 90, "a second of holding, and no more"
    assert abs(env._running.state()[0, 1]) < 0.05  # type: ignore[union-attr]


def test_what_is_no_command_is_not_sent_and_what_is_no_robot_is_refused() -> None:
    class Bad(Steady):
        def act(self, estimate: Estimate, t: float) -> Array:
            return np.full((1, 1), np.nan)

    with pytest.raises(NonFiniteError, match="was not sent"):
        ControlLoop(twin(), Bad(), tracker(), [0], "simulated").run(0.1)
    with pytest.raises(LogError, match="box of commands"):
        ControlLoop(gym.make("CartPole-v1"), Bad(), tracker(), [0])
