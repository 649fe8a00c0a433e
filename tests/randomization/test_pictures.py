"""Pictures are those of Gymnasium's renderer, one of many is that of one alone, and what is written shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sim2real import RandomizeDynamics, make_vec, to_rsl_rl, to_stable_baselines, wrap
from sim2real.errors import ParameterError, RenderError
from sim2real.randomization import pictures
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_parameters import BatchModels, MujocoParameters
from sim2real.randomization.pictures import Artist, ObservePixels, Pixels, PlantPictures
from sim2real.randomization.vector import FunctionTask, MujocoVectorEnv

SIZE = {"height": 40, "width": 56}
# What differs between the environments: light, colours, camera, and how the robot moves.
DRAWS = {
    "perception.*.diffuse[0]": "=U(0.1, 1)",
    "perception.*.rgba[1]": "=U(0, 1) each",
    "perception.track.position[1]": "*U(0.8, 1.2)",
    "dynamics.*.scale": "*U(0.7, 1.3)",
    "dynamics.*.mass": "*U(0.5, 2)",
}
# Everything that a picture shows is addressable here: lamps and cameras of every kind, materials, plain colours.
STAGE = """
<mujoco>
  <asset><material name="painted" rgba="0.2 0.8 0.3 1"/></asset>
  <worldbody>
    <light name="lamp" pos="0.4 -0.5 2" dir="-0.1 0.2 -1" type="spot"/>
    <light name="sun" dir="0.3 0.3 -1" type="directional"/>
    <camera name="front" pos="0 -2 1" xyaxes="1 0 0 0 0.5 1"/>
    <camera name="other" pos="0 2 1" xyaxes="-1 0 0 0 -0.5 1"/>
    <geom name="floor" type="plane" size="3 3 0.1" rgba="0.4 0.4 0.9 1"/>
    <body name="arm" pos="0 0 0.5">
      <joint name="shoulder" axis="0 1 0"/>
      <geom name="link" type="capsule" fromto="0 0 0 0.4 0 0" size="0.05" material="painted"/>
    </body>
  </worldbody>
  <actuator><motor joint="shoulder"/></actuator>
</mujoco>
"""


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures need OpenGL, a graphics card's or Mesa's; Gymnasium wants to be told which."""
    said = ""
    for kind in [os.environ["MUJOCO_GL"]] if "MUJOCO_GL" in os.environ else ["egl", "osmesa"]:
        monkeypatch.setenv("MUJOCO_GL", kind)
        try:
            Artist(mujoco.MjModel.from_xml_string(STAGE), Pixels(height=1, width=1)).close()
            return
        except RenderError as error:
            said = str(error)
    pytest.skip(said)


@pytest.fixture
def stage() -> Iterator[MujocoVectorEnv]:
    task = FunctionTask(
        mujoco.MjSpec.from_string(STAGE),
        observation=lambda p: p.qpos,
        reward=lambda p, action: p.qvel[:, 0],
        terminated=lambda p: np.zeros(len(p.qpos), bool),
        noise=0.0,
    )
    envs = make_vec(task, 3, pixels={"camera": "front", **SIZE, "shadows": True}, threads=1)
    assert isinstance(envs, MujocoVectorEnv)
    yield envs
    envs.close()


def test_a_picture_is_what_gymnasium_renders() -> None:
    theirs = gym.make("HalfCheetah-v5", render_mode="rgb_array", **SIZE, camera_name="track")
    ours = ObservePixels(gym.make("HalfCheetah-v5"), **SIZE, camera="track", shadows=True)
    theirs.reset(seed=0)
    ours.reset(seed=0)
    for _ in range(5):
        action = theirs.action_space.sample()
        theirs.step(action)
        picture = ours.step(action)[0]
    base: Any = theirs.unwrapped
    # after a step the bodies are where they were one substep before
    mujoco.mj_forward(base.model, base.data)
    np.testing.assert_array_equal(theirs.render(), picture)
    assert picture.std() > 10
    theirs.close()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_one_of_many_sees_what_one_alone_sees(mode: str) -> None:
    pixels = {**SIZE, "state": True}
    many = make_vec(
        "HalfCheetah-v5", 3, parameters=DRAWS, pixels=pixels, autoreset_mode=mode, max_episode_steps=3, threads=1
    )
    singles = [
        ObservePixels(RandomizeDynamics(gym.make("HalfCheetah-v5", max_episode_steps=3), DRAWS), **pixels)
        for _ in range(3)
    ]
    seen, _ = many.reset(seed=5)
    for i, single in enumerate(singles):
        _assert_same(seen, i, single.reset(seed=5 + i)[0])
    assert len({seen["pixels"][i].tobytes() for i in range(3)}) == 3
    done = False
    for k in range(7):
        action = many.action_space.sample()
        if done and mode == "Disabled":
            seen, _ = many.reset()
            for i, single in enumerate(singles):
                _assert_same(seen, i, single.reset()[0])
        restarts, done = done and mode == "NextStep", False
        seen, _, _, truncated, infos = many.step(action)
        for i, single in enumerate(singles):
            if restarts:
                _assert_same(seen, i, single.reset()[0])
                continue
            observation, _, _, ended, _ = single.step(action[i])
            done |= bool(ended)
            assert truncated[i] == ended
            if ended and mode == "SameStep":
                last = infos["final_obs"][i]
                np.testing.assert_array_equal(last["pixels"], observation["pixels"], err_msg=f"step {k}")
                observation = single.reset()[0]
            _assert_same(seen, i, observation)
    many.close()


def _assert_same(many: dict[str, Any], i: int, one: dict[str, Any]) -> None:
    np.testing.assert_array_equal(many["pixels"][i], one["pixels"])
    np.testing.assert_array_equal(many["state"][i], one["state"])


def test_every_parameter_of_lights_colours_and_cameras_shows_in_one_picture_alone(stage: MujocoVectorEnv) -> None:
    nominal = stage.parameter_store().nominal()
    names = [name for name in nominal if name.startswith("perception.")]
    assert {name.rsplit(".", 1)[1].partition("[")[0] for name in names} == {
        "active", "position", "direction", "diffuse", "rotation", "fovy", "rgba"
    }  # fmt: skip
    before, _ = stage.reset(seed=0)
    np.testing.assert_array_equal(before[0], before[1])
    for name in names:
        # what is seen through the other camera shows nothing in this one
        value = 0.0 if name.endswith("active") else nominal[name] * 0.5 if nominal[name] else 0.3
        values = np.full(3, nominal[name])
        values[1] = value
        after, _ = stage.reset(seed=0, options={"parameters": {name: values}})
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]], err_msg=name)
        assert (after[1] != before[1]).any() == (not name.startswith("perception.other")), name
    again, _ = stage.reset(seed=0)
    np.testing.assert_array_equal(again, before)


def test_shadows_fall_only_where_they_are_asked_for(stage: MujocoVectorEnv) -> None:
    model = stage.task.model
    parameters = MujocoParameters(MujocoFields(model, "stage"), BatchModels(stage.batch))
    both = [PlantPictures(parameters, Pixels("front", 40, 56, shadows=on)) for on in (True, False)]
    dark, light = (p.draw([0], model.qpos0[None])[0].astype(int) for p in both)
    floor = (dark != light).any(2)
    assert 0.01 < floor.mean() < 0.3
    assert dark[floor].sum() < light[floor].sum()


def test_pictures_leave_other_contexts_as_they_were() -> None:
    theirs = gym.make("Hopper-v5", render_mode="rgb_array", **SIZE)
    theirs.reset(seed=0)
    before = theirs.render()
    first = make_vec("Hopper-v5", 2, pixels=SIZE, threads=1)
    np.testing.assert_array_equal(theirs.render(), before)
    second = make_vec("Hopper-v5", 2, pixels=SIZE, threads=1)
    one, _ = first.reset(seed=0)
    np.testing.assert_array_equal(theirs.render(), before)
    del first  # closed by nobody, and collected while the second is in use
    two, _ = second.reset(seed=0)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(theirs.render(), before)
    second.close()
    with pytest.raises(RenderError, match="closed"):
        second.reset()
    theirs.close()


def test_gymnasiums_checker_accepts_it() -> None:
    env = ObservePixels(gym.make("InvertedPendulum-v5"), **SIZE, state=True)
    check_env(env, skip_render_check=True)


def test_a_recipe_asks_for_pictures() -> None:
    env = wrap(gym.make("HalfCheetah-v5"), {"parameters": DRAWS, "pixels": {"camera": "track", **SIZE}})
    assert env.observation_space == gym.spaces.Box(0, 255, (40, 56, 3), np.uint8)
    assert env.reset(seed=0)[0].shape == (40, 56, 3)
    each = make_vec("HalfCheetah-v5", 2, pixels=SIZE, vectorization="sync")
    both = make_vec("HalfCheetah-v5", 2, pixels=SIZE, threads=1)
    np.testing.assert_array_equal(each.reset(seed=1)[0], both.reset(seed=1)[0])
    for envs in (each, both):
        envs.close()


def test_stable_baselines_learns_from_pictures() -> None:
    from stable_baselines3 import PPO

    envs = make_vec(
        "InvertedPendulum-v5",
        2,
        pixels={**SIZE, "state": True},
        autoreset_mode="SameStep",
        max_episode_steps=4,
        threads=1,
    )
    model = PPO(
        "MultiInputPolicy", to_stable_baselines(envs), n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu"
    )
    before = [p.detach().clone() for p in model.policy.features_extractor.parameters()]
    model.learn(32)
    after = list(model.policy.features_extractor.parameters())
    assert before
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


def test_rsl_rl_has_them_in_a_group_of_their_own() -> None:
    import torch

    envs: Any = make_vec(
        "cartpole", 2, pixels={**SIZE, "state": True}, autoreset_mode="SameStep", max_episode_steps=4, threads=1
    )
    found = to_rsl_rl(envs).step(torch.zeros(2, 1))[0]
    assert found["pixels"].shape == (2, 40, 56, 3)
    assert found["policy"].shape[0] == 2


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ({"camera": "trak"}, "no camera 'trak'; did you mean track"),
        ({"hight": 3}, "no key 'hight'; did you mean height"),
        ({"width": 0}, "width is a whole number of pixels from 1 to 4096, found 0"),
        ({"width": True}, "found True"),
        ({"camera": 5}, "camera is the name of one, found 5"),
        ({"shadows": "no"}, "shadows is true or false, found 'no'"),
        (64, "pixels is {camera, height, width, shadows, state}, found 64"),
    ],
)
def test_bad_pictures_are_refused(pixels: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_vec("HalfCheetah-v5", 2, pixels=pixels)


def test_what_has_no_model_is_sent_to_gymnasium() -> None:
    with pytest.raises(ParameterError, match=r"CartPoleEnv is no MuJoCo environment.*AddRenderObservation"):
        ObservePixels(gym.make("CartPole-v1"))


def test_where_nothing_draws_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(kind: str, width: int, height: int) -> Any:
        raise ImportError(f"no library for {kind}")

    monkeypatch.setattr(pictures, "_opened", fails)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match=r"egl: no library for egl; osmesa: .*install libegl1.*libosmesa6.*MUJOCO_GL"):
        make_vec("Hopper-v5", 2, pixels={})


class Moves(gym.Env[Any, Any]):
    """A ball that is moved by hand."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float64)

    def __init__(self) -> None:
        ball = '<body name="ball" mocap="true" pos="0 0 1"><geom size="0.2"/></body>'
        self.model = mujoco.MjModel.from_xml_string(STAGE.replace("</worldbody>", f"{ball}</worldbody>"))
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.data.mocap_pos[0] = [0.3, 0.0, 1.0]
        return np.zeros(1), {}


def test_what_is_moved_by_hand_is_drawn_where_it_is() -> None:
    env = ObservePixels(Moves(), **SIZE, shadows=True)
    base: Any = env.unwrapped
    seen = env.reset()[0]
    mujoco.mj_forward(base.model, base.data)
    artist = Artist(base.model, Pixels("front", 40, 56, shadows=True))
    np.testing.assert_array_equal(seen, artist.draw(base.model, base.data))
    base.data.mocap_pos[0] = [-0.3, 0.0, 1.0]
    mujoco.mj_forward(base.model, base.data)
    assert (seen != artist.draw(base.model, base.data)).any()
    artist.close()
    env.close()


@pytest.mark.slow
def test_processes_of_their_own_draw_the_same() -> None:
    each = make_vec("Hopper-v5", 2, pixels=SIZE, vectorization="async")
    both = make_vec("Hopper-v5", 2, pixels=SIZE, threads=1)
    np.testing.assert_array_equal(each.reset(seed=1)[0], both.reset(seed=1)[0])
    for envs in (each, both):
        envs.close()
