"""The documentation's pages, and the links and commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paths import ROOT

PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)
PROGRAMS = ("residual-rl", "make", "pip", "python", "python3", "source", "tensorboard", "ray")
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """A command line of a page."""

    page: str
    text: str
    inline: bool
    """Whether it is part of a sentence or a table, where words in capitals are placeholders."""

    @property
    def words(self) -> list[str]:
        """Its words, as a shell splits them."""
        return shlex.split(self.text, comments=True)

    @property
    def program(self) -> str:
        """Its program: `residual-rl`, `make`, `python`, …"""
        return Path(self.words[0]).name


@cache
def text_of(page: str) -> str:
    """A page's Markdown."""
    return (ROOT / page).read_text(encoding="utf-8")


def split(page: str) -> tuple[str, str]:
    """A page's prose and its code blocks, each with empty lines in place of the other."""
    prose: list[str] = []
    code: list[str] = []
    fenced = False
    for line in text_of(page).splitlines():
        fence = line.startswith("```")
        is_code = fence or fenced or (line.startswith("    ") and (not prose[-1].strip() if prose else True))
        fenced ^= fence
        prose.append("" if is_code else line)
        code.append(line.removeprefix("    ") if is_code and not fence else "")
    return "\n".join(prose), "\n".join(code)


def is_command(text: str) -> bool:
    """Whether a line of code is a command line that the tests can check."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    return (
        Path(first).name in PROGRAMS
        and first != text.strip()
        and not first.endswith("/")
        and " = " not in text
    )


def commands() -> Iterator[Command]:
    """All command lines of all pages: those of code blocks, and those within backticks."""
    for page in PAGES:
        prose, code = split(page)
        for line in code.replace("\\\n", " ").splitlines():
            if is_command(line):
                yield Command(page, line.strip(), inline=False)
        for text in _INLINE.findall(prose):
            joined = " ".join(text.split())
            if is_command(joined):
                yield Command(page, joined, inline=True)


def links(page: str) -> list[str]:
    """The targets of a page's links and images."""
    return _LINK.findall(_INLINE.sub("", split(page)[0]))


def anchors(page: str) -> set[str]:
    """The anchors of a page: those of its headings, as on GitHub and the site, and explicit ones."""
    prose = split(page)[0]
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return slugs | set(re.findall(r'<a (?:name|id)="([^"]+)"', prose))
