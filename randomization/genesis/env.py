"""A Gymnasium vector environment of n plants in Genesis: tensors in and out, on a GPU or the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sim2real.adapters import Chain, PlantView
from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.genesis.models import GenesisFields, GenesisModels
from sim2real.randomization.genesis.scene import Scene, borrow
from sim2real.randomization.mujoco_parameters import MujocoParameters
from sim2real.randomization.parameters import ParameterStore
from sim2real.randomization.pictures import Pixels
from sim2real.randomization.randomization import Randomizations
from sim2real.randomization.vector.conventions import Mask, PlantsVectorEnv
from sim2real.randomization.vector.task import FunctionTask, Infos, Rows

if TYPE_CHECKING:
    import torch


class GenesisPlants:
    """n plants as tensors (n, ...) named and ordered as in MuJoCo's `MjData`, in single precision.

    Attributes:
        qpos, qvel, ctrl: positions, velocities and controls.
        goal: what the episodes aim at.
        xpos, xquat: of the bodies; unlike MuJoCo's they are those of the present state, not one substep behind.
    """

    FIELDS = ("qpos", "qvel", "ctrl", "xpos", "xquat")

    def __init__(self, scene: Scene, goals: int = 0) -> None:
        self._scene = scene
        self.goal = scene.tensor(np.zeros((scene.n, goals)))
        self.ctrl = scene.tensor(np.zeros((scene.n, scene.model.nu)))
        self.moved()

    def moved(self) -> None:
        """Forget what was read: the plants are elsewhere now."""
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None
        self._poses: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and velocities."""
        if self._state is None:
            self._state = self._scene.state()
        return self._state

    @property
    def qpos(self) -> torch.Tensor:
        return self.state[0]

    @property
    def qvel(self) -> torch.Tensor:
        return self.state[1]

    @property
    def xpos(self) -> torch.Tensor:
        return self._read()[0]

    @property
    def xquat(self) -> torch.Tensor:
        return self._read()[1]

    def _read(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._poses is None:
            self._poses = self._scene.body_poses()
        return self._poses


class GenesisVectorEnv(PlantsVectorEnv):
    """n environments of one `FunctionTask` on Genesis, each with its own parameters.

    Observations, rewards, terminations and truncations are tensors of the device that Genesis runs on, and actions may
    be tensors or arrays. Same seeds give the draws, starts and infos of `MujocoVectorEnv`, and its observations to
    single precision for as long as both engines agree.

    Args:
        task: of functions of tensors (`torch=True`), of a robot that is no compiled `MjModel`.
        num_envs: number of environments.
        parameters: what is randomized, and when; see `parse_randomizations`.
        initial_state: as for `RandomizeInitialState`.
        push: the arguments of `Push`, by name.
        execution: stages between actions and plant, at the substeps; those that are `native` are computed, too.
        perception: stages between plant and observations; rewards are of the true state.
        pixels: what cameras see, as for `Pixels`, beside the task's observations or in their place.
        max_episode_steps: control steps after which an episode is truncated; 0 for never.
        autoreset_mode: of Gymnasium.

    Attributes:
        device: of the tensors.

    Raises:
        MissingExtraError: Genesis is not installed.
        ParameterError: a task of numpy functions, or an unknown parameter.
        RobotError: Genesis cannot read the robot, or reads it otherwise than MuJoCo.
    """

    task: FunctionTask

    def __init__(
        self,
        task: FunctionTask,
        num_envs: int,
        *,
        parameters: Randomizations = (),
        initial_state: Mapping[str, str] | None = None,
        push: Mapping[str, Any] | None = None,
        execution: Sequence[Mapping[str, Any]] = (),
        perception: Sequence[Mapping[str, Any]] = (),
        pixels: Mapping[str, Any] | Pixels | None = None,
        max_episode_steps: int = 0,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        super().__init__(task, num_envs, max_episode_steps, autoreset_mode)
        spec = _spec(task)
        model = task.model
        lease = borrow(spec, num_envs, float(model.opt.timestep))
        self.scene = lease.scene
        self.device = self.scene.device
        self.plants = GenesisPlants(self.scene, task.goals)
        self._none = self.scene.tensor(np.zeros((num_envs, model.nu)))
        fields = GenesisFields(model, "the model")
        self._store: ParameterStore = MujocoParameters(fields, GenesisModels(lease, fields))
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, task.observation_space.shape, np.float32)
        chain = Chain.from_config(execution, gap="execution")
        self._motors, self._takes = None, chain.takes
        if execution:
            from sim2real.adapters.motion import Motors
            from sim2real.adapters.wrappers import refuse_other_gap, refuse_other_output

            refuse_other_gap(chain, "execution")
            if chain.in_effort:
                self._motors = Motors(model)
                refuse_other_output(chain)
            self._chain = chain.bind(num_envs, model.nu, float(model.opt.timestep), like=self._none)
        self._randomized(parameters, initial_state, push, perception, pixels, like=self._none if perception else None)

    def _given(self, array: Any) -> torch.Tensor:
        import torch

        return torch.as_tensor(array, device=self.device)

    def _taken(self, actions: Any) -> torch.Tensor:
        self._check_actions(actions)
        return self.scene.tensor(actions).detach().clone()

    def _place(self, mask: Mask, rows: NDArray[np.intp]) -> None:
        qpos, qvel = self._starts(rows)
        if self._initial is not None:
            qpos, qvel = self._drawn(rows, qpos, qvel)
        self.scene.set_state(qpos, qvel, None if mask.all() else rows)
        self.plants.ctrl = self.plants.ctrl.clone()
        self.plants.ctrl[rows] = 0.0
        self.plants.moved()

    def _observe(self, rows: Rows) -> torch.Tensor:
        found = self.task.tensors(self.plants)[0]
        return self.scene.tensor(found)[rows].clone()

    def _reset_info(self, rows: NDArray[np.intp]) -> Infos:
        return {}

    def _simulate(
        self, actions: torch.Tensor, going: Mask | None, wrench: NDArray[np.float64] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Infos]:
        import torch

        if going is not None:
            # all plants are stepped; those that begin anew are put into their states after it
            actions = torch.where(self._given(going)[:, None], actions, self._none)
        delivered = self._execute(actions, going, wrench)
        observation, reward, terminated = self.task.tensors(self.plants, actions)
        infos: Infos = {}
        if self._chain is not None:
            infos |= {"commanded_action": actions, "delivered_action": delivered}
            infos["applied_effort"] = self.scene.forces()
        return self.scene.tensor(observation).clone(), self.scene.tensor(reward).clone(), terminated, infos

    def _execute(self, actions: torch.Tensor, going: Mask | None, wrench: NDArray[np.float64] | None) -> torch.Tensor:
        """Step the plants through the stages; return what came out of these last: (n, A)."""
        skip, chain = self.task.frame_skip, self._chain
        limited = actions if chain is not None and self._motors is None else self.scene.within_range(actions)
        sent, effort = limited, None
        if self._motors is not None:
            effort = self.scene.gain * self.scene.gear
            sent = limited * effort if self._takes == "N·m" else limited
        feedback = chain is not None and chain.chain.feedback
        if chain is not None and not feedback:
            commands = chain.apply(sent[:, None].expand(-1, skip, -1), mask=going)
        out = limited
        for k in range(skip):
            if feedback:
                out = chain.apply(sent[:, None], self._view(), mask=going)[:, 0]
            elif chain is not None:
                out = commands[:, k]
            control = out if effort is None else out / effort
            if chain is not None and self._motors is None:
                control = self.scene.within_range(control)
            if wrench is not None:
                self.scene.wrench(self._pushed, wrench)
            self.scene.step(control)
            self.plants.moved()
        self.plants.ctrl = actions if chain is None else control
        lost = self.scene.lost()
        if lost.any():
            # as MuJoCo does: back to where the file has them
            rows, m = np.flatnonzero(lost), self.task.model
            self.scene.set_state(np.tile(m.qpos0, (len(rows), 1)), np.zeros((len(rows), m.nv)), rows)
            self.plants.moved()
        return (out if effort is None else out / effort).clone()

    def _view(self) -> PlantView:
        """Return the motion now: (n, A) each."""
        assert self._motors is not None
        (q, v), dofs = self.plants.state, self._motors.dofs
        inertia, load = self.scene.resistance()
        return PlantView(
            position=q[:, self._motors.places],
            velocity=v[:, dofs],
            effective_inertia=self.scene.tensor(inertia[:, dofs]),
            load=load[:, dofs],
        )


def _spec(task: FunctionTask) -> Any:
    """Return the description of a task's robot, or say why Genesis cannot run the task."""
    if not isinstance(task, FunctionTask) or not task.torch:
        raise ParameterError(
            "on Genesis a task is a FunctionTask whose functions take and return tensors: FunctionTask(..., torch=True)"
        )
    if task.spec is None:
        raise ParameterError("Genesis reads robots from files: give the task the file or an MjSpec, not an MjModel")
    for name in task.fields:
        if name not in GenesisPlants.FIELDS:
            raise ParameterError(f"on Genesis plants have no {name!r}{did_you_mean(name, GenesisPlants.FIELDS)}")
    return task.spec
