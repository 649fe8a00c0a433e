"""The motion of a MuJoCo plant, as stages with feedback see it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.adapters.chain import Chain
from sim2real.adapters.stage import PlantView
from sim2real.errors import ParameterError

Array = NDArray[np.float64]


class JointMotion:
    """Reads joints and the efforts on them from a MuJoCo model of one plant, one column an actuator.

    Args:
        model: all of whose actuators are motors, each an effort on one hinge or slide joint in proportion to its
            control.

    Attributes:
        effort: (A,) effort at the joint for a control of one [N·m or N].

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
                "proportion to its control), so that stages which need the motion of the plant have no effort to act "
                "on; make it a motor and let a drive stage do what it did"
            )
        self._model, self._dofs, self._places = model, model.jnt_dofadr[joints], model.jnt_qposadr[joints]
        self.effort: Array = model.actuator_gainprm[:, 0] * model.actuator_gear[:, 0]

    def view(self, data: Any) -> PlantView:
        """Return the motion now: (1, A) each. Computes positions and velocities, and leaves the state as it is."""
        import mujoco

        model = self._model
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        inertia = np.empty((model.nv, model.nv))
        mujoco.mj_fullM(model, data, inertia)
        effective = 1.0 / np.diagonal(np.linalg.inv(inertia))
        load = data.qfrc_bias - data.qfrc_passive
        return PlantView(
            position=data.qpos[self._places][None],
            velocity=data.qvel[self._dofs][None],
            effective_inertia=effective[self._dofs][None],
            load=load[self._dofs][None],
        )


def takes(chain: Chain) -> str | None:
    """Return the unit that the first stage of a chain which asks for one takes."""
    return next((stage.takes for stage in chain.stages if stage.takes), None)


def gives(chain: Chain) -> str | None:
    """Return the unit that comes out of a chain, where its stages say."""
    return next((stage.gives or stage.takes for stage in reversed(chain.stages) if stage.gives or stage.takes), None)
