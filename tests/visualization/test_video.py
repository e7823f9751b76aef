"""Videos: number and size of frames, panels, captions and gauges."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.files import WriteError
from residual_rl.visualization.video import GAP, Frame, caption, side_by_side, write_video

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")


def ramp(count: int, height: int, width: int) -> Iterator[Frame]:
    for i in range(count):
        yield np.full((height, width, 3), 20 * i, np.uint8)


def decode(path: Path) -> tuple[dict, np.ndarray]:
    frames = imageio_ffmpeg.read_frames(path)
    meta = next(frames)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames])


@pytest.mark.parametrize(("height", "width", "even"), [(48, 64, (48, 64)), (49, 63, (50, 64))])
def test_write_video__file_contains_all_frames(
    tmp_path: Path, height: int, width: int, even: tuple[int, int]
) -> None:
    path = tmp_path / "new" / "video.mp4"
    assert write_video(path, ramp(12, height, width), fps=30) == 12
    meta, frames = decode(path)
    assert frames.shape == (12, *even, 3)
    assert meta["fps"] == 30
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    # lossy, but all frames are in order
    assert np.abs(frames.mean((1, 2, 3)) - 20 * np.arange(12)).max() < 3
    assert [p.name for p in path.parent.iterdir()] == ["video.mp4"]


def test_write_video__keeps_the_earlier_file_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, ramp(2, 16, 16), fps=10)
    before = path.read_bytes()

    def breaking() -> Iterator[Frame]:
        yield from ramp(3, 16, 16)
        raise RuntimeError("renderer")

    with pytest.raises(RuntimeError, match="renderer"):
        write_video(path, breaking(), fps=10)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_write_video__full_disk_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            WriteError,
            match=r"cannot write .*video\.mp4: ffmpeg (ended after|wrote) \d+ .*frames; free some space",
        ):
            write_video(
                tmp_path / "video.mp4",
                (noise.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(60)),
                fps=10,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_write_video__invalid_frames_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with pytest.raises(ConfigError, match="no frames to write"):
        write_video(path, [], fps=10)
    with pytest.raises(ConfigError, match=r"is float64 \[4, 4, 3\]; expected uint8"):
        write_video(path, [np.zeros((4, 4, 3))], fps=10)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"frame 1 .* is \(16, 18\), the first was \(16, 16\)"):
        write_video(path, [np.zeros((16, w, 3), np.uint8) for w in (16, 18)], fps=10)
    with pytest.raises(ConfigError, match="fps must be positive"):
        write_video(path, ramp(1, 16, 16), fps=0)
    assert list(tmp_path.iterdir()) == []


def test_write_video__error_without_ffmpeg_has_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependencyError, match="pip install imageio-ffmpeg"):
        write_video(tmp_path / "video.mp4", ramp(1, 16, 16), fps=10)


def test_side_by_side__places_panels_with_a_gap() -> None:
    left, right = np.full((4, 6, 3), 10, np.uint8), np.full((2, 5, 3), 200, np.uint8)
    both = side_by_side([left, right])
    assert both.shape == (4, 6 + GAP + 5, 3)
    assert (both[:, :6] == 10).all()
    assert (both[:2, 6 + GAP :] == 200).all()
    assert (both[2:, 6 + GAP :] < 50).all()  # below the lower panel
    assert (both[:, 6 : 6 + GAP] < 50).all()
    with pytest.raises(ConfigError, match="no panels"):
        side_by_side([])


def gauge_pixels(frame: Frame) -> int:
    return int((frame == (90, 162, 245)).all(-1).sum())


def test_caption__adds_a_bar_and_keeps_the_image() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (120, 320, 3), np.uint8)
    plain = caption(frame, "base (jacobian) | seed 10000003 | success")
    assert (plain[:120] == frame).all()
    assert plain.shape[1:] == (320, 3)
    assert 20 <= plain.shape[0] - 120 <= 40
    assert plain[120:].max() > 200  # the text
    assert gauge_pixels(plain[120:]) == 0
    assert caption(frame, "").shape == plain.shape


def test_caption__gauge_grows_with_the_magnitude() -> None:
    frame = np.zeros((120, 320, 3), np.uint8)
    none, half, full, more = (gauge_pixels(caption(frame, "residual", m)) for m in (0.0, 0.5, 1.0, 7.0))
    assert none == 0
    assert full == more
    assert half / full == pytest.approx(0.5, abs=0.02)


def test_caption__long_text_is_shortened_before_the_gauge() -> None:
    frame = np.zeros((120, 320, 3), np.uint8)
    long, short = caption(frame, "x" * 500, 1.0), caption(frame, "x", 1.0)
    assert gauge_pixels(long) == gauge_pixels(short)
