"""Export of demonstrations to a LeRobotDataset v3, for training with LeRobot.

| feature | content |
|---|---|
| `observation.state` | joint positions, named `shoulder_pan.pos` …, in the robot's own units |
| `observation.environment_state` | the task's `state`, if stored |
| `observation.images.<camera>` | each camera's image, if stored |
| `action` | the absolute joint target commanded in the step, in the same units |
| `next.reward`, `next.done`, `next.success` | reward, end and success after the action |

An episode of T steps becomes T + 1 frames: the last frame has the last observation and repeats the last
target. An additional file, `meta/residual_rl.json`, contains the task and each episode's seed and draws, so
that it can be replayed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from residual_rl.demos.episode import Array, Demo
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.replay import make_env
from residual_rl.envs.spaces import conversion_inputs
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.lerobot.support import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES,
    STATE,
    joint_features,
    quiet,
    require_lerobot,
    video_backend,
)
from residual_rl.registry import TASKS
from residual_rl.robots.hardware_units import HardwareUnits
from residual_rl.utils.files import replacing_folder, write_json
from residual_rl.utils.validation import CheckedCfg, PositiveInt

SIDE_FILE = "meta/residual_rl.json"
SIDE_VERSION = 1
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"
FPS_TOLERANCE = 0.02
"""Allowed relative difference between a dataset's integer frame rate and the task's control rate."""


@dataclass(frozen=True)
class ExportCfg(CheckedCfg):
    """Settings of the export to a LeRobot dataset."""

    repo_id: str | None = None
    """Name of the dataset in LeRobot, OWNER/NAME. None: local/FOLDER. Nothing is uploaded."""
    fps: PositiveInt | None = None
    """Frames per second. None: the demonstrations' rate, rounded."""
    task_description: str | None = None
    """Language instruction. None: the task's summary."""
    actions: Literal["intended", "executed"] = "intended"
    """Targets to store: those that the policy intended, for imitation, or those executed with noise."""
    video: bool = False
    """Store images as video, which is smaller but lossy, and needs ffmpeg and torchcodec to read."""


@dataclass(frozen=True)
class ExportResult:
    """Size of the written dataset."""

    episodes: int
    """Number of episodes."""
    frames: int
    """Number of frames."""
    fps: int
    """Frames per second."""


def commanded_targets(demo: Demo, env: VecEnv, actions: str) -> Tensor:
    """The joint target that each step commands, float64 [T, J] in [rad].

    Args:
        demo: the episode.
        env: an env of its task.
        actions: `executed` for the targets that were executed, `intended` for those of the intended actions.

    Raises:
        ConfigError: `demo` lacks an observation that is needed.
    """
    _require(demo, "joint_target")
    if actions == "executed" or demo.intended_actions is demo.actions:
        return torch.from_numpy(demo.obs["joint_target"][1:]).double()
    needed = conversion_inputs(env)
    _require(demo, *needed)
    obs = {name: torch.from_numpy(demo.obs[name][:-1]) for name in needed}
    intended = torch.from_numpy(np.asarray(demo.intended_actions))[:, None]
    return env.actions_to_targets(intended, obs)[:, 0].double()


def hardware_of(env: VecEnv, task_id: str) -> HardwareUnits:
    """The hardware units of the env's robot. Raises `ConfigError` if it does not expose them."""
    if env.hardware is None:
        raise ConfigError(
            f"task {task_id!r} does not define hardware units of its robot, which LeRobot's datasets use"
        )
    return env.hardware


def export(
    demos: Demonstrations, out: Path, cfg: ExportCfg, on_progress: Callable[[int], None] = lambda _: None
) -> ExportResult:
    """Write `demos` to the new folder `out`, atomically.

    Args:
        demos: the demonstrations.
        out: the dataset's folder, which must not exist.
        cfg: the settings.
        on_progress: called with the number of episodes written.

    Raises:
        ConfigError: the demonstrations cannot be stored in such a dataset.
        WriteError: the folder cannot be written.
        MissingDependencyError: LeRobot is not installed.
    """
    require_lerobot("demos to-lerobot")
    env = make_env(demos, 1, 1)
    try:
        hardware = hardware_of(env, demos.task_id)
        fps = _fps(demos, cfg.fps)
        first = demos.episode(0)
        features = _features(first, hardware, cfg.video)
        text = cfg.task_description or TASKS.get(demos.task_id).summary
        side: list[dict[str, Any]] = []
        repo_id = cfg.repo_id or f"local/{out.name}"
        with replacing_folder(out) as folder, quiet():
            with contextlib.closing(_Writer(repo_id, fps, features, folder)) as writer:
                for i, demo in enumerate(demos):
                    writer.add(_frames(demo, env, hardware, features, cfg.actions), text)
                    side.append(_side_entry(demo))
                    on_progress(i + 1)
            write_json(folder / SIDE_FILE, _side(demos, cfg.actions, side))
        return ExportResult(len(demos), sum(entry["frames"] for entry in side), fps)
    finally:
        env.close()


class _Writer:
    """LeRobot's writer. It must always be closed, or it writes the rest when it is garbage-collected."""

    def __init__(self, repo_id: str, fps: int, features: dict[str, Any], folder: Path):
        import datasets
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        datasets.disable_progress_bars()
        video = any(feature["dtype"] == "video" for feature in features.values())
        self._dataset = LeRobotDataset.create(
            repo_id=repo_id,
            fps=fps,
            features=features,
            root=folder,
            use_videos=video,
            video_backend=video_backend(),
        )

    def add(self, frames: list[dict[str, Array]], text: str) -> None:
        """Write one episode."""
        for frame in frames:
            self._dataset.add_frame({**frame, "task": text})
        self._dataset.save_episode()

    def close(self) -> None:
        """Finish the files."""
        self._dataset.finalize()


def _fps(demos: Demonstrations, requested: int | None) -> int:
    rate = demos.info["env_info"].get("control_hz")
    if rate is None and requested is None:
        raise ConfigError(f"{demos.path} does not store its control rate; set --fps")
    fps = requested or max(round(float(rate)), 1)
    if rate is not None and abs(fps - rate) > FPS_TOLERANCE * rate:
        raise ConfigError(
            f"fps is {fps}, but {demos.path} was recorded at {rate:.4g} Hz, and the dataset has one frame "
            "per step: leave out --fps"
        )
    return fps


def _features(demo: Demo, hardware: HardwareUnits, video: bool) -> dict[str, Any]:
    """The features of the steps of `demo`."""
    _require(demo, "joint_position", "joint_target")
    joints = {"dtype": "float32", "shape": (len(hardware.joint_names),), "names": joint_features(hardware)}
    features: dict[str, Any] = {STATE: joints}
    if "state" in demo.obs:
        size = demo.obs["state"].shape[1]
        features[ENVIRONMENT_STATE] = {
            "dtype": "float32",
            "shape": (size,),
            "names": [f"state_{i}" for i in range(size)],
        }
    for name, value in demo.obs.items():
        if value.dtype == np.uint8 and value.ndim == 4:
            names = ["height", "width", "channels"]
            features[IMAGES + name] = {
                "dtype": "video" if video else "image",
                "shape": value.shape[1:],
                "names": names,
            }
    features[ACTION] = joints
    if demo.rewards is not None:
        features[REWARD] = {"dtype": "float32", "shape": (1,), "names": None}
    features[DONE] = {"dtype": "bool", "shape": (1,), "names": None}
    if demo.success is not None:
        features[SUCCESS] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def _require(demo: Demo, *names: str) -> None:
    missing = [name for name in names if name not in demo.obs]
    if missing:
        raise ConfigError(
            f"the demonstrations lack {', '.join(missing)}, which a LeRobot dataset needs; "
            f"they have {', '.join(demo.obs)}"
        )


def _frames(
    demo: Demo, env: VecEnv, hardware: HardwareUnits, features: dict[str, Any], actions: str
) -> list[dict[str, Array]]:
    targets = hardware.to_hardware(commanded_targets(demo, env, actions)).float()
    done = np.zeros(len(demo) + 1, bool)
    done[-2:] = True
    columns: dict[str, Array] = {
        STATE: hardware.to_hardware(torch.from_numpy(demo.obs["joint_position"])).float().numpy(),
        ACTION: torch.cat([targets, targets[-1:]]).numpy(),
        DONE: done[:, None],
    }
    if demo.rewards is not None:
        columns[REWARD] = np.append(demo.rewards, 0.0).astype(np.float32)[:, None]
    if demo.success is not None:
        columns[SUCCESS] = np.append(demo.success, demo.success[-1])[:, None]
    for name in features:
        if name == ENVIRONMENT_STATE:
            columns[name] = demo.obs["state"].astype(np.float32)
        elif name.startswith(IMAGES):
            columns[name] = demo.obs[name.removeprefix(IMAGES)]
    return [{name: columns[name][t] for name in features} for t in range(len(demo) + 1)]


def _side_entry(demo: Demo) -> dict[str, Any]:
    return {
        "frames": len(demo) + 1,
        "seed": demo.seed,
        "draws": {
            name: {"dtype": str(value.dtype), "value": value.tolist()} for name, value in demo.draws.items()
        },
    }


def _side(demos: Demonstrations, actions: str, episodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": SIDE_VERSION,
        "task": demos.task_id,
        "settings": demos.task_settings,
        "signature": demos.info.get("signature"),
        "actions": actions,
        "episodes": episodes,
    }
