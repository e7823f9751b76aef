"""Reader of a LeRobotDataset v2.1 or v3: frames by episode, and the additional file of `demos to-lerobot`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from residual_rl.demos.episode import Array
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.lerobot.dataset_export import (
    DONE,
    REWARD,
    SIDE_FILE,
    SIDE_VERSION,
    SUCCESS,
)
from residual_rl.lerobot.dataset_v21 import DatasetV21
from residual_rl.lerobot.frame_times import FrameTimes, frame_times
from residual_rl.lerobot.support import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES,
    STATE,
    is_hub_id,
    quiet,
    require_lerobot,
    video_backend,
)
from residual_rl.utils.files import parse_json
from residual_rl.utils.text import one_line

EPISODE, FRAME, TIMESTAMP = "episode_index", "frame_index", "timestamp"


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode of a recording."""

    number: int
    """Its `episode_index`."""
    frames: FrameTimes
    """Order and times of its frames."""
    values: dict[str, Array]
    """[T, …] by feature, in the order of time."""


@dataclass
class Recording:
    """A LeRobot dataset to import.

    Args:
        source: its folder, or OWNER/NAME on the Hugging Face hub, which is downloaded.
    """

    source: str
    dataset: Any = field(init=False)
    """LeRobot's dataset, or a `DatasetV21`."""
    side: dict[str, Any] | None = field(init=False)
    """The additional file of `demos to-lerobot`; None for other datasets."""

    def __post_init__(self) -> None:
        require_lerobot("demos from-lerobot")
        folder = Path(self.source)
        info: dict[str, Any] = {}
        if folder.is_dir():
            info = _read_info(folder)
        elif not is_hub_id(self.source):
            raise CheckpointError(
                f"{folder} does not exist; expected the folder of a LeRobot dataset, or OWNER/NAME on the hub"
            )
        if str(info.get("codebase_version")).startswith("v2."):
            with _reading(self.source):
                self.dataset = DatasetV21(folder, info)
        else:
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

    def episodes(self) -> list[RecordedEpisode]:
        """The episodes, with their frames in the order of time.

        Raises:
            ConfigError: there is no state or no action, or time does not advance in an episode.
        """
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
            table = self.dataset.hf_dataset
            about = [name for name in (EPISODE, FRAME, TIMESTAMP) if name in table.column_names]
            frames = table.with_format("numpy", columns=[*names, *about])[:]
            listed = self.dataset.meta.episodes
            lengths = dict(zip(listed["episode_index"], listed["length"], strict=True))
        flat = {name: np.asarray(frames[name]).reshape(-1) for name in about}
        episodes = []
        for number in np.unique(flat[EPISODE]):
            rows = np.flatnonzero(flat[EPISODE] == number)
            numbers = flat[FRAME][rows] if FRAME in flat else np.arange(len(rows))
            stamps = flat[TIMESTAMP][rows] if TIMESTAMP in flat else None
            try:
                times = frame_times(rows, numbers, stamps, self.fps, int(lengths.get(number, 0)))
            except ConfigError as error:
                raise ConfigError(f"{self.source}: episode {number}: {error}") from None
            values = {name: np.asarray(frames[name])[times.order] for name in names}
            episodes.append(RecordedEpisode(int(number), times, values))
        return episodes

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
            side: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
            lengths, version = [int(entry["frames"]) for entry in side["episodes"]], side["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error!r}); without it the dataset is read as an external one"
            ) from error
        if version != SIDE_VERSION:
            raise CheckpointError(
                f"{file} is of version {version}; this release reads version {SIDE_VERSION}"
            )
        there = [len(episode.frames.order) for episode in self.episodes()]
        if lengths != there:
            raise CheckpointError(
                f"{file} describes episodes of {lengths[:5]} … frames, but the dataset has {there[:5]} …: it "
                "was changed later; remove the file to read the dataset as an external one, without seeds "
                "and draws"
            )
        return side


@contextlib.contextmanager
def _reading(source: str, fix: str = "") -> Iterator[None]:
    """Turn exceptions of LeRobot and its libraries into an error that names the dataset."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise CheckpointError(
            f"{source} cannot be read as a LeRobotDataset ({type(error).__name__}: {reason}){fix}"
        ) from error


def _read_info(folder: Path) -> dict[str, Any]:
    """The description of the dataset in `folder`.

    Raises `CheckpointError` unless it is of a format that can be read; LeRobot would look for one on the hub.
    """
    file = folder / "meta" / "info.json"
    try:
        info: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no meta/info.json; expected the folder of a LeRobotDataset"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({one_line(error)}); expected the description of a LeRobotDataset"
        ) from error
    if not version.startswith(("v2.", "v3.")):
        raise CheckpointError(f"{folder} is a LeRobotDataset {version}; expected v2.0, v2.1 or v3.0")
    return info


def _open(folder: Path | None, source: str) -> Any:
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.disable_progress_bars()
    with _reading(source), quiet():
        if folder is None:
            return LeRobotDataset(source, video_backend=video_backend())
        # The path is also the name: no repository on the hub has such a name, so nothing is downloaded.
        where = folder.resolve()
        return LeRobotDataset(str(where), root=where, video_backend=video_backend())
