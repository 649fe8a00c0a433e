"""Handing stages to the engine: what MuJoCo models itself, and truly. Delay lines, force ranges, friction at joints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.adapters.actuators import Friction, TorqueLimit
from sim2real.adapters.chain import Chain
from sim2real.adapters.delay import Latency
from sim2real.adapters.motion import Motors
from sim2real.adapters.stage import Stage
from sim2real.errors import ParameterError
from sim2real.randomization.mujoco_address import Address, Place
from sim2real.randomization.mujoco_model import RobotModel, load_spec
from sim2real.randomization.simulator import PlantModel

# Impedance of friction constraints, as close to 1 as MuJoCo takes: `solimp` without a slope.
HARD = (0.9999, 0.9999, 1.0, 0.5, 2.0)


def leave_to_engine(robot: PlantModel, chain: Chain, timestep: float) -> tuple[PlantModel, Chain]:
    """Return a robot whose engine does what the native stages of a chain do, and the chain of the other stages.

    Their parameters, under the names that they have in the chain, are among those of the robot that is returned. The
    signal is the control of the actuators.

    Args:
        robot: of a file, which is compiled anew; a function has no engine, and is returned as it is.
        chain: all of it remains to be applied where there is no engine, or nothing native.
        timestep: substep of the simulation [s].

    Raises:
        ParameterError: the file limits forces already, or has actuators that are no motors.
    """
    if not chain.native or not isinstance(robot, RobotModel) or robot.engine != "mujoco":
        return robot, chain
    spec = load_spec(robot.name)
    spec.option.timestep = timestep
    for stage in chain.native:
        if isinstance(stage, Latency):
            for k, actuator in enumerate(spec.actuators):
                if stage.channels is None or k in stage.channels:
                    if actuator.nsample:
                        _refuse(stage, f"a delay line on actuator {actuator.name or k}")
                    actuator.delay, actuator.nsample, actuator.interp = stage.delay, stage.length(timestep), 1
    model = spec.compile()
    return RobotModel(robot.name, model, hand_over(chain, model)), chain.outside_engine()


def hand_over(chain: Chain, model: Any, in_effort: bool = False) -> dict[str, Address]:
    """Write the native stages of a chain into a compiled model; return where their parameters live in it.

    Args:
        chain: with native stages, or without any.
        model: MuJoCo's, which is changed; for a native latency its actuators must have the room for a history.
        in_effort: whether the signal is the effort at the joint, and not the control of the actuators.

    Raises:
        ParameterError: the model limits forces already where a stage would, its actuators are no motors, or there is no
            room for a delay line.
    """
    found = [(stage, _places(stage, model, in_effort)) for stage in chain.native]
    out: dict[str, Address] = {}
    for stage, fields in found:
        for field, places in fields.items():
            name = stage.parameter(field)
            low, high = stage.limits()[name]
            out[name] = Address(tuple(places), stage.FIELDS[field].unit, f"{stage.kind}, by the engine", low, high)
            for place in places:
                getattr(model, place.field)[place.index] = place.stored(getattr(stage, field))
                if place.field == "actuator_forcerange":
                    model.actuator_forcelimited[place.index[0]] = True
                elif place.field == "dof_frictionloss":
                    # as hard as the engine has it: stops a joint within a substep, and what it holds hardly creeps
                    model.dof_solref[place.index] = 2.0 * model.opt.timestep, 1.0
                    model.dof_solimp[place.index] = HARD
    return out


def _places(stage: Stage, model: Any, in_effort: bool) -> dict[str, list[Place]]:
    """Return where the engine keeps each field of a stage: of every actuator that the stage acts on."""
    chosen = np.arange(model.nu) if stage.channels is None else np.array(stage.channels)
    if isinstance(stage, Latency):
        room = model.actuator_history[chosen, 0] >= stage.length(float(model.opt.timestep))
        if not room.all():
            raise ParameterError(
                f"{stage.gap}.{stage.name}: the model was compiled without a history of the commands, which a native "
                "delay needs; leave native out (the effect is the same), or simulate the robot file as a Plant"
            )
        return {"delay": [Place("actuator_delay", (k,)) for k in chosen.tolist()]}
    motors = Motors(model)
    if isinstance(stage, TorqueLimit):
        if model.actuator_forcelimited[chosen].any():
            _refuse(stage, "a force range")
        # what the actuator exerts for a signal of one
        force = 1.0 / model.actuator_gear[chosen, 0] if in_effort else model.actuator_gainprm[chosen, 0]
        return {"limit": list(_ranges(chosen, np.abs(force)))}
    assert isinstance(stage, Friction)
    dofs = motors.dofs[chosen]
    if len(set(dofs.tolist())) < len(dofs):
        raise ParameterError(f"{stage.gap}.{stage.name}: two actuators drive one joint, whose friction is one number")
    fields = {"coulomb": model.dof_frictionloss, "viscous": model.dof_damping}
    names = {"coulomb": "dof_frictionloss", "viscous": "dof_damping"}
    # on top of what the joints have already
    return {f: [Place(names[f], (int(d),), offset=float(own[d])) for d in dofs] for f, own in fields.items()}


def _ranges(chosen: NDArray[np.int_], force: NDArray[np.float64]) -> Iterator[Place]:
    for k, factor in zip(chosen.tolist(), force.tolist(), strict=True):
        yield Place("actuator_forcerange", (k, 1), factor)
        yield Place("actuator_forcerange", (k, 0), -factor)


def _refuse(stage: Stage, what: str) -> None:
    raise ParameterError(
        f"{stage.gap}.{stage.name} is native, but the model has {what} already, and the two would be one number: take "
        "it out of the model, or leave native out"
    )
