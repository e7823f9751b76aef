"""LeRobot datasets in the format v2.1, written by hand: the same demonstrations as from v3."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_runs
from PIL import Image

from residual_rl.cli.main import main
from residual_rl.demos.reader import Demonstrations

pytestmark = pytest.mark.lerobot

NAMES = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
LENGTHS = (3, 4)


def position(episode: int, frame: int) -> list[float]:
    return [3.0 * frame, -30.0, 45.0, 60.0, 10.0 * episode, 50.0]


def image(episode: int, frame: int) -> np.ndarray:
    return np.full((8, 12, 3), 40 * episode + 10 * frame, np.uint8)


def write_dataset(root: Path, version: str = "v2.1", images: bool = False, videos: bool = False) -> Path:
    """Two episodes of three and four frames; the joint targets are one frame ahead."""
    joints = {"dtype": "float32", "shape": [6], "names": [f"{name}.pos" for name in NAMES]}
    features: dict[str, Any] = {"observation.state": joints, "action": joints}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    if images or videos:
        camera = {"shape": [8, 12, 3], "names": ["height", "width", "channels"]}
        features["observation.images.top"] = {"dtype": "video" if videos else "image", **camera}
    info = {
        "codebase_version": version,
        "robot_type": "so101_follower",
        "total_episodes": 2,
        "total_frames": sum(LENGTHS),
        "total_tasks": 1,
        "total_videos": 2 if videos else 0,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": 30,
        "splits": {"train": "0:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "slide"}\n')
    lines = [json.dumps({"episode_index": i, "tasks": ["slide"], "length": n}) for i, n in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for episode, length in enumerate(LENGTHS):
        frames: dict[str, Any] = {
            "observation.state": [np.float32(position(episode, i)) for i in range(length)],
            "action": [np.float32(position(episode, i + 1)) for i in range(length)],
            "timestamp": np.arange(length, dtype=np.float32) / 30,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": np.arange(length) + sum(LENGTHS[:episode]),
            "task_index": np.zeros(length, np.int64),
        }
        if images:
            frames["observation.images.top"] = [png(image(episode, i)) for i in range(length)]
        if videos:
            write_video(root, episode, length)
        file = root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"
        pd.DataFrame(frames).to_parquet(file, index=False)
    return root


def png(pixels: np.ndarray) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def write_video(root: Path, episode: int, length: int) -> None:
    import av

    folder = root / "videos" / "chunk-000" / "observation.images.top"
    folder.mkdir(parents=True, exist_ok=True)
    with av.open(str(folder / f"episode_{episode:06d}.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(length):
            pixels = np.full((48, 64, 3), 40 * episode + 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def convert(root: Path, *flags: str) -> Path:
    out = root.with_suffix(".h5")
    assert main(["demos", "from-lerobot", str(root), "--task", "so101-paper", "--out", str(out), *flags]) == 0
    return out


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_from_lerobot__reads_the_format_v21(version: str, tmp_path: Path) -> None:
    """T frames are T - 1 steps; 3 degrees are 3 / 110 of the first joint's range to either side."""
    with Demonstrations(convert(write_dataset(tmp_path / "set", version))) as demos:
        assert [len(demo) for demo in demos] == [2, 3]
        for episode, demo in enumerate(demos):
            joints = np.deg2rad([position(episode, i)[:5] for i in range(LENGTHS[episode])])
            np.testing.assert_allclose(demo.obs["joint_position"][:, :5], joints, atol=1e-6)
            targets = np.deg2rad([3.0 * (i + 1) for i in range(len(demo))])
            np.testing.assert_allclose(demo.actions[:, 0], targets / 1.91986, atol=1e-5)


def test_from_lerobot__reads_images_of_the_format_v21(tmp_path: Path) -> None:
    with Demonstrations(convert(write_dataset(tmp_path / "set", images=True))) as demos:
        for episode, demo in enumerate(demos):
            wanted = [image(episode, i) for i in range(LENGTHS[episode])]
            np.testing.assert_array_equal(demo.obs["top"], wanted)


def test_from_lerobot__reads_videos_of_the_format_v21(tmp_path: Path) -> None:
    with Demonstrations(convert(write_dataset(tmp_path / "set", videos=True))) as demos:
        for episode, demo in enumerate(demos):
            assert demo.obs["top"].shape == (LENGTHS[episode], 48, 64, 3)
            levels = demo.obs["top"].mean((1, 2, 3))
            np.testing.assert_allclose(levels, 40 * episode + 10 * np.arange(LENGTHS[episode]), atol=4)


def test_from_lerobot__names_what_is_missing_in_the_format_v21(
    tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    root = write_dataset(tmp_path / "set")
    command = ["demos", "from-lerobot", str(root), "--task", "so101-paper", "--out", str(tmp_path / "x.h5")]
    episodes, first = root / "meta" / "episodes.jsonl", root / "data/chunk-000/episode_000000.parquet"
    text = episodes.read_text()
    episodes.write_text(text.replace('"length": 3', '"length": 5'))
    assert "episode_000000.parquet has 3 frames, but meta/episodes.jsonl lists 5" in fails(*command)
    episodes.write_text(text)
    data = first.read_bytes()
    first.write_bytes(data[:200])
    assert f"{root} cannot be read as a LeRobotDataset (" in fails(*command)
    first.unlink()
    assert "episode_000000.parquet has no frames, but meta/episodes.jsonl lists 3" in fails(*command)
    (first.parent / "episode_000001.parquet").unlink()
    assert "has no data/chunk-000/episode_000000.parquet" in fails(*command)
    episodes.unlink()
    first.write_bytes(data)
    assert f"{root} cannot be read as a LeRobotDataset (" in fails(*command)
