"""Environment variables for OpenGL are checked before MuJoCo is imported; other failures have one type."""

from __future__ import annotations

from typing import Any

import mujoco
import pytest

from residual_rl.envs.mujoco import gl_backend, renderer
from residual_rl.envs.mujoco.renderer import CameraRenderer
from residual_rl.errors import ConfigError, MissingDependencyError

MODEL = "<mujoco><worldbody><camera name='c'/><geom size='1'/></worldbody></mujoco>"


@pytest.fixture(autouse=True)
def _linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl_backend.sys, "platform", "linux")
    for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MUJOCO_GL", "wgl", r"MUJOCO_GL is 'wgl'; unset it, or set it to one of: egl, osmesa, glfw, glx"),
        ("MUJOCO_GL", "nonsense", "MUJOCO_GL is 'nonsense'"),
        ("MUJOCO_EGL_DEVICE_ID", "abc", "MUJOCO_EGL_DEVICE_ID is 'abc'; unset it, or set it to the number"),
        ("MUJOCO_EGL_DEVICE_ID", "-1", "MUJOCO_EGL_DEVICE_ID"),
    ],
)
def test_check_environment__names_a_variable_with_a_wrong_value(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        gl_backend.check_environment()


@pytest.mark.parametrize("value", ["", "egl", "EGL", "osmesa", "glfw", "disable", "0", "on"])
def test_check_environment__accepts_the_values_of_mujoco(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl_backend, "_load", lambda _: object())
    monkeypatch.setenv("MUJOCO_GL", value)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    gl_backend.check_environment()


@pytest.mark.parametrize("name", ["egl", "osmesa"])
def test_check_environment__names_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl_backend, "_load", lambda _: None)
    monkeypatch.setenv("MUJOCO_GL", name)
    with pytest.raises(MissingDependencyError, match=f"MUJOCO_GL={name} is not available; unset it"):
        gl_backend.check_environment()


@pytest.mark.parametrize("name", ["glfw", "glx"])
def test_gl_context_class__glfw_needs_a_display(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", name)
    with pytest.raises(MissingDependencyError, match=r"a display.*set MUJOCO_GL to egl or osmesa"):
        gl_backend.gl_context_class.__wrapped__()


@pytest.mark.parametrize(
    "error", [ValueError("invalid literal"), mujoco.FatalError("no context"), AttributeError("glGetError")]
)
def test_camera_renderer__any_failure_of_opengl_is_a_missing_dependency(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(renderer, "gl_context_class", lambda: fail)
    with pytest.raises(MissingDependencyError, match=r"OpenGL.*is not available; set MUJOCO_GL"):
        CameraRenderer(mujoco.MjModel.from_xml_string(MODEL), ["c"], 8, 8, num_threads=1)
