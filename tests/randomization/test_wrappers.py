"""The wrappers of single environments: what reaches the plant, against the engines; nesting, copies and refusals."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
import pytest
import yaml
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence
from numpy.typing import NDArray
from scipy import stats

import sim2real
from sim2real import wrap
from sim2real.adapters import ExecutionGap
from sim2real.environment_recipe import gaps, load_environment_recipe
from sim2real.errors import ParameterError, RecipeError
from sim2real.randomization import JointEmpirical, Normal, Parameter
from sim2real.randomization.env_parameters import (
    Setter,
    SetterStore,
    affects,
    attribute,
    parameter_store,
    register_parameters,
)
from sim2real.randomization.parameters import ParameterStore
from sim2real.randomization.wrappers import AppendParameters, Push, RandomizeDynamics, RandomizeInitialState
from sim2real.recipe import load_recipe

gym.register_envs(gymnasium_robotics)
Array = NDArray[np.float64]
CART, POLE, LENGTH = "dynamics.cart.mass", "dynamics.pole.mass", "dynamics.pole.half_length"
TORSO, DELAY = "dynamics.torso.mass", "execution.latency.delay"
RECIPES = Path(sim2real.__file__).resolve().parent.parent / "recipes"


def rollout(env: Any, seed: int | None, steps: int = 20, action_seed: int = 0) -> list[Any]:
    """All that an environment returns, from a reset where there is a seed."""
    env.action_space.seed(action_seed)
    out = [] if seed is None else [env.reset(seed=seed)]
    for _ in range(steps):
        out.append(env.step(env.action_space.sample()))
        if out[-1][2] or out[-1][3]:
            out.append(env.reset())
    return out


def same(one: Any, other: Any) -> bool:
    return data_equivalence(one, other, exact=True)


def hopper(**kwargs: Any) -> Any:
    return gym.make("Hopper-v5", terminate_when_unhealthy=False, **kwargs)


# Draws, and what is forced.


def test_startup_draws_stay_and_a_seed_draws_again() -> None:
    env = RandomizeDynamics(gym.make("CartPole-v1"), [{"parameters": {POLE: "*U(1, 2)"}, "when": "startup"}])
    mass = [env.reset(seed=s)[1]["parameters"][POLE] for s in (0, None, None, 1, None, 0)]
    assert mass[0] == mass[1] == mass[2] == mass[5]
    assert mass[3] == mass[4] != mass[0]
    unseeded = [RandomizeDynamics(gym.make("CartPole-v1"), {POLE: "*U(1, 2)"}) for _ in range(2)]
    assert len({env.reset()[1]["parameters"][POLE] for env in unseeded}) == 2


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5"])
def test_no_draw_touches_the_generator_of_the_environment(name: str) -> None:
    bare = gym.make(name)
    gap = {"dynamics.*.mass": "*U(0.8, 1.2) each"}
    when = [{"parameters": gap, "when": {"random_walk": {}}}]
    env: Any = RandomizeDynamics(RandomizeInitialState(gym.make(name), {"dynamics.*.initial_velocity": "+0"}), when)
    if name == "Hopper-v5":
        env = Push(env, "torso", force="U(1, 2)", every=0.0)
    for seed in (4, None):
        bare.reset(seed=seed)
        env.reset(seed=seed)
        env.step(env.action_space.sample())
        assert env.unwrapped.np_random.bit_generator.state == bare.unwrapped.np_random.bit_generator.state


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5"])
def test_twice_the_nominal_value_is_twice_however_often(name: str) -> None:
    mass = "dynamics.*.mass"
    env = RandomizeDynamics(gym.make(name), {mass: "*2"})
    nominal = parameter_store(env).nominal()
    for _ in range(3):
        _, info = env.reset(seed=0)
        for parameter, value in info["parameters"].items():
            assert value == pytest.approx(2 * nominal[parameter], rel=1e-12)
            assert env.randomizer.store.read()[parameter][0] == pytest.approx(2 * nominal[parameter], rel=1e-12)
    # a second wrapper of the same environment starts from the same nominal values
    _, info = RandomizeDynamics(env.env, {mass: "*3"}).reset(seed=0)
    assert all(v == pytest.approx(3 * nominal[k], rel=1e-12) for k, v in info["parameters"].items())


def test_forced_values_may_be_patterns_and_of_what_is_not_randomized() -> None:
    env: Any = RandomizeDynamics(gym.make("CartPole-v1"), {POLE: "*U(1, 2)"})
    first = env.reset(seed=0)[1]["parameters"]
    _, info = env.reset(options={"parameters": {"dynamics.*.mass": 3.0, "dynamics.world.*": 5.0}})
    expected = {POLE: 3.0, CART: 3.0, "dynamics.world.gravity": 5.0}
    assert info["parameters"] == expected
    assert (env.unwrapped.masspole, env.unwrapped.masscart, env.unwrapped.gravity) == (3.0, 3.0, 5.0)
    assert env.step(0)[4]["parameters"] == expected
    again = env.reset(seed=0)[1]["parameters"]
    assert again == first
    assert (env.unwrapped.masspole, env.unwrapped.masscart, env.unwrapped.gravity) == (first[POLE], 1.0, 9.8)


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"dynamics.pole.mas": 1.0}, "no parameter named 'dynamics.pole.mas'; did you mean dynamics.pole.mass"),
        ({POLE: -1.0}, "must lie between 1e-06 and inf kg, found -1"),
        ({POLE: [1.0, 2.0]}, r"found shape \(2,\)"),
        ([1.0], r"options\['parameters'\] is \{name: value\}, found \[1.0\]"),
    ],
)
def test_forced_values_that_make_no_sense_are_refused_and_leave_nothing(forced: Any, message: str) -> None:
    env: Any = RandomizeDynamics(gym.make("CartPole-v1"), {CART: "*U(1, 2)"})
    expected = env.reset(seed=0)
    with pytest.raises(ParameterError, match=message):
        env.reset(options={"parameters": forced})
    assert same(env.reset(seed=0), expected)
    assert env.unwrapped.masspole == 0.1


def test_a_refused_write_leaves_nothing_behind() -> None:
    def refuse(_: Any, value: float) -> None:
        raise ValueError(f"a motor of {value:g} N is not to be had")

    env = Cart()
    store = SetterStore(
        env,
        {
            "dynamics.cart.mass": attribute("mass", "kg", "inertia"),
            "dynamics.cart.force": Setter("N", lambda e: e.force, refuse),
        },
    )
    with pytest.raises(ValueError, match="7 N"):
        store.write({"dynamics.cart.mass": np.array([5.0]), "dynamics.cart.force": np.array([7.0])})
    assert env.mass == 2.0


def test_what_an_environment_ignores_is_left_out_of_patterns_and_refused_by_name() -> None:
    bare: Any = RandomizeDynamics(gym.make("LunarLander-v3"), {"dynamics.world.*": "*U(0.9, 1.1)"})
    assert list(bare.reset(seed=0)[1]["parameters"]) == ["dynamics.world.gravity"]
    with pytest.raises(ParameterError, match="enable_wind=True"):
        RandomizeDynamics(gym.make("LunarLander-v3"), {"dynamics.world.wind_power": "*U(0.9, 1.1)"})
    windy: Any = RandomizeDynamics(gym.make("LunarLander-v3", enable_wind=True), {"dynamics.world.*": "*U(0.9, 1.1)"})
    assert len(copy.deepcopy(windy).reset(seed=0)[1]["parameters"]) == 3


def test_infos_are_their_owners_to_change() -> None:
    env = RandomizeDynamics(gym.make("CartPole-v1"), {POLE: "*U(1, 2)"})
    _, info = env.reset(seed=0)
    value = info["parameters"][POLE]
    info["parameters"][POLE] = 0.0
    assert env.step(0)[4]["parameters"] == {POLE: value}


# Wrappers in wrappers.


def nested() -> Any:
    return RandomizeDynamics(RandomizeDynamics(gym.make("CartPole-v1"), {CART: "*U(1, 2)"}), {POLE: "*U(1, 2)"})


def test_nested_wrappers_each_draw_from_a_stream_of_their_own_and_report_together() -> None:
    env = nested()
    alone = RandomizeDynamics(gym.make("CartPole-v1"), {CART: "*U(1, 2)"}).reset(seed=0)[1]["parameters"]
    _, info = env.reset(seed=0)
    assert info["parameters"] == alone | {POLE: env.unwrapped.masspole}
    assert env.unwrapped.masscart == alone[CART]
    assert info["parameters"][POLE] / 0.1 != pytest.approx(alone[CART])
    assert env.step(0)[4]["parameters"] == info["parameters"]
    with pytest.raises(ParameterError, match=f"a RandomizeDynamics inside already randomizes {POLE}; keep one"):
        RandomizeDynamics(env, {POLE: "*2"})


@pytest.mark.parametrize("name", [LENGTH, POLE, CART])
def test_what_was_forced_through_nested_wrappers_goes_and_what_is_drawn_stays(name: str) -> None:
    env, other = nested(), nested()
    other.reset(seed=0)
    _, expected = other.reset()
    _, forced = env.reset(seed=0, options={"parameters": {name: 0.7}})
    assert forced["parameters"][name] == 0.7
    _, info = env.reset()
    assert info["parameters"] == expected["parameters"]
    base = env.unwrapped
    assert {CART: base.masscart, POLE: base.masspole} == info["parameters"]
    assert base.length == 0.5


def test_a_wrapper_around_a_running_one_does_not_undo_what_it_reports() -> None:
    inside: Any = RandomizeDynamics(gym.make("CartPole-v1"), {CART: "*U(2, 3)"})
    inside.reset(seed=0)
    RandomizeDynamics(inside, {POLE: "*U(2, 3)"})
    assert inside.step(0)[4]["parameters"][CART] == inside.unwrapped.masscart


@pytest.mark.parametrize("outer", [AppendParameters, lambda env: ExecutionGap(env, [{"stage": "latency"}])])
def test_goals_can_be_relabelled_through_every_wrapper(outer: Any) -> None:
    env = outer(RandomizeDynamics(gym.make("PointMaze_UMaze-v3"), {"dynamics.*.mass": "*U(0.8, 1.2)"}))
    observation, info = env.reset(seed=0)
    got = env.compute_reward(observation["achieved_goal"], observation["desired_goal"], info)
    assert got == env.unwrapped.compute_reward(observation["achieved_goal"], observation["desired_goal"], info)
    assert not hasattr(RandomizeDynamics(gym.make("CartPole-v1"), {}), "compute_reward")


# Copies.


def all_gaps(name: str) -> Any:
    if name == "Hopper-v5":
        env: Any = RandomizeInitialState(hopper(), {"dynamics.rootz.initial_position": "=U(1.5, 2)"})
        env = Push(env, "torso", force="U(50, 100)", every="U(0.02, 0.05)", duration=0.02)
        env = ExecutionGap(env, [{"stage": "latency", "delay": 0.011}])
        return RandomizeDynamics(env, {"dynamics.*.mass": "*U(0.5, 2) each", DELAY: "=U(0, 0.02)"})
    return RandomizeDynamics(gym.make(name), {"dynamics.*.mass": "*U(0.5, 2) each"})


COPIES = {
    "copy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
    "spec": lambda env: gym.make(env.spec),
    "json": lambda env: gym.make(EnvSpec.from_json(env.spec.to_json())),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["Hopper-v5", "CartPole-v1"])
def test_a_copy_lives_the_same_life_in_a_plant_of_its_own(name: str, how: str) -> None:
    env = all_gaps(name)
    rollout(env, 8)
    twin: Any = COPIES[how](env)
    expected = rollout(all_gaps(name), 3)
    assert same(rollout(twin, 3), expected)
    # neither does anything to the other
    env.reset(seed=3)
    rollout(twin, 5)
    assert same(rollout(env, None), expected[1:])
    bare = rollout(gym.make(env.unwrapped.spec), 3)
    assert not any(same(a[0], b[0]) for a, b in zip(bare[1:], expected[1:], strict=False))


@pytest.mark.parametrize("when", ["reset", {"interval": 0.02}])
def test_a_copy_of_a_running_environment_runs_on(when: Any) -> None:
    env = AppendParameters(
        RandomizeDynamics(gym.make("CartPole-v1"), [{"parameters": {POLE: "*U(1, 2)"}, "when": when}])
    )
    rollout(env, 0, 5)
    twin = copy.deepcopy(env)
    assert same(rollout(twin, None, 5), rollout(env, None, 5))


@pytest.mark.parametrize(
    "parameters",
    [
        [{"parameters": {f"{CART}, {POLE}": "*MVN([1, 1], [[0.01, 0.005], [0.005, 0.01]])"}}],
        [{"parameters": {"dynamics.*.mass": "*Cat(1, 2, 3) each"}, "when": {"interval": 0.06}}],
        [{"parameters": {LENGTH: "+TN(0, 0.1, -0.2, 0.2) m"}, "when": {"sinusoid": {"period": 0.3}}}],
        JointEmpirical(
            tuple(Parameter(name=n, unit="kg", distribution=Normal(1, 1)) for n in (CART, POLE)),
            np.array([[1.0, 0.1], [2.0, 0.2], [3.0, 0.4]]),
        ),
    ],
    ids=["normal", "interval", "sinusoid", "samples"],
)
def test_whatever_is_randomized_is_in_the_spec(parameters: Any) -> None:
    env = RandomizeDynamics(gym.make("CartPole-v1"), parameters)
    spec = env.spec
    assert spec is not None
    twin = gym.make(EnvSpec.from_json(json.loads(json.dumps(spec.to_json()))))
    assert same(rollout(twin, 2), rollout(env, 2))


# Environments and their parameters.


@pytest.mark.parametrize(
    ("name", "parameter", "bodies"),
    [
        ("LunarLander-v3", "dynamics.lander.density", lambda env: [env.lander]),
        ("LunarLander-v3", "dynamics.legs.density", lambda env: env.legs),
        ("BipedalWalker-v3", "dynamics.hull.density", lambda env: [env.hull]),
        ("BipedalWalker-v3", "dynamics.legs.density", lambda env: env.legs),
    ],
)
def test_mass_and_inertia_follow_the_density_in_every_episode(name: str, parameter: str, bodies: Any) -> None:
    bare: Any = gym.make(name)
    bare.reset(seed=0)
    nominal = [(b.mass, b.inertia) for b in bodies(bare.unwrapped)]
    env: Any = RandomizeDynamics(gym.make(name), {parameter: "*U(1.5, 3)"})
    factors = set()
    for _ in range(3):
        factor = env.reset()[1]["parameters"][parameter] / parameter_store(env).nominal()[parameter]
        factors.add(factor)
        found = [(b.mass, b.inertia) for b in bodies(env.unwrapped)]
        np.testing.assert_allclose(found, factor * np.array(nominal), rtol=1e-5)
    assert len(factors) == 3


def test_gravity_acts_on_bodies_in_flight() -> None:
    fall = {}
    for gravity in (2.0, 8.0):
        env: Any = RandomizeDynamics(gym.make("LunarLander-v3"), {"dynamics.world.gravity": f"={gravity}"})
        env.reset(seed=0)
        speed = [env.unwrapped.lander.linearVelocity.y]
        for _ in range(10):
            env.step(0)
            speed.append(env.unwrapped.lander.linearVelocity.y)
        fall[gravity] = (speed[0] - speed[-1]) * 50 / 10
    for gravity, found in fall.items():
        assert found == pytest.approx(gravity, rel=0.02)


class Cart(gym.Env[Any, Any]):
    """Accelerates by force / mass."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float64)
    mass, force, ratio = 2.0, 3.0, 1.5

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = np.zeros(1)
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x = self.x + self.ratio * np.asarray(action)
        return self.x.copy(), 0.0, False, False, {}


class FastCart(Cart):
    force = 6.0
    ratio = 3.0


def _ratio(env: Any) -> None:
    env.ratio = env.force / env.mass


register_parameters(
    Cart,
    {
        "dynamics.cart.mass": attribute("mass", "kg", "inertia", _ratio, low=0.1),
        "dynamics.cart.force": attribute("force", "N", "push", _ratio, low=0.0, high=10.0),
    },
)


@pytest.mark.parametrize(("make", "force"), [(Cart, 3.0), (FastCart, 6.0)])
def test_an_environment_of_ones_own_can_be_registered_with_its_subclasses(make: Any, force: float) -> None:
    env: Any = RandomizeDynamics(make(), {"dynamics.cart.*": "*U(0.5, 1.5) each"})
    store = parameter_store(env)
    assert store.nominal() == {"dynamics.cart.mass": 2.0, "dynamics.cart.force": force}
    assert store.units() == {"dynamics.cart.mass": "kg", "dynamics.cart.force": "N"}
    assert affects(store) == {"dynamics.cart.mass": "inertia", "dynamics.cart.force": "push"}
    _, info = env.reset(seed=1)
    drawn = info["parameters"]
    assert env.step([1.0])[0][0] == pytest.approx(drawn["dynamics.cart.force"] / drawn["dynamics.cart.mass"])
    with pytest.raises(ParameterError, match="must lie between 0 and 10 N, found 11"):
        env.reset(options={"parameters": {"dynamics.cart.force": 11.0}})
    with pytest.raises(ParameterError, match=r"could be drawn as .* must lie between 0 and 10"):
        RandomizeDynamics(make(), {"dynamics.cart.force": "=U(1, 12)"})
    with pytest.raises(ParameterError, match=r"does not say how much time a step takes.*dt="):
        RandomizeDynamics(make(), [{"parameters": {"dynamics.cart.mass": "*U(1, 2)"}, "when": {"interval": 1}}])


@pytest.mark.parametrize("dt", [0.0, -0.1, float("nan")])
def test_a_control_period_is_positive(dt: float) -> None:
    with pytest.raises(ParameterError, match="dt"):
        RandomizeDynamics(Cart(), [{"parameters": {"dynamics.cart.mass": "*U(1, 2)"}, "when": {"interval": 1}}], dt=dt)


def test_a_value_that_does_not_take_effect_is_noticed() -> None:
    class Stubborn(Cart):
        @property
        def size(self) -> float:
            return 1.0

        @size.setter
        def size(self, value: float) -> None:
            pass

    register_parameters(Stubborn, {"dynamics.cart.size": attribute("size", "m")})
    env = RandomizeDynamics(Stubborn(), {"dynamics.cart.size": "*2"})
    with pytest.raises(ParameterError, match="wrote 2, but 1 is in force"):
        env.reset(seed=0)


@pytest.mark.parametrize("setters", [{"mass": attribute("mass", "kg")}, {"dynamics.cart.mass": 2.0}])
def test_a_registration_is_checked(setters: Any) -> None:
    with pytest.raises(ParameterError, match=r"<gap>.<entity>.<field>"):
        register_parameters(FastCart, setters)


class Bringer(Cart):
    """Brings its parameters, which go before what is registered."""

    def parameter_store(self) -> ParameterStore:
        if "_own" not in vars(self):
            self._own = SetterStore(self, {"dynamics.wheel.ratio": attribute("ratio", "m/s")})
        return self._own


class Sticky(gym.Wrapper[Any, Any, Any, Any]):
    """Brings a parameter of its own."""

    share = 0.0

    def parameter_store(self) -> ParameterStore:
        if "_own" not in vars(self):
            self._own = SetterStore(self, {"execution.stick.share": attribute("share", "")})
        return self._own

    def step(self, action: Any) -> Any:
        return self.env.step((1 - self.share) * np.asarray(action))


def test_what_environments_and_wrappers_bring_is_joined() -> None:
    env: Any = RandomizeDynamics(Sticky(Bringer()), {"dynamics.wheel.ratio": "*2", "execution.stick.share": "=0.25"})
    assert parameter_store(env).nominal() == {"dynamics.wheel.ratio": 1.5, "execution.stick.share": 0.0}
    env.reset(seed=0)
    assert env.step([1.0])[0][0] == pytest.approx(3.0 * 0.75)
    assert set(parameter_store(env.env.env).nominal()) == {"dynamics.wheel.ratio"}


class Batch(Cart):
    num_envs = 64


class Nothing(gym.Env[Any, Any]):
    observation_space, action_space = Cart.observation_space, Cart.action_space


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda env: RandomizeDynamics(env, {POLE: "*2"}),
        lambda env: RandomizeInitialState(env, {POLE: "=2"}),
        lambda env: Push(env, "torso", force="1"),
        lambda env: ExecutionGap(env, [{"stage": "latency"}]),
    ],
    ids=["dynamics", "initial_state", "push", "execution"],
)
def test_batches_are_refused_with_what_to_do_instead(wrapper: Any) -> None:
    vector = gym.make_vec("CartPole-v1", 2)
    with pytest.raises(ParameterError, match=r"is a vector environment.*sim2real.make_vec"):
        wrapper(vector)
    vector.close()
    with pytest.raises(ParameterError, match=r"Batch is a gymnasium.Env that holds a batch of 64 environments"):
        wrapper(Batch())
    with pytest.raises(ParameterError, match=r"expected a gymnasium.Env, found str"):
        wrapper("CartPole-v1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomizeDynamics(Nothing(), {}), r"Nothing has no parameters that are known.*register_parameters"),
        (
            lambda: RandomizeDynamics(gym.make("CartPole-v1"), {"dynamics.pole.weight": "*2"}),
            "no parameter named 'dynamics.pole.weight'; did you mean dynamics.pole.",
        ),
        (
            lambda: RandomizeDynamics(gym.make("Hopper-v5"), {"dynamics.torso.colour": "*2"}),
            "no parameter named 'dynamics.torso.colour'; did you mean dynamics.torso.",
        ),
        (
            lambda: RandomizeDynamics(gym.wrappers.Autoreset(gym.make("CartPole-v1")), {POLE: "*2"}),
            "put RandomizeDynamics inside Autoreset",
        ),
        (
            lambda: RandomizeInitialState(gym.wrappers.Autoreset(gym.make("CartPole-v1")), {"dynamics.*.*": "+0"}),
            "inside Autoreset",
        ),
        (lambda: Push(gym.wrappers.Autoreset(hopper()), "torso", force="1"), "inside Autoreset"),
        (lambda: AppendParameters(gym.make("CartPole-v1")), "needs a RandomizeDynamics inside"),
        (lambda: AppendParameters(nested(), ["dynamics.pole.mas"]), "did you mean dynamics.pole.mass"),
        (lambda: AppendParameters(RandomizeDynamics(gym.make("CartPole-v1"), {})), "nothing to append"),
        (
            lambda: AppendParameters(
                gym.wrappers.ReshapeObservation(RandomizeDynamics(gym.make("CartPole-v1"), {POLE: "*2"}), (2, 2))
            ),
            "to a flat Box of real numbers or to a Dict, not to Box",
        ),
        (lambda: Push(gym.make("Pendulum-v1"), "pole", force="1"), "pushes need a MuJoCo model"),
        (lambda: Push(hopper(), "torsoo", force="1"), "no body named 'torsoo'; did you mean torso"),
        (lambda: Push(hopper(), "torso"), "found 0 and 0 notations"),
        (lambda: Push(hopper(), "torso", force=("1", "2")), "found 2 and 0 notations"),
        (lambda: Push(hopper(), "torso", force="1", torque=("1",)), "found 1 and 1 notations"),
        (lambda: Push(hopper(), "torso", force="1", duration=0.0), "positive duration"),
        (lambda: Push(hopper(), "torso", force="1", duration=float("nan")), "positive duration"),
        (
            lambda: Push(hopper(), "torso", force="1", every="N(1, 1)"),
            r"not negative, found duration=0.1 s, every=N\(1, 1\)",
        ),
        (lambda: Push(hopper(), "torso", force="hard"), "cannot read 'hard'"),
        (lambda: Push(hopper(), "torso", force=np.ones(2)), "found 2 and 0 notations"),
        (
            lambda: RandomizeInitialState(gym.make("LunarLander-v3"), {"dynamics.lander.initial_position": "=1"}),
            "the state of LunarLander is not known",
        ),
        (
            lambda: RandomizeInitialState(gym.make("CartPole-v1"), {"dynamics.cart.initial_positio": "=1"}),
            "did you mean dynamics.cart.initial_position",
        ),
        (
            lambda: RandomizeInitialState(gym.make("CartPole-v1"), {"dynamics.*.initial_position": "=1 m"}),
            "dynamics.pole.initial_position: the unit is 'rad', found 'm'",
        ),
        (
            lambda: RandomizeInitialState(gym.wrappers.FlattenObservation(hopper()), {"dynamics.*": "+0"}),
            "put RandomizeInitialState inside FlattenObservation",
        ),
        (lambda: ExecutionGap(gym.make("CartPole-v1"), [{"stage": "latency"}]), r"flat Box of actions, found Discrete"),
        (
            lambda: ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "friction", "coulomb": 0.1}]),
            r"stage friction needs the motion of the plant.*frictionloss",
        ),
        (
            lambda: ExecutionGap(ExecutionGap(hopper(), [{"stage": "latency"}]), [{"stage": "lag"}]),
            "already has an ExecutionGap",
        ),
    ],
)
def test_what_cannot_be_wrapped_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make()


def test_a_state_that_two_patterns_mean_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"dynamics\.cart\.initial_position"):
        RandomizeInitialState(
            gym.make("CartPole-v1"), {"dynamics.*.initial_position": "=1", "dynamics.cart.initial_position": "=2"}
        )


# The parameters in force as part of the observation.


@pytest.mark.parametrize("names", [(), (LENGTH, POLE)])
def test_appended_parameters_are_those_in_force_also_when_they_move(names: Any) -> None:
    source = [{"parameters": {POLE: "*U(1, 2)"}, "when": {"interval": 0.04}}, {"parameters": {LENGTH: "*U(1, 2)"}}]
    inside = RandomizeDynamics(gym.make("CartPole-v1"), source)
    env = AppendParameters(inside, names)
    order = names or (POLE, LENGTH)
    assert env.observation_space.shape == (6,)
    assert env.observation_space.dtype == np.float32
    np.testing.assert_array_equal(env.observation_space.low[:4], inside.observation_space.low)
    seen = []
    for observation, info in [env.reset(seed=0), *(env.step(k % 2)[::4] for k in range(8))]:
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation[4:], [np.float32(info["parameters"][n]) for n in order])
        seen.append(info["parameters"][POLE])
    # reset, then steps that begin at 0, 20, 40, ... ms
    assert np.flatnonzero(np.diff(seen)).tolist() == [2, 4, 6]


def test_a_dictionary_gets_a_key() -> None:
    inside = RandomizeDynamics(gym.make("PointMaze_UMaze-v3"), {"dynamics.*.damping": "*U(1, 2)"})
    env = AppendParameters(inside)
    observation, info = env.reset(seed=0)
    assert set(observation) == {"observation", "achieved_goal", "desired_goal", "parameters"}
    assert observation in env.observation_space
    assert observation["parameters"].tolist() == list(info["parameters"].values())


# The state in which episodes start.


def test_states_are_offset_scaled_and_set_with_a_draw_for_each_name() -> None:
    state = {
        "dynamics.*.initial_position": "+U(0.1, 0.2)",
        "dynamics.cart.initial_velocity": "*3",
        "dynamics.pole.initial_velocity": "=U(-1, 1) rad/s",
    }
    env: Any = RandomizeInitialState(gym.make("CartPole-v1"), state)
    bare: Any = gym.make("CartPole-v1")
    offsets = []
    for seed in range(300):
        observation, _ = env.reset(seed=seed)
        bare.reset(seed=seed)
        np.testing.assert_array_equal(observation, np.float32(env.unwrapped.state))
        assert env.unwrapped.state[1] == pytest.approx(3 * bare.unwrapped.state[1])
        offsets.append([*(env.unwrapped.state - bare.unwrapped.state)[[0, 2]], env.unwrapped.state[3]])
    position, angle, velocity = np.transpose(offsets)
    for drawn, reference in (
        (position, stats.uniform(0.1, 0.1)),
        (angle, stats.uniform(0.1, 0.1)),
        (velocity, stats.uniform(-1, 2)),
    ):
        assert stats.kstest(drawn, reference.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(position, angle)[0, 1]) < 0.2
    assert same(env.reset(seed=5), env.reset(seed=5))
    assert not same(env.reset()[0], env.reset()[0])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Hopper-v5", "Ant-v5"])
def test_nothing_added_is_the_bare_environment(name: str) -> None:
    env = RandomizeInitialState(gym.make(name), {"dynamics.*.initial_*": "+0"})
    got, expected = rollout(env, 1), rollout(gym.make(name), 1)
    for k, (one, other) in enumerate(zip(got, expected, strict=True)):
        # Ant-v5 starts with a quaternion that the engine normalises in the first step only
        quaternion = slice(1, 5) if name == "Ant-v5" and k == 0 else slice(0)
        np.testing.assert_allclose(*(np.delete(o[0], quaternion) for o in (one, other)), rtol=1e-9, atol=1e-12)
        assert set(one[-1]) == set(other[-1])


def test_a_free_joint_starts_where_it_is_put_with_a_quaternion_of_length_one() -> None:
    state = {"dynamics.root.initial_position[2]": "=1.2 m", "dynamics.root.initial_position[4]": "+1"}
    state |= {"dynamics.root.initial_velocity[3]": "=2 rad/s"}
    env: Any = RandomizeInitialState(gym.make("Ant-v5"), state)
    bare: Any = gym.make("Ant-v5")
    observation, info = env.reset(seed=3)
    bare.reset(seed=3)
    data, expected = env.unwrapped.data, bare.unwrapped.data.qpos.copy()
    expected[2] = 1.2
    expected[4] += 1
    expected[3:7] /= np.linalg.norm(expected[3:7])
    np.testing.assert_allclose(data.qpos, expected)
    assert data.qvel[3] == 2
    # the observation and the info are those of that state, as are positions in space
    assert observation[0] == 1.2
    assert info == env.unwrapped._get_reset_info()
    torso = data.xpos[1].copy()
    mujoco.mj_kinematics(env.unwrapped.model, data)
    np.testing.assert_allclose(data.xpos[1], torso)
    assert torso[2] == pytest.approx(1.2)


# Pushes.


def test_a_push_changes_momentum_by_force_times_duration() -> None:
    """In free flight nothing else acts: 37 N for 20 ms, in whole control steps of 8 ms."""
    env: Any = RandomizeInitialState(hopper(), {"dynamics.rootz.initial_position": "=5"})
    env = Push(env, "torso", force=("37", "0", "-21"), every=0.016, duration=0.02)
    env = RandomizeDynamics(env, {"dynamics.world.gravity": "=0"})
    env.reset(seed=0)
    model, data = env.unwrapped.model, env.unwrapped.data
    mass, momentum = sum(model.body_mass), []
    for _ in range(6):
        mujoco.mj_subtreeVel(model, data)
        momentum.append(mass * data.subtree_linvel[0])
        _, _, _, _, info = env.step(np.zeros(3))
    gained = np.array(momentum)[5] - np.array(momentum)[2]
    np.testing.assert_allclose(gained, [37 * 0.02, 0, -21 * 0.02], atol=2e-3)
    np.testing.assert_allclose(momentum[2], momentum[0], atol=2e-3)
    assert not info["push"].any()


def test_pushes_come_from_everywhere_last_and_leave_nothing() -> None:
    env: Any = Push(hopper(max_episode_steps=10_000), "foot", force="U(20, 40)", every="U(0.024, 0.04)", duration=0.016)
    env.reset(seed=0)
    pushes = []
    for _ in range(2000):
        _, _, _, _, info = env.step(np.zeros(3))
        applied = env.unwrapped.data.xfrc_applied.copy()
        np.testing.assert_array_equal(applied[env.unwrapped.model.body("foot").id], info["push"])
        assert np.count_nonzero(applied.any(1)) == info["push"].any()
        pushes.append(info["push"])
    force = np.array(pushes)
    assert not force[:, 2:].any()
    on = force.any(1)
    starts = np.flatnonzero(on & ~np.r_[False, on[:-1]])
    ends = np.flatnonzero(~on & np.r_[False, on[:-1]])
    assert set(ends - starts[: len(ends)]) == {2}
    assert set(starts[1:] - ends[: len(starts) - 1]) == {3, 4, 5}  # 24 to 40 ms
    strength, angle = np.linalg.norm(force[starts], axis=1), np.arctan2(force[starts, 1], force[starts, 0])
    assert stats.kstest(strength, stats.uniform(20, 20).cdf).pvalue > 1e-3
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    env.reset()
    assert not env.unwrapped.data.xfrc_applied.any()


def test_torques_about_axes_beside_a_force() -> None:
    env: Any = Push(hopper(), "torso", force="10", torque=("1", "-2", "3"), every=0.0, duration=0.008)
    env.reset(seed=0)
    for _ in range(5):
        push = env.step(np.zeros(3))[4]["push"]
        assert push[3:].tolist() == [1, -2, 3]
        assert np.linalg.norm(push[:3]) == pytest.approx(10)
    env = Push(hopper(), "torso", torque=(0, 5, 0), every=0.0, duration=0.008)
    env.reset(seed=0)
    assert env.step(np.zeros(3))[4]["push"].tolist() == [0, 0, 0, 0, 5, 0]


def test_a_step_before_the_first_reset_is_refused_by_gymnasium() -> None:
    for env in (Push(hopper(), "torso", force="1"), RandomizeDynamics(hopper(), {TORSO: "*2"})):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(np.zeros(3))


# Between actions and plant.


def delayed(actions: Array, delay: float, n: int, substep: float) -> Array:
    """The commands (steps * n, width) that arrive after a pure delay, by area, before which there are zeros."""
    fine = np.concatenate([np.zeros((200, actions.shape[1])), actions.repeat(n, 0)])
    k, share = divmod(round(delay / substep, 9), 1)
    index = np.arange(200, len(fine)) - int(k)
    return (1 - share) * fine[index] + share * fine[index - 1]


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.05, 0.1, 0.137])
@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v5"])
def test_a_delay_is_a_loop_around_the_engine(name: str, delay: float) -> None:
    env: Any = ExecutionGap(gym.make(name), [{"stage": "latency"}])
    env = RandomizeDynamics(env, {DELAY: f"={delay} s"})
    _, info = env.reset(seed=0)
    assert info["parameters"] == {DELAY: delay}
    base = env.unwrapped
    model, data = base.model, mujoco.MjData(base.model)
    data.qpos[:], data.qvel[:] = base.data.qpos, base.data.qvel
    mujoco.mj_forward(model, data)
    actions = np.random.default_rng(0).uniform(-1, 1, (6, model.nu)).astype(np.float32)
    n = base.frame_skip
    commands = delayed(actions.astype(float), delay, n, model.opt.timestep).reshape(6, n, -1)
    for action, block in zip(actions, commands, strict=True):
        env.step(action)
        for command in block:
            data.ctrl[:] = command
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(base.data.qpos, data.qpos, rtol=1e-9, atol=1e-12)
    if not delay:
        bare: Any = gym.make(name)
        bare.reset(seed=0)
        for action in actions:
            observation = bare.step(action)[0]
        np.testing.assert_array_equal(observation, base._get_obs())
    # nothing of one episode is left in the next
    env.reset(seed=0)
    env.step(actions[0])
    np.testing.assert_array_equal(base.data.ctrl, commands[0, -1])


def test_elsewhere_a_delay_blends_the_commands_on_both_sides_of_it() -> None:
    """Pendulum: steps of 50 ms."""
    env: Any = ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "latency", "delay": 0.07}, {"stage": "dead_zone"}])
    env = RandomizeDynamics(env, {"execution.dead_zone.width": "=U(0.1, 0.3) N·m", "dynamics.pole.mass": "*U(1, 2)"})
    _, info = env.reset(seed=0)
    width = info["parameters"]["execution.dead_zone.width"]
    assert 0.1 <= width <= 0.3
    actions = np.random.default_rng(1).uniform(-2, 2, (8, 1))
    for action, late in zip(actions, delayed(actions, 0.07, 1, 0.05), strict=True):
        env.step(action.astype(np.float32))
        assert env.unwrapped.last_u == pytest.approx(np.sign(late[0]) * max(abs(late[0]) - width, 0), abs=1e-6)


def test_an_action_may_be_a_list_of_whole_numbers() -> None:
    env: Any = ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "latency", "delay": 0.02}])
    env.reset(seed=0)
    env.step([1])
    assert env.unwrapped.last_u == pytest.approx(0.6)


def test_a_delay_that_moves_reaches_the_line() -> None:
    when = {"step": {"at": 0.1}}
    env: Any = ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "latency"}])
    env = RandomizeDynamics(env, [{"parameters": {DELAY: "=0.05"}, "when": when}])
    env.reset(seed=0)
    felt = []
    for k in range(5):
        env.step(np.array([0.1 * (k + 1)], np.float32))
        felt.append(float(env.unwrapped.last_u))
    np.testing.assert_allclose(felt, [0.1, 0.2, 0.2, 0.3, 0.4], rtol=1e-6)
    with pytest.raises(ParameterError, match=r"execution.latency.delay could be drawn as 0\.3"):
        RandomizeDynamics(ExecutionGap(gym.make("Pendulum-v1"), [{"stage": "latency"}]), {DELAY: "=0.3"})


# Recipes.

RECIPE = {
    "env": "Hopper-v5",
    "parameters": {TORSO: "*U(0.8, 1.2)", DELAY: "=U(0, 0.02) s"},
    "randomization": [{"parameters": {"dynamics.*.damping": "*U(0.5, 2)"}, "when": "startup"}],
    "execution": [{"stage": "latency"}],
    "initial_state": {"dynamics.*.initial_velocity": "+N(0, 0.1)"},
    "push": {"body": "torso", "force": "U(50, 100)", "every": 0.04, "duration": 0.02},
}


def test_a_recipe_is_the_wrappers_by_hand(tmp_path: Path) -> None:
    by_hand: Any = RandomizeInitialState(gym.make("Hopper-v5"), RECIPE["initial_state"])  # type: ignore[arg-type]
    by_hand = ExecutionGap(Push(by_hand, "torso", force="U(50, 100)", every=0.04, duration=0.02), RECIPE["execution"])  # type: ignore[arg-type]
    by_hand = RandomizeDynamics(by_hand, [{"parameters": RECIPE["parameters"]}, *RECIPE["randomization"]])  # type: ignore[list-item, misc]
    expected = rollout(by_hand, 0)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE, allow_unicode=True))
    for recipe in (RECIPE, file, str(file), load_environment_recipe(file)):
        assert same(rollout(wrap(gym.make("Hopper-v5"), recipe), 0), expected)
    assert {"parameters", TORSO, "push"} & set(expected[-1][4]) == {"parameters", "push"}


def test_a_recipe_without_gaps_wraps_nothing() -> None:
    env = gym.make("CartPole-v1")
    assert wrap(env, {}) is env
    assert wrap(env, {"env": "CartPole-v1"}) is env


def test_of_a_recipe_of_the_whole_loop_the_gaps_are_taken() -> None:
    file = RECIPES / "pendulum.yaml"
    expected = gaps(load_recipe(file))
    assert gaps(file) == gaps(str(file)) == expected
    assert expected["execution"] == [
        {"stage": "latency"},
        {"stage": "dead_zone"},
        {"stage": "torque_limit", "limit": 3},
    ]
    assert expected["parameters"] == [{"parameters": yaml.safe_load(file.read_text())["parameters"]}]
    document = {
        "name": "mine",
        "robot": "pendulum",
        "execution": [{"stage": "latency"}, {"stage": "dead_zone"}],
        "parameters": {POLE: "*U(0.4, 3)", DELAY: "=U(0, 0.08)", "execution.dead_zone.width": "=U(0, 0.4)"},
        "twin": {"parameters": {POLE: 0.85}},
        "control": {"limit": 3.0},
    }
    _, info = wrap(gym.make("Pendulum-v1"), document).reset(seed=0)
    assert set(info["parameters"]) == {POLE, DELAY, "execution.dead_zone.width"}
    with pytest.raises(ParameterError, match=r"no parameter named 'dynamics.payload.mass'"):
        wrap(gym.make("Pendulum-v1"), file)


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        ({"paramters": {}}, RecipeError, "unknown key 'paramters'; did you mean parameters"),
        ({"parameters": {POLE: 2}}, RecipeError, "parameters"),
        ({"parameters": [POLE]}, RecipeError, "parameters: input should be a valid dictionary"),
        ({"execution": [{"stage": "latencyy"}]}, RecipeError, "no stage named 'latencyy'; did you mean latency"),
        ({"execution": [{"stage": "latency", "dely": 1}]}, RecipeError, "no argument 'dely'; did you mean delay"),
        ({"push": {"bodi": "torso"}}, ParameterError, "a push has no 'bodi'; did you mean body"),
        ({"push": {"force": "5"}}, ParameterError, "a push needs a body"),
        ({"randomization": [{"parameters": {TORSO: "*2"}, "wen": "reset"}]}, ParameterError, "found 'wen'"),
        ("nowhere.yaml", RecipeError, "no recipe at nowhere.yaml"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(recipe: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        wrap(gym.make("Hopper-v5"), recipe)


def test_a_recipe_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for text, message in (("- 1", "must be a mapping"), ("a: [", "not valid YAML"), ("parmeters: {}", str(file))):
        file.write_text(text)
        with pytest.raises(RecipeError, match=message):
            wrap(gym.make("CartPole-v1"), file)


def test_subclasses_of_gymnasiums_environments_have_its_parameters() -> None:
    class Mine(CartPoleEnv):
        pass

    env: Any = RandomizeDynamics(Mine(), {POLE: "*2", CART: "*3"})
    env.reset(seed=0)
    assert env.unwrapped.total_mass == pytest.approx(3.2)
    assert env.unwrapped.polemass_length == pytest.approx(0.1)
    state: Any = RandomizeInitialState(Mine(), {"dynamics.cart.initial_position": "=1"})
    assert state.reset(seed=0)[0][0] == 1.0
