"""Where a run's figures go: JSON lines and TensorBoard always, Weights & Biases when asked; and the progress bar."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from residual_rl.errors import CheckpointError, MissingDependencyError
from residual_rl.utils.files import make_folder, write_atomically, write_json, writing

if TYPE_CHECKING:
    from residual_rl.types import State

METRICS_FILE = "metrics.jsonl"


class Logger:
    """Writes figures by tag and step.

    `metrics.jsonl` gets one line a call, `{"step": …, tag: value, …}`, with null for a figure that is NaN or infinite (JSON has
    no other word for it). `tensorboard/` gets scalars.

    With `resume_step` = S what was logged after S is dropped from both: training goes on from S and logs it again. W&B goes on in
    the same run (its id lies in `wandb.json`), where figures of steps that it has already stay as they were.
    """

    def __init__(
        self,
        run_dir: Path | str,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ):
        run_dir = Path(run_dir)
        self._wandb = _start_wandb(run_dir, wandb_project, config) if wandb_project else None
        make_folder(run_dir)
        self._path = run_dir / METRICS_FILE
        if resume_step is not None and self._path.exists():
            _drop_after(self._path, resume_step)
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        with writing(run_dir / "tensorboard"):
            self._tensorboard = _TensorBoard(run_dir / "tensorboard", None if resume_step is None else resume_step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write `metrics` as figures of `step` (env steps so far). Raises `WriteError`."""
        values = {tag: float(value) for tag, value in metrics.items()}
        line = {"step": int(step), **{tag: value if math.isfinite(value) else None for tag, value in values.items()}}
        with writing(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        with writing(self._tensorboard.folder):
            self._tensorboard.log(values, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        """Write out what is pending. Raises `WriteError`."""
        with writing(self._path):
            self._file.close()
        with writing(self._tensorboard.folder):
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class MetricAverager:
    """What a row of figures says of the updates since the row before: of figures their means, of whole numbers, which count something, the
    latest. A mean over a figure that is NaN or infinite is NaN."""

    def __init__(self) -> None:
        self._sums: dict[str, float | int | None] = {}
        """None: no finite sum."""
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the figures of an update."""
        for tag, value in metrics.items():
            if isinstance(value, int):
                self._sums[tag], self._counts[tag] = value, 1
                continue
            total = self._sums.get(tag, 0.0)
            self._sums[tag] = total + value if total is not None and math.isfinite(value) else None
            self._counts[tag] = self._counts.get(tag, 0) + 1

    def row(self) -> dict[str, float]:
        """The figures so far."""
        return {tag: math.nan if total is None else total / self._counts[tag] for tag, total in sorted(self._sums.items())}

    def clear(self) -> None:
        """Begin the next row."""
        self._sums, self._counts = {}, {}

    def state_dict(self) -> State:
        """What was taken in since the last row."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Take back what `state_dict` gave."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; null figures are None.

    A last line that a kill or a full disk cut off is left out. Raises `CheckpointError` naming the file and line of anything else.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if number == len(lines):  # what follows the last newline: nothing, or a line that was cut off
            break
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}:{number} is no line of metrics; expected a JSON object with a step") from error
        rows.append(row)
    return rows


def _drop_after(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class _TensorBoard:
    """Scalars in TensorBoard's event files, written at once. Its own writer does so in a thread, where a full disk is nobody's to catch;
    and `tensorboard.summary.Writer` lacks the purge of a resume."""

    def __init__(self, folder: Path, purge_step: int | None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder = folder
        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        # Read in the order of their names: a later file's purge must come after what it purges.
        self._file = (folder / f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}").open("xb")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:  # TensorBoard then forgets what earlier files hold from this step on
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, values: Mapping[str, float], step: int) -> None:
        figures = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=figures))

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._file.close()


def _start_wandb(run_dir: Path, project: str, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError("wandb", "install it with `pip install wandb`, or leave out --wandb-project") from error
    make_folder(run_dir)
    id_file = run_dir / "wandb.json"
    run_id = json.loads(id_file.read_text())["id"] if id_file.exists() else None
    run = wandb.init(project=project, dir=str(run_dir), config=dict(config or {}), id=run_id, resume="allow", name=run_dir.name)
    write_json(id_file, {"project": project, "id": run.id})
    return run
