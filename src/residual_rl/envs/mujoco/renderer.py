"""Camera images of many envs at once, rendered by threads that each own an OpenGL context."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_rl.envs.mujoco.gl_backend import gl_context_class
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError
from residual_rl.utils.mujoco_library import mujoco
from residual_rl.utils.text import one_line
from residual_rl.utils.threads import simulator_threads

Images = dict[str, NDArray[np.uint8]]
"""Images [B, H, W, 3] uint8 by camera."""

_MAX_GEOMS = 2000


class CameraRenderer:
    """Renders `cameras` of `model` for a batch of configurations.

    An image is a function of its `qpos` alone; it does not depend on the batch size or the number of threads.
    The model is copied, so later changes to it have no effect.

    Args:
        model: the model to render.
        cameras: names of the model's cameras.
        height: height of the images [px].
        width: width of the images [px].
        num_threads: number of threads; 0 means OMP_NUM_THREADS, or else one per CPU core.
        samples: samples per pixel for anti-aliasing (slower); 0 is off.

    Raises:
        UnknownNameError: the model has no such camera.
        ConfigError: a size or a number is out of range.
        MissingDependencyError: no OpenGL library can be loaded.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        cameras: Sequence[str],
        height: int,
        width: int,
        num_threads: int = 0,
        samples: int = 0,
    ):
        known = [model.camera(i).name for i in range(model.ncam)]
        for camera in cameras:
            if camera not in known:
                raise UnknownNameError("camera", camera, known)
        if not cameras:
            raise ConfigError(f"no camera was given; the model has: {', '.join(known)}")
        if height < 1 or width < 1 or num_threads < 0 or samples < 0:
            raise ConfigError(
                f"cannot render {height} x {width} pixels with {num_threads} threads and {samples} samples: "
                "height and width must be at least 1, num_threads and samples 0 or more"
            )
        gl_context_class()  # raises if no library can be loaded, before any thread starts
        self.cameras = tuple(cameras)
        self.height = height
        self.width = width
        self.nq = model.nq
        drawn = copy.copy(model)
        drawn.vis.global_.offwidth, drawn.vis.global_.offheight = width, height
        drawn.vis.quality.offsamples = samples
        drawn.vis.quality.shadowsize = 0  # shadows cost time
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_threads or simulator_threads()):
                self._workers.append(_Worker(drawn, self.cameras, height, width))
        except BaseException:
            self.close()
            raise

    def render(self, qpos: NDArray[Any]) -> Images:
        """All cameras' images [B, H, W, 3] uint8 for each row of `qpos` [B, nq]."""
        if not self._workers:
            raise ConfigError("this renderer is closed")
        if qpos.ndim != 2 or qpos.shape[1] != self.nq:
            raise ConfigError(f"qpos has shape {qpos.shape}; the renderer needs [B, {self.nq}]")
        out = {camera: np.empty((len(qpos), self.height, self.width, 3), np.uint8) for camera in self.cameras}
        bounds = np.linspace(0, len(qpos), len(self._workers) + 1).astype(int)
        jobs = [
            worker.submit(qpos[a:b], {camera: images[a:b] for camera, images in out.items()})
            for worker, a, b in zip(self._workers, bounds[:-1], bounds[1:], strict=True)
            if b > a
        ]
        # Wait for all jobs before raising, so that none is still running during the next call.
        errors = [error for error in [job.exception() for job in jobs] if error]
        if errors:
            raise errors[0]
        return out

    def close(self) -> None:
        """Free the contexts and end the threads; may be called more than once."""
        while self._workers:
            self._workers.pop().close()

    def __enter__(self) -> CameraRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """A thread with its own context, scene, model and data; all OpenGL calls happen in that thread."""

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[str], height: int, width: int):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="camera")
        self._context: Any = None
        self._mjr: mujoco.MjrContext | None = None
        self._model = copy.copy(model)
        self._data = mujoco.MjData(model)
        self._option = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._cameras: dict[str, mujoco.MjvCamera] = {}
        for name in cameras:
            camera = mujoco.MjvCamera()
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, model.camera(name).id
            self._cameras[name] = camera
        try:
            self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def submit(self, qpos: NDArray[Any], out: Images) -> Future[None]:
        """Render the rows of `qpos` [b, nq] into `out`, in the thread."""
        return self._thread.submit(self._draw, qpos, out)

    def close(self) -> None:
        """Free the context and end the thread."""
        self._thread.submit(self._free).result()
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            self._context = gl_context_class()(self._rect.width, self._rect.height)
            self._context.make_current()
            self._mjr = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        except Exception as error:  # each backend and driver has errors of its own
            raise MissingDependencyError(
                f"OpenGL ({one_line(error)})", "set MUJOCO_GL to another of: egl, osmesa"
            ) from error

    def _free(self) -> None:
        if self._mjr:
            self._mjr.free()
        if self._context:
            self._context.free()
        self._mjr = self._context = None

    def _draw(self, qpos: NDArray[Any], out: Images) -> None:
        model, data = self._model, self._data
        for row in range(len(qpos)):
            data.qpos[:] = qpos[row]
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            for name, camera in self._cameras.items():
                mujoco.mjv_updateScene(
                    model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
                )
                mujoco.mjr_render(self._rect, self._scene, self._mjr)
                mujoco.mjr_readPixels(self._pixels, None, self._rect, self._mjr)
                out[name][row] = self._pixels[::-1]  # OpenGL's first row is the bottom one
