"""Tests that need ManiSkill; `make test-maniskill` runs them in an environment of its own. Elsewhere they are not collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("mani_skill") else ["*"]


@pytest.fixture(scope="session", autouse=True)
def _no_processes_left() -> Iterator[None]:
    yield
    from residual_rl.envs.maniskill.nursery import nursery

    nursery().close()
    nursery.cache_clear()
