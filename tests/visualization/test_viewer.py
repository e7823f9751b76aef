"""`residual-rl view`: images and videos without a display, the viewer with one, and clear errors."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from residual_rl.cli import view
from residual_rl.cli.policies import resolve_policy
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import ConfigError, ResidualRLError
from residual_rl.evaluation.evaluate import no_residual
from residual_rl.exported_policy import export_policy
from residual_rl.factory import make_learner, make_residual_env
from residual_rl.registry import BASE_POLICIES, TASKS
from residual_rl.visualization import viewer

CFG = replace_fields(
    TrainCfg.default("so101-paper"), {"max_episode_steps": 8, "num_threads": 1, "minibatch_size": 64}
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose residual policy turns the first joint."""
    env = make_residual_env(CFG, 1)
    learner = make_learner(CFG, env)
    with torch.no_grad():
        learner.policy.actor.layers[-1].bias[0] = 1.0
    export_policy(tmp_path / "run" / "best_model", CFG, learner, 0.6, 0)
    env.close()
    return tmp_path / "run"


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    viewer.require_display.cache_clear()


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in folder.iterdir()}


def test_save_cameras__writes_a_png_for_each_camera(
    opengl: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "views"
    assert view.main(["so101-paper", "--cameras", str(folder), "--camera-size", "48", "64"]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(
        str(folder / f"{name}.png") for name in ("top", "wrist", "scene")
    )
    assert {name: picture.shape for name, picture in pictures(folder).items()} == dict.fromkeys(
        ("top", "wrist", "scene"), (48, 64, 3)
    )


@pytest.mark.slow
def test_view__images_show_the_chosen_step_and_policy(opengl: None, tmp_path: Path, run: Path) -> None:
    def top(*argv: str) -> np.ndarray:
        folder = tmp_path / f"views{len(list(tmp_path.iterdir()))}"
        view.main(
            [
                "so101-paper",
                "--cameras",
                str(folder),
                "--camera-size",
                "48",
                "64",
                "--max-episode-steps",
                "8",
                *argv,
            ]
        )
        return pictures(folder)["top"]

    start = top()
    assert np.array_equal(start, top("--policy", "zero"))
    assert not np.array_equal(start, top("--seed", "1"))
    base, residual = top("--step", "6"), top("--step", "6", "--policy", str(run))
    assert not np.array_equal(base, start)
    assert not np.array_equal(base, residual)
    assert np.array_equal(base, top("--step", "6", "--policy", str(run), "--residual-scale", "0"))
    assert not np.array_equal(start, top("--step", "6", "--policy", "oracle"))


def test_view__uses_the_oracle_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_policy("so101-paper", "oracle", None, "view")[1].base_policy_id == "jacobian-yaw"
    monkeypatch.setitem(
        TASKS._specs, "so101-paper", dataclasses.replace(TASKS.get("so101-paper"), oracle="zero")
    )
    assert resolve_policy("so101-paper", "oracle", None, "view")[1].base_policy_id == "zero"


def test_view__names_a_task_without_an_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TASKS._specs, "so101-paper", dataclasses.replace(TASKS.get("so101-paper"), oracle=None)
    )
    with pytest.raises(ConfigError, match="task 'so101-paper' has no oracle"):
        view.main(["so101-paper", "--policy", "oracle", "--cameras", "x"])


def test_view__writes_a_video_of_one_episode(
    opengl: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "new" / "episode.mp4"
    assert (
        view.main(
            ["so101-paper", "--video", str(path), "--camera-size", "48", "64", "--max-episode-steps", "3"]
        )
        == 0
    )
    assert path.read_bytes()[4:8] == b"ftyp"
    assert capsys.readouterr().out.strip() == str(path)


def test_require_display__error_names_alternatives_without_a_display(no_display: None) -> None:
    with pytest.raises(ConfigError, match=r"display.*--cameras DIR"):
        view.main(["so101-paper"])


def test_require_display__broken_display_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    viewer.require_display.cache_clear()
    with pytest.raises(ConfigError, match="display"):
        viewer.LiveViewer(None)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "needs a task id"),
        (["so101-papr"], "did you mean 'so101-paper'"),
        (["so101-paper", "--policy", "jacobean"], "jacobian"),
        (["so101-paper", "--residual-scale", "0.5"], "needs --policy RUN"),
        (["so101-paper", "--cameras", "x", "--step", "-1"], "step must be at least 0"),
        (
            ["so101-paper", "--cameras", "x", "--camera-size", "0", "10"],
            "camera_size must be from 1 to 16384 each",
        ),
    ],
)
def test_view__names_wrong_flags(argv: list[str], text: str) -> None:
    with pytest.raises(ResidualRLError, match=text):
        view.main(argv)


def test_view__names_the_task_of_a_run(run: Path) -> None:
    with pytest.raises(ConfigError, match="residual-rl view so101-paper --policy"):
        view.main(["so101-paper-precise", "--policy", str(run), "--cameras", "x"])


class FakeViewer:
    """Records the scenes, and is closed after some of them."""

    def __init__(self, close_after: int):
        self.scenes: list[torch.Tensor] = []
        self._close_after = close_after

    @property
    def is_open(self) -> bool:
        return len(self.scenes) < self._close_after

    def show(self, scene: torch.Tensor) -> None:
        self.scenes.append(scene)


def test_watch__shows_episodes_until_the_window_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewer, "_PAUSE", 0.0)
    env = make_residual_env(CFG, 1)
    window, lines = FakeViewer(close_after=19), []
    viewer.watch(env, no_residual(env), 5, window, lines.append)  # type: ignore[arg-type]
    assert len(window.scenes) == 19
    assert [line.split(",")[0] for line in lines] == [
        "episode 5: no success after 8 steps",
        "episode 6: no success after 8 steps",
    ]
    sheet = [tuple(scene[6:8].tolist()) for scene in window.scenes]
    # scene 7 is the end of the first episode, not the start of the second
    assert np.linalg.norm(np.subtract(sheet[7], sheet[0])) < 0.02
    assert np.linalg.norm(np.subtract(sheet[8], sheet[7])) > 0.02
    viewer.watch(env, no_residual(env), 5, FakeViewer(10**6), lines.append, num_episodes=1)  # type: ignore[arg-type]
    assert len(lines) == 3
    env.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs Xvfb, a display in memory")
def test_live_viewer__opens_in_real_time_and_closes(tmp_path: Path) -> None:
    # Xvfb prints its display number when it is ready
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "640x480x24"]
    server: Any = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    code = """
import time, torch
from residual_rl.visualization import viewer
from residual_rl.factory import make_vec_env
env = make_vec_env("so101-paper", 1)
env.reset(seed=0)
for _ in range(2):
    with viewer.LiveViewer(env.model, hz=20.0) as window:
        start = time.perf_counter()
        for _ in range(11):
            window.show(env.scenes()[0])
        print(window.is_open, time.perf_counter() - start >= 0.5)
print(window.is_open)
"""
    try:
        display = f":{int(server.stdout.readline())}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DISPLAY": display},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.terminate()
        server.communicate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "True", "True", "False"]


def test_view__names_an_env_that_cannot_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._specs, "point", fakes.POINT_TASK)
    monkeypatch.setitem(BASE_POLICIES._specs, "homing", fakes.HOMING)
    with pytest.raises(ConfigError, match="this env cannot be rendered: it has no `render_scenes`"):
        view.main(["point", "--cameras", str(tmp_path / "images")])
    monkeypatch.setattr(view, "require_display", lambda: None)
    with pytest.raises(ConfigError, match=r"this env has no MuJoCo model.*--cameras DIR.*--video FILE"):
        view.main(["point"])


def test_save_cameras__writes_the_default_view_of_an_env_without_named_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS._specs, "point", fakes.POINT_TASK)
    monkeypatch.setitem(BASE_POLICIES._specs, "homing", fakes.HOMING)
    image = np.full((1, 4, 6, 3), 7, np.uint8)
    monkeypatch.setattr(fakes.PointEnv, "render_scenes", lambda *_: image, raising=False)
    assert view.main(["point", "--cameras", str(tmp_path)]) == 0
    assert np.array_equal(pictures(tmp_path)["default"], image[0])
