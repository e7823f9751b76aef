"""`residual-rl demos to-minari`: write demonstrations as a dataset of Minari."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from residual_rl.cli.demos.common import require_demos_file
from residual_rl.cli.flags import parse_flags
from residual_rl.demos.minari_writer import MinariCfg, datasets_folder, write_minari
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import ConfigError
from residual_rl.runs.progress_bar import ProgressBar
from residual_rl.utils.console import Console


@dataclasses.dataclass(frozen=True)
class ToMinariFlags:
    """Flags of `demos to-minari` that are not settings of the dataset."""

    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Folder of the dataset, which must not exist. None: where Minari looks for DATASET_ID, below
    $MINARI_DATASETS_PATH or ~/.minari/datasets."""


def to_minari(argv: Sequence[str]) -> int:
    """Parse, write, and print a summary."""
    about = "Write demonstrations as a dataset of Minari."
    file, rest = require_demos_file(argv, "to-minari", about.rstrip("."))
    groups = {"own": ToMinariFlags(), "cfg": MinariCfg()}
    parsed = parse_flags(groups, rest, f"demos to-minari {file}", about)
    cfg: MinariCfg = parsed["cfg"]
    if not cfg.dataset_id:
        raise ConfigError("name the dataset with --dataset-id NAMESPACE/NAME-v0")
    folder = parsed["own"].output_dir or datasets_folder() / cfg.dataset_id
    with (
        Demonstrations.open(file) as demos,
        ProgressBar(len(demos), unit="episodes", title="to-minari") as bar,
    ):
        steps = write_minari(demos, folder, cfg, lambda done: bar.update(done, None))
        episodes = len(demos)
    Console().say(f"{folder} contains {episodes} episodes, {steps:,} steps (Minari dataset {cfg.dataset_id})")
    return 0
