"""How far a robot keeps away from obstacles, from itself, and from the walls of its workspace."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim2real.episodes import Array
from sim2real.errors import ModelError
from sim2real.randomization import RobotModel

# Places that a path is looked at in, beside the ends of its stretches, before it counts as too close.
PLACES = 40
# Where a stretch moves nothing by more than this share of the distance, and this [m], its middle tells.
SHARE, TOLERANCE = 0.5, 1e-3
# Configurations; geoms that are too close in all of them are joined.
SAMPLES = 64


class Clearance:
    """The geometry of a robot file: its geoms that collide, as MuJoCo has it, those of the world being obstacles.

    Pairs of one body, of parent and child, those that the file excludes, and those that are too close wherever the
    joints are, are not looked at. Between configurations that are looked at, a bound on how far a turn of a joint moves
    what hangs on it says that nothing is passed through. Hinges that nothing drives may be anywhere.

    Args:
        robot: with hinges and slides.
        distance: to keep [m].
        workspace: corners ((x, y, z), (x, y, z)) of a box of the world's axes that what moves stays within [m].

    Attributes:
        pairs: (P, 2) geoms that are looked at, by number.

    Raises:
        ModelError: there is nothing to look at, the distance is negative, a corner is not below the other, or a slide
            that nothing drives moves what is looked at.
    """

    def __init__(
        self,
        robot: RobotModel,
        distance: float,
        workspace: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.robot, self.distance = robot, distance
        mj = self._mj = robot.mj
        self._data = mujoco.MjData(mj)
        self._box = None if workspace is None else np.asarray(workspace, float)
        if distance < 0:
            raise ModelError(f"a clearance is not below zero, found {distance:g} m")
        if self._box is not None and (self._box.shape != (2, 3) or not (self._box[0] < self._box[1]).all()):
            raise ModelError(f"expected two corners (x, y, z) of a workspace, the lower one first, found {workspace}")
        self._chains = np.array([_chain(mj, body) for body in mj.geom_bodyid]).reshape(mj.ngeom, mj.nv)
        self._bounds = np.where(mj.geom_rbound > 0, mj.geom_rbound, np.inf)  # a plane has none
        self.pairs = self._not_joined(_colliding(mj))
        solid = (mj.geom_contype != 0) | (mj.geom_conaffinity != 0)
        self._walled = np.flatnonzero(self._chains.any(1) & solid) if self._box is not None else np.zeros(0, int)
        if not len(self.pairs) and not len(self._walled):
            raise ModelError(
                f"nothing of {robot.name} can collide, so no clearance can be kept: give geoms contype and conaffinity"
            )
        reach = np.array([[self._reach(g, j) for j in range(mj.nv)] for g in range(mj.ngeom)])
        first, second = self.pairs.T
        # what moves both alike does not bring them closer
        differs = self._chains[first] ^ self._chains[second]
        self._closing = np.where(differs, np.maximum(reach[first], reach[second]), 0.0)
        self._moving = reach[self._walled]
        self._alike = np.full(len(self.pairs), distance), np.full(len(self._walled), distance)
        if not np.isfinite(reach).all():
            raise ModelError(f"a slide of {robot.name} has no range: give it one, or no clearance can be kept")
        moved = np.concatenate([self._closing, self._moving]).any(0)
        free = np.setdiff1d(np.flatnonzero(moved), robot.driven)
        slides = free[mj.jnt_type[free] == int(mujoco.mjtJoint.mjJNT_SLIDE)]
        if len(slides):
            raise ModelError(
                f"{robot.joint_names[slides[0]]} of {robot.name} slides undriven: no clearance can be kept"
            )
        self._anywhere = free

    def kept(self, path: Array, leaving: bool = False) -> bool:
        """Return whether the distance is kept all along a path (S + 1, V) of joint positions, straight in between.

        At the ends of stretches it is kept exactly, between them half of it, or all but a millimetre.

        Args:
            path: of all joints.
            leaving: what is closer already where the path begins need only not come closer.
        """
        none, needed = np.zeros(self._mj.nv), self._alike
        whole = np.abs(np.diff(path, axis=0)).sum(0)
        whole[self._anywhere] = np.pi
        slack = self._closing @ whole, self._moving @ whole
        found = self._gaps(path[0], whole, needed)
        if all((g >= n + s).all() for g, n, s in zip(found, needed, slack, strict=True)):  # far from everything
            return True
        if leaving:
            pairs, walls = self._gaps(path[0], none, needed)
            needed = np.minimum(needed[0], pairs - 1e-9), np.minimum(needed[1], walls - 1e-9)
        if not all((g >= n).all() for at in path for g, n in zip(self._gaps(at, none, needed), needed, strict=True)):
            return False
        fine, looked = max(SHARE * self.distance, TOLERANCE), 0
        stretches = list(pairwise(path))
        while stretches:
            start, end = stretches.pop()
            looked += 1
            middle, half = 0.5 * (start + end), 0.5 * np.abs(end - start)
            half[self._anywhere] = np.pi
            slack = self._closing @ half, self._moving @ half
            rooms = [g - n for g, n in zip(self._gaps(middle, half, needed), needed, strict=True)]
            if all((room >= s).all() for room, s in zip(rooms, slack, strict=True)):
                continue
            if looked > PLACES or any((room < 0).any() for room in rooms):
                return False
            if max(s.max(initial=0.0) for s in slack) > fine:
                stretches += [(start, middle), (middle, end)]
        return True

    def _gaps(self, at: Array, half: Array, needed: tuple[Array, Array]) -> tuple[Array, Array]:
        """Return how far apart pairs are (P,), and what is walled in from its walls (G,), at positions (V,) [m].

        Of pairs that are further apart than is needed within `half` (V,) of there, no more than that is told.
        """
        mj, data = self._mj, self._data
        data.qpos[:] = at
        mujoco.mj_kinematics(mj, data)
        walls = np.zeros(0)
        if len(self._walled):
            assert self._box is not None
            boxes, turned = mj.geom_aabb[self._walled], data.geom_xmat[self._walled].reshape(-1, 3, 3)
            centre = data.geom_xpos[self._walled] + np.einsum("gij,gj->gi", turned, boxes[:, :3])
            size = np.einsum("gij,gj->gi", np.abs(turned), boxes[:, 3:])
            # by its box and by its ball, whichever is tighter
            ball, about = self._bounds[self._walled, None], data.geom_xpos[self._walled]
            low, high = np.maximum(centre - size, about - ball), np.minimum(centre + size, about + ball)
            walls = np.minimum(low - self._box[0], self._box[1] - high).min(1)
        first, second = self.pairs.T
        gaps = needed[0] + self._closing @ half
        apart = np.linalg.norm(data.geom_xpos[first] - data.geom_xpos[second], axis=1)
        near = ~(apart - self._bounds[first] - self._bounds[second] >= gaps)
        for i in np.flatnonzero(near):
            gaps[i] = mujoco.mj_geomDistance(mj, data, int(first[i]), int(second[i]), float(gaps[i]), None)
        return gaps, walls

    def _not_joined(self, pairs: NDArray[np.int_]) -> NDArray[np.int_]:
        """Return the pairs that are not too close everywhere."""
        rng, mj, data = np.random.default_rng(0), self._mj, self._data
        stops = np.array(self.robot.joint_stops).reshape(mj.nv, 2)
        limited = np.isfinite(stops).all(1)
        low, high = np.where(limited, stops[:, 0], -np.pi), np.where(limited, stops[:, 1], np.pi)
        joined = np.ones(len(pairs), bool)
        for _ in range(SAMPLES):
            data.qpos[:] = rng.uniform(low, high)
            mujoco.mj_kinematics(mj, data)
            for i in np.flatnonzero(joined):
                first, second = (int(g) for g in pairs[i])
                found = mujoco.mj_geomDistance(mj, data, first, second, self.distance + 1e-3, None)
                joined[i] = found <= self.distance
        return pairs[~joined]

    def _reach(self, geom: int, joint: int) -> float:
        """Return how far a point of a geom moves at most when a joint moves by one [m/rad or m/m]."""
        mj = self._mj
        if not self._chains[geom, joint]:
            return 0.0
        if mj.jnt_type[joint] == int(mujoco.mjtJoint.mjJNT_SLIDE):
            return 1.0
        body, holder = int(mj.geom_bodyid[geom]), int(mj.jnt_bodyid[joint])
        far = float(np.linalg.norm(mj.geom_pos[geom]) + mj.geom_rbound[geom] + np.linalg.norm(mj.jnt_pos[joint]))
        while True:
            first = int(mj.body_jntadr[body])
            for k in range(first, first + int(mj.body_jntnum[body])):
                if k == joint or (body == holder and k < joint):  # what comes before it does not hang on it
                    continue
                if mj.jnt_type[k] == int(mujoco.mjtJoint.mjJNT_SLIDE):
                    far += float(np.abs(mj.jnt_range[k]).max()) if mj.jnt_limited[k] else np.inf
                else:  # its body turns about an anchor that is not its origin
                    far += 2 * float(np.linalg.norm(mj.jnt_pos[k]))
            if body == holder:
                return far
            far += float(np.linalg.norm(mj.body_pos[body]))
            body = int(mj.body_parentid[body])


def _chain(mj: mujoco.MjModel, body: int) -> NDArray[np.bool_]:
    """Return which joints move a body (V,)."""
    out = np.zeros(mj.nv, bool)
    while body:
        first = mj.body_dofadr[body]
        out[first : first + mj.body_dofnum[body]] = mj.body_dofnum[body] > 0
        body = int(mj.body_parentid[body])
    return out


def _colliding(mj: mujoco.MjModel) -> NDArray[np.int_]:
    """Return the pairs of geoms (P, 2) that MuJoCo would let collide."""
    excluded = {(int(s) >> 16, int(s) & 0xFFFF) for s in mj.exclude_signature}
    if mj.npair:
        raise ModelError("pairs of geoms in <contact> are not looked at: give geoms contype and conaffinity instead")
    out = []
    for a in range(mj.ngeom):
        for b in range(a + 1, mj.ngeom):
            meet = (mj.geom_contype[a] & mj.geom_conaffinity[b]) | (mj.geom_contype[b] & mj.geom_conaffinity[a])
            one, two = int(mj.geom_bodyid[a]), int(mj.geom_bodyid[b])
            welded = int(mj.body_weldid[one]), int(mj.body_weldid[two])
            above = [int(mj.body_weldid[mj.body_parentid[w]]) for w in welded]
            # the world is everybody's parent, and an obstacle to all
            family = welded[0] and welded[1] and (welded[0] == above[1] or welded[1] == above[0])
            left_out = (one, two) in excluded or (two, one) in excluded
            if meet and welded[0] != welded[1] and not family and not left_out:
                out.append((a, b))
    return np.array(out, int).reshape(-1, 2)
