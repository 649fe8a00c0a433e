"""The tasks of Gymnasium's MuJoCo v5 environments, for n plants at once.

Each mirrors one module of `gymnasium.envs.mujoco` and takes its constants from an instance of that environment, so that
keyword arguments of `gymnasium.make` mean the same here.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim2real.randomization.parameters import Array
from sim2real.randomization.vector.task import EVERY, Infos, Plants, Rows, Task

Outcome = tuple[Array, NDArray[np.bool_], Infos]


class GymnasiumTask(Task):
    """A task with the constants of a Gymnasium environment.

    Args:
        env: unwrapped environment, of the class that the task mirrors.
    """

    # how many of the first positions the observation may leave out
    skippable = 0
    normal_velocities = False

    def __init__(self, env: Any) -> None:
        self.env, self.model, self.frame_skip = env, env.model, env.frame_skip
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.skip = self.skippable * getattr(env, "_exclude_current_positions_from_observation", False)

    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        env, scale = self.env, self.env._reset_noise_scale
        qpos = env.init_qpos + rng.uniform(low=-scale, high=scale, size=self.model.nq)
        if self.normal_velocities:
            return qpos, env.init_qvel + scale * rng.standard_normal(self.model.nv)
        return qpos, env.init_qvel + rng.uniform(low=-scale, high=scale, size=self.model.nv)

    def observe(self, plants: Plants, rows: Rows) -> Array:
        return np.concatenate([plants.qpos[rows, self.skip :], plants.qvel[rows]], 1)

    def control_cost(self, action: NDArray[Any]) -> NDArray[Any]:
        """(n,), in the precision of the actions, as the original computes it."""
        return np.asarray(self.env._ctrl_cost_weight * np.sum(np.square(action), axis=1))


class HalfCheetah(GymnasiumTask):
    """HalfCheetah-v5."""

    skippable = 1
    normal_velocities = True

    def before(self, plants: Plants) -> Array:
        return plants.qpos[:, 0].copy()

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        x = plants.qpos[:, 0].copy()
        velocity = (x - before) / self.dt
        forward, cost = self.env._forward_reward_weight * velocity, self.control_cost(action)
        infos = {"x_position": x, "x_velocity": velocity, "reward_forward": forward, "reward_ctrl": -cost}
        return forward - cost, np.zeros(len(x), bool), infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        return {"x_position": plants.qpos[rows, 0]}


class Swimmer(GymnasiumTask):
    """Swimmer-v5."""

    skippable = 2

    def before(self, plants: Plants) -> Array:
        return plants.qpos[:, :2].copy()

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        velocity = (plants.qpos[:, :2] - before) / self.dt
        forward, cost = self.env._forward_reward_weight * velocity[:, 0], self.control_cost(action)
        infos = {
            **self.reset_info(plants, EVERY),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -cost,
        }
        return forward - cost, np.zeros(len(velocity), bool), infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        return _whereabouts(plants.qpos[rows])


def _whereabouts(qpos: Array) -> Infos:
    """Position in the plane, and its distance from the origin."""
    return {
        "x_position": qpos[:, 0].copy(),
        "y_position": qpos[:, 1].copy(),
        "distance_from_origin": np.linalg.norm(qpos[:, :2], ord=2, axis=1),
    }


class _Legged(GymnasiumTask):
    """What Hopper and Walker2d share: planar, healthy between bounds, velocities clipped in the observation."""

    skippable = 1

    def before(self, plants: Plants) -> Array:
        return plants.qpos[:, 0].copy()

    def observe(self, plants: Plants, rows: Rows) -> Array:
        return np.concatenate([plants.qpos[rows, self.skip :], np.clip(plants.qvel[rows], -10, 10)], 1)

    def healthy(self, plants: Plants) -> NDArray[np.bool_]:
        """(n,)."""
        z, angle = plants.qpos[:, 1], plants.qpos[:, 2]
        (z_low, z_high), (low, high) = self.env._healthy_z_range, self.env._healthy_angle_range
        return np.asarray((z_low < z) & (z < z_high) & (low < angle) & (angle < high))

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        healthy = self.healthy(plants)
        velocity = (plants.qpos[:, 0] - before) / self.dt
        forward, cost = self.env._forward_reward_weight * velocity, self.control_cost(action)
        survive = healthy * self.env._healthy_reward
        infos = {
            **self.reset_info(plants, EVERY),
            "x_velocity": velocity,
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_survive": survive,
        }
        return forward + survive - cost, ~healthy & self.env._terminate_when_unhealthy, infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        qpos = plants.qpos[rows]
        return {"x_position": qpos[:, 0].copy(), "z_distance_from_origin": qpos[:, 1] - self.env.init_qpos[1]}


class Walker2d(_Legged):
    """Walker2d-v5."""


class Hopper(_Legged):
    """Hopper-v5."""

    def healthy(self, plants: Plants) -> NDArray[np.bool_]:
        low, high = self.env._healthy_state_range
        state = np.concatenate([plants.qpos, plants.qvel], 1)[:, 2:]
        return np.asarray(super().healthy(plants) & ((low < state) & (state < high)).all(1))


class Ant(GymnasiumTask):
    """Ant-v5."""

    skippable = 2
    normal_velocities = True
    fields = ("xpos",)
    contact_forces = True

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._body = int(env.model.body(env._main_body).id)

    def before(self, plants: Plants) -> Array:
        return plants.xpos[:, self._body, :2].copy()

    def _clipped(self, plants: Plants, rows: Rows) -> Array:
        return np.asarray(np.clip(plants.cfrc_ext[rows], *self.env._contact_force_range))

    def observe(self, plants: Plants, rows: Rows) -> Array:
        parts = [plants.qpos[rows, self.skip :], plants.qvel[rows]]
        if self.env._include_cfrc_ext_in_observation:
            forces = self._clipped(plants, rows)[:, 1:]
            parts.append(forces.reshape(len(forces), -1))
        return np.concatenate(parts, 1)

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        env = self.env
        velocity = (plants.xpos[:, self._body, :2] - before) / self.dt
        forward = velocity[:, 0] * env._forward_reward_weight
        z = plants.qpos[:, 2]
        finite = np.isfinite(plants.qpos).all(1) & np.isfinite(plants.qvel).all(1)
        low, high = env._healthy_z_range
        healthy = finite & (low <= z) & (z <= high)
        survive, cost = healthy * env._healthy_reward, self.control_cost(action)
        contact = env._contact_cost_weight * np.square(self._clipped(plants, EVERY)).sum((1, 2))
        infos = {
            **self.reset_info(plants, EVERY),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_contact": -contact,
            "reward_survive": survive,
        }
        return forward + survive - (cost + contact), ~healthy & env._terminate_when_unhealthy, infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        return _whereabouts(plants.qpos[rows])


class _Human(GymnasiumTask):
    """What Humanoid and HumanoidStandup share: their long observation."""

    skippable = 2
    fields = ("cinert", "cvel", "qfrc_actuator", "xipos", "ten_length", "ten_velocity")
    contact_forces = True

    def observe(self, plants: Plants, rows: Rows) -> Array:
        env = self.env
        parts = [plants.qpos[rows, self.skip :], plants.qvel[rows]]
        for name, used in (
            ("cinert", env._include_cinert_in_observation),
            ("cvel", env._include_cvel_in_observation),
            ("qfrc_actuator", env._include_qfrc_actuator_in_observation),
            ("cfrc_ext", env._include_cfrc_ext_in_observation),
        ):
            if used is True:
                # the first body is the world; the first six degrees of freedom have no motor
                part = getattr(plants, name)[rows, 6 if name == "qfrc_actuator" else 1 :]
                parts.append(part.reshape(len(part), -1))
        return np.concatenate(parts, 1)

    def _costs(self, plants: Plants, weight: float, bounds: tuple[float, float]) -> tuple[Array, Array]:
        """Control cost and clipped cost of contacts: (n,) each."""
        control = self.env._ctrl_cost_weight * np.sum(np.square(plants.ctrl), axis=1)
        return control, np.clip(weight * np.square(plants.cfrc_ext).sum((1, 2)), *bounds)

    def _tendons(self, plants: Plants, rows: Rows) -> Infos:
        return {
            "tendon_length": np.array(plants.ten_length[rows]),
            "tendon_velocity": np.array(plants.ten_velocity[rows]),
        }


class Humanoid(_Human):
    """Humanoid-v5."""

    def _centre(self, plants: Plants) -> Array:
        """Centre of mass in the plane: (n, 2)."""
        mass = np.broadcast_to(plants.model_field("body_mass"), plants.xipos.shape[:2])
        return np.asarray(np.einsum("nb,nbj->nj", mass, plants.xipos)[:, :2] / mass.sum(1, keepdims=True))

    def before(self, plants: Plants) -> Array:
        return self._centre(plants)

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        env, z = self.env, plants.qpos[:, 2]
        velocity = (self._centre(plants) - before) / self.dt
        forward = env._forward_reward_weight * velocity[:, 0]
        low, high = env._healthy_z_range
        healthy = (low < z) & (z < high)
        survive = healthy * env._healthy_reward
        control, contact = self._costs(plants, env._contact_cost_weight, env._contact_cost_range)
        infos = {
            **self.reset_info(plants, EVERY),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -control,
            "reward_contact": -contact,
        }
        return forward + survive - (control + contact), ~healthy & env._terminate_when_unhealthy, infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        return {**_whereabouts(plants.qpos[rows]), **self._tendons(plants, rows)}


class HumanoidStandup(_Human):
    """HumanoidStandup-v5."""

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        env = self.env
        up = plants.qpos[:, 2] / self.model.opt.timestep
        control, impact = self._costs(plants, env._impact_cost_weight, env._impact_cost_range)
        infos = {
            **self.reset_info(plants, EVERY),
            "reward_linup": up,
            "reward_quadctrl": -control,
            "reward_impact": -impact,
        }
        return up - control - impact + 1, np.zeros(len(up), bool), infos

    def reset_info(self, plants: Plants, rows: Rows) -> Infos:
        qpos = plants.qpos[rows]
        return {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "z_distance_from_origin": qpos[:, 2] - self.env.init_qpos[2],
            **self._tendons(plants, rows),
        }


class InvertedPendulum(GymnasiumTask):
    """InvertedPendulum-v5."""

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        terminated = ~np.isfinite(observation).all(1) | (np.abs(observation[:, 1]) > 0.2)
        alive = (~terminated).astype(int)
        return alive.astype(float), terminated, {"reward_survive": alive}


class InvertedDoublePendulum(GymnasiumTask):
    """InvertedDoublePendulum-v5."""

    normal_velocities = True
    fields = ("site_xpos", "qfrc_constraint")

    def observe(self, plants: Plants, rows: Rows) -> Array:
        qpos = plants.qpos[rows]
        force = np.clip(plants.qfrc_constraint[rows, :1], -10, 10)
        velocity = np.clip(plants.qvel[rows], -10, 10)
        return np.concatenate([qpos[:, :1], np.sin(qpos[:, 1:]), np.cos(qpos[:, 1:]), velocity, force], 1)

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        x, y = plants.site_xpos[:, 0, 0], plants.site_xpos[:, 0, 2]
        terminated = y <= 1
        v1, v2 = plants.qvel[:, 1], plants.qvel[:, 2]
        distance, speed = 0.01 * x**2 + (y - 2) ** 2, 0.001 * v1**2 + 0.005 * v2**2
        alive = self.env._healthy_reward * (~terminated)
        infos = {"reward_survive": alive, "distance_penalty": -distance, "velocity_penalty": -speed}
        return alive - distance - speed, terminated, infos


class Reacher(GymnasiumTask):
    """Reacher-v5."""

    fields = ("xpos",)

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._tip, self._target = (int(env.model.body(name).id) for name in ("fingertip", "target"))

    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        qpos = rng.uniform(low=-0.1, high=0.1, size=self.model.nq) + self.env.init_qpos
        while True:
            goal = rng.uniform(low=-0.2, high=0.2, size=2)
            if np.linalg.norm(goal) < 0.2:
                break
        qpos[-2:] = goal
        qvel = self.env.init_qvel + rng.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-2:] = 0
        return qpos, qvel

    def _offset(self, plants: Plants, rows: Rows) -> Array:
        return np.asarray(plants.xpos[rows, self._tip] - plants.xpos[rows, self._target])

    def observe(self, plants: Plants, rows: Rows) -> Array:
        qpos, theta = plants.qpos[rows], plants.qpos[rows, :2]
        offset = self._offset(plants, rows)[:, :2]
        return np.concatenate([np.cos(theta), np.sin(theta), qpos[:, 2:], plants.qvel[rows, :2], offset], 1)

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        distance = -np.linalg.norm(self._offset(plants, EVERY), axis=1) * self.env._reward_dist_weight
        control = -np.square(action).sum(1) * self.env._reward_control_weight
        return distance + control, np.zeros(len(action), bool), {"reward_dist": distance, "reward_ctrl": control}


class Pusher(GymnasiumTask):
    """Pusher-v5."""

    fields = ("xpos",)

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._tip, self._object, self._goal = (int(env.model.body(b).id) for b in ("tips_arm", "object", "goal"))

    def initial(self, rng: np.random.Generator) -> tuple[Array, Array]:
        qpos = self.env.init_qpos.copy()
        while True:
            cylinder = np.concatenate([rng.uniform(low=-0.3, high=0, size=1), rng.uniform(low=-0.2, high=0.2, size=1)])
            if np.linalg.norm(cylinder) > 0.17:
                break
        qpos[-4:-2], qpos[-2:] = cylinder, 0.0
        qvel = self.env.init_qvel + rng.uniform(low=-0.005, high=0.005, size=self.model.nv)
        qvel[-4:] = 0
        return qpos, qvel

    def observe(self, plants: Plants, rows: Rows) -> Array:
        x = plants.xpos[rows]
        bodies = [x[:, self._tip], x[:, self._object], x[:, self._goal]]
        return np.concatenate([plants.qpos[rows, :7], plants.qvel[rows, :7], *bodies], 1)

    def outcome(self, plants: Plants, before: Any, action: NDArray[Any], observation: Array) -> Outcome:
        env, x = self.env, plants.xpos
        near = -np.linalg.norm(x[:, self._object] - x[:, self._tip], axis=1) * env._reward_near_weight
        distance = -np.linalg.norm(x[:, self._object] - x[:, self._goal], axis=1) * env._reward_dist_weight
        control = -np.square(action).sum(1) * env._reward_control_weight
        infos = {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}
        return distance + control + near, np.zeros(len(action), bool), infos


TASKS: dict[str, type[GymnasiumTask]] = {
    "gymnasium.envs.mujoco.ant_v5:AntEnv": Ant,
    "gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv": HalfCheetah,
    "gymnasium.envs.mujoco.hopper_v5:HopperEnv": Hopper,
    "gymnasium.envs.mujoco.humanoid_v5:HumanoidEnv": Humanoid,
    "gymnasium.envs.mujoco.humanoidstandup_v5:HumanoidStandupEnv": HumanoidStandup,
    "gymnasium.envs.mujoco.inverted_double_pendulum_v5:InvertedDoublePendulumEnv": InvertedDoublePendulum,
    "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv": InvertedPendulum,
    "gymnasium.envs.mujoco.pusher_v5:PusherEnv": Pusher,
    "gymnasium.envs.mujoco.reacher_v5:ReacherEnv": Reacher,
    "gymnasium.envs.mujoco.swimmer_v5:SwimmerEnv": Swimmer,
    "gymnasium.envs.mujoco.walker2d_v5:Walker2dEnv": Walker2d,
}


def task_for(env: gym.Env[Any, Any]) -> GymnasiumTask | None:
    """Return the batched task of what `gymnasium.make` made, or None where there is none for its very class."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        if not isinstance(layer, gym.wrappers.PassiveEnvChecker | gym.wrappers.OrderEnforcing | gym.wrappers.TimeLimit):
            return None  # a registration that wraps its environment
        layer = layer.env
    base = type(env.unwrapped)
    task = TASKS.get(f"{base.__module__}:{base.__qualname__}")
    return None if task is None else task(env.unwrapped)
