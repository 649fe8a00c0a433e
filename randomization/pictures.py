"""Pictures of plants: what a camera of the robot file sees, with each plant's own lights, colours and cameras."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ParameterError, RenderError, did_you_mean

if TYPE_CHECKING:
    import mujoco

    from sim2real.randomization.mujoco_parameters import MujocoParameters

Picture = NDArray[np.uint8]
# Where MuJoCo's contexts come from, by what MUJOCO_GL calls them.
CONTEXTS = {"glfw": "mujoco.glfw", "egl": "mujoco.egl", "osmesa": "mujoco.osmesa"}


@dataclass(frozen=True)
class Pixels:
    """What is observed in pictures.

    Attributes:
        camera: name of a camera of the robot file; "" for the first one, or where there is none for one from afar.
        height, width: of a picture [pixels].
        shadows: whether lights cast them; ten times slower where a processor draws.
        state: whether the task's own observation stands beside the picture, as "state" and "pixels", or is left out.
    """

    camera: str = ""
    height: int = 84
    width: int = 84
    shadows: bool = False
    state: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.camera, str):
            raise ParameterError(f"pixels: camera is the name of one, found {self.camera!r}")
        for name in ("shadows", "state"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"pixels: {name} is true or false, found {getattr(self, name)!r}")
        for name in ("height", "width"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
                raise ParameterError(f"pixels: {name} is a whole number of pixels from 1 to 4096, found {size!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any] | Pixels) -> Pixels:
        """Return what a mapping of these attributes says.

        Raises:
            ParameterError: an unknown key, or a picture without a size.
        """
        if isinstance(given, Pixels):
            return given
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ParameterError(f"pixels is {{{', '.join(known)}}}, found {given!r}")
        for key in given:
            if key not in known:
                raise ParameterError(f"pixels has no key {key!r}{did_you_mean(str(key), known)}")
        return cls(**given)

    def space(self, state: gym.Space[Any]) -> gym.Space[Any]:
        """Return the space of observations where the task's own have the space `state`."""
        box = gym.spaces.Box(0, 255, (self.height, self.width, 3), np.uint8)
        return gym.spaces.Dict({"pixels": box, "state": state}) if self.state else box

    def beside(self, pictures: Any, state: Any) -> Any:
        """Return the observation made of pictures and of the task's own."""
        return {"pixels": pictures, "state": state} if self.state else pictures


class Artist:
    """Draws models of one robot with OpenGL, headless through EGL or OSMesa; leaves other people's contexts alone.

    What `MUJOCO_GL` names is used (glfw, egl or osmesa); where it is not set, a window system if there is a display,
    and otherwise EGL or OSMesa, whichever there is.

    Args:
        model: compiled; meshes and textures are those that it has now.
        pixels: what is drawn.

    Raises:
        ParameterError: the model has no camera of that name.
        RenderError: there is no OpenGL here.
    """

    _gl: Any = None
    _context: Any = None

    def __init__(self, model: mujoco.MjModel, pixels: Pixels) -> None:
        import mujoco

        self.pixels, self._camera = pixels, _camera(model, pixels.camera)
        # models say how large their off-screen buffers are, and mostly too small or far too large
        visual = model.vis.global_
        before = visual.offwidth, visual.offheight
        self._gl = _context(pixels.width, pixels.height)
        with self._gl.as_current():
            try:
                visual.offwidth, visual.offheight = pixels.width, pixels.height
                self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            finally:
                visual.offwidth, visual.offheight = before
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + model.nsite + 1000)
        self._option, self._none = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._area = mujoco.MjrRect(0, 0, pixels.width, pixels.height)

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData) -> Picture:
        """Return the picture (height, width, 3) of a model in the pose of `data`, whose kinematics are up to date."""
        import mujoco

        p = self.pixels
        if self._gl is None:
            raise RenderError("these pictures were closed")
        mujoco.mjv_updateScene(
            model, data, self._option, self._none, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = p.shadows
        out = np.empty((p.height, p.width, 3), np.uint8)
        with self._gl.as_current():
            mujoco.mjr_render(self._area, self._scene, self._context)
            mujoco.mjr_readPixels(out, None, self._area, self._context)
        return out[::-1].copy()

    def close(self) -> None:
        """Free what belongs to OpenGL."""
        if self._gl is not None:
            if self._context is not None:
                with self._gl.as_current():
                    self._context.free()
            self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        self.close()


class Pictures:
    """Draws plants of one robot in the poses that they are given, whatever engine moves them.

    Args:
        model: the robot.
        pixels: what is drawn.

    Raises:
        ParameterError, RenderError: see `Artist`.
    """

    def __init__(self, model: mujoco.MjModel, pixels: Pixels) -> None:
        import mujoco

        self._data, self._artist = mujoco.MjData(model), Artist(model, pixels)

    def draw(
        self, model: mujoco.MjModel, position: NDArray[np.floating[Any]], moved: mujoco.MjData | None = None
    ) -> Picture:
        """Return the picture (height, width, 3) of a model at a position (nq,), with mocap bodies where `moved` has
        them."""
        import mujoco

        d = self._data
        d.qpos[:] = position
        if moved is not None:
            d.mocap_pos[:], d.mocap_quat[:] = moved.mocap_pos, moved.mocap_quat
        for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight, mujoco.mj_flex, mujoco.mj_tendon):
            stage(model, d)
        return self._artist.draw(model, d)

    def close(self) -> None:
        """Free what belongs to OpenGL."""
        self._artist.close()


class PlantPictures:
    """Draws n plants of one robot, each with what is written in its parameters.

    The plants may live in any engine whose parameters are a `MujocoParameters`: MuJoCo's renderer draws them all.

    Args:
        parameters: of the plants.
        pixels: what is drawn.

    Raises:
        ParameterError, RenderError: see `Artist`.
    """

    def __init__(self, parameters: MujocoParameters, pixels: Pixels) -> None:
        import mujoco

        self._parameters, self._model = parameters, copy.copy(parameters.fields.model)
        self._derived = mujoco.MjData(self._model)
        self._pictures = Pictures(self._model, pixels)

    def draw(self, plants: Iterable[int], positions: NDArray[np.floating[Any]]) -> Picture:
        """Return the pictures (k, height, width, 3) of plants at positions (k, nq)."""
        return np.stack([self._draw(i, q) for i, q in zip(plants, positions, strict=True)])

    def _draw(self, plant: int, position: NDArray[np.floating[Any]]) -> Picture:
        import mujoco

        if self._parameters.put(plant, self._model):
            mujoco.mj_setConst(self._model, self._derived)
        return self._pictures.draw(self._model, position)

    def close(self) -> None:
        """Free what belongs to OpenGL."""
        self._pictures.close()


class ObservePixels(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Observe what a camera of a MuJoCo environment sees, with the lights, colours and cameras in force.

    What `make_vec(..., pixels=...)` gives for many, around one; Gymnasium's `AddRenderObservation` is its like for
    environments that render by themselves.

    Args:
        env: an environment with a `model` and `data` of MuJoCo.
        **pixels: of `Pixels`.

    Raises:
        ParameterError: no such environment, or no such camera.
        RenderError: there is no OpenGL here.
    """

    def __init__(self, env: gym.Env[Any, Any], **pixels: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, **pixels)
        super().__init__(env)
        base: Any = env.unwrapped
        self._base = base
        if not (hasattr(self._base, "data") and hasattr(getattr(self._base, "model", None), "ncam")):
            raise ParameterError(
                f"{type(self._base).__name__} is no MuJoCo environment with a model and data: "
                "use Gymnasium's AddRenderObservation around it"
            )
        self._pixels = Pixels.of(pixels)
        self._pictures = Pictures(self._base.model, self._pixels)
        self.observation_space = self._pixels.space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        picture = self._pictures.draw(self._base.model, self._base.data.qpos, self._base.data)
        return self._pixels.beside(picture, observation)

    def close(self) -> None:
        self._pictures.close()
        super().close()


def _camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    import mujoco

    names = [model.camera(k).name or f"camera{k}" for k in range(model.ncam)]
    if name and name not in names:
        raise ParameterError(f"the robot has no camera {name!r}{did_you_mean(name, names)}")
    camera = mujoco.MjvCamera()
    if names:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = names.index(name) if name else 0
    else:
        mujoco.mjv_defaultFreeCamera(model, camera)
    return camera


def _context(width: int, height: int) -> Any:
    """Return an OpenGL context of MuJoCo's; see `Artist`."""
    named = os.environ.get("MUJOCO_GL", "").lower()
    shown = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    usual = [*(["glfw"] if shown or sys.platform != "linux" else []), "egl", "osmesa"]
    said = []
    for kind in [named] if named in CONTEXTS else usual:
        try:
            return _opened(kind, width, height)
        except Exception as error:  # of a library that is not there, of every kind
            said.append(f"{kind}: {str(error).strip() or type(error).__name__}")
    raise RenderError(
        f"no OpenGL to draw with ({'; '.join(said)}); install libegl1 (a graphics card, or Mesa) or libosmesa6, "
        "and say MUJOCO_GL=egl or MUJOCO_GL=osmesa to choose"
    )


def _opened(kind: str, width: int, height: int) -> Any:
    """Return a context of MuJoCo's that is freed by nobody but its owner, with the present one current as before."""
    module = importlib.import_module(CONTEXTS[kind])
    # what is freed first when both are collected must be what was drawn with, not the context
    owned = type("Owned", (module.GLContext,), {"__del__": lambda self: None})
    if kind != "egl":
        gl = owned(width, height)
    else:
        egl = module.EGL
        # to open one leaves the thread without any
        before = egl.eglGetCurrentContext()
        held = (
            egl.eglGetCurrentDisplay(),
            egl.eglGetCurrentSurface(egl.EGL_DRAW),
            egl.eglGetCurrentSurface(egl.EGL_READ),
        )
        gl = owned(width, height)
        if before:
            egl.eglMakeCurrent(*held, before)
    if not gl._context:
        raise RenderError("no context could be opened")
    return gl
