"""A robot's motion in one picture: its outlines at a few instants, drawn over each other, as under a stroboscope."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from scipy.spatial import ConvexHull, QhullError

from sim2real.report.figures import Panel, axis, draw

Array = NDArray[np.float64]
# Instants in a picture, and directions in which round bodies are sampled.
FLASHES, AROUND = 16, 16
COLOURS = ["#d6e4f0", "#56b4e9", "#0072b2", "#08305a"]


def stroboscope(robot: Any, times: Array, positions: Array, caption: str) -> list[Panel]:
    """Draw where a robot's bodies were, light at first and dark in the end, as its first camera sees them from afar.

    Args:
        robot: a compiled MuJoCo model whose joints are hinges and slides.
        times: (T,) [s].
        positions: (T, D) of the joints [rad or m].
        caption: said before what the picture shows.

    Returns:
        a panel, or none where the robot has no geom to be seen or was never read.
    """
    import mujoco

    read = np.isfinite(positions).all(1)
    if not read.any():
        return []
    times, positions = times[read], positions[read]
    data = mujoco.MjData(robot)
    shown = [g for g in range(robot.ngeom) if robot.geom_type[g] != mujoco.mjtGeom.mjGEOM_PLANE]
    moving = [g for g in shown if robot.body_weldid[robot.geom_bodyid[g]]]
    if not moving:
        return []
    right, up = view(robot)
    at = flashes(positions)
    shades = sample_colorscale(COLOURS, np.linspace(0, 1, len(at)).tolist())
    traces: list[go.Scatter] = []
    for k, shade in zip(at, shades, strict=True):
        data.qpos[:] = positions[k]
        mujoco.mj_kinematics(robot, data)
        if not traces:
            fixed = [g for g in shown if g not in moving]
            traces.append(_outlines(robot, data, fixed, right, up, "#c9ced6", 0.6, "stands still"))
        traces.append(_outlines(robot, data, moving, right, up, shade, 0.75, f"{times[k]:.2f} s"))
    x = axis("to the right [m]", nticks=6, zeroline=False)
    y = axis("up in the picture [m]", nticks=6, scaleanchor="x", scaleratio=1)
    told = f"{caption} Outlines at {len(at)} instants, more where it moves, light at first and dark in the end."
    return [Panel("Stroboscope", told, draw(traces, x, y), 380)]


def flashes(positions: Array) -> NDArray[np.int_]:
    """Return the instants that are drawn: equally far from each other on the way, a fifth of which is time itself."""
    span = np.ptp(positions, axis=0)
    moved = np.linalg.norm(np.diff(positions, axis=0) / np.where(span > 0, span, 1.0), axis=1)
    way = np.concatenate([[0.0], np.cumsum(moved)])
    along = 0.8 * way / max(float(way[-1]), 1e-12) + 0.2 * np.linspace(0, 1, len(positions))
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], FLASHES)).clip(0, len(positions) - 1))


def view(robot: Any) -> tuple[Array, Array]:
    """Return what is to the right and what is up (3,) in the picture: of the first camera, or from the front."""
    if robot.ncam == 0:
        return np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
    turned = robot.cam_mat0[0].reshape(3, 3)
    return turned[:, 0], turned[:, 1]


def _outlines(
    robot: Any, data: Any, geoms: list[int], right: Array, up: Array, colour: str, opacity: float, name: str
) -> go.Scatter:
    """Return the outlines of geoms as one curve with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for g in geoms:
        points = corners(robot, g) @ data.geom_xmat[g].reshape(3, 3).T + data.geom_xpos[g]
        flat = np.stack([points @ right, points @ up], 1)
        try:
            outline = flat[ConvexHull(flat).vertices]
        except QhullError:  # seen edge on
            outline = flat
        x += [*outline[:, 0].round(4).tolist(), float(outline[0, 0].round(4)), None]
        y += [*outline[:, 1].round(4).tolist(), float(outline[0, 1].round(4)), None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        fill="toself",
        fillcolor=colour,
        opacity=opacity,
        line={"color": "white", "width": 0.6},
        name=name,
        hoverinfo="name",
    )


def corners(robot: Any, geom: int) -> Array:
    """Return points (P, 3) whose convex hull is that of a geom, in its own frame [m]; meshes by their vertices."""
    import mujoco

    kind, size = robot.geom_type[geom], robot.geom_size[geom]
    turn = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
    lift = np.linspace(-np.pi / 2, np.pi / 2, AROUND // 2 + 1)
    ring = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    ball = np.concatenate(
        [np.array([np.cos(a), np.cos(a), 1.0]) * (ring + np.array([0.0, 0.0, np.sin(a)])) for a in lift]
    )
    ends = [np.array([0.0, 0.0, s * size[1]]) for s in (-1.0, 1.0)]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return np.asarray(np.stack(np.meshgrid(*([-1.0, 1.0],) * 3), -1).reshape(-1, 3) * size)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.asarray(ball * size[0])
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return np.asarray(ball * size)
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return np.concatenate([ball * size[0] + end for end in ends])
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return np.concatenate([ring * size[0] + end for end in ends])
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        first, many = robot.mesh_vertadr[robot.geom_dataid[geom]], robot.mesh_vertnum[robot.geom_dataid[geom]]
        return np.asarray(robot.mesh_vert[first : first + many], float)
    middle, half = robot.geom_aabb[geom, :3], robot.geom_aabb[geom, 3:]
    return np.asarray(np.stack(np.meshgrid(*([-1.0, 1.0],) * 3), -1).reshape(-1, 3) * half + middle)
