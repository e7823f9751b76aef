"""Run folders: their layout, their lock, and the record of configuration, command, versions and code."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from residual_rl.errors import ConfigError
from residual_rl.utils.files import (
    is_leftover,
    make_folder,
    remove_leftovers,
    write_atomically,
    write_json,
    writing,
)
from residual_rl.utils.provenance import command_line, git_state, versions

LOCK_FILE = ".lock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def output_folder(given: Path | None, parent: Path | str, name: str) -> Iterator[Path]:
    """The folder that a command writes to: `given`, or a new one, `PARENT/NAME-DATE-TIME`.

    A new folder is made at once, so that a command that starts in the same second gets another one. It is
    removed again if the block leaves it empty. Raises `WriteError`.
    """
    if given is not None:
        yield given
        return
    new = _make_new(Path(parent) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        yield new
    finally:
        with contextlib.suppress(OSError):  # not empty
            new.rmdir()
            new.parent.rmdir()


def _make_new(path: Path) -> Path:
    """Make the folder `path`, or else `path-2`, `path-3`, …, whichever does not exist yet."""
    for count in itertools.count(2):
        candidate = path if count == 2 else path.with_name(f"{path.name}-{count - 1}")
        with writing(candidate), contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise AssertionError  # unreachable


class RunFolder:
    """The files of a run. `start` or `resume` locks the folder until `close` or the end of a `with` block.

    While a process has the lock, no other process can write this run. Constructing a `RunFolder` creates no
    file, and reading needs no lock.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        """The resolved configuration."""
        self.metrics_file = self.path / "metrics.jsonl"
        """Metrics by step."""
        self.eval_file = self.path / "eval.json"
        """Results of `residual-rl eval`."""
        self.summary_file = self.path / "training_summary.json"
        """Steps, duration and outcome of training."""
        self.checkpoints = self.path / "checkpoints"
        """The last few checkpoints."""
        self.replay = self.path / "replay"
        """Segments of the replay buffer, shared by the checkpoints."""
        self.best_model = self.path / "best_model"
        """The policy with the best evaluation."""
        self.final_model = self.path / "final_model"
        """The policy at the end of training."""
        self.interrupted_model = self.path / "interrupted_model"
        """The policy when a signal, such as that of Ctrl-C, stopped training."""
        self.env_versions_file = self.path / "env_versions.json"
        """Versions in the interpreter that steps the envs, if it is another one."""
        self.eval_results = self.path / "eval_results"
        """Evaluations during training, and plots."""
        self.tensorboard = self.path / "tensorboard"
        """TensorBoard's event files."""
        self._held: IO[str] | None = None

    def start(self, config: Any, command: Sequence[str] | None = None) -> RunFolder:
        """Lock the folder and write `config.json`, `command.txt`, `versions.json` and `git.diff`.

        Args:
            config: the resolved configuration; anything that `files.to_json` accepts.
            command: the command line; by default that of this process.

        Raises:
            ConfigError: the folder is not empty, or another process has the lock.
            WriteError: the folder cannot be written.
        """
        make_folder(self.path)
        self.require_empty()
        with self._hold():
            remove_leftovers(self.path)
            write_json(self.config_file, config)
            self._stamp(command)
        return self

    def resume(self, command: Sequence[str] | None = None) -> RunFolder:
        """Lock the folder of an earlier run, to resume it.

        The command is added to `command.txt`. If versions or code differ from those of the earlier session,
        they are written to new files (`versions.1.json`, `git.1.diff`, …), with a warning. Raises like
        `start`, and `ConfigError` if the folder contains no run.
        """
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path} contains no run to resume: {self.config_file.name} is missing")
        with self._hold():
            self._stamp(command)
        return self

    def stamp_env(self, software: Mapping[str, str]) -> None:
        """Write `env_versions.json`, with the versions in the interpreter that steps the envs; nothing if
        there are none, because it is this one."""
        if software:
            write_json(self.env_versions_file, dict(software))

    def refuse_links(self) -> None:
        """Raise `ConfigError` for a symbolic link in the folder: writing would follow it to another place,
        which the sender of a run may have chosen.

        W&B's own folder `wandb` has links to its newest files. Only W&B writes there, in new folders.
        """
        for folder, folders, files in os.walk(self.path):
            if Path(folder) == self.path / "wandb":
                folders.clear()
                continue
            for name in sorted(folders + files):
                path = Path(folder, name)
                if path.is_symlink():
                    raise ConfigError(
                        f"{path} is a link, which this program would follow when it writes into {self.path}; "
                        "replace it by a copy of what it points to"
                    )

    def require_empty(self) -> None:
        """Raise `ConfigError` unless the folder is empty; see `is_empty`."""
        if not self.is_empty:
            raise ConfigError(
                f"{self.path} is not empty; choose another --output-dir, or continue the run in it with "
                f"`--resume {shlex.quote(str(self.path))}`"
            )

    @property
    def is_empty(self) -> bool:
        """Whether there is no folder yet, or it has only what a start that was killed leaves."""
        return not self.path.is_dir() or all(
            p.name == LOCK_FILE or is_leftover(p) for p in self.path.iterdir()
        )

    @property
    def held(self) -> bool:
        """Whether a process has the lock and may be writing this run."""
        try:
            with (self.path / LOCK_FILE).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Release the lock."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _hold(self) -> Iterator[None]:
        """Take the lock, and release it if the block fails."""
        self.refuse_links()
        self._held = _lock(self.path)
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _stamp(self, command: Sequence[str] | None) -> None:
        # Append the command, and write versions and code if they are new.
        command_file = self.path / "command.txt"
        earlier = command_file.read_text(encoding="utf-8", errors="replace") if command_file.is_file() else ""
        write_atomically(
            command_file, f"{earlier}{shlex.join(command_line() if command is None else command)}\n"
        )
        git, diff = git_state()
        self._write_new("versions", ".json", json.dumps({**versions(), "git": git}, indent=2) + "\n")
        self._write_new("git", ".diff", diff)

    def _write_new(self, stem: str, suffix: str, text: str) -> None:
        """Write `text` to the first unused name, unless the last used one has the same text."""
        path, last, n = self.path / f"{stem}{suffix}", None, 0
        while path.exists():
            last, n = path, n + 1
            path = self.path / f"{stem}.{n}{suffix}"
        if last is not None and last.read_text(encoding="utf-8", errors="replace") == text:
            return
        if last is not None:
            _log.warning(
                "this run resumes with other %s than before: compare %s and %s", stem, last, path.name
            )
        write_atomically(path, text)


def _lock(folder: Path) -> IO[str]:
    path = folder / LOCK_FILE
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ConfigError(
                f"{folder} is being written by {holder}; wait for it, stop it, or choose another --output-dir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
    return file
