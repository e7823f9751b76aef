"""Videos: panels side by side, captions, and H.264 files that browsers can play."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.files import WriteError, make_folder, replacing
from residual_rl.utils.text import one_line

Frame = NDArray[np.uint8]
"""[H, W, 3] RGB."""

GAP = 4
"""Gap between panels [px]."""
_FORMAT: dict[str, Any] = {
    "codec": "libx264",
    "quality": None,  # set by -crf instead
    "macro_block_size": 1,
    "ffmpeg_log_level": "error",
    "output_params": ["-crf", "20", "-movflags", "+faststart", "-f", "mp4"],
}
_FIX = "free some space, choose another folder, or leave out the video"
_BAR, _DARK, _LIGHT, _DIM = (90, 162, 245), (18, 21, 27), (230, 233, 238), (58, 66, 80)


def write_video(path: Path | str, frames: Iterable[Frame], fps: float) -> int:
    """Write frames to an MP4 file with H.264 and return their number. The file appears once it is complete.

    Args:
        path: the file; its folder is created.
        frames: frames of equal size. An odd height or width is padded by one row or column.
        fps: frames per second [Hz].

    Raises:
        ConfigError: there are no frames, or they differ in size.
        MissingDependencyError: `imageio-ffmpeg` is not installed.
        WriteError: the file cannot be written.
    """
    # Check the arguments and the first frame.
    path = Path(path).absolute()  # ffmpeg reads `-x` as an option and `a:b` as a protocol
    if fps <= 0:
        raise ConfigError(f"fps must be positive, not {fps}")
    ffmpeg = _imageio_ffmpeg()
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise ConfigError(f"no frames to write to {path}")
    shape = _checked(first, path).shape
    padding = ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0))
    size = (shape[1] + shape[1] % 2, shape[0] + shape[0] % 2)
    make_folder(path.parent)

    # Send the frames to ffmpeg, and check that all of them are in the file.
    count = 0
    with replacing(path) as temporary:
        with contextlib.closing(ffmpeg.write_frames(temporary, size, fps=fps, **_FORMAT)) as writer:
            writer.send(None)
            for frame in itertools.chain([first], stream):
                if _checked(frame, path).shape != shape:
                    raise ConfigError(
                        f"frame {count} for {path} is {frame.shape[:2]}, the first was {shape[:2]}"
                    )
                try:
                    writer.send(np.pad(frame, padding, mode="edge"))
                except OSError as error:
                    raise WriteError(
                        f"cannot write {path}: ffmpeg ended after {count} frames; {_FIX}"
                    ) from error
                count += 1
        num_written = _count_frames(temporary)
        if num_written != count:
            raise WriteError(f"cannot write {path}: ffmpeg wrote {num_written} of {count} frames; {_FIX}")
    return count


def side_by_side(panels: Sequence[Frame]) -> Frame:
    """Place panels [H, W, 3] next to each other, with gaps between them.

    Returns [max H, ΣW + gaps, 3], padded with a dark colour. Raises `ConfigError` without panels.
    """
    if not panels:
        raise ConfigError("no panels to place side by side")
    height = max(p.shape[0] for p in panels)
    width = sum(p.shape[1] for p in panels) + GAP * (len(panels) - 1)
    canvas = np.full((height, width, 3), _DARK, np.uint8)
    left = 0
    for panel in panels:
        canvas[: panel.shape[0], left : left + panel.shape[1]] = panel
        left += panel.shape[1] + GAP
    return canvas


def caption(frame: Frame, text: str, magnitude: float | None = None) -> Frame:
    """Add a bar with a caption below a frame. Returns [H + bar, W, 3]; the bar's height depends on W alone.

    Args:
        frame: [H, W, 3].
        text: the caption; it is shortened to fit.
        magnitude: a value in [0, 1], shown as a small gauge at the right end of the bar.
    """
    # Extend the frame by the bar.
    from PIL import Image, ImageDraw, ImageFont

    height, width = frame.shape[:2]
    size = max(10, min(18, width // 28))
    bar = 2 * size
    image = Image.new("RGB", (width, height + bar), _DARK)
    image.paste(Image.fromarray(frame), (0, 0))
    draw = ImageDraw.Draw(image)

    # Shorten the text to the space left of the gauge.
    font: Any = ImageFont.load_default(size)
    gauge = 0 if magnitude is None else max(40, width // 5)
    room = width - 2 * size - (gauge + size if gauge else 0)
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(f"{text}…", font=font) > room:
            text = text[:-1]
        text = f"{text}…"

    # Draw the text and the gauge.
    middle = height + bar // 2
    draw.text((size, middle), text, fill=_LIGHT, font=font, anchor="lm")
    if magnitude is not None:
        left, top = width - size - gauge, middle - size // 4
        draw.rectangle((left, top, left + gauge, top + size // 2), fill=_DIM)
        full = round(gauge * min(1.0, max(0.0, magnitude)))
        if full:
            draw.rectangle((left, top, left + full, top + size // 2), fill=_BAR)
    return np.asarray(image, dtype=np.uint8)


def require_ffmpeg() -> None:
    """Raise `MissingDependencyError` if ffmpeg cannot be run."""
    try:
        _imageio_ffmpeg().get_ffmpeg_version()
    except (RuntimeError, OSError) as error:
        fix = "reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to the path of ffmpeg"
        raise MissingDependencyError(f"ffmpeg ({one_line(error)})", fix) from error


def _imageio_ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        fix = "install it with `pip install imageio-ffmpeg`, or leave out the video"
        raise MissingDependencyError("ffmpeg", fix) from error
    return imageio_ffmpeg


def _count_frames(path: Path) -> int:
    """The number of frames in a video file; 0 if it is damaged.

    This detects failures, since `write_frames` ignores ffmpeg's exit code.
    """
    try:
        count: int = _imageio_ffmpeg().count_frames_and_secs(path)[0]
    except RuntimeError:
        return 0
    return count


def _checked(frame: Frame, path: Path) -> Frame:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ConfigError(
            f"a frame for {path} is {frame.dtype} {list(frame.shape)}; expected uint8 [H, W, 3]"
        )
    return frame
