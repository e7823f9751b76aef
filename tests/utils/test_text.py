from __future__ import annotations

import shlex
from pathlib import Path

from residual_rl.utils.text import shell_command


def test_shell_command__can_be_pasted() -> None:
    words = ["eval", Path("my runs/it's $HOME"), "--n-episodes", 200]
    assert shlex.split(shell_command(*words)) == ["residual-rl", *map(str, words)]
    assert shell_command("eval", Path("runs/1")) == "residual-rl eval runs/1"


def test_shell_command__a_path_that_begins_with_a_dash_is_no_option() -> None:
    assert shell_command("train", "--resume", Path("-x")) == "residual-rl train --resume ./-x"
