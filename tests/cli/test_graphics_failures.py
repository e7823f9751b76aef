"""Missing graphics are reported before the episodes, and no figures are lost because of a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import PointCfg, PointEnv
from tiny_runs import Fails

from residual_rl.cli import eval as eval_command
from residual_rl.cli.main import main
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.visualization import recording, video

EVAL = ["--n-episodes", "2", "--eval-envs", "2", "--save-video", "--video-episodes", "1"]


def test_main__a_wrong_mujoco_gl_is_one_line(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "wgl")
    assert "MUJOCO_GL is 'wgl'" in fails("eval", "so101-paper")


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["MUJOCO_GL=wgl", "MUJOCO_EGL_DEVICE_ID=abc"])
def test_main__the_environment_is_checked_before_mujoco_is_imported(variable: str) -> None:
    name, _, value = variable.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "residual_rl.cli.main", "eval", "so101-paper"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"residual-rl: error: the environment variable {name} is '{value}'")


def test_eval__missing_opengl_is_reported_before_the_episodes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    episodes = eval_command.run_episodes
    monkeypatch.setattr(eval_command, "can_record", lambda *_: events.append("checked"))
    monkeypatch.setattr(eval_command, "run_episodes", lambda *a: events.append("episodes") or episodes(*a))
    monkeypatch.setattr(eval_command, "write_report", lambda folder, *_, **__: folder / "report.html")
    assert main(["eval", str(run), *EVAL]) == 0
    assert events == ["checked", "episodes"]
    assert not (run / "video.mp4").exists()


def test_eval__a_video_that_fails_late_loses_no_figures(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the driver\nhas died")

    monkeypatch.setattr(eval_command, "can_record", lambda *_: True)
    monkeypatch.setattr(eval_command, "write_comparison", fail)
    monkeypatch.setattr(eval_command, "write_report", lambda folder, *_, **__: folder / "report.html")
    assert main(["eval", str(run), *EVAL]) == 0
    out = capsys.readouterr().out
    assert "no video: the driver has died" in out
    assert out.index("Success") < out.index("no video")
    assert "residual" in json.loads((run / "eval.json").read_text(encoding="utf-8"))["policies"]


def test_eval__ignores_the_backend_of_matplotlib(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    assert main(["list"]) == 0
    assert os.environ["MPLBACKEND"] == "agg"


def test_require_ffmpeg__names_a_path_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(MissingDependencyError, match=r"ffmpeg.*/nowhere/ffmpeg.*IMAGEIO_FFMPEG_EXE"):
        video.require_ffmpeg()


def test_check_video__names_an_env_that_cannot_be_rendered() -> None:
    with pytest.raises(ConfigError, match="cannot be rendered"):
        recording.check_video(PointEnv(PointCfg(), 2))
