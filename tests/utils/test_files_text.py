from __future__ import annotations

import json
from pathlib import Path

import pytest

from residual_rl.utils.files import parse_json, to_json, write_atomically, write_json

NOT_UTF_8 = Path("bad\udcff")
"""What Python makes of a file name with the byte 0xff."""


def test_write_json__keeps_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"checkpoint": NOT_UTF_8, "name": "Maß"})
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == {"checkpoint": str(NOT_UTF_8), "name": "Maß"}
    assert "Maß" in text
    to_json({"path": NOT_UTF_8}).encode()  # as in the metadata of safetensors


def test_write_atomically__escapes_what_utf_8_cannot_encode(tmp_path: Path) -> None:
    write_atomically(tmp_path / "command.txt", f"residual-rl eval {NOT_UTF_8}\n")
    assert (tmp_path / "command.txt").read_bytes() == b"residual-rl eval bad\\udcff\n"


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "[" * 100_000, "{", ""])
def test_parse_json__anything_but_strict_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
