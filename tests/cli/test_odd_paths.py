"""Folder names with markup, colons, blanks, leading dashes and bytes that are not UTF-8, and terminals with
other encodings."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path

import pytest
from tiny_runs import FAILING_TINY

from residual_rl.cli import eval as eval_command
from residual_rl.cli.main import main
from residual_rl.visualization.video import write_video

NAMES = ["[/1]", "[lr=3e-4]", ":100:", "two words", "it's", "100%s", "-x", "bad\udcff", "a:b"]


@pytest.mark.parametrize("name", NAMES)
def test_eval__names_a_folder_as_it_is(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_command, "write_report", lambda folder, *_, **__: folder / "report.html")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    folder = run.rename(tmp_path / name)
    assert main(["eval", f"./{name}", "--n-episodes", "2", "--eval-envs", "2"]) == 0
    shown = name.replace("\udcff", "\\udcff")
    assert f"Run folder: {shown}\nReport: {shown}/report.html\n" in capsys.readouterr().out
    assert (folder / "eval.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["[/1]", "two words", "bad\udcff"])
def test_train__suggests_a_command_that_can_be_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "so101-paper", *FAILING_TINY, "--total-timesteps", "32", f"--output-dir={name}"]
    assert main(train) == 0
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("Evaluate it: ")
    assert shlex.split(last)[:3] == ["residual-rl", "eval", name.replace("\udcff", "\\udcff")]
    assert main(["train", f"--resume={name}", "--total-timesteps", "64"]) == 0


@pytest.mark.slow
def test_train__home_folder_after_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    train = ["train", "so101-paper", *FAILING_TINY, "--total-timesteps", "32", "--output-dir=~/run"]
    assert main(train) == 0
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("name", ["-x", "a:b", ":100:"])
def test_write_video__to_a_name_that_ffmpeg_would_misread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.chdir(tmp_path)
    assert write_video(Path(name) / "video.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3, 10.0) == 3
    assert (tmp_path / name / "video.mp4").is_file()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["train", "so101-paper", "--help"]])
def test_main__prints_to_a_terminal_of_another_encoding(
    arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    stdout.flush()
    assert code == 0
    assert stdout.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
