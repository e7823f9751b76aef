"""`docs/metrics.md` lists every metric that a run logs, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import split
from tiny_runs import train

from residual_rl.runs.logger import read_metrics

PAGE = "docs/metrics.md"
NOT_IN_THESE_RUNS = {
    *("base/uncertainty", "eval/residual_scale", "val/loss"),
    *("curriculum/NAME", "curriculum/tolerance"),
}
"""Tags of an adaptive scale, of `imitate`, and of a curriculum."""


def documented_tags() -> set[str]:
    """Tags in the page's tables and text before the comparison of trackers; NAME stands for any name."""
    text = split(PAGE)[0].partition("## Tracking with W&B")[0]
    groups = "rollout|residual|base|reward|task|curriculum|time|train|gate|eval|val"
    return set(re.findall(rf"`((?:{groups})/\w+)`", text))


def logged(folder: Path) -> set[str]:
    """All tags of a run."""
    return {tag for row in read_metrics(folder / "metrics.jsonl") for tag in row} - {"step"}


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The tags of short trainings with each learner."""
    found: set[str] = set()
    for learner in ("ppo", "sac", "td3"):
        folder = tmp_path_factory.mktemp("metrics") / learner
        train(folder, learner=learner, total_timesteps=96, eval_freq=0)
        found |= logged(folder)
    folder = tmp_path_factory.mktemp("metrics") / "gated-sac"
    gate = {"gate_warmup_episodes": 1, "gate_min_failures": 0, "gate_fit_steps": 1}
    train(folder, learner="gated-sac", total_timesteps=96, eval_freq=0, **gate)
    found |= logged(folder)
    return found


def matches(documented: str, tag: str) -> bool:
    """Whether an entry of the page is `tag`, or stands for it."""
    return re.fullmatch(documented.replace("NAME", r"\w+"), tag) is not None


def test_metrics__every_logged_tag_is_documented(tags: set[str]) -> None:
    documented = documented_tags()
    assert len(documented) > 40
    assert {tag for tag in tags if not any(matches(entry, tag) for entry in documented)} == set()


def test_metrics__every_documented_tag_is_logged(tags: set[str]) -> None:
    unlogged = {entry for entry in documented_tags() if not any(matches(entry, tag) for tag in tags)}
    assert unlogged == NOT_IN_THESE_RUNS
