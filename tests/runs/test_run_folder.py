"""The run folder: its record of the run, its lock and its errors; strict JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from residual_rl.errors import ConfigError, NonFiniteError
from residual_rl.runs import run_folder
from residual_rl.runs.run_folder import LOCK_FILE, RunFolder
from residual_rl.utils.files import WriteError, to_json, write_json
from residual_rl.utils.provenance import git_state, versions


@dataclasses.dataclass
class Config:
    seed: int = 1
    hidden: tuple[int, ...] = (128, 128)
    output_dir: Path = Path("runs/x")
    inner: dict[str, float] = dataclasses.field(default_factory=lambda: {"lr": 5e-4})


def git(folder: Path, *arguments: str) -> None:
    settings = (
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.com",
        "-c",
        "init.defaultBranch=main",
        "-c",
        "commit.gpgsign=false",
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, env=environment
    )


@pytest.fixture(autouse=True)
def _no_outer_git(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)


def test_start__writes_config_command_versions_and_diff(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "runs" / "x").start(
        Config(), ["residual-rl", "train", "so101-paper", "--name", "a b"]
    ) as run:
        assert json.loads(run.config_file.read_text()) == {
            "seed": 1,
            "hidden": [128, 128],
            "output_dir": "runs/x",
            "inner": {"lr": 0.0005},
        }
        assert (run.path / "command.txt").read_text() == "residual-rl train so101-paper --name 'a b'\n"
        stamp = json.loads((run.path / "versions.json").read_text())
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert stamp["packages"]["torch"] == metadata.version("torch")
    assert stamp["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert stamp["machine"]["memory_bytes"] > 2**28
    assert stamp["machine"]["cpu"]
    assert stamp["machine"]["gl_backend"]
    assert set(stamp) == {"python", "packages", "machine", "git"}
    assert (run.path / "git.diff").exists()
    folders = (
        run.checkpoints,
        run.best_model,
        run.final_model,
        run.interrupted_model,
        run.eval_results,
        run.tensorboard,
    )
    names = "checkpoints best_model final_model interrupted_model eval_results tensorboard"
    assert [f.relative_to(run.path).as_posix() for f in folders] == names.split()


def test_start__refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path).start({})
    assert (
        str(caught.value)
        == f"{tmp_path} is not empty; choose another --output-dir, or continue the run in it with "
        f"`--resume {tmp_path}`"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_start__uses_a_folder_whose_start_was_killed(tmp_path: Path) -> None:
    leftover = tmp_path / ".config.json.0f.tmp"
    leftover.touch()
    (tmp_path / LOCK_FILE).touch()
    assert RunFolder(tmp_path).is_empty
    RunFolder(tmp_path).start({"seed": 3}).close()
    assert not leftover.exists()
    assert not RunFolder(tmp_path).is_empty


def test_resume__adds_the_command_and_keeps_the_other_files(tmp_path: Path) -> None:
    RunFolder(tmp_path).start({"seed": 3}, ["first"]).close()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name not in ("command.txt", ".lock")}
    RunFolder(tmp_path).resume(["second"]).close()
    assert (tmp_path / "command.txt").read_text() == "first\nsecond\n"
    assert {
        p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name not in ("command.txt", ".lock")
    } == before


def test_resume__warns_about_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    RunFolder(tmp_path).start({}).close()
    monkeypatch.setattr(run_folder, "versions", lambda: {"python": "4.0"})
    for _ in range(2):
        RunFolder(tmp_path).resume().close()
    assert json.loads((tmp_path / "versions.1.json").read_text())["python"] == "4.0"
    assert json.loads((tmp_path / "versions.json").read_text())["python"] != "4.0"
    assert not (tmp_path / "versions.2.json").exists()
    assert "this run resumes with other versions than before" in caplog.text


def test_resume__refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x contains no run to resume: config\.json is missing"):
        RunFolder(tmp_path / "x").resume()
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_run_folder__two_processes_cannot_write_the_same_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path).start({})
    with pytest.raises(
        ConfigError,
        match=rf"{tmp_path} is being written by process {os.getpid()} on .*; wait for it, stop it",
    ):
        RunFolder(tmp_path).resume()
    code = f"from residual_rl.runs.run_folder import RunFolder; RunFolder({str(tmp_path)!r}).resume()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is being written by process" in other.stderr.splitlines()[-1]
    first.close()
    # a process that exits without closing releases the lock
    subprocess.run([sys.executable, "-c", code], check=True)
    with RunFolder(tmp_path).resume():
        pass


def test_start__releases_the_lock_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        RunFolder(tmp_path).start({"lr": float("nan")})
    RunFolder(tmp_path).start({}).close()


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nowhere"])
def test_start__fails_before_training_if_the_folder_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / place  # an absolute `place` replaces `tmp_path`
    with pytest.raises(WriteError, match=rf"^cannot write {path}: .*; .*choose"):
        RunFolder(path).start({})


def test_git_state__is_none_without_a_repository(tmp_path: Path) -> None:
    state, text = git_state(tmp_path)
    assert state is None
    assert text.startswith("# no git repository holds the package")


def test_git_state__includes_changed_and_new_files(tmp_path: Path) -> None:
    git(tmp_path, "init")
    package = tmp_path / "src"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    state, text = git_state(package)
    assert state == {"commit": None, "dirty": True}  # nothing committed yet: the diff contains the new file
    assert "+x = 1" in text
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_state(package) == ({"commit": commit, "dirty": False}, "")
    (package / "a.py").write_text("x = 2\n")
    (package / "new.py").write_text("fresh = True\n")
    (tmp_path / "secret.env").write_text("KEY=1\n")
    state, text = git_state(package)
    assert state == {"commit": commit, "dirty": True}
    assert "-x = 1\n+x = 2\n" in text
    assert "+fresh = True" in text
    assert "# not in git: secret.env\n" in text
    assert "KEY=1" not in text


def test_versions__lists_every_package_once() -> None:
    packages = versions()["packages"]
    assert list(packages) == sorted(packages, key=str.lower)
    assert {"numpy", "safetensors"} <= set(packages)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_to_json__refuses_numbers_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"a": 1})
    with pytest.raises(NonFiniteError, match=r"^policies\.base\[1\] is -?(nan|inf)"):
        write_json(path, {"policies": {"base": [0.0, bad]}})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


def test_to_json__refuses_unsupported_types() -> None:
    with pytest.raises(ConfigError, match=r"^a\.b is a complex"):
        to_json({"a": {"b": 1j}})


def test_stamp_env__versions_of_another_interpreter_are_stored(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.stamp_env({})
    assert not run.env_versions_file.exists()
    run.stamp_env({"python": "3.9.1", "metaworld": "3.0"})
    assert json.loads((tmp_path / "env_versions.json").read_text()) == {"python": "3.9.1", "metaworld": "3.0"}
