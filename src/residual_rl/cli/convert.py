"""`residual-rl convert`: convert a public Diffusion Policy checkpoint to a base policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from residual_rl.cli.flags import HELP, parse_flags
from residual_rl.errors import ConfigError
from residual_rl.imitation.convert_cfg import ConvertCfg
from residual_rl.runs.run_folder import output_folder
from residual_rl.utils.console import Console
from residual_rl.utils.text import shell_command

_ABOUT = (
    "Convert a public Diffusion Policy checkpoint, in the format of ManiSkill's baseline and Policy "
    "Decorator, to a base policy."
)


@dataclasses.dataclass(frozen=True)
class ConvertFlags:
    """Flags of `convert` that are not settings of the checkpoint."""

    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out", "--output"])] = None
    """Output folder, which a base policy takes as its checkpoint. None: runs/convert-DATE-TIME."""
    trust_checkpoint: bool = False
    """Read the file although it is a pickle, which can run any code of its author."""


def main(argv: Sequence[str]) -> int:
    """Read, write, and print a summary."""
    # the arguments; --help works without a checkpoint
    named = bool(argv) and not argv[0].startswith("-")
    if not named and not HELP & set(argv):
        raise ConfigError(
            "convert needs a checkpoint: put it first, residual-rl convert CHECKPOINT [options]"
        )
    parsed = parse_flags(
        {"own": ConvertFlags(), "cfg": ConvertCfg()}, argv[named:], "convert CHECKPOINT", _ABOUT
    )
    flags: ConvertFlags = parsed["own"]
    cfg: ConvertCfg = parsed["cfg"]
    # the output folder must be new or empty: checked before the checkpoint is read
    with output_folder(flags.output_dir, "runs", "convert") as out:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty; choose another --output-dir")
        return _convert(Path(argv[0]), flags, cfg, out)


def _convert(checkpoint: Path, flags: ConvertFlags, cfg: ConvertCfg, out: Path) -> int:
    # imported here because they import torch, which --help does not need
    from residual_rl.imitation.convert import read_public_unet
    from residual_rl.imitation.model import MODEL_FILE
    from residual_rl.utils.files import make_folder

    # read the checkpoint and write the model
    model = read_public_unet(checkpoint, cfg, flags.trust_checkpoint)
    make_folder(out)
    model.save(out / MODEL_FILE)
    # print the inputs and outputs of the model, and how to evaluate it
    settings = model.settings
    seen = ", ".join(f"{key} {list(settings.obs_shapes[key])}" for key in settings.obs_keys)
    padded = f", padded to {settings.obs_size}" if settings.obs_padding else ""
    parameters = sum(p.numel() for p in model.network.parameters())
    mode = ["--control-mode", cfg.control_mode] if cfg.control_mode else []
    console = Console()
    console.say(f"{model.name}: {parameters:,} parameters")
    console.say(f"Inputs: the last {settings.num_obs_steps} of {seen}{padded}, not normalised.")
    console.say(
        f"Outputs: {settings.chunk_size} actions of {settings.action_dim} numbers, of which "
        f"{settings.num_action_steps} are executed.",
    )
    console.say(f"Model: {out / MODEL_FILE}")
    evaluation = shell_command("eval", "TASK", *mode, "--base-policy", "il", "--il-checkpoint", out)
    console.say(f"Evaluate it: {evaluation}")
    return 0
