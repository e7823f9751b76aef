"""Texts of other programs and machines, as they are shown."""

from __future__ import annotations

import shlex
import time
import tracemalloc
from pathlib import Path

from residual_rl.utils.text import listed, one_line, shell_command


def test_one_line__escapes_control_characters() -> None:
    assert (
        one_line("a\x1b[2J\x1b]0;title\x07b\u202ec\x9bd\udc80")
        == r"a\x1b[2J\x1b]0;title\x07b\u202ec\x9bd\udc80"
    )
    assert (
        one_line("refused\nWARNING forged\r\nline\u2028two\x0bthree")
        == "refused WARNING forged line two three"
    )
    assert one_line("grün 手") == "grün 手"


def test_one_line__reads_little_of_a_long_text() -> None:
    text = "x\n" * 4_000_000 + "ValueError: end"
    tracemalloc.start()
    start = time.thread_time()
    assert one_line(text).startswith("x x x")
    assert one_line("Traceback (most recent call last):\n" + text) == "ValueError: end"
    assert time.thread_time() - start < 0.5
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_listed__is_bounded() -> None:
    assert listed({}) == "nothing"
    assert listed(["a", "b\x1b"]) == r"a, b\x1b"
    assert listed(range(1000)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
    assert len(listed(["x" * 1000] * 1000)) < 500


def test_shell_command__can_be_pasted() -> None:
    words = ["eval", Path("my runs/it's $HOME"), "--n-episodes", 200]
    assert shlex.split(shell_command(*words)) == ["residual-rl", *map(str, words)]
    assert shell_command("eval", Path("runs/1")) == "residual-rl eval runs/1"


def test_shell_command__a_path_that_begins_with_a_dash_is_no_option() -> None:
    assert shell_command("train", "--resume", Path("-x")) == "residual-rl train --resume ./-x"
