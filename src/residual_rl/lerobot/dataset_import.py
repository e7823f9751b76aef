"""Import of a LeRobotDataset v2.1 or v3, written by `demos to-lerobot` or recorded with the real arm, as
demonstrations.

LeRobot stores one frame per action but no observation after the last one, so T frames become T - 1 steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.demos.episode import Array, Demo, ends_of
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.lerobot.dataset_export import (
    FPS_TOLERANCE,
    REWARD,
    SUCCESS,
    hardware_of,
)
from residual_rl.lerobot.recording import RecordedEpisode, Recording
from residual_rl.lerobot.support import (
    ACTION,
    ENVIRONMENT_STATE,
    STATE,
    JointUnits,
    from_units,
)
from residual_rl.robots.hardware_units import HardwareUnits, joint_index
from residual_rl.utils.validation import CheckedCfg

SLACK = 1.0
"""Tolerance of the joint range check, in hardware units, since encoders and calibrations are not exact."""
LAG = 0.5
"""Lag behind a recorded target, in hardware units, above which a step is counted as late."""
START = "start_joint_position"
"""Name of the draw of the arm's start pose, in tasks that have one."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportCfg(CheckedCfg):
    """Settings of the import of a LeRobot dataset."""

    units: JointUnits = "hardware"
    """Joint units of the dataset: hardware (degrees, gripper 0 to 100), range (arm -100 to 100), or rad."""
    joint_offsets: tuple[str, ...] = ()
    """Offsets to add to recorded joints, as NAME=DEGREES (per cent for a gripper), e.g. shoulder_lift=-2.5.
    They correct for another calibration."""
    clip: bool = False
    """Clip values that are out of a joint's range, instead of refusing them."""
    resample: bool = False
    """Accept recordings with gaps or at another rate than the task's, and interpolate between frames."""
    images: bool = True
    """Import camera images."""

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
    """Statistics of the conversion."""

    steps: int = 0
    """Number of steps."""
    late: int = 0
    """Steps whose joint targets lag more than half a unit behind the recorded ones, because actions are
    bounded."""
    largest: float = 0.0
    """Largest lag, in hardware units."""
    clipped: int = 0
    """Number of values clipped to their bounds."""
    bounds: str = "the range of their joint"
    """Name of these bounds."""


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
        episodes = self._recording.episodes()
        self._warn_about_units(episodes)
        for index, episode in enumerate(episodes):
            yield self._demo(episode, entries[index] if entries else None)

    def _warn_about_units(self, episodes: Sequence[RecordedEpisode]) -> None:
        """Warn if the joints look as if they were in radians, or time as if it were not in seconds."""
        units = {episode.frames.unit for episode in episodes} - {"s"}
        if units:
            _log.warning(
                "%s has timestamps in %s: converted", self._recording.source, ", ".join(sorted(units))
            )
        arm = torch.tensor([unit != "%" for unit in self._hardware.units])
        joints = [torch.from_numpy(episode.values[STATE])[:, self._order[STATE]] for episode in episodes]
        largest = float(torch.cat(joints)[:, arm].abs().max())
        if self._cfg.units != "rad" and largest <= 2 * math.pi:
            _log.warning(
                "no joint of %s exceeds %.2g: if its unit is radians, add --units rad",
                self._recording.source,
                largest,
            )

    def _demo(self, episode: RecordedEpisode, entry: dict[str, Any] | None) -> Demo:
        index, columns, frames = episode.number, episode.values, episode.frames
        rows = frames.order
        if len(rows) < 2:
            raise ConfigError(
                f"{self._recording.source}: episode {index} has {len(rows)} frame(s); at least two are needed"
            )
        if frames.gap and not self._cfg.resample:
            raise ConfigError(
                f"{self._recording.source}: episode {index}: {frames.gap}, but frames must follow each other "
                f"at {self._recording.fps:g} per second; interpolate across gaps with --resample"
            )
        # Joints. Positions in exported datasets may be slightly out of range, since the simulator's joint
        # limits are soft.
        positions = self._joints(columns, STATE, index, checked=entry is None)
        targets = self._joints(columns, ACTION, index, checked=True)
        nearest = np.arange(len(rows))
        if self._resample or frames.gap:
            times = _times(frames.times, self._env.control_hz)
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
        terminated, truncated = ends_of(len(actions), success)
        return Demo(
            actions=actions.numpy(),
            obs=obs,
            terminated=terminated,
            truncated=truncated,
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
            f"{self._recording.source}: episode {episode}, frame {frame}: joint {hardware.joint_names[joint]}"
            f" of {name} is at {float(values[frame, joint]):.1f} {unit}, outside of {hardware.low[joint]:.1f}"
            f" to {hardware.high[joint]:.1f} {unit} ({int(outside.any(1).sum())} of {len(values)} frames have"
            " a joint out of range); check --units and --joint-offsets, or clip such values with --clip"
        )

    def _encode(self, joints: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The actions [T, A] that command `targets` [T, J] in sequence, and the targets reached, [T + 1,
        J]."""
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


def _times(times: Array, rate: float) -> Array:
    """The times of the task's steps, in frames that were recorded at `times` [s]."""
    count = int(times[-1] * rate + 1e-9) + 1
    return np.interp(np.arange(count) / rate, times, np.arange(len(times)))


def _interpolated(values: Tensor, times: Array) -> Tensor:
    at = torch.from_numpy(times)
    low = at.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], (at - low)[:, None])
