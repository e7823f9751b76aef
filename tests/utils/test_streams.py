"""Processes that are started without standard streams, and a progress bar whose pipe is closed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from residual_rl.runs.progress_bar import ProgressBar

PROGRAM = """
import os, sys
from residual_rl.utils.streams import replace_closed_streams
replace_closed_streams()
file = open(sys.argv[1], "w")
assert file.fileno() > 2, file.fileno()
os.write(1, b"a library prints")
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
assert sys.stdin.read() == ""
"""


def closing(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(descriptor) for descriptor in descriptors] and None


@pytest.mark.parametrize("descriptors", [(1,), (0, 1, 2)])
def test_replace_closed_streams__output_is_discarded(tmp_path: Path, descriptors: tuple[int, ...]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    # the descriptors are closed in the child, before the program starts
    done = subprocess.run(command, stdin=subprocess.DEVNULL, preexec_fn=closing(*descriptors), check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
def test_main__runs_with_a_closed_stdout() -> None:
    for arguments in (["list"], ["--help"], ["eval", "so101-paper", "--n-episodes", "1"]):
        command = [sys.executable, "-m", "residual_rl.cli.main", *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, preexec_fn=closing(1), check=False)
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr


def test_progress_bar__closed_pipe_does_not_end_the_work() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w") as pipe:
        with ProgressBar(3, every=0.0, console=Console(file=pipe)) as bar:
            for step in range(3):
                bar.update(step + 1)
        assert bar.step == 3
        reader = -1
    assert reader == -1
