"""What all tests share: one torch thread, fixed seeds, and the skipping of what this machine cannot run."""

from __future__ import annotations

import os
import random

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: no test opens a window

import hypothesis
import numpy as np
import pytest
import torch

SEED = 20260101

# The same examples on every run and machine: a test that fails once fails again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # results do not depend on the machine's cores, and the simulator has them for itself


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Each test starts from the same global generators, in whatever order and company it runs."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (third-party code under test may use the global generator)
    torch.manual_seed(SEED)
