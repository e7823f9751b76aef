"""Every relative link and every anchor in the documentation resolves."""

from __future__ import annotations

import subprocess

import pytest
from doc_pages import PAGES, anchors, links
from paths import ROOT

EXTERNAL = ("https://", "http://", "mailto:")


def test_links__are_found() -> None:
    assert "docs/tutorial.md" in links("README.md")
    assert "../examples/custom_task.py" in links("docs/extending.md")
    assert {"flags", "resume"} <= anchors("docs/off_policy.md")


@pytest.mark.parametrize("page", PAGES)
def test_links__resolve(page: str) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if link.startswith(EXTERNAL):
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


def test_links__every_page_is_reachable_from_the_readme() -> None:
    seen: set[str] = set()
    todo = ["README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [
            ((ROOT / page).parent / link.partition("#")[0]).resolve()
            for link in links(page)
            if not link.startswith(EXTERNAL)
        ]
        todo += [str(target.relative_to(ROOT)) for target in targets if target.suffix == ".md"]
    unreached = {
        page for page in PAGES if not page.startswith("docs/api/")
    } - seen  # the API pages are the site's alone
    assert unreached == set()


def test_links__targets_are_in_the_repository() -> None:
    """A link to a file outside the repository works on one machine only."""
    held = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if held.returncode != 0:
        pytest.skip("not a git checkout")
    files = set(held.stdout.splitlines())
    for page in PAGES:
        for link in links(page):
            target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
            if not link.startswith(EXTERNAL) and target.is_file():
                assert str(target.relative_to(ROOT)) in files, (page, link)
