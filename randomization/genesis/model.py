"""A robot file as a plant of Genesis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim2real.randomization.genesis.models import GenesisFields
from sim2real.randomization.mujoco_model import RobotModel, load_spec

if TYPE_CHECKING:
    import mujoco

    from sim2real.randomization.genesis.simulator import GenesisSimulator


class GenesisModel(RobotModel):
    """A `RobotModel` that Genesis simulates: the same names, units and nominal values, as far as Genesis has them.

    MuJoCo reads the file, and Genesis what MuJoCo has read, MJCF and URDF alike. Integrated is by the semi-implicit
    Euler method with MuJoCo's model of constraints, in single precision.

    Args:
        source: a packaged robot, by name, or an MJCF or URDF file.

    Raises:
        RobotError: as `RobotModel`.

    Example:
        >>> GenesisModel("pendulum").nominal["dynamics.payload.mass"]
        0.546
    """

    engine = "genesis"
    Fields = GenesisFields
    fields: GenesisFields

    def simulate(self, n: int, timestep: float, threads: int = 0) -> GenesisSimulator:  # type: ignore[override]
        """Return n plants to step; Genesis has threads of its own, `QD_NUM_THREADS` on the CPU, one by default."""
        from sim2real.randomization.genesis.simulator import GenesisSimulator

        return GenesisSimulator(self, n, timestep)

    @property
    def spec(self) -> mujoco.MjSpec:
        """The robot, to be read by Genesis."""
        import mujoco

        spec = load_spec(self.name)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER  # as every plant of the toolkit
        return spec
