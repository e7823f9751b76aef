"""`residual-rl view`: a policy in MuJoCo's viewer, camera images as PNG files, or a video of an episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from residual_rl.cli.flags import parse_flags, parse_head, require_target
from residual_rl.cli.policies import resolve_policy
from residual_rl.config import ResidualScale, TrainCfg
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import Policy, no_residual
from residual_rl.factory import make_residual_env
from residual_rl.residual_env import ResidualEnv
from residual_rl.utils.console import Console
from residual_rl.utils.files import make_folder
from residual_rl.utils.validation import CheckedCfg, EpisodeSeed, NonNegativeInt, Pixels
from residual_rl.visualization.recording import check_video, record, write_comparison
from residual_rl.visualization.viewer import LiveViewer, require_display, save_cameras, watch


@dataclasses.dataclass(frozen=True)
class ViewFlags(CheckedCfg):
    """Flags of `view` that are not settings."""

    policy: str | None = None
    """A base policy of `residual-rl list`, `oracle` (a policy that solves the task), or a run folder. None:
    the task's base policy."""
    model: str | None = None
    """Model of a run: best, final, interrupted, or the path of an exported policy. None: best."""
    residual_scale: Annotated[ResidualScale | None, tyro.conf.arg(aliases=["--alpha"])] = None
    """Bound of the residual of a run. None: that of the exported model."""
    seed: EpisodeSeed = 0
    """Seed of the first episode; the others follow."""
    cameras: Path | None = None
    """Write the camera images into this folder as PNG files, without a viewer."""
    camera_size: tuple[Pixels, Pixels] = (480, 640)
    """Height and width of the images and of the video [px]."""
    step: NonNegativeInt = 0
    """Number of steps before the camera images are taken."""
    video: Path | None = None
    """Write a video of the first episode to this file, without a viewer."""


def main(argv: Sequence[str]) -> int:
    """Parse and show."""
    task_id, rest = require_target(argv, "view", "TASK", "Watch a policy")
    # the settings: those of a run if --policy names one, otherwise the task's defaults
    head = parse_head(ViewFlags(), rest, f"view {task_id}")
    exported, cfg = resolve_policy(task_id, head.policy, head.model, "view")
    flags, cfg = _parse(task_id, rest, cfg)
    if exported is None and flags.residual_scale is not None:
        raise ConfigError("--residual-scale needs --policy RUN: a base policy alone has no residual")
    if flags.cameras is None and flags.video is None:  # only the viewer needs a display
        require_display()
    torch.set_num_threads(cfg.run.torch_threads)
    # one env, and the policy: base + residual, or the base policy alone
    env = make_residual_env(cfg, 1)
    if exported is not None:
        env.residual_scale = exported.residual_scale if flags.residual_scale is None else flags.residual_scale
    policy = (
        exported.actor(env.observation_space, env.action_dim, env.device) if exported else no_residual(env)
    )
    try:
        _show(env, policy, flags, f"{cfg.base_policy_id} + residual" if exported else cfg.base_policy_id)
    finally:
        env.close()
    return 0


def _parse(task_id: str, argv: Sequence[str], cfg: TrainCfg) -> tuple[ViewFlags, TrainCfg]:
    groups = {"own": ViewFlags(), "task": cfg.task, "base": cfg.base}
    about = "Watch a policy in MuJoCo's viewer, in real time, episode after episode."
    parsed = parse_flags(groups, argv, f"view {task_id}", about)
    flags: ViewFlags = parsed.pop("own")
    return flags, dataclasses.replace(cfg, **parsed)


def _show(env: ResidualEnv, policy: Policy, flags: ViewFlags, name: str) -> None:
    console = Console()
    if flags.video is not None:
        check_video(env.vec_env)
    if flags.cameras is not None:
        # camera images after some steps of the first episode
        env.reset(flags.seed)
        for _ in range(flags.step):
            env.step(policy(env.obs))
        for path in save_cameras(env, flags.cameras, flags.camera_size):
            console.say(str(path))
    if flags.video is not None:
        make_folder(flags.video.parent)
        write_comparison(
            flags.video, env.vec_env, {name: record(env, policy, [flags.seed])}, flags.camera_size
        )
        console.say(str(flags.video))
    if flags.cameras is None and flags.video is None:
        console.say("Close the window or press Ctrl-C to stop.")
        with LiveViewer(env.vec_env.model, env.vec_env.control_hz) as viewer:
            watch(env, policy, flags.seed, viewer, console.print)
