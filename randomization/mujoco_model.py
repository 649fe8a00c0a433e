"""Robot models for MuJoCo: a file or a packaged robot, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import RobotError
from sim2real.randomization import robots
from sim2real.randomization.mujoco_address import Address
from sim2real.randomization.mujoco_fields import MujocoFields
from sim2real.randomization.mujoco_table import actuator_name, joint_name

if TYPE_CHECKING:
    import mujoco

    from sim2real.randomization.mujoco_simulator import MujocoSimulator


class RobotModel:
    """A compiled MuJoCo model whose joints are hinges and slides, and the table of its parameters (`MujocoFields`).

    Args:
        source: a packaged robot, by name, or an MJCF or URDF file.
        compiled: from the source, where it was compiled already.
        stages: parameters of stages that the compiled model stands for; see `MujocoFields`.

    Raises:
        RobotError: the file does not exist or does not parse, or a joint is neither a hinge nor a slide.
    """

    # What simulates it, and the table of what can be written there.
    engine = "mujoco"
    Fields: type[MujocoFields] = MujocoFields

    def __init__(
        self,
        source: str | Path,
        compiled: mujoco.MjModel | None = None,
        stages: Mapping[str, Address] | None = None,
    ) -> None:
        import mujoco

        self.name = str(source)
        self.mj: mujoco.MjModel = load_mujoco(source) if compiled is None else compiled
        self.fields = self.Fields(self.mj, self.name, stages)
        slide_or_hinge = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
        if not np.isin(self.mj.jnt_type, [int(j) for j in slide_or_hinge]).all() or self.mj.njnt == 0:
            raise RobotError(f"robot file {source}: identification needs hinge and slide joints only, and at least one")

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint_name(self.mj, i) for i in range(self.mj.njnt))

    @property
    def actuator_names(self) -> tuple[str, ...]:
        return tuple(actuator_name(self.mj, i) for i in range(self.mj.nu))

    @cached_property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each joint turns freely, so that its angle matters only modulo 2 pi."""
        import mujoco

        hinge = self.mj.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)
        return tuple(bool(x) for x in hinge & (self.mj.jnt_limited == 0))

    @property
    def joint_stops(self) -> tuple[tuple[float, float], ...]:
        """The range of each joint [rad or m], infinite where it is not limited."""
        ranges = np.where(self.mj.jnt_limited[:, None] != 0, self.mj.jnt_range, [-np.inf, np.inf])
        return tuple((float(low), float(high)) for low, high in ranges)

    @property
    def joint_units(self) -> tuple[str, ...]:
        return tuple("m" if slide else "rad" for slide in self._slides)

    @property
    def effort_units(self) -> tuple[str, ...]:
        return tuple("N" if self._slides[joint] else "N·m" for joint in self.mj.actuator_trnid[:, 0])

    @property
    def _slides(self) -> NDArray[np.bool_]:
        import mujoco

        return np.asarray(self.mj.jnt_type == int(mujoco.mjtJoint.mjJNT_SLIDE))

    @property
    def driven(self) -> NDArray[np.int_]:
        """(A,) the degree of freedom that each actuator drives."""
        return np.asarray(self.mj.jnt_dofadr[self.mj.actuator_trnid[:, 0]], int)

    def simulate(self, n: int, timestep: float, threads: int = 0) -> MujocoSimulator:
        """Return n plants to step."""
        from sim2real.randomization.mujoco_simulator import MujocoSimulator

        return MujocoSimulator(self, n, timestep, threads)

    @property
    def units(self) -> dict[str, str]:
        """Every parameter's unit."""
        return {name: address.unit for name, address in self.addresses.items()}

    @property
    def addresses(self) -> dict[str, Address]:
        """Every parameter: name -> where it lives."""
        return self.fields.addresses

    @property
    def nominal(self) -> dict[str, float]:
        """Every parameter's value in the file: name -> number."""
        return self.fields.nominal


def load_mujoco(source: str | Path) -> mujoco.MjModel:
    """Compile a packaged robot, by name, or an MJCF or URDF file.

    Raises:
        RobotError: the file does not exist or does not parse.
    """
    return compiled(load_spec(source), source)


def compiled(spec: mujoco.MjSpec, source: str | Path) -> mujoco.MjModel:
    """Compile a description.

    Raises:
        RobotError: it does not compile; the source is named.
    """
    try:
        return spec.compile()
    except ValueError as error:
        raise _unreadable(source, error) from None


def load_spec(source: str | Path) -> mujoco.MjSpec:
    """Read a packaged robot, by name, or an MJCF or URDF file, to be changed before it is compiled.

    Raises:
        RobotError: the file does not exist or does not parse.
    """
    import mujoco

    path = Path(source)
    if not path.suffix:
        path = robots.path(str(source))
    elif not path.is_file():
        raise RobotError(f"robot file {path} does not exist; packaged robots: {', '.join(robots.ROBOTS)}")
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise _unreadable(path, error) from None


def _unreadable(source: str | Path, error: ValueError) -> RobotError:
    return RobotError(f"robot file {source} does not parse as MJCF or URDF: {' '.join(str(error).split())}")
