"""Execution and perception around Gymnasium environments."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sim2real
from sim2real import make_vec
from sim2real.adapters import ExecutionGap, PerceptionGap, VectorPerceptionGap
from sim2real.errors import NonFiniteError, ParameterError

Array = NDArray[np.float64]

EXECUTION: list[dict[str, Any]] = [
    {"stage": "packets", "delay": 0.004, "jitter": 0.02, "loss": 0.1},
    {"stage": "hold", "period": 0.01},
    {"stage": "stuck", "probability": 0.01, "duration": 0.02},
    {"stage": "resolution", "step": 0.01},
    {"stage": "noise", "additive": 0.02, "multiplicative": 0.02},
    {"stage": "gain", "gain": 0.95, "offset": 0.01},
    {"stage": "dead_zone", "width": 0.02},
    {"stage": "rate_limit", "rate": 100.0, "acceleration": 1e4},
    {"stage": "lag", "time_constant": 0.01},
    {"stage": "second_order_lag", "frequency": 30.0, "damping_ratio": 0.7},
    {"stage": "thermal_derating", "heating": 0.1},
    {"stage": "saturation", "low": -0.9, "high": 0.9},
    {"stage": "torque_limit", "limit": 0.85},
]
PERCEPTION: list[dict[str, Any]] = [
    {"stage": "gain", "gain": 1.01},
    {"stage": "bias", "offset": 0.01},
    {"stage": "drift", "random_walk": 0.01, "instability": 0.01, "correlation_time": 2.0},
    {"stage": "noise", "additive": 0.01},
    {"stage": "encoder", "step": 0.001},
    {"stage": "hold", "period": 0.04},
    {"stage": "stuck", "probability": 0.01, "duration": 0.1},
    {"stage": "latency", "delay": 0.013, "start": "hold"},
]
FEEDBACK: list[dict[str, Any]] = [
    {"stage": "latency", "delay": 0.003},
    {"stage": "torque_speed", "stall_torque": 150.0, "no_load_speed": 30.0},
    {"stage": "servo_friction", "coulomb": 0.5, "viscous": 0.1, "stribeck": 0.3, "load_motor": 0.05},
]

DRIVEN: list[dict[str, Any]] = [
    {"stage": "latency", "delay": 0.003},
    {"stage": "drive", "kp": 60.0, "kd": 2.0, "limit": 20.0, "period": 0.004, "output": "V"},
    {"stage": "voltage_sag", "supply_voltage": 12.0, "internal_resistance": 0.1, "back_emf": 0.5},
    {"stage": "dc_motor", "resistance": 1.0, "torque_constant": 0.5, "supply_voltage": 12.0, "gear": 10.0},
    {"stage": "friction", "coulomb": 1.0},
]

ON_MUJOCO = ("Hopper-v5", "HalfCheetah-v5", "Reacher-v5")


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0", *ON_MUJOCO])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_full_chains_pass_the_checkers(name: str) -> None:
    stages = EXECUTION + (FEEDBACK if name in ON_MUJOCO else [])
    stages = [dict(s, name=f"{s['stage']}_{k}") for k, s in enumerate(stages)]

    def wrapped() -> gym.Env[Any, Any]:
        return PerceptionGap(
            ExecutionGap(gym.make(name), stages, dt=0.05 if name[0] == "M" else None), PERCEPTION, dt=0.05
        )

    check_env(wrapped(), skip_render_check=True)
    sb3_check_env(wrapped())


@pytest.mark.parametrize("how", ["copy", "pickle", "spec"])
def test_a_copy_reads_the_same_and_a_seed_gives_the_same_bytes(how: str) -> None:
    env: Any = PerceptionGap(ExecutionGap(gym.make("Hopper-v5"), EXECUTION + FEEDBACK), PERCEPTION)
    rollout(env, 5)
    twin: Any = {
        "copy": copy.deepcopy,
        "pickle": lambda e: pickle.loads(pickle.dumps(e)),
        "spec": lambda e: gym.make(e.spec),
    }[how](env)
    expected = rollout(env, 3)
    np.testing.assert_array_equal(rollout(twin, 3), expected)
    assert not np.array_equal(rollout(env, 4), expected)
    np.testing.assert_array_equal(rollout(env, 3), expected)


def test_a_copy_feels_the_friction_of_its_own_plant() -> None:
    """Gymnasium builds the model of a copy anew: what feeds back must look at that one."""

    def made() -> Any:
        return sim2real.RandomizeDynamics(
            ExecutionGap(gym.make("Hopper-v5"), FEEDBACK),
            {"dynamics.*.gear": "*U(0.3, 1)", "dynamics.*.mass": "*U(1, 3)"},
        )

    env = made()
    rollout(env, 5)
    twin = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(rollout(twin, 3), rollout(made(), 3))


def rollout(env: Any, seed: int, steps: int = 15) -> Array:
    rng = np.random.default_rng(0)
    out = [env.reset(seed=seed)[0]]
    out += [env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0] for _ in range(steps)]
    return np.array(out)


def test_infos_report_what_was_commanded_delivered_and_applied() -> None:
    env: Any = ExecutionGap(
        gym.make("Hopper-v5"), [{"stage": "latency", "delay": 0.009}, {"stage": "gain", "gain": 2.0}]
    )
    env.reset(seed=0)
    given = np.array([[0.1, -0.2, 0.9], [0.3, 0.3, -0.3], [0.5, 0.1, 0.2]], np.float32)
    infos = [env.step(a)[4] for a in given]
    for k, info in enumerate(infos):
        np.testing.assert_array_equal(info["commanded_action"], given[k])
    # steps of 8 ms in substeps of 2 ms: half of the last substep is that of the command before, one step on
    np.testing.assert_allclose(infos[2]["delivered_action"], 2 * given[1], rtol=1e-6)
    # the control range of the hopper is [-1, 1], which the engine keeps to
    np.testing.assert_allclose(infos[1]["applied_effort"], np.clip(2 * given[0], -1, 1), rtol=1e-6)
    plain: Any = ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "gain", "gain": 0.5}])
    plain.reset(seed=0)
    info = plain.step(np.array([1.0], np.float32))[4]
    assert (info["delivered_action"].tolist(), "applied_effort" in info) == ([0.5], False)


def test_friction_and_drives_act_in_efforts_at_the_joint() -> None:
    """The hopper's motors have a gear of 200: a friction of 20 N·m takes a control of 0.1."""
    env: Any = ExecutionGap(gym.make("Hopper-v5"), [{"stage": "friction", "coulomb": 20.0}])
    env.reset(seed=0)
    base = env.unwrapped
    base.set_state(base.data.qpos, np.full(6, 3.0))
    info = env.step(np.array([0.5, -0.5, 0.0], np.float32))[4]
    signs = np.sign(base.data.qvel[3:])
    assert (signs == [1, -1, 1]).sum() >= 1
    taken = info["commanded_action"] - info["delivered_action"]
    assert (np.abs(taken) <= 0.1 + 1e-9).all()
    assert np.isclose(np.abs(taken), 0.1).any()
    # a drive holds the joint where the action says, in rad
    servo: Any = ExecutionGap(gym.make("Hopper-v5"), [{"stage": "drive", "kp": 300.0, "kd": 20.0, "limit": 150.0}])
    servo.reset(seed=0)
    target = np.array([-0.3, -0.5, 0.2])
    for _ in range(40):
        servo.step(target.astype(np.float32))
    error = np.abs(servo.unwrapped.data.qpos[3:] - target)
    free: Any = gym.make("Hopper-v5")
    free.reset(seed=0)
    for _ in range(40):
        free.step(np.zeros(3, np.float32))
    assert error.max() < 0.5 * np.abs(free.unwrapped.data.qpos[3:] - target).max()


def test_a_plant_view_is_that_of_the_engine() -> None:
    from sim2real.adapters.motion import JointMotion

    base: Any = gym.make("HalfCheetah-v5").unwrapped
    base.reset(seed=1)
    for _ in range(20):
        base.step(base.action_space.sample())
    before = base.data.qpos.copy(), base.data.qvel.copy(), base.data.time
    view = JointMotion(base.model).view(base.model, base.data)
    np.testing.assert_array_equal(view.position[0], before[0][3:])
    np.testing.assert_array_equal(view.velocity[0], before[1][3:])
    assert base.data.time == before[2]
    # the inertia that a joint shows to an effort of its own, by solving for the acceleration
    for k in range(6):
        force, out = np.zeros((1, base.model.nv)), np.zeros((1, base.model.nv))
        force[0, 3 + k] = 1.0
        mujoco.mj_solveM(base.model, base.data, out, force)
        assert view.effective_inertia[0, k] == pytest.approx(1 / out[0, 3 + k])
    load = base.data.qfrc_bias - base.data.qfrc_passive
    np.testing.assert_allclose(view.load[0], load[3:])


def test_what_has_no_motion_to_show_is_refused() -> None:
    with pytest.raises(ParameterError, match="needs the motion of the plant, which this environment does not show"):
        ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "drive", "kp": 1.0}, {"stage": "friction"}])
    with pytest.raises(ParameterError, match=r"in V, but a motor takes an effort: end with a dc_motor"):
        ExecutionGap(gym.make("Hopper-v5"), [{"stage": "voltage_sag"}])
    with pytest.raises(ParameterError, match=r"stage encoder is one of the perception; give it to PerceptionGap"):
        ExecutionGap(gym.make("Hopper-v5"), [{"stage": "encoder"}])
    with pytest.raises(ParameterError, match=r"stage friction is one of the execution; give it to ExecutionGap"):
        PerceptionGap(gym.make("Hopper-v5"), [{"stage": "friction"}])
    with pytest.raises(ParameterError, match=r"flat Box of real observations.*flatten"):
        PerceptionGap(gym.make("FrozenLake-v1"), [{"stage": "bias"}])


def test_readings_are_those_of_the_sensors() -> None:
    env: Any = PerceptionGap(
        gym.make("Pendulum-v1"),
        [{"stage": "bias", "offset": 0.5, "channels": [2]}, {"stage": "latency", "delay": 0.1, "start": "hold"}],
    )
    bare: Any = gym.make("Pendulum-v1")
    true = [bare.reset(seed=0)[0]] + [bare.step(np.array([1.0], np.float32))[0] for _ in range(6)]
    got = [env.reset(seed=0)[0]] + [env.step(np.array([1.0], np.float32))[0] for _ in range(6)]
    late = [true[0], true[0], *true[:5]]  # 100 ms are two steps
    np.testing.assert_allclose(got, np.add(late, [0, 0, 0.5]), rtol=1e-6)
    assert env.observation_space.contains(got[3])
    wide: Any = PerceptionGap(gym.make("Pendulum-v1"), [{"stage": "velocity_filter"}])
    assert wide.observation_space.shape == wide.reset()[0].shape == (6,)


@pytest.mark.parametrize("inside", [False, True], ids=["wrapped", "made"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_vector_environment_reads_what_single_ones_do(mode: str, inside: bool) -> None:
    mode = gym.vector.AutoresetMode(mode)
    n, dt = 3, gym.make("Hopper-v5").unwrapped.dt  # type: ignore[attr-defined]
    many: Any
    if inside:
        many = make_vec("Hopper-v5", n, max_episode_steps=9, autoreset_mode=mode, perception=PERCEPTION)
    else:
        many = make_vec("Hopper-v5", n, max_episode_steps=9, autoreset_mode=mode)
        many = VectorPerceptionGap(many, PERCEPTION, dt)
    reference: Any = gym.vector.SyncVectorEnv(
        [lambda: PerceptionGap(gym.make("Hopper-v5", max_episode_steps=9), PERCEPTION)] * n, autoreset_mode=mode
    )
    rng = np.random.default_rng(0)
    got, expected = many.reset(seed=3)[0], reference.reset(seed=3)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
    for _ in range(25):
        actions = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
        ours, theirs = many.step(actions), reference.step(actions)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
        done = ours[2] | ours[3]
        np.testing.assert_array_equal(done, theirs[2] | theirs[3])
        if done.any() and mode == gym.vector.AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(done):
                np.testing.assert_allclose(ours[4]["final_obs"][i], theirs[4]["final_obs"][i], rtol=1e-9, atol=1e-9)
        if done.any() and mode == gym.vector.AutoresetMode.DISABLED:
            options = {"reset_mask": done}
            np.testing.assert_allclose(
                many.reset(options=options)[0][done], reference.reset(options=options)[0][done], rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize(
    "stages",
    [[s for s in EXECUTION if s["stage"] != "torque_limit"], FEEDBACK, DRIVEN],
    ids=["signals", "feedback", "drive"],
)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_vector_environment_executes_what_single_ones_do(mode: str, stages: Any) -> None:
    mode = gym.vector.AutoresetMode(mode)
    gears = {"dynamics.*.gear": "*U(0.5, 1)"}
    many = make_vec("Hopper-v5", 3, execution=stages, parameters=gears, autoreset_mode=mode, max_episode_steps=6)
    reference: Any = gym.vector.SyncVectorEnv(
        [lambda: sim2real.RandomizeDynamics(ExecutionGap(gym.make("Hopper-v5", max_episode_steps=6), stages), gears)]
        * 3,
        autoreset_mode=mode,
    )
    many.reset(seed=5)
    reference.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(15):
        actions = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
        ours, theirs = many.step(actions), reference.step(actions)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-7, atol=1e-7)
        for key in ("commanded_action", "delivered_action", "applied_effort"):
            assert (key in ours[4]) == (key in theirs[4])  # all begin together, and then none acts
            if key in ours[4]:
                np.testing.assert_array_equal(ours[4][f"_{key}"], theirs[4][f"_{key}"])
                np.testing.assert_allclose(ours[4][key], theirs[4][key], rtol=1e-7, atol=1e-7)


def test_perception_is_among_what_is_randomized() -> None:
    env: Any = sim2real.RandomizeDynamics(
        PerceptionGap(gym.make("Hopper-v5"), [{"stage": "noise", "additive": 0.1}]),
        {"perception.noise.additive": "=U(0.2, 0.4)"},
    )
    _, info = env.reset(seed=0)
    assert 0.2 <= info["parameters"]["perception.noise.additive"] <= 0.4


def test_a_recipe_has_both_gaps(tmp_path: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "execution: [{stage: latency}, {stage: servo_friction, coulomb: 2.0}]\n"
        "perception: [{stage: latency, delay: 0.01, start: hold}, {stage: noise}]\n"
        "parameters: {execution.latency.delay: '=U(0, 0.02) s', perception.noise.additive: '=U(0.01, 0.1)'}\n"
    )
    env: Any = sim2real.wrap(gym.make("Hopper-v5"), str(file))
    info = env.reset(seed=1)[1]
    assert set(info["parameters"]) == {"execution.latency.delay", "perception.noise.additive"}
    many: Any = make_vec("Hopper-v5", 2, **sim2real.gaps(str(file)))
    one: Any = sim2real.wrap(gym.make("Hopper-v5"), str(file))
    np.testing.assert_allclose(many.reset(seed=1)[0][0], one.reset(seed=1)[0])
    action = np.full((2, 3), 0.2, np.float32)
    for _ in range(5):
        np.testing.assert_allclose(many.step(action)[0][0], one.step(action[0])[0], rtol=1e-7, atol=1e-7)


def behind(name: str, stages: list[dict[str, Any]], vector: bool) -> Any:
    """One environment behind stages, by itself or as a vector of one."""
    return make_vec(name, 1, execution=stages) if vector else ExecutionGap(gym.make(name), stages)


@pytest.mark.parametrize("vector", [False, True])
def test_a_torque_limit_is_one_of_the_joint(vector: bool) -> None:
    limit = [{"stage": "torque_limit", "limit": 30.0}]
    env = behind("HalfCheetah-v5", limit, vector)
    env.reset(seed=0)
    gear = (env.task.model if vector else env.unwrapped.model).actuator_gear[:, 0]
    action = np.array([1.0, -1.0, 0.1, 0.05, -0.1, 1.0])
    *_, info = env.step(action[None] if vector else action)
    np.testing.assert_allclose(np.ravel(info["applied_effort"]) * gear, np.clip(action * gear, -30, 30))
    if not vector:
        gym.register_envs(pytest.importorskip("gymnasium_robotics"))
        with pytest.raises(ParameterError, match="is no motor"):
            ExecutionGap(gym.make("AdroitHandDoor-v1"), limit)


@pytest.mark.parametrize("vector", [False, True])
def test_friction_comes_on_top_of_what_may_be_commanded(vector: bool) -> None:
    """Commands end at 300 N; a friction of 500 N stops a cart at once that moves against the largest command."""
    friction = [{"stage": "friction", "coulomb": 500.0}]
    env = behind("InvertedPendulum-v5", friction, vector)
    env.reset(seed=0)
    plants = env.plants if vector else env.unwrapped.data
    plants.qvel[...] = 0.0
    plants.qvel[..., 0] = -1.0
    env.step(np.full((1, 1) if vector else 1, 10.0))
    before = np.ravel(plants.qvel)[0]
    assert abs(before) < 0.05
    env.step(np.full((1, 1) if vector else 1, 3.0))
    assert abs(np.ravel(plants.qvel)[0]) < 0.05


def test_actions_that_are_not_finite_do_not_reach_the_stages() -> None:
    lag = [{"stage": "lag", "time_constant": 0.1}]
    env, envs = ExecutionGap(gym.make("Pendulum-v1"), lag), make_vec("Hopper-v5", 2, execution=lag)
    env.reset(seed=0)
    envs.reset(seed=0)
    for run, action in ((env, np.array([np.nan])), (envs, np.full((2, 3), np.inf))):
        with pytest.raises(NonFiniteError, match="would stay in the stages"):
            run.step(action)
