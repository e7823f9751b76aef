"""Recording of episodes, and videos of several policies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.evaluation.evaluate import Policy, evaluate
from residual_rl.residual_env import ResidualEnv
from residual_rl.types import Transition
from residual_rl.visualization.video import Frame, caption, require_ffmpeg, side_by_side, write_video


@dataclass
class Recording:
    """One episode, with the data needed to render it."""

    seed: int
    scenes: Tensor
    """[T, S]: input of `VecEnv.render_scenes`."""
    magnitude: Tensor
    """[T]: largest component of the scaled residual action at each step."""
    success: bool
    scale: Tensor | None = None
    """[T]: the residual scale at each step, if it is adaptive."""


def check_video(env: VecEnv) -> None:
    """Render a small image and look for ffmpeg, so that what a video needs is known to be there before any
    episode runs. Resets the env.

    Raises:
        MissingDependencyError: there is no OpenGL or no ffmpeg.
        ConfigError: the env cannot be rendered.
    """
    require_ffmpeg()
    env.reset(seed=0)
    try:
        env.render_scenes(env.scenes()[:1], (16, 16))
    except NotImplementedError as error:
        raise ConfigError("this env cannot be rendered") from error


def record(env: ResidualEnv, policy: Policy, seeds: Sequence[int]) -> list[Recording]:
    """Run the episodes of `seeds` and record them. `env` needs one env per seed."""
    scenes: list[Tensor] = []
    magnitudes: list[Tensor] = []
    scales: list[Tensor] = []

    def keep(transition: Transition, info: dict[str, Any]) -> None:
        scenes.append(info["final_scenes"] if "final_scenes" in info else env.vec_env.scenes())
        scale = info["residual_scale"]
        magnitudes.append((scale * transition.residual_action).abs().amax(1))
        if isinstance(scale, Tensor):
            scales.append(scale[:, 0])

    episodes = evaluate(env, policy, seeds, on_step=keep)
    # Cut the recorded steps of each env to the length of its episode.
    recordings = []
    for i, seed in enumerate(seeds):
        steps = int(episodes["episode_length"][i])
        drawn = torch.stack([scene[i] for scene in scenes[:steps]])
        magnitude, scale = (
            torch.stack([m[i] for m in values[:steps]]) if values else None for values in (magnitudes, scales)
        )
        assert magnitude is not None
        recordings.append(Recording(seed, drawn, magnitude, bool(episodes["success_once"][i]), scale))
    return recordings


def write_comparison(
    path: Path, env: VecEnv, recordings: Mapping[str, list[Recording]], size: tuple[int, int] = (360, 480)
) -> int:
    """Write a video of the policies in `recordings` side by side, one episode after another.

    `size` is height and width of a panel [pixels]. Returns the number of frames. Raises like `write_video`.
    """
    return write_video(path, _frames(env, recordings, size), env.control_hz)


def _frames(env: VecEnv, recordings: Mapping[str, list[Recording]], size: tuple[int, int]) -> Iterator[Frame]:
    for episode in zip(*recordings.values(), strict=True):
        length = max(len(recording.scenes) for recording in episode) + round(
            0.7 * env.control_hz
        )  # a moment to see the end
        drawn = [env.render_scenes(recording.scenes, size) for recording in episode]
        for t in range(length):
            yield side_by_side(
                [_panel(name, r, d, t) for name, r, d in zip(recordings, episode, drawn, strict=True)]
            )


def _panel(name: str, recording: Recording, drawn: np.ndarray, t: int) -> Frame:
    last = len(recording.scenes) - 1
    outcome = "" if t < last else "  ·  success" if recording.success else "  ·  failed"
    now = min(t, last)
    scale = "" if recording.scale is None else f"  ·  scale {float(recording.scale[now]):.2f}"
    return caption(
        drawn[now], f"{name}  ·  episode {recording.seed}{scale}{outcome}", float(recording.magnitude[now])
    )
