"""Camera images: correct pixels, independence of batch and threads, and clear errors."""

from __future__ import annotations

import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from residual_rl.envs.mujoco import gl_backend
from residual_rl.envs.mujoco.renderer import CameraRenderer
from residual_rl.errors import ConfigError, MissingDependencyError, UnknownNameError
from residual_rl.tasks.so101_paper.scene import SceneCfg, build_scene


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    try:
        gl_backend.gl_context_class()
    except MissingDependencyError as error:
        pytest.skip(f"no OpenGL here: {error}")
    return build_scene()


@pytest.fixture(scope="module")
def qpos(model: mujoco.MjModel) -> np.ndarray:
    """Seven different configurations [7, nq]."""
    generator = np.random.default_rng(0)
    rows = np.tile(model.key("home").qpos, (7, 1))
    rows[:, :6] += generator.normal(0, 0.2, (7, 6))
    rows[:, 6:8] += generator.normal(0, 0.04, (7, 2))
    return rows


@pytest.mark.usefixtures("model")
def test_camera_renderer__top_camera_matches_the_pinhole_model() -> None:
    model = build_scene(SceneCfg(top_fovy=70))
    home = model.key("home").qpos.copy()
    home[:6] = -1.9, -1.7, 1.6, 1.5, 0, 0  # the arm is folded away
    home[6:8] = 0.32, 0.05
    height, width = 120, 160
    with CameraRenderer(model, ["top"], height, width, num_threads=1) as renderer:
        image = renderer.render(home[None])["top"][0]

    def pixel(x: float, y: float) -> np.ndarray:
        # focal length [px]; the camera is at (0.24, 0, 0.34), x points up and y to the left
        focal = height / 2 / np.tan(np.radians(35))
        row, column = height / 2 - focal * (x - 0.24) / 0.342, width / 2 - focal * y / 0.342
        return image[int(row), int(column)].astype(int)

    assert pixel(0.32, 0.05).min() > 180  # white paper
    assert pixel(0.32 + 0.07, 0.05 + 0.10).min() > 180
    assert pixel(0.32 + 0.08, 0.05).max() < 40  # black table beyond its edge
    for point in ((0.22, -0.135), (0.116, 0.0), (0.22, 0.135)):  # visible parts of the tape
        red, green, blue = pixel(*point)
        assert red > 90
        assert max(green, blue) < red / 3
    assert pixel(0.18, 0.0).max() < 40  # table inside the tape


def test_camera_renderer__pixels_do_not_depend_on_batch_or_threads(
    model: mujoco.MjModel, qpos: np.ndarray
) -> None:
    with CameraRenderer(model, ["top", "wrist"], 48, 64, num_threads=1) as one:
        together = one.render(qpos)
        alone = [one.render(row[None]) for row in qpos]
    with CameraRenderer(model, ["wrist", "top"], 48, 64, num_threads=3) as three:
        shared = three.render(qpos)
    for camera in ("top", "wrist"):
        assert together[camera].shape == (7, 48, 64, 3)
        assert together[camera].dtype == np.uint8
        np.testing.assert_array_equal(together[camera], shared[camera])
        np.testing.assert_array_equal(together[camera], np.concatenate([images[camera] for images in alone]))
        assert len({image.tobytes() for image in together[camera]}) == 7


def test_camera_renderer__samples_smooth_the_image(model: mujoco.MjModel) -> None:
    home = model.key("home").qpos
    with CameraRenderer(model, ["scene"], 90, 120, num_threads=1, samples=4) as renderer:
        image = renderer.render(home[None])["scene"][0]
    assert image.shape == (90, 120, 3)
    orange = (image[..., 0] > 100) & (image[..., 2] < image[..., 0] / 3) & (image[..., 1] > image[..., 0] / 3)
    assert orange.sum() > 100  # the arm
    with CameraRenderer(model, ["scene"], 90, 120, num_threads=1) as renderer:
        rough = renderer.render(home[None])["scene"][0]
    assert (image != rough).any()


def test_camera_renderer__raises_the_error_of_a_worker_and_stays_usable(
    model: mujoco.MjModel, qpos: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CameraRenderer(model, ["top"], 16, 16, num_threads=2) as renderer:
        expected = renderer.render(qpos)["top"]

        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(mujoco, "mjr_render", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                renderer.render(qpos)
        np.testing.assert_array_equal(renderer.render(qpos)["top"], expected)


def test_camera_renderer__invalid_argument_is_named_in_the_error(
    model: mujoco.MjModel, qpos: np.ndarray
) -> None:
    with pytest.raises(UnknownNameError, match=r"'tops'.*did you mean 'top'"):
        CameraRenderer(model, ["tops"], 16, 16)
    with pytest.raises(ConfigError, match="top, scene, wrist"):
        CameraRenderer(model, [], 16, 16)
    with pytest.raises(ConfigError, match="0 x 16"):
        CameraRenderer(model, ["top"], 0, 16)
    renderer = CameraRenderer(model, ["top"], 16, 16, num_threads=1)
    with pytest.raises(ConfigError, match=r"\(7, 5\).*\[B, 13\]"):
        renderer.render(qpos[:, :5])
    renderer.close()
    renderer.close()
    with pytest.raises(ConfigError, match="closed"):
        renderer.render(qpos)


# --- OpenGL backends


@pytest.fixture
def _fresh_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    # bypass the cache
    monkeypatch.setattr(gl_backend, "gl_context_class", gl_backend.gl_context_class.__wrapped__)


@pytest.mark.usefixtures("_fresh_choice")
def test_gl_context_class__error_without_opengl_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl_backend, "_load", lambda _: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(
        MissingDependencyError, match=r"OpenGL is not available; install it with `apt-get install libosmesa6`"
    ):
        gl_backend.gl_context_class()


@pytest.mark.usefixtures("_fresh_choice")
def test_gl_context_class__unknown_backend_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(ConfigError, match=r"'disabled'.*egl, osmesa, glfw"):
        gl_backend.gl_context_class()


def test_camera_renderer__exits_cleanly_without_close(model: mujoco.MjModel) -> None:
    code = (
        "from residual_rl.envs.mujoco.renderer import CameraRenderer\n"
        "from residual_rl.tasks.so101_paper.scene import build_scene\n"
        "model = build_scene(); renderer = CameraRenderer(model, ['top'], 16, 16, 2)\n"
        "print(renderer.render(model.key('home').qpos[None])['top'].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(1, 16, 16, 3)", "")
