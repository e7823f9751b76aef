"""Logging of metrics: to JSON lines and TensorBoard, and optionally to Weights & Biases."""

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

from residual_rl.errors import CheckpointError
from residual_rl.runs.wandb_tracker import WandbTracker
from residual_rl.utils.files import make_folder, parse_json, write_atomically, writing

if TYPE_CHECKING:
    from residual_rl.types import State

METRICS_FILE = "metrics.jsonl"


class Logger:
    """Writes metrics by tag and step.

    Each call of `log` adds a line `{"step": …, tag: value, …}` to `metrics.jsonl`, with null for NaN and
    infinity, which JSON cannot represent, and scalars to `tensorboard/`.

    With `resume_step` = S, metrics logged after step S are removed from both, because training resumes at S
    and logs them again. W&B resumes the same run, whose id is stored in `wandb.json`; metrics that it already
    has are not changed.
    """

    def __init__(
        self,
        run_dir: Path | str,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ):
        run_dir = Path(run_dir)
        self._wandb = WandbTracker(run_dir, wandb_project, config) if wandb_project else None
        make_folder(run_dir)
        self._path = run_dir / METRICS_FILE
        # Remove what was logged after the checkpoint, then append.
        if resume_step is not None and self._path.exists():
            _drop_after(self._path, resume_step)
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        with writing(run_dir / "tensorboard"):
            self._tensorboard = _TensorBoard(
                run_dir / "tensorboard", None if resume_step is None else resume_step + 1
            )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log `metrics` at `step`, the number of env steps so far. Raises `WriteError`."""
        values = {tag: float(value) for tag, value in metrics.items()}
        line = {
            "step": int(step),
            **{tag: value if math.isfinite(value) else None for tag, value in values.items()},
        }
        with writing(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        with writing(self._tensorboard.folder):
            self._tensorboard.log(values, step)
        if self._wandb is not None:
            self._wandb.log(values, step)

    def close(self) -> None:
        """Flush and close all files. Raises `WriteError`."""
        with writing(self._path):
            self._file.close()
        with writing(self._tensorboard.folder):
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricAverager:
    """Averages metrics over the updates between two logged rows.

    Floats are averaged; the average of values of which one is not finite is NaN. Integers are counts, of
    which the latest is kept.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float | int | None] = {}
        """Sums, or latest counts, by tag; None if a value was not finite."""
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of an update."""
        for tag, value in metrics.items():
            if isinstance(value, int):
                self._sums[tag], self._counts[tag] = value, 1
                continue
            total = self._sums.get(tag, 0.0)
            self._sums[tag] = total + value if total is not None and math.isfinite(value) else None
            self._counts[tag] = self._counts.get(tag, 0) + 1

    def row(self) -> dict[str, float]:
        """The averages since the last `clear`."""
        return {
            tag: math.nan if total is None else total / self._counts[tag]
            for tag, total in sorted(self._sums.items())
        }

    def clear(self) -> None:
        """Start the next row."""
        self._sums, self._counts = {}, {}

    def state_dict(self) -> State:
        """The sums since the last `clear`."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Restore the result of `state_dict`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`; null becomes None.

    An incomplete last line, which a killed process or a full disk leaves, is ignored. Any other line that is
    not valid raises `CheckpointError` with the file and line number.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if number == len(lines):  # after the last newline: empty, or an incomplete line
            break
        try:
            row = parse_json(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}:{number} is not a line of metrics; expected a JSON object with a step"
            ) from error
        rows.append(row)
    return rows


def _drop_after(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class _TensorBoard:
    """Writes scalars to TensorBoard's event files, synchronously.

    TensorBoard's own writer uses a thread, in which a full disk cannot be handled, and
    `tensorboard.summary.Writer` cannot purge steps when a run is resumed.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder = folder
        self._event = Event
        self._summary = Summary
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names; a purge must come after the steps it removes.
        self._file = (
            folder / f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
        ).open("xb")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:  # TensorBoard then discards this and later steps of earlier files
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._file.close()
