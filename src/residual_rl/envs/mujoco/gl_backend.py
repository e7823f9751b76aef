"""Which OpenGL library draws offscreen: chosen at first use, without needing `MUJOCO_GL` before `import mujoco`."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError

_MEND = "install it with `apt-get install libosmesa6` (or libegl1), then set MUJOCO_GL=osmesa (or egl)"
_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


@functools.cache
def gl_context_class() -> type[Any]:
    """MuJoCo's context class of the backend in use; an instance belongs to the thread that makes it current.

    `MUJOCO_GL` decides where it is set (egl, osmesa, glfw). Elsewhere on Linux: EGL where it finds a device, else OSMesa;
    neither needs a display. On macOS and Windows: GLFW.

    Raises:
        MissingDependencyError: no OpenGL library can be loaded.
        ConfigError: `MUJOCO_GL` has another value.
    """
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if name in ("", "1", "on", "true", "enable", "enabled"):
        name = _first_that_works()
    if name not in ("egl", "osmesa", "glfw"):
        raise ConfigError(f"MUJOCO_GL is {name!r}; offscreen rendering needs one of: egl, osmesa, glfw")
    os.environ["MUJOCO_GL"] = name  # libmujoco's own loader of OpenGL functions reads it too
    try:
        return importlib.import_module(f"mujoco.{name}").GLContext
    except (
        ImportError,
        AttributeError,
        OSError,
    ) as error:  # PyOpenGL raises any of these for a library that is not there
        raise MissingDependencyError(f"OpenGL ({name}: {error})", _MEND) from error


def _first_that_works() -> str:
    if sys.platform != "linux":
        return "glfw"
    if egl_works():
        return "egl"
    if _load("libOSMesa.so.8") or _load("libOSMesa.so.6") or _load("libOSMesa.so"):
        return "osmesa"
    raise MissingDependencyError("OpenGL", _MEND)


def egl_works() -> bool:
    """Whether EGL is installed and opens a display on some device (a GPU, or Mesa's software renderer).

    Asked with ctypes: an attempt through PyOpenGL would tie the process to EGL even where that fails.
    """
    egl = _load("libEGL.so.1")
    if egl is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    pointers = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(pointers):
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
        pointers[0]
    )
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
        pointers[1]
    )
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    displays = (get_display(_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _load(library: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None
