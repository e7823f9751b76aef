from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_runs import FAILING_TINY, Fails

from residual_rl.cli.main import main
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import Logger, read_metrics
from residual_rl.runs.wandb_tracker import check_wandb

TRAIN = ["train", "so101-paper", *FAILING_TINY, "--total-timesteps", "96", "--wandb-project", "p"]


class FakeWandb(SimpleNamespace):
    """W&B's module, whose process dies after `lives` rows."""

    def __init__(self, lives: int = 1000, refuses: str = "", logged_in: bool = True, mode: str = "online"):
        super().__init__(lives=lives, refuses=refuses, logged_in=logged_in, calls=[])
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def Settings(self, project: str) -> None:  # noqa: N802 (W&B's name)
        if "/" in project:
            raise RuntimeError(f"Invalid project name {project!r}: cannot contain characters '/'")

    def login(self, verify: bool) -> bool:
        if not self.logged_in:
            raise RuntimeError("No API key configured. Use `wandb login` to log in.")
        return verify

    def init(self, **settings: Any) -> SimpleNamespace:
        if self.refuses:
            raise RuntimeError(self.refuses)
        return SimpleNamespace(id="id", log=self.log, finish=lambda: self.calls.append("finish"))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(step)
        if len(self.calls) > self.lives:
            raise ConnectionResetError("Connection lost")

    def teardown(self) -> None:
        self.calls.append("teardown")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_logger__continues_without_a_tracker_that_dies(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.lives = 1
    with caplog.at_level(logging.WARNING), Logger(tmp_path, wandb_project="p") as logger:
        for step in range(4):
            logger.log({"x": 1.0}, step)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert wandb.calls == [0, 1, "teardown"]  # nothing more is sent
    (record,) = caplog.records
    assert "W&B failed (ConnectionResetError: Connection lost); the run continues" in record.getMessage()


def test_logger__continues_without_a_tracker_that_does_not_start(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.refuses = "permission denied"
    with Logger(tmp_path, wandb_project="p") as logger:
        logger.log({"x": 1.0}, 1)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert "permission denied" in caplog.text


@pytest.mark.parametrize(
    ("project", "logged_in", "mode", "message"),
    [
        ("a/b", True, "online", "Invalid project name"),
        ("a/b", True, "offline", "Invalid project name"),
        ("p", False, "online", "No API key configured.*WANDB_MODE=offline"),
        ("p", False, "offline", None),
        ("p", True, "online", None),
    ],
)
def test_check_wandb__names_what_is_wrong(
    project: str, logged_in: bool, mode: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(logged_in=logged_in, mode=mode))
    if message is None:
        check_wandb(project)
    else:
        with pytest.raises(ConfigError, match=message):
            check_wandb(project)


def test_check_wandb__needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        check_wandb("p")


def test_train__a_tracker_that_cannot_work_leaves_no_folder(
    wandb: FakeWandb, fails: Fails, tmp_path: Path
) -> None:
    wandb.logged_in = False
    assert "No API key configured" in fails(*TRAIN, "--output-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train__a_tracker_that_dies_does_not_end_it(wandb: FakeWandb, tmp_path: Path) -> None:
    wandb.lives = 1
    assert main([*TRAIN, "--output-dir", str(tmp_path / "run")]) == 0
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").files()
    assert "teardown" in wandb.calls


@pytest.mark.slow
def test_logger__continues_when_the_process_of_the_real_wandb_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = (
        "import sys, time; from residual_rl.runs.logger import Logger\n"
        "with Logger(sys.argv[1], wandb_project='p') as logger:\n"
        "    logger.log({'x': 1.0}, 1); print('started', flush=True); input()\n"
        "    for step in range(2, 5): logger.log({'x': 1.0}, step)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "started":
        pass
    # kill W&B's process, a child of the one that logs
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, stderr = process.communicate("\n", timeout=60)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
