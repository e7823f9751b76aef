"""Fixtures for the tests of learners."""

from __future__ import annotations

import functools

import pytest
import torch


@pytest.fixture
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` traces and differentiates as usual, but runs the graphs eagerly.

    Generating and compiling C++ takes most of the time, and is tested once, with PPO.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
