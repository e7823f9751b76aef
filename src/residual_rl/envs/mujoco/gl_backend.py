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
_AUTOMATIC = ("", "1", "on", "true", "enable", "enabled")
_OFF = ("0", "off", "false", "disable", "disabled")
_LIBRARIES = {
    "egl": ("libEGL.so.1",),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}


def check_environment() -> None:
    """Check the environment variables that MuJoCo reads when it is imported, where it would fail.

    Raises:
        ConfigError: `MUJOCO_GL` or `MUJOCO_EGL_DEVICE_ID` has a value that does not exist here.
        MissingDependencyError: the library that `MUJOCO_GL` names is not installed.
    """
    name = _backend()
    backends = ("egl", "osmesa", "glfw", "glx") if sys.platform == "linux" else ("glfw", "cgl", "wgl")
    if name not in (*_AUTOMATIC, *_OFF, *backends):
        raise ConfigError(
            f"the environment variable MUJOCO_GL is {name!r}; unset it, or set it to one of: "
            f"{', '.join(backends)}"
        )
    if name in _LIBRARIES and sys.platform == "linux" and not any(map(_load, _LIBRARIES[name])):
        raise MissingDependencyError(
            f"the OpenGL library of MUJOCO_GL={name}", f"unset it, or {_FIX.partition(',')[0]}"
        )
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if device is not None and not device.strip().isdecimal():
        raise ConfigError(
            f"the environment variable MUJOCO_EGL_DEVICE_ID is {device!r}; unset it, or set it to the number "
            "of a device"
        )


def _backend() -> str:
    return os.environ.get("MUJOCO_GL", "").lower().strip()


@functools.cache
def gl_context_class() -> type[Any]:
    """MuJoCo's context class for the backend in use; an instance belongs to the thread that makes it current.

    The backend is the one that `MUJOCO_GL` names (egl, osmesa, glfw). If it is not set: on Linux EGL if it
    finds a device, else OSMesa, neither of which needs a display; on macOS and Windows GLFW.

    Raises:
        MissingDependencyError: no OpenGL library can be loaded.
        ConfigError: `MUJOCO_GL` has another value.
    """
    check_environment()
    name = _backend()
    if name in _AUTOMATIC:
        name = _first_that_works()
    if name == "glx":  # as in MuJoCo
        name = "glfw"
    if name not in ("egl", "osmesa", "glfw"):
        raise ConfigError(f"MUJOCO_GL is {name!r}; offscreen rendering needs one of: egl, osmesa, glfw")
    if name == "glfw" and not display_is_named():
        raise MissingDependencyError(
            "a display, which OpenGL with GLFW needs,", "set MUJOCO_GL to egl or osmesa"
        )
    os.environ["MUJOCO_GL"] = name  # libmujoco's own loader of OpenGL functions reads it too
    # PyOpenGL raises many kinds of errors if the library is missing or does not work.
    try:
        return importlib.import_module(f"mujoco.{name}").GLContext
    except Exception as error:
        raise MissingDependencyError(f"OpenGL ({name}: {error})", _FIX) from error


def headless_backend() -> str:
    """The value of `MUJOCO_GL` with which other processes can render: "egl" or "osmesa". Empty where that
    variable is set, where a display is named, or where neither library works."""
    if _backend() or display_is_named():
        return ""
    try:
        return _first_that_works()
    except MissingDependencyError:
        return ""


def display_is_named() -> bool:
    """Whether the environment names a display. The viewer's `require_display` also checks that it works."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _first_that_works() -> str:
    if sys.platform != "linux":
        return "glfw"
    if egl_works():
        return "egl"
    if any(map(_load, _LIBRARIES["osmesa"])):
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
