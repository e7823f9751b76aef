"""MkDocs hook: adds README.md as the first page, and the files outside docs/ that pages link to.

A page in docs/ keeps its path without `docs/`; any other file of the repository keeps its whole path.
Links are rewritten accordingly, so the same Markdown works in a checkout, on a Git host and in the site.

Also an extension of griffe, which reads the docstrings for the API pages.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "benchmarks/README.md")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"^    .*$|`[^`\n]+`", re.MULTILINE)


def site_path(path: str) -> str:
    """Where a file of the repository is in the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def repository_path(path: str) -> str:
    """Where a page of the site comes from in the repository."""
    if path == "index.md":
        return "README.md"
    return path if path in PAGES else f"docs/{path}"


def links(page: str, text: str) -> list[str]:
    """Files of the repository that a page links to, other sites left out."""
    targets = [
        match[2]
        for match in LINK.finditer(CODE.sub("", text))
        if "://" not in match[2] and not match[2].startswith("mailto:")
    ]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) for target in targets]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/, and whatever any page links to there."""
    pages = [*PAGES, *(repository_path(file.src_uri) for file in files.documentation_pages())]
    wanted = set(PAGES)
    for page in pages:
        if page.endswith(".md"):
            wanted |= {
                path
                for path in links(page, (ROOT / page).read_text(encoding="utf-8"))
                if not path.startswith("docs/")
            }
    for path in sorted(wanted):
        if (ROOT / path).is_file() and files.get_file_from_path(site_path(path)) is None:
            files.append(File.generated(config, site_path(path), abs_src_path=os.fspath(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page to where their targets are in the site."""
    here = page.file.src_uri
    origin = posixpath.dirname(repository_path(here))

    def moved(match: re.Match[str]) -> str:
        if "://" in match[2] or match[2].startswith("mailto:"):
            return match[0]
        target = site_path(posixpath.normpath(posixpath.join(origin, match[2])))
        return match[1] + posixpath.relpath(target, posixpath.dirname(here) or ".") + match[3]

    return LINK.sub(moved, markdown)


class ShapesAndUnits(griffe.Extension):
    """Escapes a shape followed by a unit, `[b, 3] [m]`, which is a reference link in Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("] [", "] \\[")
