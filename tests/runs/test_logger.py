"""Logging to JSON lines, TensorBoard and W&B; resuming; the progress bar."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from residual_rl.errors import CheckpointError, MissingDependencyError
from residual_rl.runs.checkpoint import from_bytes, to_bytes
from residual_rl.runs.logger import Logger, MetricAverager, read_metrics
from residual_rl.runs.progress_bar import ProgressBar, clock_time
from residual_rl.utils.files import WriteError


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """The scalars that TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_log__writes_lines_and_scalars(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log({"rollout/ep_rew_mean": -1.5, "time/fps": 9000}, 2048)
        lines = (tmp_path / "metrics.jsonl").read_text()  # already flushed
        logger.log({"rollout/ep_rew_mean": 0.25}, 4096)
    assert lines == '{"step": 2048, "rollout/ep_rew_mean": -1.5, "time/fps": 9000.0}\n'
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"step": 4096, "rollout/ep_rew_mean": 0.25}
    assert scalars(tmp_path / "tensorboard", "rollout/ep_rew_mean") == [(2048, -1.5), (4096, 0.25)]
    assert scalars(tmp_path / "tensorboard", "time/fps") == [(2048, 9000.0)]


def test_log__writes_null_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log({"train/explained_variance": math.nan, "x": math.inf, "y": 1.0}, 1)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/explained_variance": None, "x": None, "y": 1.0}
    ]


def test_logger__resuming_removes_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        for step in (10, 20, 30):
            logger.log({"x": step}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "x"')  # a kill in the middle of a line
    with Logger(tmp_path, resume_step=20) as logger:
        logger.log({"x": 300}, 30)
    assert [row["x"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 300]
    assert scalars(tmp_path / "tensorboard", "x") == [(10, 10.0), (20, 20.0), (30, 300.0)]


def test_read_metrics__ignores_only_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "x": 2}\n{"step": 2, "x": \xc3')
    assert read_metrics(path) == [{"step": 1, "x": 2}]
    path.write_text("")
    assert read_metrics(path) == []
    for bad in ('{"step": 1\n{"step": 2}\n', "[]\n", '{"x": 1}\n'):
        path.write_text(bad)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl:1 is not a line of metrics"):
            read_metrics(path)


def test_logger__error_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"^cannot write .*file.*choose another folder"):
        Logger(tmp_path / "file" / "run")
    with pytest.raises(WriteError, match=r"^cannot write /proc/nowhere"):
        Logger("/proc/nowhere")


def test_log__error_names_a_full_disk(tmp_path: Path) -> None:
    # /dev/full behaves like a file on a full disk
    code = (
        "import sys, residual_rl.runs.logger as l; l.METRICS_FILE = '/dev/full'; "
        "l.Logger(sys.argv[1]).log({'x': 1}, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "WriteError: cannot write /dev/full: No space left on device; free some space" in done.stderr


def test_logger__imports_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys, residual_rl.runs.logger as l; l.Logger(sys.argv[1]).close(); "
        "print({'torch', 'tensorflow'} & {*sys.modules})"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


def test_logger__without_wandb_the_error_has_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MissingDependencyError, match="wandb is not available; install it with `pip install wandb`"
    ):
        Logger(tmp_path / "run", wandb_project="p")


def test_logger__wandb_gets_the_metrics_and_resumes_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(settings)
        log = lambda values, step: calls.append((values, step))  # noqa: E731
        return SimpleNamespace(id=settings["id"] or "new-id", log=log, finish=lambda: calls.append("finish"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with Logger(tmp_path / "run", wandb_project="p", config={"seed": 1}) as logger:
        logger.log({"x": 1}, 5)
    assert calls[0] == {
        "project": "p",
        "dir": str(tmp_path / "run"),
        "config": {"seed": 1},
        "id": None,
        "resume": "allow",
        "name": "run",
    }
    assert calls[1:] == [({"x": 1.0}, 5), "finish"]
    assert json.loads((tmp_path / "run" / "wandb.json").read_text()) == {"project": "p", "id": "new-id"}
    Logger(tmp_path / "run", wandb_project="p", resume_step=5).close()
    assert calls[3]["id"] == "new-id"


def test_progress_bar__prints_plain_lines() -> None:
    out, now = io.StringIO(), [100.0]
    with ProgressBar(10_000, every=10.0, console=Console(file=out), clock=lambda: now[0]) as bar:
        for second in range(1, 26):
            now[0] = 100.0 + second
            bar.update(100 * second, success=None if second < 15 else 0.4567)
    assert out.getvalue().splitlines() == [
        "train: 1,000/10,000 steps  100 steps/s  success   –    ETA 1:30",
        "train: 2,000/10,000 steps  100 steps/s  success  45.7%  ETA 1:20",
        "train: 2,500/10,000 steps  100 steps/s  success  45.7%  ETA 1:15",
    ]


def test_progress_bar__shows_the_recent_speed() -> None:
    out, now = io.StringIO(), [0.0]
    with ProgressBar(
        1_000_000, 500_000, console=Console(file=out), clock=lambda: now[0], title="base", unit="episodes"
    ) as bar:
        for second in range(10, 1001, 10):  # slow for ten minutes, then ten times faster
            now[0] = float(second)
            bar.update(500_000 + 10 * min(second, 600) + 100 * max(0, second - 600))
    assert out.getvalue().splitlines()[-1].startswith("base: 546,000/1,000,000 episodes  100 episodes/s")


def test_progress_bar__remaining_time_includes_pauses_after_the_restart() -> None:
    """A step a second, and after each tenth a pause of 40 s; a first one of 1,000 s."""
    out, now = io.StringIO(), [0.0]
    with ProgressBar(1000, every=0.0, console=Console(file=out), clock=lambda: now[0]) as bar:
        now[0] = 1000.0
        bar.restart()
        for step in range(1, 22):
            now[0] += 1.0 + 40.0 * (step in (11, 21))
            bar.update(step)
    lines = out.getvalue().splitlines()
    assert lines[9].endswith("10/1,000 steps  1 steps/s  success   –    ETA 16:30")
    assert lines[20].endswith(f"ETA {clock_time(979 * 101 / 21)}")


def test_progress_bar__is_live_on_a_terminal() -> None:
    out = io.StringIO()
    with ProgressBar(1000, console=Console(file=out, force_terminal=True, width=120)) as bar:
        bar.update(250, success=0.5)
    text = out.getvalue()
    assert "250/1,000 steps" in text
    assert "success  50.0%" in text
    assert " 25%" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (75, "1:15"), (3661, "1:01:01"), (-3, "0:00")]
)
def test_clock_time__minutes_and_hours(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_metric_averager__averages_floats_and_keeps_the_latest_counts() -> None:
    means = MetricAverager()
    means.add({"loss": 1.0, "count": 5, "odd": 1.0})
    means.add({"loss": 4.0, "count": 9, "late": 3.0, "odd": math.inf})
    assert means.row() == {"loss": 2.5, "count": 9, "late": 3.0, "odd": pytest.approx(math.nan, nan_ok=True)}
    restored = MetricAverager()
    restored.load_state_dict(from_bytes(to_bytes(means.state_dict(), "checkpoint"), "checkpoint"))
    for averager in (means, restored):
        averager.add({"loss": 10.0, "odd": 1.0})
    assert restored.row() == {
        "loss": 5.0,
        "count": 9,
        "late": 3.0,
        "odd": pytest.approx(math.nan, nan_ok=True),
    }
    assert list(restored.row()) == list(means.row())
    means.clear()
    assert means.row() == {}
