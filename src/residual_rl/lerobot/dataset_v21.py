"""LeRobotDatasets of the formats v2.0 and v2.1, which LeRobot itself no longer reads.

meta/info.json                                   as in v3: features, fps
meta/episodes.jsonl                              {"episode_index": 0, "tasks": ["…"], "length": 266}
data/chunk-000/episode_000000.parquet            a file for each episode
videos/chunk-000/CAMERA/episode_000000.mp4       a file for each episode and camera of the type "video"
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_rl.demos.episode import Array
from residual_rl.errors import CheckpointError
from residual_rl.utils.files import parse_json

EPISODES_FILE = "meta/episodes.jsonl"
_TOLERANCE = 1e-4
"""Largest difference between the times of a frame and of its image in a video [s], as in LeRobot."""


@dataclass
class DatasetV21:
    """The part of the interface of LeRobot's dataset that `Recording` uses.

    Args:
        root: the folder of the dataset.
        info: content of `meta/info.json`.

    Raises:
        CheckpointError: a file is missing, or the episodes differ from their description.
    """

    root: Path
    info: dict[str, Any]

    def __post_init__(self) -> None:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.features = {
            name: {**feature, "shape": tuple(feature["shape"])}
            for name, feature in self.info["features"].items()
        }
        self.fps = float(self.info["fps"])
        self._types = {
            name: feature["dtype"]
            for name, feature in self.features.items()
            if feature["dtype"] in ("image", "video")
        }
        self._videos: dict[str, tuple[Array, list[Array]]] = {}
        self._video_names: dict[str, str] = {}  # of the decoded video of each camera
        files = sorted(self.root.glob("data/*/episode_*.parquet"), key=lambda file: file.name)
        if not files:
            raise CheckpointError(
                f"{self.root} has no data/chunk-000/episode_000000.parquet; expected a LeRobotDataset v2.1"
            )
        tables = [pq.read_table(file) for file in files]
        lengths = {file.name: table.num_rows for file, table in zip(files, tables, strict=True)}
        self._check_lengths(lengths)
        self.num_episodes = len(lengths)
        numbers = [int(name.removeprefix("episode_").removesuffix(".parquet")) for name in lengths]
        episodes = {"episode_index": numbers, "length": list(lengths.values())}
        self.meta = SimpleNamespace(camera_keys=list(self._types), episodes=episodes)
        table = pa.concat_tables(tables, promote_options="default").replace_schema_metadata()
        self.hf_dataset = datasets.Dataset(datasets.table.InMemoryTable(table))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """The images [C, H, W] of a frame, from 0 to 1."""
        frame = self.hf_dataset[row]
        return {
            name: _image(frame[name]) if kind == "image" else self._video_image(name, frame)
            for name, kind in self._types.items()
        }

    def _video_image(self, camera: str, frame: dict[str, Any]) -> Tensor:
        episode, time = int(np.ravel(frame["episode_index"])[0]), float(np.ravel(frame["timestamp"])[0])
        name = f"{camera}/episode_{episode:06d}.mp4"
        if self._video_names.get(camera) != name:
            files = list(self.root.glob(f"videos/*/{name}"))
            if len(files) != 1:
                raise CheckpointError(f"{self.root} has no videos/chunk-000/{name}; use an intact copy")
            self._videos[camera], self._video_names[camera] = _decoded(files[0]), name
        times, images = self._videos[camera]
        nearest = int(np.abs(times - time).argmin())
        if abs(times[nearest] - time) > _TOLERANCE:
            raise CheckpointError(f"{self.root}: {name} has no image at {time:.4f} s; use an intact copy")
        return _to_tensor(images[nearest])

    def _check_lengths(self, found: dict[str, int]) -> None:
        """Raise `CheckpointError` unless the files have the numbers of frames in `episodes.jsonl`."""
        text = (self.root / EPISODES_FILE).read_text(encoding="utf-8")
        entries = [parse_json(line) for line in text.splitlines() if line.strip()]
        expected = {f"episode_{entry['episode_index']:06d}.parquet": entry["length"] for entry in entries}
        for name in sorted(expected.keys() | found.keys()):
            if name not in found or found[name] != expected.get(name):
                raise CheckpointError(
                    f"{self.root}: {name} has {found.get(name, 'no')} frames, but {EPISODES_FILE} lists "
                    f"{expected.get(name, 'none')}; use an intact copy"
                )


def _image(value: dict[str, Any]) -> Tensor:
    """An image that is stored in a table: {"bytes": an encoded file, "path": …}."""
    from PIL import Image

    with Image.open(io.BytesIO(value["bytes"])) as image:
        return _to_tensor(np.array(image.convert("RGB")))


def _decoded(file: Path) -> tuple[Array, list[Array]]:
    """The times [s] and images [H, W, C] of all frames of a video."""
    import av

    with av.open(str(file)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times, images = zip(*frames, strict=True)
    return np.array(times), list(images)


def _to_tensor(image: Array) -> Tensor:
    """[H, W, C] uint8 → [C, H, W] from 0 to 1."""
    return torch.from_numpy(image).movedim(-1, 0) / 255.0
