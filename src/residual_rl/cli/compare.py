"""`residual-rl compare`: the paired difference of two policies that were evaluated on the same episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from residual_rl.cli.flags import parse_flags, require_target
from residual_rl.errors import ConfigError
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.validation import CheckedCfg, EpisodeSeed


@dataclasses.dataclass(frozen=True)
class CompareFlags(CheckedCfg):
    """Flags of `compare`."""

    policies: tuple[str | None, str | None] = (None, None)
    """The policies of A and of B to compare, in evaluations of several. None: the first of residual, base
    and zero."""
    lerobot_seed: EpisodeSeed | None = None
    """The --seed that lerobot-eval was run with, for files of LeRobot, which do not tell it; 1000 is its
    default."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """JSON file for the comparison; the plot is written beside it, as PNG."""


def main(argv: Sequence[str]) -> int:
    """Parse, compare, print a table for each task."""
    first, rest = require_target(argv, "compare", "A B", "Compare two evaluations on the same episodes")
    if not rest or rest[0].startswith("-"):
        raise ConfigError(
            "compare needs two evaluations: residual-rl compare A B, each a run folder, the output folder of"
            " lerobot-eval, or an evaluation file"
        )
    second, rest = rest[0], rest[1:]
    about = "Compare two policies that were evaluated on the same episodes."
    flags: CompareFlags = parse_flags({"own": CompareFlags()}, rest, f"compare {first} {second}", about)[
        "own"
    ]
    # imported here, since these import torch
    from residual_rl.evaluation.evaluated import read_evaluated
    from residual_rl.evaluation.paired_comparison import compare, save_plot, tables, texts

    comparison = compare(
        *(
            read_evaluated(Path(path), policy, flags.lerobot_seed)
            for path, policy in zip((first, second), flags.policies, strict=True)
        )
    )
    console = Console()
    for warning in comparison["warnings"]:
        console.say(f"warning: {warning}")
    for table in tables(comparison):
        console.print(table)
    console.say(*texts(comparison))
    if flags.output is not None:
        make_folder(flags.output.parent)
        write_json(flags.output, comparison)
        picture = flags.output.with_suffix(".png")
        save_plot(comparison, picture)
        console.say(f"Comparison: {flags.output}, {picture}")
    return 0
