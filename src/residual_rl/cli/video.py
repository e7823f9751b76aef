"""Videos as an addition to figures: what they need is checked first, and a failure loses no figures."""

from __future__ import annotations

from collections.abc import Callable

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.console import Console
from residual_rl.utils.text import one_line
from residual_rl.visualization.recording import check_video


def can_record(env: VecEnv, console: Console) -> bool:
    """Whether a video of `env` can be written here; if not, the reason is printed."""
    try:
        check_video(env)
    except (MissingDependencyError, ConfigError) as error:
        console.say(f"no video: {error}")
        return False
    return True


def try_video(write: Callable[[], object], console: Console) -> bool:
    """Call `write` and return whether it succeeded; if not, the reason is printed."""
    try:
        write()
    except Exception as error:  # noqa: BLE001 (drivers and encoders fail in many ways)
        console.say(f"no video: {one_line(error)}")
        return False
    return True
