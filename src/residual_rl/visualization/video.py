"""Videos: panels side by side, captions, and H.264 files that browsers play."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.utils.files import WriteError, make_folder, replacing

Frame = NDArray[np.uint8]
"""[H, W, 3] RGB."""

GAP = 4
"""Between panels [px]."""
_BAR, _DARK, _LIGHT, _DIM = (90, 162, 245), (18, 21, 27), (230, 233, 238), (58, 66, 80)


def write_video(path: Path | str, frames: Iterable[Frame], fps: float) -> int:
    """Write `frames` (all of one size; odd sizes get one more row or column) as H.264 in MP4, and return their number.

    The file is there when all of it is. Raises `ConfigError` for frames that are none or do not fit, `MissingDependencyError`
    without ffmpeg, `WriteError`.
    """
    path = Path(path)
    if fps <= 0:
        raise ConfigError(f"fps must be positive, not {fps}")
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise ConfigError(f"there are no frames for {path}")
    shape = _checked(first, path).shape
    make_folder(path.parent)
    with replacing(path) as temp, tempfile.TemporaryFile() as messages:
        height, width = (n + n % 2 for n in shape[:2])
        process = subprocess.Popen(_command(temp, width, height, fps), stdin=subprocess.PIPE, stderr=messages)
        assert process.stdin is not None
        count = 0
        try:
            for frame in itertools.chain([first], stream):
                if _checked(frame, path).shape != shape:
                    raise ConfigError(f"frame {count} for {path} is {frame.shape[:2]}, the first was {shape[:2]}")
                process.stdin.write(np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge").tobytes())
                count += 1
        except BrokenPipeError:
            pass  # ffmpeg has ended: its exit code and message say why
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
        if code != 0:
            messages.seek(0)
            lines = messages.read().decode(errors="replace").strip().splitlines() or [f"it ended with code {code}"]
            raise WriteError(
                f"cannot write {path}: ffmpeg says: {lines[-1]}; free some space, choose another folder, or leave out the video"
            )
    return count


def side_by_side(panels: Sequence[Frame]) -> Frame:
    """Panels [H, W, 3] next to each other, a gap between them; lower ones get a dark strip below. Returns [max H, ΣW + gaps, 3]."""
    if not panels:
        raise ConfigError("there are no panels to put side by side")
    height = max(p.shape[0] for p in panels)
    width = sum(p.shape[1] for p in panels) + GAP * (len(panels) - 1)
    canvas = np.full((height, width, 3), _DARK, np.uint8)
    left = 0
    for panel in panels:
        canvas[: panel.shape[0], left : left + panel.shape[1]] = panel
        left += panel.shape[1] + GAP
    return canvas


def caption(frame: Frame, text: str, magnitude: float | None = None) -> Frame:
    """`frame` [H, W, 3] with a bar of `text` below it; `magnitude` in [0, 1] is shown as a small gauge at the bar's right end.

    Returns [H + bar, W, 3], the bar's height the same for all frames of a width. Text that is too long is shortened.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = frame.shape[:2]
    size = max(10, min(18, width // 28))
    bar = 2 * size
    image = Image.new("RGB", (width, height + bar), _DARK)
    image.paste(Image.fromarray(frame), (0, 0))
    draw = ImageDraw.Draw(image)
    font: Any = ImageFont.load_default(size)
    gauge = 0 if magnitude is None else max(40, width // 5)
    room = width - 2 * size - (gauge + size if gauge else 0)
    if draw.textlength(text, font=font) > room:
        while text and draw.textlength(f"{text}…", font=font) > room:
            text = text[:-1]
        text = f"{text}…"
    middle = height + bar // 2
    draw.text((size, middle), text, fill=_LIGHT, font=font, anchor="lm")
    if magnitude is not None:
        left, top = width - size - gauge, middle - size // 4
        draw.rectangle((left, top, left + gauge, top + size // 2), fill=_DIM)
        full = round(gauge * min(1.0, max(0.0, magnitude)))
        if full:
            draw.rectangle((left, top, left + full, top + size // 2), fill=_BAR)
    return np.asarray(image, dtype=np.uint8)


def _command(path: Path, width: int, height: int, fps: float) -> list[str]:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise MissingDependencyError("ffmpeg", "install it with `pip install imageio-ffmpeg`, or leave out the video") from error
    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "pipe:0"]
    codec = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
    return [get_ffmpeg_exe(), "-y", "-v", "error", *frames, *codec, "-f", "mp4", str(path)]


def _checked(frame: Frame, path: Path) -> Frame:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ConfigError(f"a frame for {path} is {frame.dtype} {list(frame.shape)}; expected uint8 [H, W, 3]")
    return frame
