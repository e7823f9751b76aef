"""Weights & Biases artifacts as paths: `wandb:ENTITY/PROJECT/NAME:VERSION`.

An artifact is downloaded only where the user typed its name: the command line replaces the name by the folder
of the download, and whoever reads a setting later sees a path. A name in a file is an ordinary path that does
not exist.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.text import one_line

PREFIX = "wandb:"


@dataclass(frozen=True)
class Artifact:
    """Annotation of a field whose flag also takes the name of an artifact."""


ModelPath = Annotated[str, Artifact()]
"""Path of a model, or on the command line the name of an artifact that holds one."""


def fetch_artifact(name: str) -> Path:
    """Download the artifact `wandb:NAME` into the user's cache, unless it is there already.

    Returns:
        Its only file if it has one, otherwise its folder.

    Raises:
        MissingDependencyError: W&B is not installed.
        ConfigError: it cannot be downloaded.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingDependencyError(f"wandb, which downloads {name},", "`pip install wandb`") from error
    try:
        artifact = wandb.Api().artifact(name.removeprefix(PREFIX))
        folder = _cache() / re.sub(r"[^\w.-]+", "-", artifact.qualified_name)
        folder = Path(artifact.download(root=str(folder)))
    except Exception as error:  # of several unrelated classes: network, login, unknown name
        raise ConfigError(
            f"{name} cannot be downloaded from W&B ({type(error).__name__}: {one_line(error)}); expected "
            "wandb:ENTITY/PROJECT/NAME:VERSION, and `wandb login`"
        ) from error
    files = [path for path in folder.rglob("*") if path.is_file()]
    return files[0] if len(files) == 1 else folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "residual_rl" / "artifacts"
