from __future__ import annotations

import pytest
from rich.table import Table
from rich.text import Text

from residual_rl.utils.console import Console

ODD = ["[/1]", "runs/[lr=3e-4]", ":100:", "[bold]x[/bold]", "a\\[b]"]


@pytest.mark.parametrize("text", ODD)
def test_console__prints_texts_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text, "red"))
    console = Console()
    console.say(text)
    console.print(table)
    assert capsys.readouterr().out.count(text) == 5


def test_console__say_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say("runs/\x1b[31mred")
    assert capsys.readouterr().out == "runs/\\x1b[31mred\n"


def test_console__say_does_not_wrap(capsys: pytest.CaptureFixture[str]) -> None:
    Console().say("word " * 100, "second")
    assert capsys.readouterr().out.splitlines() == ["word " * 100, "second"]
