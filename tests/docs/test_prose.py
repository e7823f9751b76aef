"""The form of the documentation: line width, the README's commands, and terms that are no longer used."""

from __future__ import annotations

import re

import pytest
from doc_pages import PAGES, commands, split, text_of

WIDTH = 100
README_COMMANDS = 16
"""The largest number of command lines below the README's first screen."""
RENAMED = (
    r"\bworlds?\b",
    r"\bplan\(obs",
    r"\bmend",
    r"\bjudges?\b",
    r"what it says\b",
    r"\btells\b",
    r"\bstands in\b",
)
"""Terms of earlier versions of the documentation; docs/concepts.md has their replacements."""


@pytest.mark.parametrize("page", PAGES)
def test_prose__is_wrapped(page: str) -> None:
    lines = [line for line in split(page)[0].splitlines() if not line.startswith("|")]
    unbreakable = [
        re.sub(r"\[[^]]*\]\([^)]*\)|`[^`]*`", lambda match: match[0].replace(" ", "_"), line)
        for line in lines
    ]
    assert [line for line in unbreakable if len(line) > WIDTH and " " in line.strip()] == []


@pytest.mark.parametrize("page", PAGES)
def test_prose__uses_the_terms_of_the_glossary(page: str) -> None:
    text = re.sub(
        r"<!-- flags: begin.*flags: end -->", "", split(page)[0], flags=re.DOTALL
    )  # the docstrings' own
    found = {match[0] for word in RENAMED for match in re.finditer(word, text)} - (
        {"world"} if "world frame" in text else set()
    )
    assert found == set()


def test_readme__first_screen_and_commands() -> None:
    first, _, rest = text_of("README.md").partition("\n## ")
    assert "docs/media/demo.gif" in first
    assert re.findall(r"^    (make \w+)", first, re.MULTILINE) == ["make demo", "make test"]
    assert first.index("demo.gif") < first.index("make demo") < first.index("| task |")
    caption = first[first.index("make test") : first.index("| task |")].split("\n\n")[1]
    assert len(re.findall(r"\.(?:\s|$)", caption)) == 3
    below = [
        command
        for command in commands()
        if command.page == "README.md" and not command.inline and command.text in rest
    ]
    assert len(below) <= README_COMMANDS
