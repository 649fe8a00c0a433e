"""What a robot's motors make of commands, where commands are efforts."""

from __future__ import annotations

import numpy as np

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.randomization import RobotModel


def gears(robot: RobotModel) -> Array:
    """Return the effort at each driven joint of a command of one: (A,).

    Raises:
        ModelError: an actuator is no motor of a joint, or a joint has several.
    """
    import mujoco

    mj = robot.mj
    motor = (
        (mj.actuator_gaintype == int(mujoco.mjtGain.mjGAIN_FIXED))
        & (mj.actuator_biastype == int(mujoco.mjtBias.mjBIAS_NONE))
        & (mj.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_NONE))
        & (mj.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT))
    )
    names = np.asarray(robot.actuator_names)
    if not motor.all():
        raise ModelError(
            f"commands have to be efforts: expected motors of joints, found {', '.join(names[~motor])} of "
            f"{robot.name}, which take something else"
        )
    if len(np.unique(robot.driven)) < mj.nu:
        raise ModelError(f"expected one motor a joint, found several on one in {robot.name}")
    return np.asarray(mj.actuator_gear[:, 0] * mj.actuator_gainprm[:, 0])
