"""Vector environments on `mujoco.batch.Batch` against Gymnasium's own and against `mj_step` by hand."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.registration import WrapperSpec
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from numpy.typing import NDArray

import sim2real
from sim2real.errors import ParameterError, RobotError
from sim2real.randomization import JointEmpirical, Parameter, parse_distribution
from sim2real.randomization.robots import path
from sim2real.randomization.vector import (
    AppendParametersVector,
    FunctionTask,
    MujocoVectorEnv,
    Plants,
    make_vec,
    to_stable_baselines,
)
from sim2real.randomization.wrappers import AppendParameters, RandomizeDynamics

Array = NDArray[np.float64]
Envs = gym.vector.VectorEnv[Any, Any, Any]
NEXT, SAME, DISABLED = "NextStep", "SameStep", "Disabled"
MODES = (NEXT, SAME, DISABLED)

COMMON = {"dynamics.*.mass": "*U(0.7, 1.3) each", "dynamics.*.gear": "*U(0.7, 1.3) each"}
# id -> steps after which episodes are cut off, and what is randomized beside masses and gears
PROBLEMS: dict[str, tuple[int, dict[str, str]]] = {
    "Ant-v5": (25, {"dynamics.*.friction[0]": "*U(0.5, 1)", "dynamics.world.gravity": "*U(0.8, 1.2)"}),
    "HalfCheetah-v5": (25, {"dynamics.*.stiffness": "*U(0.5, 2) each", "dynamics.*.friction[0]": "*U(0.5, 1)"}),
    "Hopper-v5": (15, {"dynamics.*.damping": "*U(0.5, 2) each", "dynamics.*.friction[0]": "*U(0.5, 1)"}),
    "Humanoid-v5": (20, {"dynamics.*.stiffness": "*U(0.5, 2)", "dynamics.*.armature": "*U(0.5, 2) each"}),
    "HumanoidStandup-v5": (25, {"dynamics.*.damping": "*U(0.5, 2)", "dynamics.*.friction[0]": "*U(0.5, 1) each"}),
    "InvertedDoublePendulum-v5": (6, {"dynamics.*.damping": "*U(0.5, 2) each"}),
    "InvertedPendulum-v5": (6, {"dynamics.*.damping": "*U(0.5, 2)", "dynamics.world.gravity": "*U(0.8, 1.2)"}),
    "Pusher-v5": (25, {"dynamics.*.armature": "*U(0.5, 2)", "dynamics.*.damping": "*U(0.5, 2) each"}),
    "Reacher-v5": (25, {"dynamics.*.armature": "*U(0.5, 2) each", "dynamics.*.damping": "*U(0.5, 2)"}),
    "Swimmer-v5": (25, {"dynamics.world.viscosity": "*U(0.5, 2)", "dynamics.world.density": "*U(0.5, 2)"}),
    "Walker2d-v5": (25, {"dynamics.*.damping": "*U(0.5, 2)", "dynamics.*.friction[0]": "*U(0.5, 1) each"}),
}
FALL = ("Hopper-v5", "Humanoid-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Walker2d-v5")
BIG = ("Ant-v5", "Humanoid-v5", "HumanoidStandup-v5")
TORSO = "dynamics.torso.mass"
TORSO_MASS = {TORSO: "*U(0.8, 1.2)"}


def oracle(env: str, n: int, mode: str, parameters: Any = (), **kwargs: Any) -> SyncVectorEnv:
    """Gymnasium's vector environment of n wrapped single ones."""

    def one() -> Any:
        single = gym.make(env, **kwargs)
        return RandomizeDynamics(single, parameters) if parameters else single

    return SyncVectorEnv([one] * n, autoreset_mode=mode)


def assert_same(got: Any, expected: Any, where: str = "") -> None:
    """The same structure, keys, shapes and dtypes, and numbers to 1e-9."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}/{key}")
        return
    if isinstance(expected, tuple | list) or (isinstance(expected, np.ndarray) and expected.dtype == object):
        assert len(got) == len(expected), where
        for k, value in enumerate(expected):
            assert_same(got[k], value, f"{where}[{k}]")
        return
    if expected is None:
        assert got is None, where
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), where
    if not (got == expected).all():
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9, err_msg=where)


def in_force(infos: Mapping[str, Any]) -> dict[str, Array]:
    """The parameters of an info, without their masks."""
    return {key: value for key, value in infos["parameters"].items() if not key.startswith("_")}


def restart(envs: Envs, mask: NDArray[np.bool_], **options: Any) -> tuple[Array, dict[str, Any]]:
    return envs.reset(options={"reset_mask": mask, **options})


def assert_alike(ours: Envs, theirs: Envs, steps: int, seed: int = 7) -> tuple[int, int]:
    """Drive both with the same random actions; return how many episodes were terminated, and truncated."""
    assert ours.observation_space == theirs.observation_space
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert_same(ours.reset(seed=seed), theirs.reset(seed=seed), "reset")
    ours.action_space.seed(seed)
    ends = np.zeros(2, int)
    for step in range(steps):
        actions = ours.action_space.sample()
        got = ours.step(actions)
        assert_same(got, theirs.step(actions), f"step {step} ")
        ends += [got[2].sum(), got[3].sum()]
        done = got[2] | got[3]
        if done.any() and ours.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            assert_same(restart(ours, done), restart(theirs, done), f"reset after step {step} ")
    theirs.close()
    return int(ends[0]), int(ends[1])


def fingerprint(envs: Envs, steps: int = 40, seed: Any = 3) -> bytes:
    """Everything that comes out of seeded episodes, as bytes."""
    parts: list[bytes] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                collect(value[key])
        elif isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
            for item in value:
                collect(item)
        elif value is not None:
            parts.append(value.tobytes())

    collect(envs.reset(seed=seed))
    envs.action_space.seed(0)
    for _ in range(steps):
        collect(envs.step(envs.action_space.sample()))
    return b"".join(parts)


# Gymnasium's environments, all of them.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("randomized", [False, True], ids=["nominal", "randomized"])
@pytest.mark.parametrize("env", PROBLEMS)
def test_a_batch_is_gymnasiums_vector_of_single_environments(env: str, randomized: bool, mode: str) -> None:
    limit, own = PROBLEMS[env]
    parameters = {**COMMON, **own} if randomized else {}
    ours = make_vec(
        env, 3, parameters=parameters, autoreset_mode=mode, max_episode_steps=limit, vectorization="batch", threads=1
    )
    assert isinstance(ours, MujocoVectorEnv)
    theirs = oracle(env, 3, mode, parameters, max_episode_steps=limit)
    # 1,000 steps of the three together; fewer in the other modes, and of the big ones without randomization
    long = mode == NEXT and (randomized or env not in BIG)
    terminated, truncated = assert_alike(ours, theirs, 334 if long else 32)
    assert truncated > 0
    assert (terminated > 0) == (env in FALL) or env == "Ant-v5"


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_an_episode_is_as_long_as_the_id_says(mode: str) -> None:
    assert_alike(make_vec("Reacher-v5", 2, autoreset_mode=mode), oracle("Reacher-v5", 2, mode), 52)
    envs = make_vec("Reacher-v5", 2)
    envs.reset(seed=0)
    truncated = [bool(envs.step(np.zeros((2, 2)))[3].all()) for _ in range(51)]
    assert truncated == [False] * 49 + [True, False]


EVERYTHING = {"exclude_current_positions_from_observation": False}
NOTHING = {f"include_{what}_in_observation": False for what in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}
GOES_ON = {"terminate_when_unhealthy": False}
KEYWORDS: list[tuple[str, dict[str, Any]]] = [
    (
        "Ant-v5",
        {"include_cfrc_ext_in_observation": False, "main_body": "front_left_leg", "healthy_z_range": (0.6, 0.8)},
    ),
    ("Ant-v5", {"contact_cost_weight": 0.5, "contact_force_range": (-0.3, 0.2), "ctrl_cost_weight": 2.0, **EVERYTHING}),
    ("Ant-v5", {"forward_reward_weight": 3.0, "healthy_reward": 0.3, "healthy_z_range": (0.6, 0.8), **GOES_ON}),
    ("Ant-v5", {"reset_noise_scale": 0.2, "frame_skip": 2}),
    ("HalfCheetah-v5", {"ctrl_cost_weight": 3.0, "forward_reward_weight": 0.5, **EVERYTHING}),
    ("HalfCheetah-v5", {"reset_noise_scale": 0.5, "frame_skip": 2}),
    ("Hopper-v5", {"healthy_reward": 0.5, "healthy_z_range": (1.0, 1.25), **GOES_ON, **EVERYTHING}),
    ("Hopper-v5", {"healthy_state_range": (-1.5, 1.5), "forward_reward_weight": 3.0, "ctrl_cost_weight": 1.0}),
    ("Hopper-v5", {"healthy_angle_range": (-0.05, 0.1), "reset_noise_scale": 0.03, "frame_skip": 3}),
    ("Humanoid-v5", NOTHING),
    ("Humanoid-v5", {"include_cinert_in_observation": False, "include_qfrc_actuator_in_observation": False}),
    ("Humanoid-v5", {"contact_cost_weight": 1e-4, "contact_cost_range": (-np.inf, 3.0), "frame_skip": 3}),
    ("Humanoid-v5", {"ctrl_cost_weight": 2.0, "forward_reward_weight": 4.0, "reset_noise_scale": 0.1, **EVERYTHING}),
    ("Humanoid-v5", {"healthy_z_range": (1.2, 1.395), "healthy_reward": 1.5, **GOES_ON}),
    ("HumanoidStandup-v5", NOTHING),
    ("HumanoidStandup-v5", {"include_cvel_in_observation": False, "include_cfrc_ext_in_observation": False}),
    ("HumanoidStandup-v5", {"impact_cost_weight": 1e-4, "impact_cost_range": (-np.inf, 3.0), "uph_cost_weight": 3.0}),
    ("HumanoidStandup-v5", {"ctrl_cost_weight": 2.0, "reset_noise_scale": 0.1, "frame_skip": 3, **EVERYTHING}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 3.0, "reset_noise_scale": 0.02, "frame_skip": 2}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.1, "frame_skip": 1}),
    (
        "Pusher-v5",
        {"reward_near_weight": 2.0, "reward_dist_weight": 3.0, "reward_control_weight": 0.7, "frame_skip": 2},
    ),
    ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.7, "frame_skip": 1}),
    ("Swimmer-v5", {"ctrl_cost_weight": 3.0, "forward_reward_weight": 0.5, **EVERYTHING}),
    ("Swimmer-v5", {"reset_noise_scale": 1.0, "frame_skip": 2}),
    ("Walker2d-v5", {"healthy_z_range": (1.0, 1.26), "healthy_angle_range": (-0.1, 0.1), **GOES_ON, **EVERYTHING}),
    ("Walker2d-v5", {"healthy_reward": 0.5, "forward_reward_weight": 3.0, "ctrl_cost_weight": 1.0}),
    ("Walker2d-v5", {"healthy_z_range": (1.1, 1.27), "frame_skip": 2, "reset_noise_scale": 0.1}),
]


@pytest.mark.parametrize(("env", "keywords"), KEYWORDS)
def test_keyword_arguments_mean_what_they_mean_to_gymnasium(env: str, keywords: dict[str, Any]) -> None:
    keywords = {**keywords, "max_episode_steps": 30}
    assert_alike(make_vec(env, 2, **keywords, threads=1), oracle(env, 2, NEXT, **keywords), 33)


def test_the_cases_above_cover_every_keyword_that_changes_the_problem() -> None:
    looks = {"self", "xml_file", "default_camera_config", "kwargs"}
    for env in PROBLEMS:
        code = type(gym.make(env).unwrapped).__init__.__code__
        names = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) - looks
        assert {name for i, keywords in KEYWORDS if i == env for name in keywords} == names, env


def test_another_model_file_is_used(tmp_path: Path) -> None:
    original = Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / "hopper.xml"
    text = original.read_text(encoding="utf-8")
    assert 'gravity="' not in text
    file = tmp_path / "moon.xml"
    file.write_text(text.replace("<option ", '<option gravity="0 0 -1.6" '), encoding="utf-8")
    moon = make_vec("Hopper-v5", 2, xml_file=str(file))
    assert isinstance(moon, MujocoVectorEnv)
    assert_alike(moon, oracle("Hopper-v5", 2, NEXT, xml_file=str(file)), 40)
    assert moon.parameter_store().nominal()["dynamics.world.gravity"] == 1.6


@pytest.mark.parametrize("kind", ["float64", "int64", "list"])
def test_actions_may_be_other_than_float32(kind: str) -> None:
    ours, theirs = make_vec("HalfCheetah-v5", 2), oracle("HalfCheetah-v5", 2, NEXT)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1.4, 1.4, (2, 6))
    array = actions if kind == "list" else actions.astype(kind)
    assert_same(ours.step(array.tolist() if kind == "list" else array), theirs.step(array))


# All gaps at once.

GAPS: dict[str, Any] = {
    "execution": [{"stage": "latency"}, {"stage": "dead_zone", "width": 0.1}],
    "parameters": {TORSO: "*U(0.8, 1.2)", "execution.latency.delay": "=U(0, 0.04) s"},
    "randomization": [
        {"parameters": {"dynamics.*.damping": "*U(0.5, 2) each"}, "when": {"random_walk": {"every": 0.02, "std": 0.2}}},
        {"parameters": {"dynamics.*.armature": "*U(0.5, 2)"}, "when": "startup"},
        {"parameters": {"dynamics.*.friction[0]": "*U(0.5, 1)"}, "when": {"interval": 0.05}},
        {"parameters": {"execution.dead_zone.width": "=U(0.05, 0.2)"}, "when": {"sinusoid": {"period": 0.3}}},
    ],
    "initial_state": {"dynamics.*.initial_velocity*": "+N(0, 0.1)"},
    "push": {"body": "torso", "force": "U(5, 10)", "every": "U(0.05, 0.1)", "duration": 0.02},
}


def gapped(env: str, recipe: Mapping[str, Any], mode: str, n: int = 3, **kwargs: Any) -> tuple[Envs, Envs]:
    """A batch with the gaps of a recipe, and its oracle."""
    ours = make_vec(env, n, autoreset_mode=mode, vectorization="batch", threads=1, **sim2real.gaps(recipe), **kwargs)
    theirs = SyncVectorEnv([lambda: sim2real.wrap(gym.make(env, **kwargs), recipe)] * n, autoreset_mode=mode)
    return ours, theirs


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env", ["Ant-v5", "Hopper-v5", "Humanoid-v5"])
def test_all_gaps_at_once_are_those_of_wrapped_single_environments(env: str, mode: str) -> None:
    # Humanoid's infos of a reset depend on the velocities of its legs; see the test of those below
    own = {"initial_state": {"dynamics.*_elbow.initial_velocity": "+N(0, 0.1)"}} if env == "Humanoid-v5" else {}
    ours, theirs = gapped(env, {**GAPS, **own}, mode, max_episode_steps=12)
    assert sum(assert_alike(ours, theirs, 40)) >= 9


def test_the_gaps_above_are_there() -> None:
    envs, theirs = gapped("Hopper-v5", GAPS, NEXT)
    theirs.close()
    first, infos = envs.reset(seed=0)
    # noise of the environment on joint speeds is 10 times smaller than ours on top
    assert np.abs(first - make_vec("Hopper-v5", 3).reset(seed=0)[0]).max() > 0.05
    known, pushes = [in_force(infos)], []
    for _ in range(12):
        infos = envs.step(np.ones((3, 3)))[4]
        known.append(in_force(infos))
        pushes.append(infos["push"])
    moves = {
        "dynamics.foot_joint.damping": True,
        "dynamics.floor.friction[0]": True,
        "execution.dead_zone.width": True,
        "dynamics.foot_joint.armature": False,
        "execution.latency.delay": False,
        TORSO: False,
    }
    for name, moving in moves.items():
        values = np.array([k[name] for k in known])
        assert (len(np.unique(values[:, 0])) > 1) == moving, name
        assert len(np.unique(values[-1])) == 3, name
    force = np.linalg.norm(np.array(pushes)[..., :3], axis=-1)
    # 20 ms are three control steps of 8 ms, and the impulse is kept
    strong = force[force > 0]
    assert 0 < len(strong) < force.size
    assert ((strong > 5 * 20 / 24) & (strong < 10 * 20 / 24)).all()


@pytest.mark.parametrize(
    ("when", "mode"),
    [
        ("startup", NEXT),
        ("startup", SAME),
        ("startup", DISABLED),
        ({"interval": 0.03}, NEXT),
        ({"interval": 0.03}, SAME),
        ({"interval": 0.03}, DISABLED),
        ({"step": {"at": 0.05}}, NEXT),
        ({"drift": {"over": 0.1}}, SAME),
        ({"sinusoid": {"period": 0.2}}, DISABLED),
        ({"saw_tooth": {"period": 0.1, "every": 0.02}}, NEXT),
        ({"uniform": {}}, SAME),
        ({"random_walk": {"std": 0.3}}, DISABLED),
        ({"drift_pos": {"std": 0.3}}, NEXT),
        ({"cyclic_neg": {"std": 0.3, "every": 0.01}}, SAME),
    ],
    ids=str,
)
def test_parameters_move_as_in_single_environments(when: Any, mode: str) -> None:
    draws = {"dynamics.*.mass": "*U(0.5, 2) each", "dynamics.*.damping": "*U(0.5, 2)"}
    parameters = [{"parameters": draws, "when": when}]
    ours = make_vec("Hopper-v5", 2, parameters=parameters, autoreset_mode=mode, max_episode_steps=12, threads=1)
    assert_alike(ours, oracle("Hopper-v5", 2, mode, parameters, max_episode_steps=12), 40)


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_joint_draws_are_those_of_single_environments(mode: str) -> None:
    names = ("dynamics.torso.mass", "dynamics.thigh.mass")
    samples = np.random.default_rng(0).uniform(2, 5, (20, 2))
    posterior = JointEmpirical(
        tuple(Parameter(name=name, unit="kg", distribution=parse_distribution("U(2, 5)")) for name in names), samples
    )
    normal = {"dynamics.leg.mass, dynamics.foot.mass": "*MVN([1, 1], [[0.01, 0.009], [0.009, 0.01]])"}
    for parameters in (posterior, normal):
        ours = make_vec("Hopper-v5", 3, parameters=parameters, autoreset_mode=mode, max_episode_steps=12, threads=1)
        assert_alike(ours, oracle("Hopper-v5", 3, mode, parameters, max_episode_steps=12), 30)
    values = in_force(make_vec("Hopper-v5", 3, parameters=posterior).reset(seed=0)[1])
    for row in np.stack([values[name] for name in names], 1):
        assert (np.abs(samples - row).max(1) < 1e-9).any()


def test_a_torque_and_a_force_along_axes_are_those_of_single_environments() -> None:
    push = {
        "body": "thigh",
        "force": ["N(0, 30)", "0", "U(-20, 20)"],
        "torque": ["0", "U(-5, 5)", "0"],
        "every": 0.05,
        "duration": 0.02,
    }
    for mode in MODES:
        ours, theirs = gapped("Hopper-v5", {"push": push}, mode, max_episode_steps=15)
        assert_alike(ours, theirs, 40)


def test_the_infos_of_a_reset_tell_of_the_state_that_it_ended_in() -> None:
    ours, theirs = gapped("Hopper-v5", {"initial_state": {"dynamics.rootx.initial_position": "+5"}}, NEXT)
    got = ours.reset(seed=0)
    assert (np.abs(got[1]["x_position"] - 5) < 0.01).all()
    assert_same(got, theirs.reset(seed=0))


# Seeds.


def gapped_hopper(**kwargs: Any) -> Envs:
    return make_vec("Hopper-v5", 4, **sim2real.gaps(GAPS), **{"max_episode_steps": 15, **kwargs})


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_the_same_seed_gives_the_same_bytes_whatever_ran_before(mode: str) -> None:
    first, second = gapped_hopper(autoreset_mode=mode), gapped_hopper(autoreset_mode=mode)
    expected = fingerprint(first)
    assert fingerprint(second) == expected
    assert fingerprint(second, seed=4) != expected
    second.reset(options={"parameters": {TORSO: 9.0, "dynamics.foot_joint.damping": 3.0}})
    second.step(np.ones((4, 3)))
    assert fingerprint(second) == expected


@pytest.mark.parametrize("env", ["Hopper-v5", "Ant-v5"])
def test_threads_do_not_change_the_bytes(env: str) -> None:
    recipe = sim2real.gaps(GAPS)
    seen = {fingerprint(make_vec(env, 4, threads=k, max_episode_steps=15, **recipe)) for k in (0, 1, 2, 3, 7)}
    assert len(seen) == 1


def test_environment_i_has_the_seed_plus_i_and_its_generator() -> None:
    ours, theirs = gapped("Hopper-v5", GAPS, NEXT, max_episode_steps=10)
    assert_alike(ours, theirs, 25, seed=11)
    assert ours.np_random_seed == theirs.np_random_seed == (11, 12, 13)
    for got, expected in zip(ours.np_random, theirs.np_random, strict=True):
        assert got.bit_generator.state == expected.bit_generator.state
    alone = [make_vec("Hopper-v5", 1, **sim2real.gaps(GAPS)).reset(seed=11 + i) for i in range(3)]
    together, infos = ours.reset(seed=11)
    for i, (observation, info) in enumerate(alone):
        np.testing.assert_array_equal(together[i], observation[0])
        for name, value in in_force(info).items():
            assert infos["parameters"][name][i] == value[0]


def test_seeds_may_be_a_list() -> None:
    ours, theirs = gapped("Hopper-v5", GAPS, NEXT)
    assert_same(ours.reset(seed=[5, 1, 5]), theirs.reset(seed=[5, 1, 5]))
    # None leaves a generator as it is
    assert_same(ours.reset(seed=[None, 2, None]), theirs.reset(seed=[None, 2, None]))
    assert ours.np_random_seed == (5, 2, 5)
    first, infos = ours.reset(seed=[5, 1, 5])
    np.testing.assert_array_equal(first[0], first[2])
    assert infos["parameters"][TORSO][0] == infos["parameters"][TORSO][2] != infos["parameters"][TORSO][1]
    with pytest.raises(ParameterError, match="a seed for each of 3 environments, found 2"):
        ours.reset(seed=[1, 2])
    with pytest.raises(gym.error.Error, match="-1"):
        make_vec("Hopper-v5", 2).reset(seed=-1)


def test_resets_without_a_seed_differ() -> None:
    seen = []
    for _ in range(2):
        envs = make_vec("Hopper-v5", 2, parameters=TORSO_MASS)
        for _ in range(2):
            observations, infos = envs.reset()
            seen += [*observations[:, 0], *in_force(infos)[TORSO]]
    assert len(set(seen)) == 16


def test_startup_draws_are_made_once_and_again_with_a_seed() -> None:
    startup = [{"parameters": TORSO_MASS, "when": "startup"}]
    envs = make_vec("Hopper-v5", 3, parameters=startup, autoreset_mode=DISABLED)
    first = in_force(envs.reset(seed=0)[1])[TORSO].copy()
    assert len(set(first)) == 3
    np.testing.assert_array_equal(in_force(envs.reset()[1])[TORSO], first)
    some = np.array([False, True, True])
    envs.reset(seed=5, options={"reset_mask": some})
    assert (envs.parameter_store().read()[TORSO] != first).tolist() == some.tolist()
    np.testing.assert_array_equal(in_force(envs.reset(seed=0)[1])[TORSO], first)


def test_startup_draws_are_made_whoever_looked_at_the_generators_before() -> None:
    startup = [{"parameters": TORSO_MASS, "when": "startup"}]
    envs = make_vec("Hopper-v5", 3, parameters=startup)
    assert len(envs.np_random) == 3
    drawn = in_force(envs.reset()[1])[TORSO]
    assert len(set(drawn)) == 3


def test_startup_draws_are_made_when_an_environment_is_first_reset() -> None:
    startup = [{"parameters": TORSO_MASS, "when": "startup"}]
    envs = make_vec("Hopper-v5", 3, parameters=startup, autoreset_mode=DISABLED)
    restart(envs, np.array([True, False, False]))
    drawn = in_force(envs.reset()[1])[TORSO]
    lowest = 0.8 * envs.parameter_store().nominal()[TORSO]  # what a draw that was never made would give
    assert (drawn > lowest * 1.0001).all()
    assert len(set(drawn)) == 3


def test_a_reset_of_some_leaves_the_others_alone() -> None:
    recipe = {**GAPS, "push": {**GAPS["push"], "every": 0.01}}
    envs, untouched = (
        make_vec("Hopper-v5", 4, autoreset_mode=DISABLED, terminate_when_unhealthy=False, **sim2real.gaps(recipe))
        for _ in range(2)
    )
    assert isinstance(envs, MujocoVectorEnv)
    mask = np.array([False, True, False, True])
    others = ~mask
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4, 3))
    for e in (envs, untouched):
        e.reset(seed=0)
        for action in actions[:10]:
            last = e.step(action)
    state = {name: getattr(envs.plants, name).copy() for name in ("qpos", "qvel", "ctrl")}
    values = envs.parameter_store().read()
    generators = [copy.deepcopy(g.bit_generator.state) for g in envs.np_random]
    observations, _ = restart(envs, mask)
    np.testing.assert_array_equal(observations[others], last[0][others])
    assert (observations[mask] != last[0][mask]).any(1).all()
    for name, value in state.items():
        np.testing.assert_array_equal(getattr(envs.plants, name)[others], value[others])
    for name, value in envs.parameter_store().read().items():
        np.testing.assert_array_equal(value[others], values[name][others], err_msg=name)
    assert (envs.parameter_store().read()[TORSO] != values[TORSO])[mask].all()
    same = [g.bit_generator.state == state for g, state in zip(envs.np_random, generators, strict=True)]
    assert same == others.tolist()
    for action in actions[10:]:
        got, expected = envs.step(action), untouched.step(action)
        np.testing.assert_array_equal(got[0][others], expected[0][others])
        np.testing.assert_array_equal(got[1][others], expected[1][others])
        np.testing.assert_array_equal(got[4]["push"][others], expected[4]["push"][others])
        for name, value in in_force(expected[4]).items():
            np.testing.assert_array_equal(in_force(got[4])[name][others], value[others], err_msg=name)
        assert (got[0][mask] != expected[0][mask]).any(1).all()
    # nor did the streams of their draws move
    got, expected = envs.reset(), untouched.reset()
    np.testing.assert_array_equal(got[0][others], expected[0][others])
    for name, value in in_force(expected[1]).items():
        np.testing.assert_array_equal(in_force(got[1])[name][others], value[others], err_msg=name)


def test_a_reset_of_some_with_a_seed_seeds_those() -> None:
    ours, theirs = gapped("Hopper-v5", GAPS, DISABLED)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    mask = np.array([True, False, True])
    got = ours.reset(seed=40, options={"reset_mask": mask})[0]
    assert_same(got, theirs.reset(seed=40, options={"reset_mask": mask.copy()})[0])
    assert ours.np_random_seed == theirs.np_random_seed == (40, 1, 42)
    assert_same(ours.reset(), theirs.reset())


def test_the_infos_of_a_reset_of_some_are_gymnasiums() -> None:
    ours = make_vec("Hopper-v5", 3, parameters=TORSO_MASS, autoreset_mode=DISABLED)
    theirs = oracle("Hopper-v5", 3, DISABLED, TORSO_MASS)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    mask = np.array([True, False, True])
    got = restart(ours, mask)
    assert_same(got, restart(theirs, mask.copy()))
    kept = copy.deepcopy(got)
    mask[:] = True
    assert_same(got, kept)


# Forced parameters.


def test_parameters_can_be_forced_on_each_environment_or_on_all() -> None:
    masses = np.array([2.0, 3.0, 4.0])
    envs = make_vec("Hopper-v5", 3, parameters={**TORSO_MASS, "dynamics.*.damping": "*U(0.5, 2)"})
    forced = {TORSO: masses, "dynamics.leg.mass": 1.5, "dynamics.thigh.mass": masses + 1}
    observations, infos = envs.reset(seed=0, options={"parameters": forced})
    singles = [
        RandomizeDynamics(gym.make("Hopper-v5"), {**TORSO_MASS, "dynamics.*.damping": "*U(0.5, 2)"}) for _ in range(3)
    ]
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 3, 3)).astype(np.float32)
    for i, single in enumerate(singles):
        mine = {TORSO: masses[i], "dynamics.leg.mass": 1.5, "dynamics.thigh.mass": masses[i] + 1}
        observation, info = single.reset(seed=i, options={"parameters": mine})
        np.testing.assert_array_equal(observations[i], observation)
        assert {name: value[i] for name, value in in_force(infos).items()} == info["parameters"]
    for action in actions:
        got = envs.step(action)
        for i, single in enumerate(singles):
            np.testing.assert_allclose(got[0][i], single.step(action[i])[0], rtol=1e-9, atol=1e-9)
    assert in_force(got[4])[TORSO].tolist() == masses.tolist()
    assert in_force(got[4])["dynamics.leg.mass"].tolist() == [1.5] * 3
    # and that episode only
    drawn = in_force(envs.reset()[1])
    assert "dynamics.leg.mass" not in drawn
    assert len({*drawn[TORSO], *masses}) == 6
    nominal, now = envs.parameter_store().nominal(), envs.parameter_store().read()
    for name in ("dynamics.leg.mass", "dynamics.thigh.mass"):
        assert now[name].tolist() == [nominal[name]] * 3


@pytest.mark.parametrize("mode", MODES)
def test_forced_parameters_come_and_go_as_in_single_environments(mode: str) -> None:
    parameters = [{"parameters": TORSO_MASS, "when": {"random_walk": {"std": 0.3}}}]
    ours = make_vec("Hopper-v5", 3, parameters=parameters, autoreset_mode=mode, max_episode_steps=15, threads=1)
    theirs = oracle("Hopper-v5", 3, mode, parameters, max_episode_steps=15)
    options: dict[str, Any] = {"parameters": {TORSO: 3.0, "dynamics.leg.mass": 1.5}}
    assert_same(ours.reset(seed=0, options=options), theirs.reset(seed=0, options=options))
    masks = {5: [True, False, True], 9: [False, True, False]}
    ended = 0
    for step in range(40):
        actions = np.ones((3, 3))
        got = ours.step(actions)
        assert_same(got, theirs.step(actions), f"step {step} ")
        done = got[2] | got[3]
        ended += done.sum()
        if mode == DISABLED and done.any():
            assert_same(restart(ours, done), restart(theirs, done))
        if step in masks:
            mask, forced = np.array(masks[step]), {"dynamics.t*.mass": 2.0 + step}
            assert_same(restart(ours, mask, parameters=forced), restart(theirs, mask, parameters=forced))
    assert ended >= 5


def test_forced_parameters_hold_while_others_move_and_until_their_own_environment_restarts() -> None:
    parameters = [{"parameters": {"dynamics.*.mass": "*U(0.5, 2) each"}, "when": {"random_walk": {"std": 0.3}}}]
    envs = make_vec("Hopper-v5", 3, parameters=parameters, autoreset_mode=DISABLED, terminate_when_unhealthy=False)
    envs.reset(seed=0)
    mask = np.array([False, True, True])
    restart(envs, mask, parameters={"dynamics.t*.mass": np.array([1.0, 2.0, 3.0])})
    for _ in range(5):
        infos = envs.step(np.zeros((3, 3)))[4]
        for name in (TORSO, "dynamics.thigh.mass"):
            assert in_force(infos)[name].tolist()[1:] == [2.0, 3.0]
            assert in_force(infos)[name][0] not in (1.0, 2.0, 3.0)
    restart(envs, np.array([False, False, True]))
    for _ in range(2):
        infos = envs.step(np.zeros((3, 3)))[4]
    assert in_force(infos)[TORSO][1] == 2.0
    assert in_force(infos)[TORSO][2] != 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {TORSO: np.ones(3)}}, r"dynamics.torso.mass: expected a number or \(2,\) values"),
        ({"parameters": {TORSO: -1.0}}, "cannot be negative"),
        ({"parameters": {"dynamics.torsoo.mass": 1.0}}, "did you mean dynamics.torso.mass"),
        ({"parameters": [1.0]}, "name: value"),
        ({"reset_mask": [True, False]}, "reset_mask"),
        ({"reset_mask": np.array([1, 0])}, "reset_mask"),
        ({"reset_mask": np.array([False, False])}, "reset_mask"),
        ({"reset_mask": np.array([True, False, True])}, r"shape \(2,\)"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    envs = make_vec("Hopper-v5", 2, parameters=TORSO_MASS)
    envs.reset(seed=0)
    with pytest.raises(ParameterError, match=message):
        envs.reset(options=options)


# Gymnasium's rules.


@pytest.mark.parametrize("mode", [*MODES, *AutoresetMode])
def test_it_says_how_it_resets(mode: Any) -> None:
    envs = make_vec("Hopper-v5", 2, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] == AutoresetMode(mode)
    assert envs.num_envs == 2
    assert envs.observation_space.contains(envs.reset(seed=0)[0])
    envs.close()


def test_a_step_before_a_reset_is_refused() -> None:
    envs = make_vec("Hopper-v5", 2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 3)))


def test_looking_at_the_generators_is_not_a_reset() -> None:
    envs = make_vec("Hopper-v5", 2)
    assert len(envs.np_random) == len(envs.np_random_seed) == 2
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 3)))


def test_a_step_is_refused_while_some_environments_were_never_reset() -> None:
    envs = make_vec("Hopper-v5", 2, autoreset_mode=DISABLED)
    restart(envs, np.array([True, False]))
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((2, 3)))


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (3,), (2, 3, 1), (1, 3)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    envs = make_vec("Hopper-v5", 2)
    envs.reset(seed=0)
    with pytest.raises(ParameterError, match=r"expected actions \(2, 3\)"):
        envs.step(np.zeros(shape))


def test_without_autoreset_an_environment_that_has_ended_must_be_reset() -> None:
    envs = make_vec("Reacher-v5", 2, autoreset_mode=DISABLED, max_episode_steps=3)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros((2, 2)))
    restart(envs, np.array([True, False]))
    assert envs.step(np.zeros((2, 2)))[3].tolist() == [False, True]
    with pytest.raises(gym.error.ResetNeeded, match="1 episodes have ended"):
        envs.step(np.zeros((2, 2)))
    restart(envs, np.array([True, False]))
    with pytest.raises(gym.error.ResetNeeded, match="1 episodes have ended"):
        envs.step(np.zeros((2, 2)))
    restart(envs, np.array([False, True]))
    assert envs.step(np.zeros((2, 2)))[3].tolist() == [False, False]


def test_the_step_after_an_end_ignores_the_action() -> None:
    results = []
    for action in (-1.0, 1.0):
        envs = make_vec("Reacher-v5", 2, max_episode_steps=2)
        envs.reset(seed=0)
        for a in (0.0, 0.0, action):
            observations, rewards, terminated, truncated, _ = envs.step(np.full((2, 2), a))
        assert rewards.tolist() == [0.0, 0.0]
        assert not (terminated | truncated).any()
        results.append(observations.tobytes())
    assert results[0] == results[1]


def test_what_was_returned_is_not_overwritten() -> None:
    for mode in (NEXT, SAME):
        envs = gapped_hopper(autoreset_mode=mode, max_episode_steps=4)
        given = [envs.reset(seed=0)]
        kept = [copy.deepcopy(given[0])]
        for _ in range(10):
            given.append(envs.step(np.ones((4, 3))))
            kept.append(copy.deepcopy(given[-1]))
        assert_same(given, kept)


WRAPPERS: dict[str, Callable[[Envs], Any]] = {
    "record": vector_wrappers.RecordEpisodeStatistics,
    "list": vector_wrappers.DictInfoToList,
    "record and list": lambda envs: vector_wrappers.DictInfoToList(vector_wrappers.RecordEpisodeStatistics(envs)),
    "normalize observation": vector_wrappers.NormalizeObservation,
    "flatten observation": vector_wrappers.FlattenObservation,
    "normalize reward": vector_wrappers.NormalizeReward,
    "double reward": lambda envs: vector_wrappers.TransformReward(envs, lambda rewards: 2 * rewards),
    "clip action": vector_wrappers.ClipAction,
}


def without_times(infos: Any) -> Any:
    for info in infos if isinstance(infos, list) else [infos]:
        if "episode" in info:
            info["episode"] = {"r": info["episode"]["r"], "l": info["episode"]["l"]}
    return infos


@pytest.mark.parametrize("mode", [NEXT, SAME])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gymnasiums_vector_wrappers_run_over_it(wrapper: str, mode: str) -> None:
    parameters = {**COMMON, **PROBLEMS["Hopper-v5"][1]}
    ours = make_vec("Hopper-v5", 2, parameters=parameters, autoreset_mode=mode, max_episode_steps=12, threads=1)
    theirs: Any = oracle("Hopper-v5", 2, mode, parameters, max_episode_steps=12)
    if mode == SAME and "observation" in wrapper:
        # those that change observations would leave the last one of an episode as it is
        with pytest.raises(ValueError, match="autoreset_mode"):
            WRAPPERS[wrapper](ours)
        return
    ours, theirs = WRAPPERS[wrapper](ours), WRAPPERS[wrapper](theirs)
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    ours.action_space.seed(0)
    recorded = 0
    for _ in range(40):
        actions = ours.action_space.sample()
        *got, infos = ours.step(actions)
        *expected, their_infos = theirs.step(actions)
        assert_same(got, expected)
        recorded += "episode" in infos or (isinstance(infos, list) and any("episode" in info for info in infos))
        assert_same(without_times(infos), without_times(their_infos))
    assert (recorded > 0) == ("record" in wrapper)


def test_the_wrappers_for_single_environments_say_what_to_use_instead() -> None:
    with pytest.raises(ParameterError, match="make_vec"):
        RandomizeDynamics(make_vec("Hopper-v5", 2), TORSO_MASS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"parameters": {"dynamics.torso.mas": "*2"}}, "did you mean dynamics.torso.mass"),
        ({"parameters": [{"parameters": TORSO_MASS}, {"parameters": {"dynamics.*.mass": "*2"}}]}, "claim"),
        ({"push": {"body": "torsoo", "force": "1"}}, "did you mean torso"),
        ({"initial_state": {"dynamics.rootz.initial_positio": "+1"}}, "rootz.initial_position"),
        ({"execution": [{"stage": "drive", "output": "V"}]}, "in V, but a motor takes an effort"),
        ({"vectorization": "batched"}, "fastest, batch, genesis, sync or async"),
        ({"render_mode": "rgb_array"}, "has no render()"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_vec("Hopper-v5", **{"num_envs": 2, **arguments})


# Problems of one's own.

CRANE = """<mujoco model="crane">
  <option timestep="0.004"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="cart" pos="0 0 1">
      <joint name="rail" type="slide" axis="1 0 0" damping="0.5"/>
      <geom size=".1" mass="1"/>
      <body name="arm">
        <joint name="elbow" axis="0 1 0" damping=".05"/>
        <geom type="capsule" fromto="0 0 -.15 0 0 -.5" size=".03" mass=".3"/>
        <site name="tip" pos="0 0 -.5"/>
      </body>
    </body>
    <body name="ball" pos="0.5 0 .12"><freejoint name="ball"/><geom size=".1" mass=".2"/></body>
  </worldbody>
  <actuator>
    <motor name="pull" joint="rail" gear="5" ctrlrange="-1 1" ctrllimited="true"/>
    <position name="aim" joint="elbow" kp="3"/>
  </actuator>
  <sensor><velocimeter site="tip"/></sensor>
</mujoco>"""
BALL = 3


@pytest.fixture
def crane(tmp_path: Path) -> Path:
    file = tmp_path / "crane.xml"
    file.write_text(CRANE, encoding="utf-8")
    return file


def crane_task(file: Path, **kwargs: Any) -> FunctionTask:
    def observe(p: Plants) -> Array:
        return np.concatenate([p.qpos, p.qvel, p.site_xpos[:, 0], p.sensordata, p.cfrc_ext[:, BALL]], 1)

    return FunctionTask(
        file,
        observation=observe,
        reward=lambda p, action: -np.abs(p.site_xpos[:, 0, 0]) - 0.1 * np.square(action).sum(1),
        terminated=lambda p: np.abs(p.qpos[:, 1]) > 0.35,
        fields=("site_xpos", "sensordata", "cfrc_ext"),
        **{"frame_skip": 3, "noise": 0.05, **kwargs},
    )


class ByHand:
    """One plant, stepped with MuJoCo alone."""

    def __init__(self, model: Any, seed: int, frame_skip: int, noise: float) -> None:
        self.model, self.frame_skip, self.noise = copy.copy(model), frame_skip, noise
        self.nominal = copy.copy(model)
        self.data = mujoco.MjData(self.model)
        self.rng = np_random(seed)[0]

    def reset(self, values: Mapping[str, float]) -> Any:
        for name, value in values.items():
            _, entity, field = name.split(".")
            if field == "mass":
                nominal = self.nominal.body(entity)
                self.model.body(entity).mass[0] = value
                self.model.body(entity).inertia[:] = nominal.inertia * value / nominal.mass[0]
            else:
                self.model.dof_damping[self.model.joint(entity).dofadr[0]] = value
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] += self.rng.uniform(-self.noise, self.noise, self.model.nq)
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        self.data.qvel[:] = self.rng.uniform(-self.noise, self.noise, self.model.nv)
        mujoco.mj_forward(self.model, self.data)
        return self.data

    def step(self, action: Any) -> Any:
        self.data.ctrl[:] = action
        for _ in range(self.frame_skip):
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_rnePostConstraint(self.model, self.data)
        return self.data


def values_of(infos: Mapping[str, Any], i: int) -> dict[str, float]:
    return {name: float(value[i]) for name, value in in_force(infos).items()}


def crane_observation(data: Any) -> Array:
    parts = [data.qpos, data.qvel, data.site_xpos[0], data.sensordata, data.cfrc_ext[BALL]]
    return np.concatenate(parts)


def test_a_problem_of_ones_own_is_a_loop_around_mj_step(crane: Path) -> None:
    task, n = crane_task(crane), 3
    assert task.dt == pytest.approx(0.012)
    assert task.action_space.low.tolist() == [-1.0, -np.inf]
    assert task.action_space.high.tolist() == [1.0, np.inf]
    parameters = {"dynamics.arm.mass": "*U(0.5, 2)", "dynamics.*.damping": "*U(0.5, 2) each"}
    envs = make_vec(task, n, parameters=parameters, max_episode_steps=25)
    plants = [ByHand(task.model, 5 + i, 3, 0.05) for i in range(n)]
    observations, infos = envs.reset(seed=5)
    assert observations.dtype == envs.observation_space.dtype == np.float64
    for i, plant in enumerate(plants):
        data = plant.reset(values_of(infos, i))
        np.testing.assert_allclose(observations[i], crane_observation(data), rtol=0, atol=1e-12)
    actions = np.random.default_rng(0).uniform(-2, 2, (110, n, 2))
    elapsed, ended, touched = np.zeros(n, int), np.zeros(n, bool), 0.0
    ends = np.zeros(2, int)
    for action in actions:
        observations, rewards, terminated, truncated, infos = envs.step(action)
        for i, plant in enumerate(plants):
            if ended[i]:
                elapsed[i] = 0
                data = plant.reset(values_of(infos, i))
                expected = 0.0, False, False
            else:
                elapsed[i] += 1
                data = plant.step(action[i])
                reward = -abs(data.site_xpos[0, 0]) - 0.1 * np.square(action[i]).sum()
                expected = reward, abs(data.qpos[1]) > 0.35, elapsed[i] == 25
                touched = max(touched, np.abs(data.cfrc_ext[BALL]).max())
            np.testing.assert_allclose(observations[i], crane_observation(data), rtol=0, atol=1e-9)
            assert rewards[i] == pytest.approx(expected[0], rel=1e-9)
            assert (terminated[i], truncated[i]) == expected[1:]
        ended = terminated | truncated
        ends += [terminated.sum(), truncated.sum()]
    # the ball fell on the floor, arms swung too far, and time ran out
    assert touched > 1.0
    assert (ends > 0).all()


def test_a_packaged_robot_is_a_loop_around_mj_step() -> None:
    task = FunctionTask(
        "double_pendulum",
        observation=lambda p: np.concatenate([np.sin(p.qpos), np.cos(p.qpos), p.qvel], 1),
        reward=lambda p, action: -np.cos(p.qpos[:, 0]) - (action**2).sum(1),
        terminated=lambda p: np.zeros(len(p.qpos), bool),
        frame_skip=4,
        noise=1.0,
    )
    envs = make_vec(task, 2, parameters={"dynamics.*.mass": "*U(0.5, 2) each"})
    model = mujoco.MjModel.from_xml_path(str(path("double_pendulum")))
    observations, infos = envs.reset(seed=0)
    plants = [ByHand(model, i, 4, 1.0) for i in range(2)]
    for i, plant in enumerate(plants):
        plant.reset(values_of(infos, i))
    for action in np.random.default_rng(0).uniform(-0.2, 0.2, (50, 2, 2)):
        observations, rewards, terminated, truncated, _ = envs.step(action)
        for i, plant in enumerate(plants):
            data = plant.step(action[i])
            expected = np.concatenate([np.sin(data.qpos), np.cos(data.qpos), data.qvel])
            np.testing.assert_allclose(observations[i], expected, rtol=1e-9, atol=1e-9)
            assert rewards[i] == pytest.approx(-np.cos(data.qpos[0]) - np.square(action[i]).sum(), rel=1e-9)
        assert not terminated.any()
        assert not truncated.any()


URDF = """<robot name="arm">
  <link name="base"/>
  <link name="beam"><inertial><origin xyz="0 0 -0.3"/><mass value="0.4"/>
    <inertia ixx="0.01" iyy="0.01" izz="0.001" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="turn" type="continuous"><parent link="base"/><child link="beam"/><axis xyz="0 1 0"/>
    <dynamics damping="0.03" friction="0.02"/></joint>
</robot>"""


def free_swing(robot: Any, **kwargs: Any) -> FunctionTask:
    functions: dict[str, Any] = {
        "observation": lambda p: np.concatenate([p.qpos, p.qvel], 1),
        "reward": lambda p, action: -np.abs(p.qpos[:, 0]) - np.square(action).sum(1),
        "terminated": lambda p: np.zeros(len(p.qpos), bool),
    }
    return FunctionTask(robot, **{**functions, **kwargs})


def test_a_urdf_swings_freely_since_it_has_no_motors(tmp_path: Path) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(URDF, encoding="utf-8")
    task = free_swing(file, noise=1.0, frame_skip=5)
    envs = make_vec(task, 2, parameters={"dynamics.beam.mass": "*U(0.5, 2)"})
    assert envs.action_space.shape == (2, 0)
    observations, infos = envs.reset(seed=0)
    plants = [ByHand(task.model, i, 5, 1.0) for i in range(2)]
    for i, plant in enumerate(plants):
        data = plant.reset(values_of(infos, i))
        np.testing.assert_array_equal(observations[i], [*data.qpos, *data.qvel])
    for _ in range(30):
        observations, rewards, *_ = envs.step(envs.action_space.sample())
        for i, plant in enumerate(plants):
            data = plant.step([])
            np.testing.assert_allclose(observations[i], [*data.qpos, *data.qvel], rtol=1e-9, atol=1e-9)
            assert rewards[i] == pytest.approx(-abs(data.qpos[0]), rel=1e-9)
    with pytest.raises(ParameterError, match=r"expected actions \(2, 0\), found \(2, 1\)"):
        envs.step(np.zeros((2, 1)))


def test_a_compiled_model_and_a_start_of_ones_own_will_do(crane: Path) -> None:
    model = mujoco.MjModel.from_xml_path(str(crane))

    def initial(rng: np.random.Generator) -> tuple[Array, Array]:
        qpos = model.qpos0.copy()
        qpos[1] = rng.uniform(1, 2)
        return qpos, np.full(model.nv, 0.5)

    envs = make_vec(free_swing(model, initial=initial), 2)
    observations, _ = envs.reset(seed=3)
    for i in range(2):
        assert observations[i, 1] == np_random(3 + i)[0].uniform(1, 2)
    np.testing.assert_array_equal(observations[:, model.nq :], 0.5)


def test_all_gaps_work_on_a_problem_of_ones_own(crane: Path) -> None:
    def vector(mode: str) -> Envs:
        return make_vec(
            crane_task(crane),
            3,
            parameters={"dynamics.arm.mass": "*U(0.5, 2)", "execution.latency.delay": "=U(0, 0.03) s"},
            execution=[{"stage": "latency"}],
            initial_state={"dynamics.ball.initial_position[2]": "=U(1, 2)"},
            push={"body": "arm", "force": "U(5, 10)", "every": 0.05, "duration": 0.012},
            max_episode_steps=10,
            autoreset_mode=mode,
        )

    envs = vector(SAME)
    observations, _ = envs.reset(seed=0)
    assert ((observations[:, 4] >= 1) & (observations[:, 4] <= 2)).all()
    pushed = [envs.step(np.zeros((3, 2)))[4]["push"] for _ in range(9)]
    assert {round(float(np.linalg.norm(p[0])), 9) for p in pushed} - {0.0}
    assert fingerprint(vector(NEXT)) == fingerprint(vector(NEXT)) != fingerprint(vector(SAME))
    # the command is on its way for the first substeps
    still, moving = (
        make_vec(crane_task(crane, noise=0.0), 1, execution=[{"stage": "latency", "delay": 0.012}]) for _ in range(2)
    )
    still.reset(seed=0)
    moving.reset(seed=0)
    assert still.step(np.zeros((1, 2)))[0].tolist() == moving.step(np.ones((1, 2)))[0].tolist()
    assert still.step(np.zeros((1, 2)))[0].tolist() != moving.step(np.ones((1, 2)))[0].tolist()


def test_two_batches_of_one_problem_do_not_share_parameters(crane: Path) -> None:
    task = crane_task(crane)
    heavy, plain = make_vec(task, 2, parameters={"dynamics.*.mass": "*3"}), make_vec(task, 2)
    alone = make_vec(crane_task(crane), 2)
    for envs in (heavy, plain, alone):
        envs.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2, 2)):
        heavy.step(action)
        np.testing.assert_array_equal(plain.step(action)[0], alone.step(action)[0])


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_functions_may_return_views_of_the_plants(mode: str) -> None:
    """They are copied, so that the next step, or the reset within this one, does not change what was returned."""
    views, copies = (
        make_vec(
            free_swing("double_pendulum", observation=observation, reward=reward, noise=1.0),
            2,
            autoreset_mode=mode,
            max_episode_steps=3,
        )
        for observation, reward in (
            (lambda p: p.qpos, lambda p, action: p.qvel[:, 0]),
            (lambda p: p.qpos.copy(), lambda p, action: p.qvel[:, 0].copy()),
        )
    )
    given = [views.reset(seed=0)]
    kept = [copies.reset(seed=0)]
    for _ in range(8):
        given.append(views.step(np.full((2, 2), 0.1)))  # type: ignore[arg-type]
        kept.append(copies.step(np.full((2, 2), 0.1)))  # type: ignore[arg-type]
    assert_same(given, kept)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"observation": lambda p: p.qpos[0]}, r"observation\(plants\) must return \(n, O\), found shape \(2,\)"),
        ({"observation": lambda p: p.xpos, "fields": ("xpos",)}, r"must return \(n, O\), found shape \(2, 3, 3\)"),
        ({"observation": lambda p: p.qpos[:1]}, "for n = 2"),
        ({"reward": lambda p, action: p.qpos}, r"reward must return \(n,\), found shape \(2, 2\)"),
        ({"reward": lambda p, action: 1.0}, r"reward must return \(n,\), found shape \(\)"),
        ({"terminated": lambda p: False}, r"terminated must return \(n,\), found shape \(\)"),
        ({"fields": ("xpoz",)}, "MjData has no field 'xpoz'; did you mean xpos"),
        ({"fields": ("efc_force",)}, "MjData has no field 'efc_force'"),
    ],
)
def test_bad_functions_are_refused(functions: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        free_swing("double_pendulum", **functions)


def test_a_field_that_was_not_asked_for_and_a_robot_that_is_not_there_are_named() -> None:
    with pytest.raises(AttributeError, match=r"did not ask for the field 'xpos' .*; it has qpos, qvel, ctrl"):
        free_swing("double_pendulum", observation=lambda p: p.xpos[:, 1])
    with pytest.raises(RobotError, match="did you mean pendulum"):
        free_swing("pendulun")


# Parameters in observations.

MOVING = [
    {"parameters": {"dynamics.*.mass": "*U(0.5, 2) each"}, "when": {"random_walk": {"std": 0.3}}},
    {"parameters": {"dynamics.world.gravity": "*U(0.9, 1.1)"}},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("names", [(), ("dynamics.world.gravity", "dynamics.leg.mass")])
def test_appended_parameters_are_those_of_single_environments(names: Sequence[str], mode: str) -> None:
    def one() -> Any:
        return AppendParameters(RandomizeDynamics(gym.make("Hopper-v5", max_episode_steps=8), MOVING), names)

    envs = make_vec("Hopper-v5", 3, parameters=MOVING, autoreset_mode=mode, max_episode_steps=8)
    ours = AppendParametersVector(envs, names)
    assert ours.single_observation_space.shape == (11 + (len(names) or 5),)
    theirs = SyncVectorEnv([one] * 3, autoreset_mode=mode)
    assert assert_alike(ours, theirs, 30)[1] >= 6


def test_the_last_observation_has_the_parameters_of_the_episode_that_ended() -> None:
    envs = make_vec("Hopper-v5", 3, parameters=TORSO_MASS, autoreset_mode=SAME, max_episode_steps=5)
    ours = AppendParametersVector(envs)
    first = ours.reset(seed=0)[0][:, -1]
    for _ in range(5):
        observations, _, _, truncated, infos = ours.step(np.zeros((3, 3)))
    assert truncated.all()
    assert [o[-1] for o in infos["final_obs"]] == first.tolist()
    assert [len(o) for o in infos["final_obs"]] == [12] * 3
    assert (observations[:, -1] != first).all()
    np.testing.assert_array_equal(observations[:, -1], in_force(infos)[TORSO])


def test_appending_what_is_not_there_is_refused() -> None:
    envs = make_vec("Hopper-v5", 2, parameters=TORSO_MASS)
    with pytest.raises(ParameterError, match=r"is not randomized; did you mean dynamics\.torso\.mass"):
        AppendParametersVector(envs, ["dynamics.torso.mas"])
    with pytest.raises(ParameterError, match="is not randomized"):
        AppendParametersVector(envs, ["dynamics.leg.mass"])
    with pytest.raises(ParameterError, match="wrap each of its environments in AppendParameters"):
        AppendParametersVector(make_vec("CartPole-v1", 2))


def test_appending_where_nothing_is_randomized_is_refused() -> None:
    with pytest.raises(ParameterError):
        AppendParametersVector(make_vec("Hopper-v5", 2))


# stable-baselines3.

learns = pytest.mark.skipif(not importlib.util.find_spec("stable_baselines3"), reason="needs stable-baselines3")


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learnable(n: int, env: str = "InvertedPendulum-v5", limit: int = 6, **kwargs: Any) -> Any:
    return to_stable_baselines(
        make_vec(env, n, parameters=COMMON, autoreset_mode=SAME, max_episode_steps=limit, **kwargs)
    )


@learns
@pytest.mark.parametrize("env", ["InvertedPendulum-v5", "Hopper-v5"])
def test_stable_baselines_sees_what_its_own_vector_shows(env: str) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

    limit = PROBLEMS[env][0]
    ours = learnable(3, env, limit)
    theirs = DummyVecEnv([lambda: RandomizeDynamics(gym.make(env, max_episode_steps=limit), COMMON)] * 3)
    assert isinstance(ours, VecEnv)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    causes = set()
    ours.seed(5)
    theirs.seed(5)
    ours.action_space.seed(0)
    # the second reset goes on with the generators of the first
    for _ in range(2):
        np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-9, atol=1e-9)
        assert_same([*ours.reset_infos], [*theirs.reset_infos])
        for _ in range(60):
            actions = np.array([ours.action_space.sample() for _ in range(3)])
            observations, rewards, dones, infos = ours.step(actions)
            their_observations, their_rewards, their_dones, their_infos = theirs.step(actions)
            np.testing.assert_allclose(observations, their_observations, rtol=0, atol=1e-6)
            assert_same([rewards, dones], [their_rewards, their_dones])
            for i in range(3):
                if not dones[i]:
                    assert infos[i] == {}
                    continue
                causes.add(infos[i]["TimeLimit.truncated"])
                assert type(infos[i]["TimeLimit.truncated"]) is bool
                their_infos[i]["TimeLimit.truncated"] = bool(their_infos[i]["TimeLimit.truncated"])
                assert_same(infos[i], their_infos[i])
                assert_same(ours.reset_infos[i], theirs.reset_infos[i])
    assert causes == {True, False}


@learns
def test_stable_baselines_own_wrappers_and_checks_run_over_it() -> None:
    from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize

    envs = VecMonitor(VecNormalize(VecCheckNan(learnable(3), raise_exception=True), norm_reward=False))
    envs.seed(0)
    envs.reset()
    lengths = []
    for _ in range(30):
        _, rewards, dones, infos = envs.step(np.zeros((3, 1), np.float32))
        assert rewards.dtype == np.float32
        for i in np.flatnonzero(dones):
            lengths.append(infos[i]["episode"]["l"])
            assert infos[i]["episode"]["r"] == lengths[-1]
            assert envs.observation_space.contains(infos[i]["terminal_observation"].astype(np.float64))
    assert set(lengths) == {6}
    envs.close()


@learns
def test_the_adapter_passes_on_options_and_attributes() -> None:
    envs = learnable(2, "Hopper-v5", 20)
    envs.set_options({"parameters": {"dynamics.thigh.mass": 9.0}})
    envs.reset()
    assert [info["parameters"]["dynamics.thigh.mass"] for info in envs.reset_infos] == [9.0, 9.0]
    envs.reset()
    assert 9.0 not in [info["parameters"]["dynamics.thigh.mass"] for info in envs.reset_infos]
    envs.set_options([{}, {"parameters": {"dynamics.thigh.mass": 9.0}}])
    with pytest.raises(ParameterError, match="the same for all"):
        envs.reset()
    assert envs.get_attr("num_envs") == [2, 2]
    assert envs.get_attr("num_envs", [1]) == [2]
    assert not envs.has_attr("nonsense")
    assert envs.env_method("parameter_store", indices=0)[0].nominal()["dynamics.world.gravity"] == 9.81
    assert envs.env_is_wrapped(gym.Wrapper) == [False, False]
    with pytest.raises(ParameterError, match="belongs to all"):
        envs.set_attr("max_episode_steps", 3)


@learns
def test_terminal_observations_have_appended_parameters() -> None:
    vector = make_vec("Hopper-v5", 2, parameters=TORSO_MASS, autoreset_mode=SAME, max_episode_steps=4)
    envs = to_stable_baselines(AppendParametersVector(vector))
    assert envs.observation_space.shape == (12,)
    envs.seed(0)
    first = envs.reset()[:, -1].copy()
    for _ in range(4):
        observations, _, dones, infos = envs.step(np.zeros((2, 3)))
    assert dones.all()
    for i in range(2):
        assert infos[i]["terminal_observation"][-1] == first[i] == infos[i]["parameters"][TORSO]
        assert observations[i, -1] == envs.reset_infos[i]["parameters"][TORSO] != first[i]


@learns
@pytest.mark.parametrize("mode", [NEXT, DISABLED])
def test_stable_baselines_needs_resets_in_the_same_step(mode: str) -> None:
    with pytest.raises(ParameterError, match="autoreset_mode='SameStep'"):
        to_stable_baselines(make_vec("Hopper-v5", 2, autoreset_mode=mode))


@learns
def test_other_environments_reach_stable_baselines_too() -> None:
    parameters = {"dynamics.pole.mass": "*U(0.8, 1.2)"}
    envs = to_stable_baselines(make_vec("CartPole-v1", 2, parameters=parameters, autoreset_mode=SAME))
    envs.seed(0)
    envs.reset()
    assert 0.08 <= envs.reset_infos[1]["parameters"]["dynamics.pole.mass"] <= 0.12
    ended = 0
    for _ in range(40):
        observations, _, dones, infos = envs.step(np.zeros(2, int))
        for i in np.flatnonzero(dones):
            ended += 1
            assert infos[i]["TimeLimit.truncated"] is False
            last = infos[i]["terminal_observation"]
            assert abs(last[0]) > 2.4 or abs(last[2]) > 0.2
            assert np.abs(observations[i]).max() <= 0.05
    assert ended > 4


@learns
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ppo_learns_to_balance_pendulums_of_random_masses() -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecMonitor

    def lengths(n: int) -> Any:
        envs = VecMonitor(learnable(n, limit=200, threads=1))
        envs.seed(0)
        return envs

    model = PPO(
        "MlpPolicy", lengths(16), n_steps=32, batch_size=128, n_epochs=10, learning_rate=3e-3, seed=0, device="cpu"
    )
    before = evaluate_policy(model, lengths(8), n_eval_episodes=8)[0]
    model.learn(5000)
    after = evaluate_policy(model, lengths(8), n_eval_episodes=8)[0]
    assert before < 40
    assert after > 2 * before


# Everything else goes through Gymnasium's own vectorisation.

CARTPOLE = {"dynamics.pole.mass": "*U(0.8, 1.2)", "dynamics.world.gravity": "*U(0.9, 1.1)"}


def test_other_environments_run_in_gymnasiums_sync_vector() -> None:
    ours = make_vec("CartPole-v1", 4, parameters=CARTPOLE, max_episode_steps=9)
    assert type(ours) is SyncVectorEnv
    drawn = in_force(ours.reset(seed=0)[1])
    assert drawn.keys() == CARTPOLE.keys()
    assert len(set(drawn["dynamics.pole.mass"])) == 4
    assert ((drawn["dynamics.pole.mass"] >= 0.08) & (drawn["dynamics.pole.mass"] <= 0.12)).all()
    assert assert_alike(ours, oracle("CartPole-v1", 4, NEXT, CARTPOLE, max_episode_steps=9), 30)[1] > 0
    same = make_vec("CartPole-v1", 2, parameters=CARTPOLE, autoreset_mode=SAME)
    assert same.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


def test_other_environments_run_in_gymnasiums_async_vector() -> None:
    ours = make_vec("CartPole-v1", 2, parameters=CARTPOLE, vectorization="async")
    assert isinstance(ours, AsyncVectorEnv)
    try:
        sync = make_vec("CartPole-v1", 2, parameters=CARTPOLE, vectorization="sync")
        assert_alike(ours, sync, 30)
    finally:
        ours.close()


def test_a_batch_of_what_has_none_is_refused() -> None:
    with pytest.raises(ParameterError, match="CartPole-v1 has no batched task"):
        make_vec("CartPole-v1", 4, parameters=CARTPOLE, vectorization="batch")


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_and_a_sync_vector_of_the_same_id_are_the_same(mode: str) -> None:
    arguments = {"autoreset_mode": mode, "max_episode_steps": 15, **sim2real.gaps(GAPS)}
    sync = make_vec("Walker2d-v5", 2, vectorization="sync", **arguments)
    assert type(sync) is SyncVectorEnv
    assert_alike(make_vec("Walker2d-v5", 2, **arguments), sync, 30)


class Cautious(HopperEnv):  # type: ignore[misc]
    """A class of its own, whose rewards nobody else knows."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward - 5.0, *rest


@pytest.fixture
def registered() -> Iterator[Callable[..., str]]:
    made = []

    def register(**arguments: Any) -> str:
        made.append(f"Sim2realTest{len(made)}-v0")
        gym.register(id=made[-1], max_episode_steps=12, **arguments)
        return made[-1]

    yield register
    for name in made:
        gym.registry.pop(name)


def test_a_subclass_is_not_taken_for_its_base(registered: Callable[..., str]) -> None:
    env = registered(entry_point=Cautious)
    ours = make_vec(env, 2, parameters=TORSO_MASS)
    assert type(ours) is SyncVectorEnv
    assert_alike(ours, oracle(env, 2, NEXT, TORSO_MASS), 15)


def test_keyword_arguments_of_a_registration_count(registered: Callable[..., str]) -> None:
    env = registered(entry_point=HopperEnv, kwargs={"healthy_reward": 7.0})
    ours = make_vec(env, 2)
    assert isinstance(ours, MujocoVectorEnv)
    assert_alike(ours, oracle(env, 2, NEXT), 15)


def test_wrappers_of_a_registration_are_not_lost(registered: Callable[..., str]) -> None:
    rescaled = WrapperSpec(
        "RescaleAction",
        "gymnasium.wrappers:RescaleAction",
        {"min_action": np.full(3, -2, np.float32), "max_action": np.full(3, 2, np.float32)},
    )
    env = registered(entry_point="gymnasium.envs.mujoco.hopper_v5:HopperEnv", additional_wrappers=(rescaled,))
    assert_alike(make_vec(env, 2), oracle(env, 2, NEXT), 15)
