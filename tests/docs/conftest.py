"""What the tests of the documentation share."""

from __future__ import annotations

from pathlib import Path

import il_case
import pytest
from tiny_runs import FAILING_TINY

from residual_rl.cli.main import main
from residual_rl.imitation.model import MODEL_FILE


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, model and file of demonstrations."""
    folder = tmp_path_factory.mktemp("documented")
    flags = ["--total-timesteps", "64", "--output-dir", str(folder / "run")]
    assert main(["train", "so101-paper", *FAILING_TINY, *flags]) == 0
    (folder / "model").mkdir()
    il_case.model().save(folder / "model" / MODEL_FILE)
    il_case.write_demos(folder / "demos.h5")
    return folder
