"""Wrapped environments pass the checkers of Gymnasium and stable-baselines3, and keep their promises about seeds."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_stable_baselines

from sim2real import wrap
from sim2real.adapters import ExecutionGap
from sim2real.errors import ParameterError, RecipeError
from sim2real.randomization.wrappers import AppendParameters, Push, RandomizeDynamics, RandomizeInitialState

gym.register_envs(gymnasium_robotics)
MASSES = {"dynamics.*.mass": "*U(0.8, 1.2) each"}
ENVS: dict[str, dict[str, str]] = {
    "CartPole-v1": MASSES,
    "Pendulum-v1": MASSES,
    "Acrobot-v1": MASSES,
    "LunarLander-v3": {"dynamics.*.density": "*U(0.8, 1.2) each", "dynamics.world.gravity": "*U(0.9, 1.1)"},
    "Hopper-v5": MASSES | {"dynamics.*.friction[0]": "*U(0.5, 1)"},
    "Ant-v5": MASSES | {"dynamics.*.gear": "*U(0.9, 1.1)"},
    "PointMaze_UMaze-v3": MASSES | {"dynamics.*.damping": "*U(0.5, 2)"},
    "AdroitHandDoor-v1": MASSES | {"dynamics.*.kp": "*U(0.9, 1.1)"},
}


def episode(env: Any, seed: int, steps: int = 30) -> bytes:
    """Everything that a seeded episode returns."""
    env.action_space.seed(0)
    observation, info = env.reset(seed=seed)
    out = [observation, sorted(info["parameters"].items())]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        out += [observation, float(reward), terminated, sorted(info["parameters"].items())]
        if terminated or truncated:
            observation, _ = env.reset()
            out.append(observation)
    return pickle.dumps(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENVS)
def test_the_checkers_pass(name: str) -> None:
    check_env(RandomizeDynamics(gym.make(name), ENVS[name]).unwrapped, skip_render_check=True)
    wrapped = RandomizeDynamics(gym.make(name), ENVS[name])
    check_env(wrapped, skip_render_check=True)
    check_env_for_stable_baselines(wrapped, skip_render_check=True)
    if not hasattr(wrapped, "compute_reward"):  # goal environments have three keys, and no more
        check_env_for_stable_baselines(AppendParameters(wrapped), skip_render_check=True)


@pytest.mark.filterwarnings("ignore")
def test_the_checkers_pass_with_all_gaps() -> None:
    recipe = {
        "parameters": MASSES | {"execution.latency.delay": "=U(0, 0.02) s"},
        "randomization": [{"parameters": {"dynamics.*.damping": "*U(0.5, 2)"}, "when": {"sinusoid": {"period": 1.0}}}],
        "execution": [{"stage": "latency"}, {"stage": "dead_zone", "width": 0.05}],
        "initial_state": {"dynamics.*.initial_velocity": "+N(0, 0.1)"},
        "push": {"body": "torso", "force": "U(5, 10)", "every": 0.1, "duration": 0.05},
    }
    env = wrap(gym.make("Hopper-v5"), recipe)
    check_env(env, skip_render_check=True)
    check_env_for_stable_baselines(env, skip_render_check=True)


@pytest.mark.parametrize("name", ENVS)
def test_same_seed_same_bytes_and_the_start_of_the_bare_environment(name: str) -> None:
    first, second = (RandomizeDynamics(gym.make(name), ENVS[name]) for _ in range(2))
    expected = episode(first, 3)
    episode(second, 8)  # whatever ran before
    assert episode(second, 3) == expected
    assert episode(second, 4) != expected
    if name == "LunarLander-v3":  # its reset takes a step, under the gravity that was drawn
        first = RandomizeDynamics(gym.make(name), {"dynamics.lander.density": "*U(0.8, 1.2)"})
    bare, wrapped = gym.make(name).reset(seed=3)[0], first.reset(seed=3)[0]
    for a, b in zip(*(o.values() if isinstance(o, dict) else [o] for o in (bare, wrapped)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ENVS)
def test_the_spec_makes_the_environment_again(name: str) -> None:
    env: Any = AppendParameters(RandomizeDynamics(gym.make(name), [{"parameters": ENVS[name], "when": "startup"}]))
    spec = env.spec
    assert spec is not None
    expected = episode(env, 5)
    assert episode(gym.make(spec), 5) == expected
    assert episode(gym.make(EnvSpec.from_json(spec.to_json())), 5) == expected


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5"])
def test_copies_go_on_alike_and_apart(name: str) -> None:
    env = RandomizeDynamics(gym.make(name), ENVS[name])
    env.reset(seed=0)
    other = copy.deepcopy(env)
    names = sorted(env.reset()[1]["parameters"])
    values = [env.reset()[1]["parameters"][n] for n in names]
    other.reset()
    assert [other.reset()[1]["parameters"][n] for n in names] == values
    before = env.randomizer.store.read()[names[0]].copy()
    other.reset(options={"parameters": {names[0]: 2 * float(before[0])}})
    np.testing.assert_array_equal(env.randomizer.store.read()[names[0]], before)


GAPS: dict[str, Any] = {
    "parameters": MASSES | {"execution.latency.delay": "=U(0, 0.02) s"},
    "execution": [{"stage": "latency"}],
    "initial_state": {"dynamics.*.initial_velocity": "+N(0, 0.1)"},
    "push": {"body": "torso", "force": [30, 0, 0], "every": 0, "duration": 0.02},
}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["Hopper-v5", "CartPole-v1", "LunarLander-v3"])
def test_a_copy_randomizes_its_own_plant(name: str, how: str) -> None:
    def copied(env: Any) -> Any:
        return copy.deepcopy(env) if how == "deepcopy" else pickle.loads(pickle.dumps(env))

    recipe = GAPS if name == "Hopper-v5" else {"parameters": ENVS[name]}
    used, expected = wrap(gym.make(name), recipe), episode(wrap(gym.make(name), recipe), 3)
    fresh = copied(used)
    assert episode(fresh, 3) == expected
    assert episode(used, 3) == expected
    again = copied(used)
    assert episode(again, 3) == expected
    _, info = again.reset()
    store = again.randomizer.store.read()
    for parameter, value in info["parameters"].items():
        assert store[parameter][0] == pytest.approx(value, rel=1e-6)
    if name == "Hopper-v5":
        assert again.unwrapped.model.body("torso").mass[0] == info["parameters"]["dynamics.torso.mass"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizeDynamics(gym.make_vec("CartPole-v1", 2), MASSES), "sim2real.make_vec"),
        (lambda: RandomizeDynamics(gym.wrappers.Autoreset(gym.make("CartPole-v1")), MASSES), "inside Autoreset"),
        (lambda: RandomizeDynamics(gym.make("FrozenLake-v1"), MASSES), "register_parameters"),
        (lambda: RandomizeDynamics(RandomizeDynamics(gym.make("CartPole-v1"), MASSES), MASSES), "already randomizes"),
        (
            lambda: RandomizeDynamics(gym.make("Hopper-v5"), {"dynamics.torso.mass": "*N(1, 0.5)"}),
            "could be drawn as -",
        ),
        (lambda: AppendParameters(gym.make("CartPole-v1")), "needs a RandomizeDynamics inside"),
        (
            lambda: RandomizeInitialState(
                gym.wrappers.FrameStackObservation(gym.make("Hopper-v5"), 2), {"dynamics.rootx.initial_position": "=1"}
            ),
            "inside FrameStackObservation",
        ),
        (
            lambda: wrap(gym.make("Hopper-v5"), {"env": "Walker2d-v5", "parameters": MASSES}),
            "the recipe is for Walker2d",
        ),
        (lambda: wrap(gym.make("Hopper-v5"), {"push": {"body": "torso", "forc": 3}}), "did you mean force"),
        (lambda: wrap(gym.make("Hopper-v5"), {"parameter": {}}), "did you mean parameters"),
        (lambda: Push(gym.make("Hopper-v5"), "torse", force="3"), "did you mean torso"),
        (lambda: ExecutionGap(gym.make("CartPole-v1"), [{"stage": "latency"}]), "flat Box of actions"),
        (lambda: ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "friction"}]), "needs the motion of the plant"),
    ],
)
def test_what_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises((ParameterError, RecipeError), match=message):
        make()


def test_batches_in_disguise_are_refused() -> None:
    class Disguised(gym.Env[Any, Any]):
        num_envs = 4096

    with pytest.raises(ParameterError, match="holds a batch of 4096 environments"):
        RandomizeDynamics(Disguised(), MASSES)


def test_vectors_can_be_forced_by_component() -> None:
    env: Any = RandomizeDynamics(gym.make("Hopper-v5"), MASSES)
    env.reset(seed=0, options={"parameters": {"dynamics.foot.com": [0.01, 0.0, 0.02]}})
    assert env.unwrapped.model.body("foot").ipos.tolist() == [0.01, 0.0, 0.02]
    with pytest.raises(ParameterError, match="a forced value is a number"):
        env.reset(options={"parameters": {"dynamics.foot.mass": "*2"}})


WRITTEN = {
    "CartPole-v1": {},
    "Pendulum-v1": {"dynamics.motor.max_torque": 1.0},
    "Acrobot-v1": {"dynamics.motor.torque_noise": 0.5},
    "MountainCar-v0": {},
    "MountainCarContinuous-v0": {},
    "LunarLander-v3": {},
    "BipedalWalker-v3": {},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_registered_parameter_is_nominal_first_and_changes_what_happens(name: str) -> None:
    from sim2real.randomization.env_parameters import parameter_store

    options: dict[str, Any] = {"enable_wind": True} if name.startswith("Lunar") else {}
    store = parameter_store(gym.make(name, **options))

    def run(parameters: dict[str, float]) -> tuple[list[Any], Any]:
        env = RandomizeDynamics(gym.make(name, **options), {next(iter(store.nominal())): "*U(0.999, 1.001)"})
        env.action_space.seed(1)
        env.reset(seed=1, options={"parameters": dict(store.nominal()) | parameters})
        out = []
        for _ in range(60):
            observation, _, terminated, _, _ = env.step(env.action_space.sample())
            out.append(observation.tolist())
            if terminated:
                break
        return out, env

    bare = gym.make(name, **options)
    bare.reset(seed=1)
    for parameter, value in parameter_store(bare).read().items():  # also of what a reset builds
        assert value[0] == pytest.approx(store.nominal()[parameter]), parameter
    nominal, _ = run({})
    for parameter, value in store.nominal().items():
        changed = WRITTEN[name].get(parameter, 0.6 * value)
        trajectory, env = run({parameter: changed})
        assert env.randomizer.store.read()[parameter][0] == pytest.approx(changed)
        assert trajectory != nominal, parameter


def test_derived_quantities_follow() -> None:
    env: Any = RandomizeDynamics(gym.make("CartPole-v1"), MASSES)
    forced = {"dynamics.pole.mass": 0.3, "dynamics.cart.mass": 2.0, "dynamics.pole.half_length": 0.7}
    env.reset(seed=0, options={"parameters": forced})
    assert env.unwrapped.total_mass == pytest.approx(2.3)
    assert env.unwrapped.polemass_length == pytest.approx(0.21)
    env.reset()  # the length is not randomized: it goes back
    assert env.unwrapped.length == 0.5
    assert env.unwrapped.polemass_length == pytest.approx(0.5 * env.unwrapped.masspole)


def test_what_is_drawn_is_in_the_live_model() -> None:
    env: Any = RandomizeDynamics(gym.make("Hopper-v5"), MASSES)
    model = env.unwrapped.model
    nominal = {name: (model.body(name).mass[0], model.body(name).inertia.copy()) for name in ("torso", "foot")}
    for seed in range(3):
        _, info = env.reset(seed=seed)
        for name, (mass, inertia) in nominal.items():
            drawn = info["parameters"][f"dynamics.{name}.mass"]
            assert model.body(name).mass[0] == drawn != mass
            np.testing.assert_allclose(model.body(name).inertia, inertia * drawn / mass, rtol=1e-12)


def test_schedules_start_anew_with_each_episode_and_infos_keep_what_was() -> None:
    step = [{"parameters": {"dynamics.torso.mass": "*U(2, 3)"}, "when": {"step": {"at": 0.02}}}]
    env = RandomizeDynamics(gym.make("Hopper-v5", terminate_when_unhealthy=False), step)  # 8 ms a step
    for _ in range(2):
        _, info = env.reset(seed=0)
        seen = [info] + [env.step(np.zeros(3, np.float32))[4] for _ in range(6)]
        masses = [i["parameters"]["dynamics.torso.mass"] for i in seen]
        # the reset, and the steps that begin at 0, 8, 16, 24, ... ms
        assert len(set(masses[:4])) == 1
        assert len(set(masses[4:])) == 1
        assert 2 * masses[0] <= masses[4] <= 3 * masses[0]


def test_pushes_have_their_impulse_and_come_in_time() -> None:
    env: Any = Push(
        gym.make("Hopper-v5", terminate_when_unhealthy=False), "torso", force="40", every=0.04, duration=0.02
    )
    env.reset(seed=0)
    pushes = np.array([env.step(np.zeros(3))[4]["push"] for _ in range(40)])
    on = np.linalg.norm(pushes[:, :3], axis=1) > 0
    assert not pushes[:, 2:].any()
    starts = np.flatnonzero(on & ~np.r_[False, on[:-1]])
    assert starts.tolist() == [5 + 8 * k for k in range(5)]  # 5 steps of waiting, 3 of pushing
    impulse = 0.008 * np.array([pushes[s : s + 3, :2].sum(0) for s in starts])
    np.testing.assert_allclose(np.linalg.norm(impulse, axis=1), 40 * 0.02, rtol=1e-12)
    assert len(np.unique(np.arctan2(*impulse.T).round(6))) == 5


@pytest.mark.parametrize(
    ("name", "state", "read"),
    [
        ("Hopper-v5", {"dynamics.rootz.initial_velocity": "=1.5"}, lambda env: env.data.qvel[1]),
        ("Ant-v5", {"dynamics.root.initial_position[2]": "=1.5"}, lambda env: env.data.qpos[2]),
        ("Pendulum-v1", {"dynamics.pole.initial_velocity": "=1.5"}, lambda env: env.state[1]),
        ("CartPole-v1", {"dynamics.cart.initial_position": "=1.5"}, lambda env: env.state[0]),
        ("Acrobot-v1", {"dynamics.link2.initial_velocity": "=1.5"}, lambda env: env.state[3]),
        ("MountainCar-v0", {"dynamics.car.initial_velocity": "=1.5"}, lambda env: env.state[1]),
    ],
)
def test_episodes_start_where_they_are_told(name: str, state: dict[str, str], read: Any) -> None:
    env = RandomizeInitialState(gym.make(name, disable_env_checker=True), state)
    bare = gym.make(name)
    observation, _ = env.reset(seed=2)
    assert read(env.unwrapped) == pytest.approx(1.5)
    assert (observation != bare.reset(seed=2)[0]).sum() >= 1


def test_a_delay_switches_the_command_at_its_substep() -> None:
    """HalfCheetah: substeps of 10 ms, a delay of 23 ms: 0.7 of the way to the next command in the third substep."""
    import mujoco

    env: Any = ExecutionGap(gym.make("HalfCheetah-v5"), [{"stage": "latency", "delay": 0.023}])
    env.reset(seed=0)
    model, data = env.unwrapped.model, mujoco.MjData(env.unwrapped.model)
    data.qpos[:], data.qvel[:] = env.unwrapped.data.qpos, env.unwrapped.data.qvel
    mujoco.mj_forward(model, data)
    first, second = np.full(6, 0.5, np.float32), np.full(6, -1.0, np.float32)
    env.step(first)
    env.step(second)
    commands = [0, 0, 0.7 * 0.5, 0.5, 0.5, 0.5, 0.5, 0.3 * 0.5 - 0.7, -1, -1]
    for command in commands:
        data.ctrl[:] = command
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(env.unwrapped.data.qpos, data.qpos, rtol=0, atol=1e-12)
