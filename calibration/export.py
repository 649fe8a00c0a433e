"""A posterior for others: a robot file with the identified values written in, and YAML that other frameworks read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from sim2real.calibration.posterior import Posterior
from sim2real.errors import ParameterError, RobotError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_model import load_spec
from sim2real.randomization.mujoco_parameters import LiveModel, MujocoParameters


def to_mjcf(plant: Plant, values: Mapping[str, float]) -> str:
    """Return the robot file of a plant as MJCF with values written in.

    Parameters of the execution, which MJCF has no place for, stand in a comment. The text is compiled again, and every
    value read back from it.

    Args:
        plant: on a robot file.
        values: name -> number; a posterior's `values`.

    Raises:
        RobotError: the plant is no robot file.
        ParameterError: a value that does not come back from the file.
    """
    import mujoco

    if not isinstance(plant.model, RobotModel):
        raise RobotError(f"{plant.model.name} is a function: there is no robot file to write values into")
    name = plant.model.name
    spec = load_spec(name)
    model = spec.compile()
    fields = MujocoFields(model, name)
    dynamics = {n: v for n, v in values.items() if n in fields.addresses}
    store = MujocoParameters(fields, LiveModel(model))
    store.write({n: np.array([v]) for n, v in dynamics.items()})
    spec.copy_back(model)
    folder = Path(str(spec.modelfiledir) or ".").resolve()
    if spec.meshes or spec.hfields:  # so that the text can be put anywhere
        spec.meshdir = str(folder / spec.meshdir)
    if spec.textures:
        spec.texturedir = str(folder / spec.texturedir)
    rest = [f"{n} = {v:.6g} {plant.units().get(n, '')}".rstrip() for n, v in values.items() if n not in dynamics]
    spec.comment = "\n".join(["Identified values are written in.", *(["Of the execution:", *rest] if rest else [])])
    text = str(spec.to_xml())
    again = MujocoFields(mujoco.MjModel.from_xml_string(text), name).nominal
    for n, v in dynamics.items():
        if n not in again or not np.isclose(again[n], v, rtol=1e-4, atol=1e-9):
            found = f"{again[n]:g}" if n in again else "nothing"
            raise ParameterError(f"{n}: MuJoCo did not write {v:g} into the robot file, but {found}; set it by hand")
    return text


def to_yaml(posterior: Posterior) -> str:
    """Return a posterior as the `parameters:` section of a recipe, with values and intervals beside it.

    Each parameter has its own (truncated normal) distribution; how they are correlated is in the posterior alone.
    """
    document = {
        "parameters": {p.name: p.full_notation for p in posterior},
        "values": {name: float(f"{value:.6g}") for name, value in posterior.values.items()},
        "interval90": {name: [float(f"{end:.6g}") for end in posterior.interval(name)] for name in posterior.names},
        "units": {p.name: p.unit for p in posterior},
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
