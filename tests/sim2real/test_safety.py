"""The safety filter: limits hold whatever is asked for, and nothing that breaks reaches the robot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from sim2real.adapters import Chain, Latency
from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.planning import Damping
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.safety import Braking, Limits, SafetyFilter, viable

PERIOD = 0.02
LIMITS = {
    "pendulum": Limits([8.0], [(-1.5, 1.5)], [6.0]),
    "cartpole": Limits([20.0], [(-1.0, 1.0)], [2.0]),
    "two_link_arm": Limits([10.0, 10.0], [(-1.5, 1.5), (-2.0, 2.0)], [2.0, 2.0]),
}
MASSES = {
    "pendulum": ["dynamics.payload.mass"],
    "cartpole": ["dynamics.cart.mass", "dynamics.pole.mass"],
    "two_link_arm": ["dynamics.upper.mass", "dynamics.lower.mass"],
}


@dataclass
class Pushes:
    """Holds efforts, half as much again as may be, to one side or the other."""

    effort: Array
    seed: int = 0

    def reset(self) -> None:
        self.rng, self.calls = np.random.default_rng(self.seed), 0

    def act(self, estimate: Estimate, t: float) -> Array:
        if self.calls % 15 == 0:
            self.level = self.rng.choice([-1.5, -1.0, 0.3, 1.0, 1.5], (len(estimate.state), len(self.effort)))
        self.calls += 1
        return np.asarray(self.level * self.effort)


def at(state: Any) -> Estimate:
    rows = np.atleast_2d(np.asarray(state, float))
    return Estimate(rows, np.zeros((len(rows), 1, 1)))


def beyond(
    name: str, guard: SafetyFilter, plants: int = 20, steps: int = 120, chain: Chain | None = None
) -> tuple[float, float]:
    """Return how far joints of robots with other masses get beyond their stops and their velocities."""
    robot, limits = RobotModel(name), LIMITS[name]
    plant, rng, joints = (
        Plant(robot, chain or Chain(), timestep=0.002, threads=1),
        np.random.default_rng(1),
        robot.mj.nv,
    )
    low, high = np.asarray(limits.position, float).T
    states = np.concatenate([rng.uniform(-1, 1, (plants, joints)), rng.normal(size=(plants, joints))], 1)
    states = states[viable(guard, states)]
    assert len(states) > plants // 2
    masses = {m: plant.nominal()[m] * rng.uniform(0.8, 1.2, len(states)) for m in MASSES[name]}
    running = plant.start(len(states), masses)
    running.reset(states)
    stops, speeds = [], []
    for k in range(steps):
        sent = guard.act(Estimate(running.state(), np.zeros((len(states), 1, 1))), k * PERIOD)
        assert (np.abs(sent) <= limits.effort).all()
        path = running.step(np.repeat(sent[:, None], 10, 1))
        q, v = path[..., robot.driven], path[..., joints + robot.driven]
        stops.append(float(np.maximum(q - high, low - q).max()))
        speeds.append(float((np.abs(v) - limits.velocity).max()))
    return max(stops), max(speeds)


@pytest.mark.parametrize("name", list(LIMITS))
def test_no_limit_is_left_with_masses_that_are_a_fifth_off(name: str) -> None:
    guard = SafetyFilter(Pushes(np.asarray(LIMITS[name].effort)), LIMITS[name], RobotModel(name), PERIOD)
    stops, speeds = beyond(name, guard)
    assert stops <= 0
    assert speeds <= 0
    assert guard.stopped is None
    assert guard.interventions["braking"] > 100


def test_without_the_braking_distance_stops_are_run_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SafetyFilter, "_can_stop", lambda _, __, ___, change, ____: np.ones(len(change), bool))
    guard = SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    stops, speeds = beyond("pendulum", guard)
    assert stops > 0.1
    assert speeds > 0.1


@pytest.mark.parametrize("delay", [0.02, 0.04])
def test_commands_on_their_way_are_reckoned_with(delay: float) -> None:
    robot, late = RobotModel("pendulum"), Chain([Latency(delay=delay)])
    knows, forgets = (
        beyond(
            "pendulum", SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], robot, PERIOD, delay=d), chain=late
        )
        for d in (delay, 0.0)
    )
    assert forgets[1] > 0.5
    assert knows[0] <= 0
    assert knows[1] < 0.35


@pytest.mark.parametrize("where", [0.38, 0.76, 0.92])
@pytest.mark.parametrize("broken", ["nan", "frozen"])
def test_blind_it_brakes_by_dead_reckoning(where: float, broken: str) -> None:
    robot = RobotModel("pendulum")
    guard = SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], robot, PERIOD)
    running = Plant(robot, timestep=0.002, threads=1).start(1)
    # as fast as it may be there
    state = max(
        (np.array([[where, v]]) for v in np.linspace(0.1, 5.8, 60) if viable(guard, np.array([[where, v]]))[0]),
        key=lambda x: x[0, 1],
    )
    running.reset(state)
    running.step(np.repeat(guard.act(at(state), 0.0)[:, None], 10, 1))
    frozen, furthest = running.state(), 0.0
    for k in range(1, 60):
        seen = np.full((1, 2), np.nan) if broken == "nan" else frozen
        path = running.step(np.repeat(guard.act(at(seen), k * PERIOD)[:, None], 10, 1))
        furthest = max(furthest, float(path[..., 0].max()))
    if broken == "nan":
        assert furthest < 1.5
        assert abs(running.state()[0, 1]) < 0.3
    else:
        assert guard.stopped is not None
        assert "have not changed" in guard.stopped


def test_a_robot_at_rest_is_not_taken_for_one_whose_sensor_has_stopped() -> None:
    guard = SafetyFilter(Damping(0.1, np.array([8.0])), LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    for k in range(100):
        guard.act(at([0.0, 1e-15]), k * PERIOD)
    assert guard.stopped is None


def test_released_it_goes_on_after_a_pause_and_nothing_is_known_before_the_first_reading() -> None:
    guard = SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    assert guard.act(at([np.nan, 0.0]), 0.0) == 0.0
    assert guard.stopped == "readings are not finite"
    guard.release()
    guard.act(at([0.1, 0.0]), 5.0)
    assert guard.stopped is None


SERVO = """<mujoco><worldbody><body>
<joint name="hinge" axis="0 -1 0"/><geom type="sphere" size="0.05" pos="0 0 -0.3" mass="1"/>
</body></worldbody><actuator>{}</actuator></mujoco>"""


@pytest.mark.parametrize(
    ("actuator", "why"),
    [
        ('<position name="servo" joint="hinge" kp="40"/>', "expected motors of joints, found servo"),
        ('<velocity name="servo" joint="hinge"/>', "expected motors of joints"),
        ('<motor joint="hinge"/><motor joint="hinge"/>', "one motor a joint"),
        ('<motor name="m" joint="hinge" ctrlrange="-2 2" ctrllimited="true"/>', "m of .* cannot do the efforts"),
    ],
)
def test_actuators_that_are_no_motors_or_too_weak_are_refused(actuator: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "robot.xml").write_text(SERVO.format(actuator))
    robot = RobotModel(tmp_path / "robot.xml")
    many = robot.mj.nu
    with pytest.raises(ModelError, match=why):
        SafetyFilter(Damping(0.1, np.ones(many)), Limits([8.0] * many, velocity=[4.0] * many), robot, PERIOD)


def test_a_motor_with_a_gear_is_taken_at_its_gear(tmp_path: Path) -> None:
    made = []
    for gear in (1, 4):
        (tmp_path / "robot.xml").write_text(SERVO.format(f'<motor joint="hinge" gear="{gear}"/>'))
        robot = RobotModel(tmp_path / "robot.xml")
        made.append(Braking(robot, Limits([20.0 / gear], velocity=[4.0])))
    assert made[0].time == pytest.approx(made[1].time)


def test_joints_that_nothing_drives_are_reckoned_with_up_to_a_velocity() -> None:
    fast = SafetyFilter(Pushes(np.array([20.0])), LIMITS["cartpole"], RobotModel("cartpole"), PERIOD)
    slow = SafetyFilter(Pushes(np.array([20.0])), replace(LIMITS["cartpole"], free=1.0), RobotModel("cartpole"), PERIOD)
    assert fast.braking.time > slow.braking.time
    spun = at([0.0, 0.3, 0.0, 5.0])
    assert fast.act(spun, 0.0)[0, 0] != 0
    assert "braking" not in fast.interventions
    slow.act(spun, 0.0)
    assert slow.interventions["braking"] == 1


def test_what_is_safe_passes_untouched_and_rates_are_clipped() -> None:
    class Asks:
        def reset(self) -> None: ...

        def act(self, estimate: Estimate, t: float) -> Array:
            return np.full((1, 1), 3.0)

    guard = SafetyFilter(Asks(), LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    assert guard.act(at([0.1, 0.2]), 0.0) == 3.0
    assert guard.interventions == {}
    slow = SafetyFilter(Asks(), replace(LIMITS["pendulum"], rate=[50.0]), RobotModel("pendulum"), PERIOD)
    sent = [float(slow.act(at([0.1, 0.2 + k / 100]), k * PERIOD)[0, 0]) for k in range(4)]
    np.testing.assert_allclose(sent, [1.0, 2.0, 3.0, 3.0])
    assert slow.interventions == {"rate": 2}


def test_near_a_stop_a_joint_may_only_brake_and_may_go_away() -> None:
    class Asks:
        side = 1.0

        def reset(self) -> None: ...

        def act(self, estimate: Estimate, t: float) -> Array:
            return np.full((1, 1), 8.0 * self.side)

    policy = Asks()
    guard = SafetyFilter(policy, LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    assert guard.act(at([1.3, 2.5]), 0.0)[0, 0] < 0
    policy.side = -1.0
    assert guard.act(at([1.3, -0.1]), PERIOD)[0, 0] == -8.0


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("nan", "not finite"),
        ("late", "late: 500 ms"),
        ("backwards", "late"),
        ("jumps", "jump: hinge is where it cannot be"),
        ("frozen", "have not changed for 4 periods"),
        ("throws", "the policy failed: ZeroDivisionError"),
        ("garbage", "no command"),
        ("shape", "no command"),
    ],
)
def test_what_breaks_stops_the_robot_within_a_period_until_it_is_released(broken: str, why: str) -> None:
    class Breaks:
        now, asked = False, 0.0

        def reset(self) -> None: ...

        def act(self, estimate: Estimate, t: float) -> Array:
            if self.now and broken == "throws":
                raise ZeroDivisionError
            if self.now and broken == "shape":
                return np.zeros((2, 3))
            return np.full((1, 1), np.nan if self.now and broken == "garbage" else self.asked)

    policy = Breaks()
    guard = SafetyFilter(policy, LIMITS["pendulum"], RobotModel("pendulum"), PERIOD)
    for k in range(3):
        # as the readings say: no faster and no slower
        policy.asked = float(guard.braking.dynamics(np.array([0.01 * k, 0.5])).command(np.zeros(1))[0])
        assert guard.act(at([0.01 * k, 0.5]), k * PERIOD) == policy.asked
    assert guard.stopped is None
    policy.asked = 7.0
    policy.now, t, state = True, 3 * PERIOD, [0.04, 0.5]
    if broken == "nan":
        state = [np.nan, 0.5]
    elif broken == "late":
        t += 0.48
    elif broken == "backwards":
        t -= 2 * PERIOD
    elif broken == "jumps":
        state = [1.43, 0.5]
    elif broken == "frozen":
        for k in range(5):
            guard.act(at(state), t + k * PERIOD)
        t += 5 * PERIOD
    sent = float(guard.act(at(state), t)[0, 0])
    assert guard.stopped is not None
    assert why in guard.stopped
    # it brakes, or holds what it last knew of
    assert sent < 1.0
    policy.now = False
    assert abs(float(guard.act(at([0.05, 0.4]), t + PERIOD)[0, 0])) < 8.0
    guard.reset()
    assert guard.stopped, "it stays stopped"
    guard.release()
    assert guard.act(at([0.05, 0.4]), t + 2 * PERIOD) == 7.0


def test_stopped_in_mid_air_it_is_held_there() -> None:
    robot = RobotModel("pendulum")
    guard = SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], robot, PERIOD)
    running = Plant(robot, timestep=0.002, threads=1).start(1)
    running.reset(np.array([[1.0, 3.0]]))
    guard.stop("the button was pressed")
    for k in range(100):
        running.step(np.repeat(guard.act(at(running.state()), k * PERIOD)[:, None], 10, 1))
    assert abs(running.state()[0, 1]) < 0.02
    assert 1.0 < running.state()[0, 0] < 1.48
    assert guard.interventions == {"emergency stop": 100}


def test_stopped_it_does_not_sink_though_it_is_heavier_than_was_thought() -> None:
    robot = RobotModel("pendulum")
    plant = Plant(robot, timestep=0.002, threads=1)
    guard = SafetyFilter(Pushes(np.array([8.0])), LIMITS["pendulum"], robot, PERIOD)
    running = plant.start(1, {"dynamics.payload.mass": np.array([1.2 * plant.nominal()["dynamics.payload.mass"]])})
    running.reset(np.array([[1.2, 0.0]]))
    guard.stop("the button was pressed")
    for k in range(500):
        running.step(np.repeat(guard.act(at(running.state()), k * PERIOD)[:, None], 10, 1))
    assert running.state()[0, 0] == pytest.approx(1.2, abs=0.03)


def test_channels_that_are_swapped_stop_the_robot_at_once_and_it_brakes_by_dead_reckoning() -> None:
    name, robot = "two_link_arm", RobotModel("two_link_arm")
    guard = SafetyFilter(Pushes(np.array([10.0, 10.0])), LIMITS[name], robot, PERIOD)
    running = Plant(robot, timestep=0.002, threads=1).start(1)
    running.reset(np.array([[0.8, -0.6, 1.0, -1.0]]))
    for k in range(60):
        state = running.state()
        if k >= 3:
            state = state[:, [1, 0, 3, 2]]
        sent = guard.act(at(state), k * PERIOD)
        assert (guard.stopped is not None) == (k >= 3)
        running.step(np.repeat(sent[:, None], 10, 1))
    assert guard.stopped is not None
    assert "readings jump: " in guard.stopped
    assert np.abs(running.state()[0, 2:]).max() < 0.1


def test_a_reading_that_begins_anew_after_a_turn_is_no_jump() -> None:
    guard = SafetyFilter(Damping(0.1, np.array([8.0])), Limits([8.0], velocity=[6.0]), RobotModel("pendulum"), PERIOD)
    for k, angle in enumerate((3.10, 3.14, -3.10, -3.06)):
        guard.act(at([angle, 2.0]), k * PERIOD)
    assert guard.stopped is None


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"effort": [1.0], "position": [(1.0, -1.0)], "velocity": [1.0]}, "lower stop"),
        ({"effort": [0.0]}, "above zero"),
        ({"effort": [1.0], "position": [(-1.0, 1.0)]}, "limit of its velocity"),
        ({"effort": [1.0, 1.0], "velocity": [1.0]}, "as many of velocity, found 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        Limits(**limits)


def test_efforts_that_cannot_stop_the_robot_are_refused() -> None:
    robot, limits = RobotModel("pendulum"), LIMITS["pendulum"]
    weight = RobotModel("pendulum").mj
    data = mujoco.MjData(weight)
    data.qpos[:] = 1.5  # its stop, where most is held
    mujoco.mj_forward(weight, data)
    held = float(data.qfrc_bias[0])
    for effort, enough in ((1.19 * held, False), (1.4 * held, True)):
        if enough:
            assert Braking(robot, replace(limits, effort=[effort])).time > Braking(robot, limits).time
            continue
        with pytest.raises(ModelError, match="cannot stop and hold pendulum everywhere"):
            Braking(robot, replace(limits, effort=[effort]))
    with pytest.raises(ModelError, match="has 1 actuators, the limits are of 2"):
        SafetyFilter(Pushes(np.ones(2)), LIMITS["two_link_arm"], RobotModel("pendulum"), PERIOD)


def test_a_robot_that_is_heavier_than_its_model_does_not_sink_while_it_brakes() -> None:
    robot, limits = RobotModel("pendulum"), LIMITS["pendulum"]
    plant = Plant(robot, timestep=0.002, threads=1)
    heavier = {name: np.full(1, 1.2 * value) for name, value in plant.nominal().items() if name.endswith(".mass")}

    class Insists:
        def reset(self) -> None: ...

        def act(self, estimate: Estimate, t: float) -> Array:
            return np.zeros((1, 1))

    running = plant.start(1, heavier)
    # raised, with nothing allowed but to brake
    running.reset(np.array([[1.2, 0.0]]))
    guard = SafetyFilter(Insists(), limits, robot, PERIOD)
    guard._safe = lambda state, here, commands: np.zeros(len(commands), bool)  # type: ignore[method-assign]
    for k in range(100):
        sent = guard.act(Estimate(running.state(), np.zeros((1, 1, 1))), k * PERIOD)
        running.step(np.repeat(sent[:, None], 10, 1))
    assert guard.interventions["braking"] == 100
    assert abs(running.state()[0, 1]) < 1e-3, "it stands"
    assert abs(running.state()[0, 0] - 1.2) < 0.02, "where it was"
