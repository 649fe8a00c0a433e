"""Clearances: distances are those of geometry, nothing is passed through, and the filter keeps them."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.estimation import Estimate
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.safety import Clearance, Limits, SafetyFilter, viable

PERIOD = 0.02
SCENE = """<mujoco><compiler angle="radian"/><option gravity="0 0 0"><flag contact="disable"/></option><worldbody>
<geom name="post" type="sphere" size="0.05" pos="{post}"/>
<body><joint name="base" axis="0 0 1" range="-3 3" limited="true"/>
  <inertial pos="0.2 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>
  <geom name="rod" type="capsule" fromto="0 0 0 0.4 0 0" size="0.02"/>
  <body pos="0.4 0 0"><joint name="tip" axis="0 0 1" range="-3 3" limited="true"/>
    <inertial pos="0.1 0 0" mass="0.5" diaginertia="0.005 0.005 0.005"/>
    <geom name="end" type="sphere" size="0.03" pos="0.3 0 0"/>
  </body>
</body></worldbody>
<actuator><motor joint="base"/><motor joint="tip"/></actuator></mujoco>"""


def scene(post: str = "0.5 0.4 0", **replaced: str) -> RobotModel:
    text = SCENE.format(post=post)
    for old, new in replaced.values():
        text = text.replace(old, new)
    return RobotModel("scene", mujoco.MjModel.from_xml_string(text))


def apart(q: Array) -> float:
    """The distance of the end from the post, by trigonometry."""
    at = 0.4 * np.array([np.cos(q[0]), np.sin(q[0])]) + 0.3 * np.array([np.cos(q[0] + q[1]), np.sin(q[0] + q[1])])
    return float(np.linalg.norm(at - [0.5, 0.4])) - 0.08


def test_what_is_looked_at_is_what_can_collide_and_is_no_parent_or_joined() -> None:
    robot = scene()
    pairs = {tuple(sorted(robot.mj.geom(int(g)).name for g in pair)) for pair in Clearance(robot, 0.02).pairs}
    assert pairs == {("post", "rod"), ("end", "post")}
    # a post around the base is touched wherever the joints are
    joined = Clearance(scene(post="0 0 0"), 0.02)
    assert {robot.mj.geom(int(g)).name for g in joined.pairs.ravel()} == {"post", "end"}


def test_it_is_kept_at_a_place_exactly_where_trigonometry_says_so() -> None:
    clearance, rng = Clearance(scene(), 0.03), np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        q = rng.uniform(-1.5, 1.5, 2)
        rod = apart_of_rod(q)
        expected = min(apart(q), rod) > 0.03
        if abs(min(apart(q), rod) - 0.03) > 1e-6:
            assert clearance.kept(np.stack([q, q])) is bool(expected)
        kept += expected
    assert 100 < kept < 300


def apart_of_rod(q: Array) -> float:
    along = float(np.clip(0.5 * np.cos(q[0]) + 0.4 * np.sin(q[0]), 0, 0.4))
    return float(np.linalg.norm(along * np.array([np.cos(q[0]), np.sin(q[0])]) - [0.5, 0.4])) - 0.07


def test_nothing_is_passed_through_between_two_places() -> None:
    """A turn of the base that takes the arm across the post, though both its ends are far away."""
    clearance = Clearance(scene(), 0.02)
    ends = np.array([[-0.6, 0.0], [2.0, 0.0]])
    assert all(clearance.kept(np.stack([q, q])) for q in ends)
    assert not clearance.kept(ends)
    # with the tip folded away it gets past
    folded = np.array([[-0.6, 2.9], [2.0, 2.9]])
    assert clearance.kept(folded)


def test_what_moves_stays_in_its_workspace() -> None:
    robot = scene()
    clearance = Clearance(robot, 0.01, ((-1, -0.5, -1), (1, 0.5, 1)))
    turned = np.array([[0.0, 0.0], [0.6, 0.0]])
    assert clearance.kept(np.stack([turned[0]] * 2))
    assert not Clearance(robot, 0.01, ((-1, -0.3, -1), (1, 0.3, 1))).kept(np.array([[-0.6, 0.0], [0.6, 0.0]]))
    low = 0.7 * np.sin(0.4) + 0.03 + 0.01  # where the end of the arm is at -0.4, its radius and the distance
    for room, kept in ((1.02 * low, True), (0.98 * low, False)):
        walls = Clearance(robot, 0.01, ((-1, -room, -1), (1, 1, 1)))
        assert walls.kept(np.array([[0.0, 0.0], [-0.4, 0.0]])) is kept


def test_what_hangs_on_a_hinge_reaches_as_far_as_its_slide() -> None:
    text = """<mujoco><compiler angle="radian"/><worldbody><geom name="post" type="sphere" size="0.05" pos="1 0 0"/>
<body><joint name="turn" axis="0 0 1" range="-3 3" limited="true"/>{between}
<joint name="out" type="slide" axis="1 0 0" {range}/><inertial pos="0 0 0" mass="1" diaginertia="0.1 0.1 0.1"/>
<geom name="hand" type="sphere" size="0.03"/>{end}</body></worldbody>
<actuator><motor joint="turn"/><motor joint="out"/></actuator></mujoco>"""
    on_two = '<inertial pos="0 0 0" mass="1" diaginertia="0.1 0.1 0.1"/><body>'
    for between, end in (("", ""), (on_two, "</body>")):
        made = text.format(between=between, end=end, range='range="0 1.5" limited="true"')
        clearance = Clearance(RobotModel("polar", mujoco.MjModel.from_xml_string(made)), 0.01)
        assert not clearance.kept(np.array([[-0.5, 1.0], [1.0, 1.0]]))
        assert clearance.kept(np.array([[-0.5, 0.5], [1.0, 0.5]]))
        endless = text.format(between=between, end=end, range="")
        with pytest.raises(ModelError, match="has no range"):
            Clearance(RobotModel("polar", mujoco.MjModel.from_xml_string(endless)), 0.01)


def test_what_is_too_close_may_leave_and_not_come_closer() -> None:
    clearance = Clearance(scene(), 0.05)
    near = np.array([0.53, 0.0])
    assert 0 < min(apart(near), apart_of_rod(near)) < 0.05
    away, closer = np.array([[0.53, 0.0], [0.4, 0.0]]), np.array([[0.53, 0.0], [0.55, 0.0]])
    assert clearance.kept(away, leaving=True)
    assert not clearance.kept(closer, leaving=True)
    assert not clearance.kept(away)


def test_a_hinge_that_nothing_drives_may_be_anywhere() -> None:
    robot = scene(drive=('<motor joint="tip"/>', ""))
    clearance = Clearance(robot, 0.02)
    straight = np.array([0.2, -2.0])  # the end is far from the post, but could be there
    assert Clearance(scene(), 0.02).kept(np.stack([straight] * 2))
    assert not clearance.kept(np.stack([straight] * 2))
    away = np.array([-2.2, 0.0])
    assert clearance.kept(np.stack([away] * 2))


@pytest.mark.parametrize(
    ("distance", "workspace", "why"),
    [
        (-0.1, None, "not below zero"),
        (0.0, ((0, 0, 0), (1, 1, -1)), "lower one first"),
        (0.0, ((0, 0), (1, 1)), "two corners"),
    ],
)
def test_what_makes_no_sense_is_refused(distance: float, workspace: object, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        Clearance(scene(), distance, workspace)  # type: ignore[arg-type]


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing of two_link_arm can collide"):
        Clearance(RobotModel("two_link_arm"), 0.02)
    slide = scene(
        joint=('<joint name="tip" axis="0 0 1"', '<joint name="tip" type="slide" axis="0 1 0"'),
        drive=('<motor joint="tip"/>', ""),
    )
    with pytest.raises(ModelError, match="tip of scene slides undriven"):
        Clearance(slide, 0.02)
    with pytest.raises(ModelError, match="kept by a clearance"):
        Limits([1.0], velocity=[1.0], workspace=((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ModelError, match="limit of every velocity"):
        Limits([1.0], clearance=0.1)


class Towards:
    """Pushes the arm back and forth across the post, at full effort."""

    def reset(self) -> None: ...

    def act(self, estimate: Estimate, t: float) -> Array:
        side = np.where(np.sin(2 * t + np.arange(len(estimate.state))) > 0, 1.0, -1.0)
        return side[:, None] * np.array([6.0, 3.0])


def closest(monkeypatch: pytest.MonkeyPatch | None) -> tuple[float, float]:
    """Return how close arms of other masses come to the post, and how far they still move."""
    robot = scene()
    limits = Limits([6.0, 3.0], [(-2.9, 2.9), (-2.9, 2.9)], [3.0, 3.0], clearance=0.02)
    guard = SafetyFilter(Towards(), limits, robot, PERIOD)
    if monkeypatch is not None:
        monkeypatch.setattr(SafetyFilter, "_keeps_away", lambda *_: True)
    rng, n = np.random.default_rng(0), 12
    states = np.concatenate([rng.uniform(-1.5, 1.5, (4 * n, 2)), np.zeros((4 * n, 2))], 1)
    states = states[viable(guard, states)][:n]
    plant = Plant(robot, timestep=0.002, threads=1)
    masses = [name for name in plant.nominal() if name.endswith(".mass")]
    running = plant.start(len(states), {m: plant.nominal()[m] * rng.uniform(0.8, 1.2, len(states)) for m in masses})
    running.reset(states)
    least, way = np.inf, 0.0
    for k in range(100):
        sent = guard.act(Estimate(running.state(), np.zeros((len(states), 1, 2))), k * PERIOD)
        path = running.step(np.repeat(sent[:, None], 10, 1))
        least = min(least, *(min(apart(q), apart_of_rod(q)) for q in path[:, ::3, :2].reshape(-1, 2)))
        way += float(np.abs(path[..., 2:]).mean()) * PERIOD
    assert guard.stopped is None
    return least, way


def test_the_filter_keeps_it_with_masses_that_are_a_fifth_off() -> None:
    least, way = closest(None)
    assert least > 0
    assert way > 0.5, "a robot that does not move is no proof"


def test_without_looking_the_post_is_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert closest(monkeypatch)[0] < -0.02
