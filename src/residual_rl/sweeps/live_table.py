"""Progress of the trials of a sweep: a live table in a terminal, otherwise one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from residual_rl.runs.progress_bar import clock_time
from residual_rl.sweeps.grid import State, Trial, state_of
from residual_rl.sweeps.trial import TrialProgress, trial_metrics
from residual_rl.utils.console import Console

STYLES: dict[State, str] = {
    "running": "cyan",
    "evaluating": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
}


class SweepTable:
    """Shows the trials of a sweep; a context manager.

    Args:
        trials: all trials, in the order of the rows.
        console: where to print.
    """

    def __init__(self, trials: Sequence[Trial], console: Console):
        self._console = console
        self._trials = {trial.name: trial for trial in trials}
        self.progress = {
            trial.name: TrialProgress(state_of(trial), **trial_metrics(trial)) for trial in trials
        }
        self._live = (
            Live(self.table(), console=console, refresh_per_second=2) if console.is_terminal else None
        )

    def __enter__(self) -> SweepTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.table())
            self._live.stop()

    def update(self, trial: Trial, progress: TrialProgress) -> None:
        """Show the new progress of a trial."""
        before = self.progress[trial.name]
        self.progress[trial.name] = progress
        if self._live is not None:
            self._live.update(self.table())
        elif (before.state, before.success) != (progress.state, progress.success):
            line = "  ".join(cell for cell in self._cells(trial, progress) if cell != "–")
            self._console.print(line, soft_wrap=True)
            self._console.file.flush()  # so that a log file can be followed

    def settle(self, trial: Trial) -> None:
        """Show the state that the trial's folder records, after all processes have ended."""
        before = self.progress[trial.name]
        reason = before.reason if before.state == "failed" else ""
        self.update(trial, TrialProgress(state_of(trial), **trial_metrics(trial), reason=reason))

    def table(self) -> Table:
        """A row for each trial."""
        numbers = [Column(name, justify="right") for name in ("step", "success", "ETA")]
        table = Table("trial", "state", *numbers, title="Sweep", title_justify="left")
        for name, progress in self.progress.items():
            shown, state, *rest = self._cells(self._trials[name], progress)
            style = STYLES.get(progress.state, "dim")
            table.add_row(shown, Text(state, style), *rest)
        return table

    def _cells(self, trial: Trial, progress: TrialProgress) -> tuple[str, str, str, str, str]:
        left = trial.total_steps - progress.step
        eta = clock_time(left / progress.speed) if progress.state == "running" and progress.speed > 0 else "–"
        success = "–" if progress.success is None else f"{100 * progress.success:.1f} %"
        state = f"{progress.state}: {progress.reason}" if progress.reason else progress.state
        return trial.name, state, f"{progress.step:,}/{trial.total_steps:,}", success, eta
