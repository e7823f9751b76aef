"""How the trials of a sweep stand: a live table in a terminal, a line for each change elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from residual_rl.runs.progress_bar import clock_time
from residual_rl.sweeps.grid import State, Trial, state_of
from residual_rl.sweeps.trial import Progress, figures_of

STYLES: dict[State, str] = {"running": "cyan", "evaluating": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow"}


class SweepTable:
    """Shows the trials; use it with `with`.

    Args:
        trials: all of the sweep, in the order they are shown.
        console: where to.
    """

    def __init__(self, trials: Sequence[Trial], console: Console):
        self._console = console
        self._trials = {trial.name: trial for trial in trials}
        self.progress = {trial.name: Progress(state_of(trial), **figures_of(trial)) for trial in trials}
        self._live = Live(self.table(), console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> SweepTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self.table())
            self._live.stop()

    def update(self, trial: Trial, progress: Progress) -> None:
        """A trial stands there now."""
        before = self.progress[trial.name]
        self.progress[trial.name] = progress
        if self._live is not None:
            self._live.update(self.table())
        elif (before.state, before.success) != (progress.state, progress.success):
            cells = self._cells(trial, progress)
            self._console.print("  ".join(cell for cell in cells if cell != "–"), highlight=False, soft_wrap=True, markup=False)
            self._console.file.flush()  # a log is read while the sweep goes on

    def settle(self, trial: Trial) -> None:
        """Nothing runs any more: show what the trial's folder tells."""
        told = self.progress[trial.name]
        self.update(trial, Progress(state_of(trial), **figures_of(trial), reason=told.reason if told.state == "failed" else ""))

    def table(self) -> Table:
        """All trials as they stand."""
        table = Table(
            "trial", "state", *(Column(name, justify="right") for name in ("step", "success", "ETA")), title="Sweep", title_justify="left"
        )
        for name, progress in self.progress.items():
            shown, state, *rest = self._cells(self._trials[name], progress)
            style = STYLES.get(progress.state, "dim")
            table.add_row(escape(shown), f"[{style}]{escape(state)}[/{style}]", *rest)
        return table

    def _cells(self, trial: Trial, progress: Progress) -> tuple[str, str, str, str, str]:
        left = trial.total_steps - progress.step
        eta = clock_time(left / progress.speed) if progress.state == "running" and progress.speed > 0 else "–"
        success = "–" if progress.success is None else f"{100 * progress.success:.1f} %"
        state = f"{progress.state}: {progress.reason}" if progress.reason else progress.state
        return trial.name, state, f"{progress.step:,}/{trial.total_steps:,}", success, eta
