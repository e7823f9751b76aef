"""Camera images of many worlds at once, drawn by worker threads that each own an OpenGL context."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_rl.envs.mujoco.gl_backend import gl_context_class
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError

Images = dict[str, NDArray[np.uint8]]
"""Per camera: [B, H, W, 3] uint8."""

_MAX_GEOMS = 2000


class CameraRenderer:
    """Draws `cameras` of `model` for a batch of configurations.

    An image is a function of its `qpos` alone: the same pixels whatever the batch size or the number of threads.
    The model is copied; later changes of it are not seen.

    Args:
        model: what to draw.
        cameras: names of the model's cameras.
        height: of the images [pixels].
        width: of the images [pixels].
        num_threads: workers; 0 means one per CPU.
        samples: multisampling for smooth edges (slower); 0 is off.

    Raises:
        UnknownNameError: a camera that the model does not have.
        ConfigError: a size or a number that is not possible.
        MissingDependencyError: no OpenGL here.
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
            raise ConfigError(f"no camera was asked for; the model has: {', '.join(known)}")
        if height < 1 or width < 1 or num_threads < 0 or samples < 0:
            raise ConfigError(
                f"images of {height} x {width} pixels by {num_threads} threads with {samples} samples are not possible"
            )
        gl_context_class()  # a missing library is told here, before any thread starts
        self.cameras, self.height, self.width, self.nq = tuple(cameras), height, width, model.nq
        drawn = copy.copy(model)
        drawn.vis.global_.offwidth, drawn.vis.global_.offheight = width, height
        drawn.vis.quality.offsamples = samples
        drawn.vis.quality.shadowsize = 0  # shadows cost time
        self._workers: list[_Worker] = []
        try:
            for _ in range(num_threads or os.cpu_count() or 1):
                self._workers.append(_Worker(drawn, self.cameras, height, width))
        except BaseException:
            self.close()
            raise

    def render(self, qpos: NDArray[Any]) -> Images:
        """All cameras' images [B, H, W, 3] uint8 for each row of `qpos` [B, nq]."""
        if not self._workers:
            raise ConfigError("this renderer is closed")
        if qpos.ndim != 2 or qpos.shape[1] != self.nq:
            raise ConfigError(f"qpos is of shape {qpos.shape}; the renderer needs [B, {self.nq}]")
        out = {camera: np.empty((len(qpos), self.height, self.width, 3), np.uint8) for camera in self.cameras}
        bounds = np.linspace(0, len(qpos), len(self._workers) + 1).astype(int)
        jobs = [
            worker.submit(qpos[a:b], {camera: images[a:b] for camera, images in out.items()})
            for worker, a, b in zip(self._workers, bounds[:-1], bounds[1:], strict=True)
            if b > a
        ]
        errors = [
            error for error in [job.exception() for job in jobs] if error
        ]  # wait for all: none goes on into the next call
        if errors:
            raise errors[0]
        return out

    def close(self) -> None:
        """Free the contexts and end the threads. Closing twice is fine."""
        while self._workers:
            self._workers.pop().close()

    def __enter__(self) -> CameraRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One thread with its own context, scene, model and data; everything of OpenGL happens in that thread."""

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[str], height: int, width: int):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="camera")
        self._context: Any = None
        self._mjr: mujoco.MjrContext | None = None
        self._model, self._data = copy.copy(model), mujoco.MjData(model)
        self._option, self._scene = mujoco.MjvOption(), mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
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
        return self._thread.submit(self._draw, qpos, out)

    def close(self) -> None:
        self._thread.submit(self._free).result()
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            self._context = gl_context_class()(self._rect.width, self._rect.height)
            self._context.make_current()
        except (ImportError, RuntimeError) as error:
            raise MissingDependencyError(
                f"OpenGL ({error})", "set MUJOCO_GL to another of: egl, osmesa"
            ) from error
        self._mjr = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)

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
                out[name][row] = self._pixels[::-1]  # OpenGL's first row is the lowest
