"""The parameters of Gymnasium's own environments that are not on MuJoCo, with what each derives from them."""

from __future__ import annotations

from typing import Any

from sim2real.randomization.env_parameters import Setter, attribute, register_parameters

CONTROL = "gymnasium.envs.classic_control"
BOX2D = "gymnasium.envs.box2d"


def _cart_pole(env: Any) -> None:
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


register_parameters(
    f"{CONTROL}.cartpole:CartPoleEnv",
    {
        "dynamics.cart.mass": attribute("masscart", "kg", "inertia of cart and both", _cart_pole, low=1e-6),
        "dynamics.pole.mass": attribute("masspole", "kg", "inertia, weight", _cart_pole, low=1e-6),
        "dynamics.pole.half_length": attribute("length", "m", "inertia, fall", _cart_pole, low=1e-6),
        "dynamics.cart.force": attribute("force_mag", "N", "strength of the push", low=0.0),
        "dynamics.world.gravity": attribute("gravity", "m/s²", "gravity, downwards"),
    },
)
register_parameters(
    f"{CONTROL}.pendulum:PendulumEnv",
    {
        "dynamics.pole.mass": attribute("m", "kg", "inertia, weight", low=1e-6),
        "dynamics.pole.length": attribute("l", "m", "inertia, weight", low=1e-6),
        "dynamics.world.gravity": attribute("g", "m/s²", "gravity, downwards"),
        # the action space ends at 2 N·m: a stronger motor would change nothing
        "dynamics.motor.max_torque": attribute(
            "max_torque", "N·m", "torque that the motor can give", low=0.0, high=2.0
        ),
    },
)
register_parameters(
    f"{CONTROL}.acrobot:AcrobotEnv",
    {
        "dynamics.link1.mass": attribute("LINK_MASS_1", "kg", "inertia, weight", low=1e-6),
        "dynamics.link2.mass": attribute("LINK_MASS_2", "kg", "inertia, weight", low=1e-6),
        "dynamics.link1.length": attribute("LINK_LENGTH_1", "m", "where the second link hangs", low=1e-6),
        "dynamics.link1.com": attribute("LINK_COM_POS_1", "m", "centre of mass along the link", low=0.0),
        "dynamics.link2.com": attribute("LINK_COM_POS_2", "m", "centre of mass along the link", low=0.0),
        "dynamics.links.inertia": attribute("LINK_MOI", "kg·m²", "moment of inertia of both links", low=1e-9),
        "dynamics.motor.torque_noise": attribute("torque_noise_max", "N·m", "noise on the torque", low=0.0),
    },
)
register_parameters(
    f"{CONTROL}.mountain_car:MountainCarEnv",
    {
        "dynamics.car.force": attribute("force", "", "strength of the motor, a step", low=0.0),
        "dynamics.car.gravity": attribute("gravity", "", "pull of the slope, a step"),
    },
)
# its pull of the slope is a number in its code
register_parameters(
    f"{CONTROL}.continuous_mountain_car:Continuous_MountainCarEnv",
    {"dynamics.car.power": attribute("power", "", "strength of the motor, a step", low=0.0)},
)


def _body(path: str) -> Any:
    """Return a function that finds a Box2D body of an environment: "lander", "legs.0"."""

    def find(env: Any) -> Any:
        for name in path.split("."):
            env = env[int(name)] if name.isdigit() else getattr(env, name)
        return env

    return find


def _density(*paths: str, nominal: float) -> Setter:
    """The density of Box2D bodies: mass and inertia follow."""
    bodies = [_body(path) for path in paths]

    def write(env: Any, value: float) -> None:
        for find in bodies:
            body = find(env)
            for fixture in body.fixtures:
                fixture.density = value
            body.ResetMassData()

    def read(env: Any) -> float:
        return float(bodies[0](env).fixtures[0].density)

    return Setter("kg/m²", read, write, "mass and inertia", low=1e-6, rebuilt=True, nominal=nominal)


def _world_gravity() -> Setter:
    def write(env: Any, value: float) -> None:
        env.world.gravity = (0.0, -value)

    return Setter("m/s²", lambda env: -float(env.world.gravity[1]), write, "gravity, downwards")


def _lander_gravity() -> Setter:
    def write(env: Any, value: float) -> None:
        env.gravity = -value  # what the next reset builds its world with
        env.world.gravity = (0.0, -value)

    return Setter("m/s²", lambda env: -float(env.gravity), write, "gravity, downwards")


def _wind(name: str, unit: str, affects: str) -> Setter:
    def ignored(env: Any) -> str:
        return "" if env.enable_wind else "it has no wind; make it with gym.make('LunarLander-v3', enable_wind=True)"

    return attribute(name, unit, affects, low=0.0, ignored=ignored)


register_parameters(
    f"{BOX2D}.lunar_lander:LunarLander",
    {
        "dynamics.world.gravity": _lander_gravity(),
        "dynamics.lander.density": _density("lander", nominal=5.0),
        "dynamics.legs.density": _density("legs.0", "legs.1", nominal=1.0),
        "dynamics.world.wind_power": _wind("wind_power", "N", "strength of the wind"),
        "dynamics.world.turbulence_power": _wind("turbulence_power", "N·m", "strength of the turbulence"),
    },
)


def _ground_friction() -> Setter:
    def write(env: Any, value: float) -> None:
        # the terrain of the next episode is made from these two
        env.fd_polygon.friction = env.fd_edge.friction = value

    return Setter("", lambda env: float(env.fd_edge.friction), write, "friction of the ground", low=0.0)


register_parameters(
    f"{BOX2D}.bipedal_walker:BipedalWalker",
    {
        "dynamics.world.gravity": _world_gravity(),
        "dynamics.ground.friction": _ground_friction(),
        "dynamics.hull.density": _density("hull", nominal=5.0),
        "dynamics.legs.density": _density("legs.0", "legs.1", "legs.2", "legs.3", nominal=1.0),
    },
)
