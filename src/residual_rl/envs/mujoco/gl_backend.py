"""The OpenGL library for offscreen rendering.

It is chosen at first use, so `MUJOCO_GL` need not be set before `import mujoco`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError

_FIX = "install it with `apt-get install libosmesa6` (or libegl1), then set MUJOCO_GL=osmesa (or egl)"
_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


@functools.cache
def gl_context_class() -> type[Any]:
    """MuJoCo's context class for the backend in use; an instance belongs to the thread that makes it current.

    The backend is the one that `MUJOCO_GL` names (egl, osmesa, glfw). If it is not set: on Linux EGL if it
    finds a device, else OSMesa, neither of which needs a display; on macOS and Windows GLFW.

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
    # PyOpenGL raises any of these errors if the library is missing.
    try:
        return importlib.import_module(f"mujoco.{name}").GLContext
    except (ImportError, AttributeError, OSError) as error:
        raise MissingDependencyError(f"OpenGL ({name}: {error})", _FIX) from error


def _first_that_works() -> str:
    if sys.platform != "linux":
        return "glfw"
    if egl_works():
        return "egl"
    if _load("libOSMesa.so.8") or _load("libOSMesa.so.6") or _load("libOSMesa.so"):
        return "osmesa"
    raise MissingDependencyError("OpenGL", _FIX)


def egl_works() -> bool:
    """Whether EGL is installed and can open a display on some device (a GPU or Mesa's software renderer).

    The test uses ctypes, because a failed attempt through PyOpenGL would still bind the process to EGL.
    """
    egl = _load("libEGL.so.1")
    if egl is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    pointers = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")]
    if not all(pointers):
        return False
    # EGLBoolean eglQueryDevicesEXT(int, void*, int*); EGLDisplay eglGetPlatformDisplayEXT(uint, void*, int*)
    query_type = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    display_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
    query_devices = query_type(pointers[0])
    get_display = display_type(pointers[1])
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
