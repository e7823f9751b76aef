"""`residual-rl export`: write a run's policy in the format of another program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from residual_rl.cli.flags import parse_flags, require_target
from residual_rl.runs.run_folder import output_folder
from residual_rl.utils.console import Console
from residual_rl.utils.validation import CheckedCfg

FORMATS = {"lerobot": "residual_rl.deployment.lerobot_folder:export"}
"""Functions `export(found, folder, base_files) -> lines` by format: they write the policy `found` to the
new folder `folder`, with a copy of its base policy or a reference to it, and return lines to print."""


@dataclasses.dataclass(frozen=True)
class ExportFlags(CheckedCfg):
    """Flags of `export`."""

    format: Literal["lerobot"] = "lerobot"
    """lerobot: the folder of a policy that LeRobot's commands read, with the plugin
    lerobot_policy_residual_rl."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """New folder to write. None: runs/export-DATE-TIME/policy."""
    model: str | None = None
    """best, final, interrupted, or the path of an exported policy. None: best, or the model given in place of
    a run."""
    base_files: Literal["copy", "reference"] = "copy"
    """copy: the files of a trained base policy are copied into the folder, which is then complete. reference:
    they stay where they are; the folder has their path and their SHA-256, which is compared when it is read.
    """


def main(argv: Sequence[str]) -> int:
    """Parse, write the folder, and print what it needs."""
    target, rest = require_target(argv, "export", "RUN", "Export a run's policy to another program")
    flags: ExportFlags = parse_flags(
        {"own": ExportFlags()}, rest, f"export {target}", "Export a policy to another program."
    )["own"]
    # imported here because they import torch, which --help does not need
    from residual_rl.exported_policy import find_policy
    from residual_rl.registry import load

    found = find_policy(target, flags.model)
    with output_folder(flags.output_dir, "runs", "export") as out:
        folder = out if flags.output_dir is not None else out / "policy"
        lines = load(FORMATS[flags.format])(found, folder, flags.base_files)
    Console().say(*lines)
    return 0
