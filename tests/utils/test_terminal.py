from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from residual_rl.utils.terminal import degrade_output, expand_home


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("−0.3 – 0.5 … ± 1 → é", b"-0.3 - 0.5 ... \xb1 1 -> \xe9"),  # latin-1 has ± and é
        ("│ π 日本", b"? ? ??"),
        ("runs/bad\udcff", rb"runs/bad\xff"),
    ],
)
def test_degrade_output__latin_1_gets_similar_characters(
    text: str, printed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stdout)
    degrade_output()
    print(text, end="", flush=True)
    assert stdout.buffer.getvalue() == printed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("--output-dir=~/runs", "--output-dir=/home/me/runs"),
        ("~/runs/first", "/home/me/runs/first"),
        ("~", "/home/me"),
        ("il_checkpoint=~/a,~/b", "il_checkpoint=/home/me/a,/home/me/b"),
        ("0.checkpoint=~/a b.pt", "0.checkpoint=/home/me/a b.pt"),
        ("runs/a~b", "runs/a~b"),
        ("move it by ~ 5 cm", "move it by ~ 5 cm"),
        ("--name=~nobody-of-this-name/x", "--name=~nobody-of-this-name/x"),
    ],
)
def test_expand_home__at_the_beginning_of_words_and_values(
    word: str, expanded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path("/home/me")))
    assert expand_home(word) == expanded
