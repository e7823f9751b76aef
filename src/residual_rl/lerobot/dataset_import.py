"""A LeRobotDataset v3 as demonstrations: one that `demos to-lerobot` wrote, or a recording of the real arm.

LeRobot stores one frame for each action, and not what was seen after the last one: an episode of T frames
becomes T - 1 steps.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.demos.episode import Array, Demo
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.lerobot.dataset_export import (
    DONE,
    FPS_TOLERANCE,
    REWARD,
    SIDE_FILE,
    SIDE_VERSION,
    SUCCESS,
    hardware_of,
)
from residual_rl.lerobot.support import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES,
    STATE,
    JointUnits,
    from_units,
    is_hub_id,
    quiet,
    require_lerobot,
    video_backend,
)
from residual_rl.robots.hardware_units import HardwareUnits, joint_index
from residual_rl.utils.validation import CheckedCfg

SLACK = 1.0
"""How far outside of its joint's range a value still counts as within, in hardware units: encoders and
calibrations are not exact."""
LAG = 0.5
"""Above this, in hardware units, a target that the actions reach late is counted."""
START = "start_joint_position"
"""The episode's draw that says where the arm starts, in tasks that have one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportCfg(CheckedCfg):
    """Settings of the import of a LeRobot dataset."""

    units: JointUnits = "hardware"
    """What joints are measured in: as the robot reports them (degrees, gripper 0 to 100), range (arm -100 to
    100), or rad."""
    joint_offsets: tuple[str, ...] = ()
    """What to add to recorded joints, as NAME=DEGREES (of a gripper: per cent), e.g. shoulder_lift=-2.5:
    calibrations differ."""
    clip: bool = False
    """Cut values that are outside of a joint's range, instead of refusing them."""
    resample: bool = False
    """Take recordings at another rate than the task's, and interpolate between their frames."""
    images: bool = True
    """Take over the cameras' images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offsets()

    def offsets(self) -> dict[str, float]:
        """The offsets by joint."""
        found: dict[str, float] = {}
        for text in self.joint_offsets:
            name, _, value = text.partition("=")
            try:
                found[name.removesuffix(".pos")] = float(value)
            except ValueError:
                raise ConfigError(
                    f"joint_offsets {text!r}: expected NAME=DEGREES, e.g. shoulder_lift=-2.5"
                ) from None
        return found


@dataclass
class Conversion:
    """What the conversion had to change."""

    steps: int = 0
    late: int = 0
    """Steps after which a joint's target is more than half a unit behind what was recorded: actions are
    bounded."""
    largest: float = 0.0
    """The farthest that one was behind, in hardware units."""
    clipped: int = 0
    """Values that were cut to their joint's range."""


@dataclass
class Recording:
    """A LeRobot dataset to import.

    Args:
        source: its folder, or OWNER/NAME on the Hugging Face hub, which is downloaded.
    """

    source: str
    dataset: Any = field(init=False)
    """LeRobot's dataset."""
    side: dict[str, Any] | None = field(init=False)
    """The additional file of `demos to-lerobot`; None for other datasets."""

    def __post_init__(self) -> None:
        require_lerobot("demos from-lerobot")
        folder = Path(self.source)
        if folder.is_dir():
            _check_folder(folder)
        elif not is_hub_id(self.source):
            raise CheckpointError(
                f"{folder} does not exist; expected the folder of a LeRobot dataset, or OWNER/NAME on the hub"
            )
        self.dataset = _open(folder if folder.is_dir() else None, self.source)
        self.side = self._read_side()

    @property
    def features(self) -> dict[str, Any]:
        """LeRobot's description of the features of a frame."""
        found: dict[str, Any] = self.dataset.features
        return found

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.dataset.fps)

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras."""
        return [name.removeprefix(IMAGES) for name in self.dataset.meta.camera_keys]

    def columns(self) -> list[dict[str, Array]]:
        """For each episode, its vectors by feature [T, …], and the indices of its frames as `rows` [T]."""
        names = [
            name
            for name in (STATE, ENVIRONMENT_STATE, ACTION, REWARD, DONE, SUCCESS)
            if name in self.features
        ]
        missing = [name for name in (STATE, ACTION) if name not in names]
        if missing:
            raise ConfigError(
                f"{self.source} has no {' and no '.join(missing)}; it has {', '.join(self.features)}"
            )
        with _reading(self.source):
            frames = self.dataset.hf_dataset.with_format("numpy", columns=[*names, "episode_index"])[:]
        episode = np.asarray(frames["episode_index"]).reshape(-1)
        return [
            {"rows": rows, **{name: np.asarray(frames[name])[rows] for name in names}}
            for rows in (np.flatnonzero(episode == i) for i in np.unique(episode))
        ]

    def images(self, rows: Array) -> dict[str, Array]:
        """Images [T, H, W, C] uint8 of the frames `rows`, by camera."""
        with _reading(
            self.source, "; videos need ffmpeg and torchcodec, and --no-images leaves all images out"
        ):
            frames = [self.dataset[int(row)] for row in rows]
            return {
                camera: torch.stack([frame[IMAGES + camera] for frame in frames])
                .mul(255)
                .round()
                .byte()
                .movedim(1, -1)
                .contiguous()
                .numpy()
                for camera in self.cameras
            }

    def _read_side(self) -> dict[str, Any] | None:
        file = Path(self.dataset.root) / SIDE_FILE
        if not file.is_file():
            return None
        try:
            side: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            lengths, version = [int(entry["frames"]) for entry in side["episodes"]], side["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error!r}); without it the dataset is read as an external one"
            ) from error
        if version != SIDE_VERSION:
            raise CheckpointError(
                f"{file} is of version {version}; this release reads version {SIDE_VERSION}"
            )
        there = [len(columns["rows"]) for columns in self.columns()]
        if lengths != there:
            raise CheckpointError(
                f"{file} describes episodes of {lengths[:5]} … frames, but the dataset holds {there[:5]} …: it was "
                "changed later; remove the file to read the dataset as an external one, without seeds and draws"
            )
        return side


class Converter:
    """Converts the episodes of a recording to demonstrations.

    Args:
        recording: the dataset.
        env: one env of the task, with the control mode of the demonstrations.
        task_id: id of the task.
        cfg: the settings.

    Raises:
        ConfigError: joints, values or rates do not fit.
    """

    def __init__(self, recording: Recording, env: VecEnv, task_id: str, cfg: ImportCfg):
        # Joints.
        self._recording = recording
        self._env = env
        self._cfg = cfg
        self._hardware = hardware_of(env, task_id)
        self._order = {name: _joint_order(recording, name, self._hardware) for name in (STATE, ACTION)}
        offsets = cfg.offsets()
        unknown = [name for name in offsets if name not in self._hardware.joint_names]
        if unknown:
            known = ", ".join(self._hardware.joint_names)
            raise ConfigError(f"joint_offsets has {', '.join(unknown)}; the joints are {known}")
        self._offsets = torch.tensor(
            [offsets.get(name, 0.0) for name in self._hardware.joint_names], dtype=torch.float64
        )

        # Rate.
        rate = env.control_hz
        self._resample = abs(recording.fps - rate) > FPS_TOLERANCE * rate
        if self._resample and not cfg.resample:
            raise ConfigError(
                f"{recording.source} has {recording.fps:g} frames per second, but task {task_id!r} runs at "
                f"{rate:.4g} Hz; interpolate between its frames with --resample"
            )

        # Observations.
        self._env.reset(seed=0)
        self._has_start = START in env.episode
        self._state_shape = recording.features.get(ENVIRONMENT_STATE, {}).get("shape")
        space = env.single_observation_space.spaces.get("state")  # type: ignore[attr-defined]
        if self._state_shape is not None and (space is None or tuple(self._state_shape) != space.shape):
            here = "does not observe it" if space is None else f"observes {space.shape}"
            _log.warning(
                "%s %s is left out: the task %s as its state",
                ENVIRONMENT_STATE,
                tuple(self._state_shape),
                here,
            )
            self._state_shape = None
        self.conversion = Conversion()

    def episodes(self) -> Iterator[Demo]:
        """The episodes as demonstrations."""
        entries = self._recording.side["episodes"] if self._recording.side else None
        for index, columns in enumerate(self._recording.columns()):
            yield self._demo(index, columns, entries[index] if entries else None)

    def _demo(self, index: int, columns: dict[str, Array], entry: dict[str, Any] | None) -> Demo:
        if len(columns["rows"]) < 2:
            raise ConfigError(
                f"{self._recording.source}: episode {index} has {len(columns['rows'])} frame(s); "
                "at least two are needed"
            )
        # Joints. Positions of our own simulator may be slightly outside their range, as its joint limits are
        # soft.
        positions = self._joints(columns, STATE, index, checked=entry is None)
        targets = self._joints(columns, ACTION, index, checked=True)
        rows = columns["rows"]
        nearest = np.arange(len(rows))
        if self._resample:
            times = _times(len(rows), self._recording.fps, self._env.control_hz)
            positions, targets = (_interpolated(value, times) for value in (positions, targets))
            nearest = np.rint(times).astype(np.int64)

        # Actions and observations.
        joints = positions.float()
        actions, commanded = self._encode(joints, targets[:-1])
        obs = {"joint_position": joints.numpy(), "joint_target": commanded.float().numpy()}
        if self._state_shape is not None:
            obs["state"] = columns[ENVIRONMENT_STATE][nearest].astype(np.float32)
        if self._cfg.images and self._recording.cameras:
            obs |= self._recording.images(rows[nearest])

        # Rewards and ends.
        flags = {
            name: columns[name].reshape(-1)[nearest[:-1]] for name in (REWARD, SUCCESS) if name in columns
        }
        success = flags[SUCCESS].astype(bool) if SUCCESS in flags else None
        ends = np.arange(len(actions)) == len(actions) - 1
        solved = np.zeros_like(ends) if success is None else ends & success
        return Demo(
            actions=actions.numpy(),
            obs=obs,
            terminated=solved,
            truncated=ends & ~solved,
            rewards=flags[REWARD].astype(np.float32) if REWARD in flags else None,
            success=success,
            seed=entry["seed"] if entry else None,
            draws=self._draws(positions[0], entry),
        )

    def _joints(self, columns: dict[str, Array], name: str, episode: int, checked: bool) -> Tensor:
        """Joint angles [rad], float64 [T, J], of a feature."""
        values = torch.from_numpy(np.asarray(columns[name], dtype=np.float64))[:, self._order[name]]
        if not torch.isfinite(values).all():
            frame = int((~torch.isfinite(values)).any(1).nonzero()[0])
            raise ConfigError(
                f"{self._recording.source}: episode {episode}, frame {frame}: {name} is NaN or infinite"
            )
        hardware = self._hardware
        values = hardware.to_hardware(from_units(hardware, values, self._cfg.units)) + self._offsets
        if checked:
            self._check(values, name, episode)
            cut = hardware.clip(values)
            self.conversion.clipped += int(((cut - values).abs() > SLACK).sum())
            values = cut
        return hardware.from_hardware(values)

    def _check(self, values: Tensor, name: str, episode: int) -> None:
        hardware = self._hardware
        outside = (values - hardware.clip(values)).abs() > SLACK
        if self._cfg.clip or not outside.any():
            return
        frame, joint = (int(i) for i in outside.nonzero()[0])
        unit = hardware.units[joint]
        raise ConfigError(
            f"{self._recording.source}: episode {episode}, frame {frame}: joint {hardware.joint_names[joint]} "
            f"of {name} is at {float(values[frame, joint]):.1f} {unit}, outside of {hardware.low[joint]:.1f} "
            f"to {hardware.high[joint]:.1f} {unit} ({int(outside.any(1).sum())} of {len(values)} frames have a "
            "joint out of range); check --units and --joint-offsets, or clip such values with --clip"
        )

    def _encode(self, joints: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The actions [T, A] that command `targets` [T, J] one after the other, and what they do command, [T
        + 1, J] with the start."""
        start = {"joint_position": joints[:1], "joint_target": joints[:1]}
        try:
            actions = self._env.targets_to_actions(targets[None], start)
            reached = self._env.actions_to_targets(actions, start)[0].double()
        except KeyError as missing:
            raise ConfigError(
                f"this task's actions depend on {missing.args[0]!r}, which a LeRobot dataset does not contain"
            ) from None
        behind = (self._hardware.to_hardware(reached) - self._hardware.to_hardware(targets)).abs().amax(1)
        self.conversion.steps += len(targets)
        self.conversion.late += int((behind > LAG).sum())
        self.conversion.largest = max(self.conversion.largest, float(behind.max()))
        return actions[0].float(), torch.cat([joints[:1].double(), reached])

    def _draws(self, start: Tensor, entry: dict[str, Any] | None) -> dict[str, Array]:
        if entry is not None:
            return {
                name: np.asarray(value["value"], dtype=value["dtype"])
                for name, value in entry["draws"].items()
            }
        return {START: start.numpy()} if self._has_start else {}


def _joint_order(recording: Recording, name: str, hardware: HardwareUnits) -> Tensor:
    """The index of each joint of `hardware` in a feature. Raises `ConfigError` if joints are missing."""
    names = recording.features[name].get("names")
    flat = [*names.values()] if isinstance(names, dict) else names or []
    flat = flat[0] if len(flat) == 1 and isinstance(flat[0], list) else flat
    try:
        return joint_index(hardware, [str(part) for part in flat])
    except ConfigError as error:
        raise ConfigError(f"{recording.source}: {name}: {error}") from None


def _times(frames: int, fps: float, rate: float) -> Array:
    """The times of the task's steps, in frames."""
    count = int((frames - 1) / fps * rate + 1e-9) + 1
    return np.minimum(np.arange(count) * fps / rate, frames - 1)


def _interpolated(values: Tensor, times: Array) -> Tensor:
    at = torch.from_numpy(times)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], (at - low)[:, None])


# --- reading ---


@contextlib.contextmanager
def _reading(source: str, fix: str = "") -> Iterator[None]:
    """Turn exceptions of LeRobot and its libraries into an error that names the dataset."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{source} cannot be read as a LeRobotDataset v3 ({type(error).__name__}: {reason}){fix}"
        ) from error


def _check_folder(folder: Path) -> None:
    """Raise `CheckpointError` where `folder` holds no dataset of a version that LeRobot reads: it would look
    for one on the hub."""
    file = folder / "meta" / "info.json"
    try:
        version = json.loads(file.read_text(encoding="utf-8"))["codebase_version"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no meta/info.json; expected the folder of a LeRobotDataset v3"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error!r}); expected the description of a LeRobotDataset v3"
        ) from error
    if not str(version).startswith("v3."):
        raise CheckpointError(
            f"{folder} is a LeRobotDataset {version}, expected v3: convert it with "
            "`python -m lerobot.datasets.v30.convert_dataset_v21_to_v30`"
        )


def _open(folder: Path | None, source: str) -> Any:
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.disable_progress_bars()
    with _reading(source), quiet():
        if folder is None:
            return LeRobotDataset(source, video_backend=video_backend())
        where = (
            folder.resolve()
        )  # as its name too: no hub has such a name, so that nothing that is missing is looked for there
        return LeRobotDataset(str(where), root=where, video_backend=video_backend())
