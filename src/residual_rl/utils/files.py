"""Atomic writing of files: to a temporary file that is synced and renamed.

A crash, a killed process or a full disk never leaves an incomplete file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, NonFiniteError, ResidualRLError
from residual_rl.utils.text import one_line

TEMP_SUFFIX = ".tmp"
_FIXES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a part of the path is a file; choose another folder",
    errno.ENOENT: "choose a folder that can be created and written",
}


class WriteError(ResidualRLError, OSError):
    """A file or folder cannot be written: the disk is full or read-only, or a part of the path is a file."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `WriteError` that names `path` and the fix."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        code = error.errno or 0
        what = os.strerror(code) if code else one_line(error)
        raise WriteError(
            f"cannot write {path}: {what}; {_FIXES.get(code, 'fix that, or choose another folder')}"
        ) from error


def make_folder(path: Path) -> None:
    """Create the folder `path` and its parents if they do not exist. Raises `WriteError`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def exists(path: Path) -> bool:
    """Whether there is a file or folder; also False for a text that cannot be a path, such as a long one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a regular file; also False where that cannot be known."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context of a temporary file beside `path`, which replaces `path` after the block.

    The file is synced before. If the block fails, the temporary file is removed and `path` is unchanged.
    Raises `WriteError`.
    """
    temp = path.parent / f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    try:
        with writing(path):
            yield temp
            # The content is on the disk before the new name is.
            _sync(temp)
            os.replace(temp, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temp.unlink()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`, text as UTF-8. After a failure the file is unchanged. Raises `WriteError`."""
    with replacing(path) as temp:
        temp.write_bytes(encode(data) if isinstance(data, str) else data)


def encode(text: str) -> bytes:
    """`text` in UTF-8. A byte of a file name that is not UTF-8 becomes `\\udcff`, which is also its escape in
    JSON, so that reading the JSON gives the same name."""
    return text.encode(errors="backslashreplace")


def is_leftover(path: Path) -> bool:
    """Whether `path` is named like the temporary files of this module, which killed processes leave."""
    return path.name.startswith(".") and path.name.endswith(TEMP_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes in `folder`. Raises `WriteError`."""
    for temp in folder.glob(f".*{TEMP_SUFFIX}"):
        with writing(temp):
            temp.unlink(missing_ok=True)


def to_json(obj: Any, indent: int | None = None) -> str:
    """Strict JSON of `obj` that UTF-8 can encode; dataclasses become objects and paths strings.

    Raises:
        NonFiniteError: a number is NaN or infinite; the message names the key.
        ConfigError: `obj` contains a value of an unsupported type.
    """
    text = json.dumps(_plain(obj, ""), indent=indent, allow_nan=False, ensure_ascii=False)
    return encode(text).decode()


@contextlib.contextmanager
def replacing_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Write a folder atomically: the block writes to the yielded temporary folder, which then becomes `path`.

    If the block fails, the temporary folder is removed and `path` is unchanged.

    Args:
        path: the final folder.
        replace: whether an existing folder may be replaced.

    Raises:
        WriteError: the folder cannot be written.
        ConfigError: `path` exists and may not be replaced.
    """
    if path.exists() and not replace:
        raise ConfigError(f"{path} already exists; choose another --output-dir")
    name = f".{path.name}.{secrets.token_hex(4)}"
    temp, old = path.parent / f"{name}{TEMP_SUFFIX}", path.parent / f"{name}.old{TEMP_SUFFIX}"
    make_folder(path.parent)
    try:
        with writing(path):
            yield temp
            for part in [*temp.rglob("*"), temp]:
                _sync(part)
            if path.exists():
                os.rename(path, old)
            os.rename(temp, path)
            _sync(path.parent)
    finally:
        for leftover in (temp, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_bytes(path: Path) -> bytes:
    """The contents of a file, which may come from anybody: a named pipe or a device, which may never end, is
    not opened. Raises `OSError`."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, read by `read_bytes`. Raises `OSError` and `ValueError`."""
    return read_bytes(path).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which may come from anybody.

    Raises:
        ValueError: it is not strict JSON, or it is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def plain(obj: Any) -> Any:
    """`obj` as the values that reading its JSON gives. Raises like `to_json`."""
    return json.loads(to_json(obj))


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Raises like `to_json` and `write_atomically`."""
    write_atomically(path, to_json(obj, indent=2) + "\n")


def _plain(obj: Any, key: str) -> Any:
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise NonFiniteError(f"{key or 'the value'} is {obj}: JSON allows finite numbers only")
        return float(obj)
    if obj is None or isinstance(obj, (bool, int, str)):
        return obj
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(k): _plain(v, f"{key}.{k}" if key else str(k)) for k, v in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(obj)]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    raise ConfigError(
        f"{key or 'the value'} is a {type(obj).__name__}, which JSON cannot represent; "
        "use numbers, strings, lists and dicts"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
