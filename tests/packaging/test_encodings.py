"""Files are UTF-8 in every locale: whatever opens one as text names the encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


def unnamed_encodings(code: str) -> Iterator[int]:
    """The lines of calls that open a file, or read a process, as text without naming the encoding."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords or None in keywords:
            continue
        if len(node.args) > {"read_text": 0, "write_text": 1}.get(name, len(node.args)):
            continue  # given by position
        if name in ("read_text", "write_text") or "text" in keywords or "universal_newlines" in keywords:
            if name in ("read_text", "write_text", "run", "Popen", "check_output"):
                yield node.lineno
        elif name in ("open", "fdopen"):
            # the mode: of a path's method the first argument, of the function the second
            at = 0 if isinstance(node.func, ast.Attribute) and name == "open" else 1
            mode = keywords.get("mode") or (node.args[at] if len(node.args) > at else ast.Constant("r"))
            if isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value:
                yield node.lineno


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("p.read_text()", True),
        ("p.read_text(encoding='utf-8')", False),
        ("p.read_text('utf-8')", False),
        ("p.write_text(t)", True),
        ("p.open()", True),
        ("p.open('rb')", False),
        ("open(p, 'w')", True),
        ("open(p, 'rb')", False),
        ("subprocess.run(c, text=True)", True),
        ("Demonstrations.open(path)", False),
    ],
)
def test_unnamed_encodings__finds_calls(code: str, found: bool) -> None:
    assert bool(list(unnamed_encodings(code))) == found


def test_sources__name_the_encoding_of_every_text() -> None:
    calls = [
        f"{path.name}:{line}"
        for path in SOURCES
        for line in unnamed_encodings(path.read_text(encoding="utf-8"))
    ]
    assert calls == []
