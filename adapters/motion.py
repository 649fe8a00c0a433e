"""The motion of a MuJoCo plant, as stages with feedback see it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.adapters.stage import PlantView
from sim2real.errors import ParameterError
from sim2real.randomization.mujoco_parameters import BatchModels
from sim2real.randomization.mujoco_simulator import effective_inertia

Array = NDArray[np.float64]


class Motors:
    """Which joints the actuators of a MuJoCo model drive, one column an actuator.

    Args:
        model: all of whose actuators are motors, each an effort on one hinge or slide joint in proportion to its
            control.

    Raises:
        ParameterError: another actuator, which is named.
    """

    def __init__(self, model: Any) -> None:
        import mujoco

        motors = (
            (model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT))
            & (model.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_NONE))
            & (model.actuator_gaintype == int(mujoco.mjtGain.mjGAIN_FIXED))
            & (model.actuator_biastype == int(mujoco.mjtBias.mjBIAS_NONE))
        )
        joints = model.actuator_trnid[:, 0]
        turning = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
        motors &= np.isin(model.jnt_type[np.where(motors, joints, 0)], turning)
        if not motors.all():
            k = int(motors.argmin())
            raise ParameterError(
                f"actuator {model.actuator(k).name or k!r} is no motor (an effort on a hinge or slide joint in "
                "proportion to its control), so that stages which act on efforts or need the motion of the plant have "
                "nothing to act on; make it a motor and let a drive stage do what it did"
            )
        self.dofs, self.places = model.jnt_dofadr[joints], model.jnt_qposadr[joints]
        limited = model.actuator_ctrllimited.astype(bool)
        self._low = np.where(limited, model.actuator_ctrlrange[:, 0], -np.inf)
        self._high = np.where(limited, model.actuator_ctrlrange[:, 1], np.inf)

    @staticmethod
    def lift_range(model: Any) -> None:
        """Let the controls of a model leave their range: it is one of commands, and friction comes on top of these."""
        model.actuator_ctrllimited[:] = False

    def commands(self, control: Array) -> Array:
        """Return controls within the range that the model gave them."""
        return np.minimum(np.maximum(control, self._low), self._high)


class JointMotion(Motors):
    """Reads joints and the efforts on them from one plant, whose model may be changed and made anew meanwhile."""

    def effort(self, model: Any) -> Array:
        """Return the effort at the joint for a control of one, as the model is now: (A,) [N·m or N]."""
        return model.actuator_gainprm[:, 0] * model.actuator_gear[:, 0]  # type: ignore[no-any-return]

    def view(self, model: Any, data: Any) -> PlantView:
        """Return the motion now: (1, A) each. Computes positions and velocities, and leaves the state as it is."""
        import mujoco

        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        load = data.qfrc_bias - data.qfrc_passive
        return PlantView(
            position=data.qpos[self.places][None],
            velocity=data.qvel[self.dofs][None],
            effective_inertia=effective_inertia(model, data.M[None])[:, self.dofs],
            load=load[self.dofs][None],
        )


class BatchMotion:
    """Reads joints and the efforts on them from a `mujoco.batch.Batch` of n plants.

    Args:
        batch: of a model all of whose actuators are motors.
        motors: of that model.
    """

    def __init__(self, batch: Any, motors: Motors) -> None:
        self.motors = motors
        self._batch, self._models = batch, BatchModels(batch)
        self._qpos, self._qvel, self._inertia = batch.bind("qpos"), batch.bind("qvel"), batch.bind("M")
        self._bias, self._passive = batch.bind("qfrc_bias"), batch.bind("qfrc_passive")

    @property
    def effort(self) -> Array:
        """Effort at the joint for a control of one, as the models are now: (n, A) [N·m or N]."""
        gain, gear = (np.asarray(self._models.values(f"actuator_{f}"), np.float64) for f in ("gainprm", "gear"))
        return gain[..., 0] * gear[..., 0]

    def view(self, ids: NDArray[np.int32] | None = None) -> PlantView:
        """Return the motion of the plants `ids`, of all by default: (n, A) each; of the others it says nothing."""
        import mujoco

        self._batch.forward(ids, stage=int(mujoco.mjtStage.mjSTAGE_VEL))
        effective = np.ones((len(self._qpos), self._batch.model.nv))
        rows = slice(None) if ids is None else ids
        effective[rows] = effective_inertia(self._batch.model, self._inertia[rows])
        return PlantView(
            position=self._qpos[:, self.motors.places],
            velocity=self._qvel[:, self.motors.dofs],
            effective_inertia=effective[:, self.motors.dofs],
            load=(self._bias - self._passive)[:, self.motors.dofs],
        )
