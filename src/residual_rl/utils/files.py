"""Writing files so that a crash, a kill or a full disk never leaves half of one: written aside, synced, renamed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from residual_rl.errors import ConfigError, NonFiniteError, ResidualRLError
from residual_rl.utils.text import one_line

TEMP_SUFFIX = ".tmp"
_MENDS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOTDIR: "a file is in the place of a folder; choose another folder",
    errno.EEXIST: "a file is in the place of a folder; choose another folder",
    errno.ENOENT: "choose a folder that can be made and written",
}


class WriteError(ResidualRLError, OSError):
    """A file or folder cannot be written: disk full, read-only, or something else is in its place."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `WriteError` that names `path` and the mend."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        code = error.errno or 0
        what = os.strerror(code) if code else one_line(error)
        raise WriteError(f"cannot write {path}: {what}; {_MENDS.get(code, 'mend that, or choose another folder')}") from error


def make_folder(path: Path) -> None:
    """Make the folder `path` and its parents if they are not there. Raises `WriteError`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file beside `path`; when the block ends well it is synced and takes the place of `path`.

    When the block fails the temporary file is removed and `path` stays as it was. Raises `WriteError`.
    """
    temp = path.parent / f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
    try:
        with writing(path):
            yield temp
            _sync(temp)
            os.replace(temp, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temp.unlink()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path`: afterwards the file holds all of it, or what it held before. Raises `WriteError`."""
    with replacing(path) as temp:
        temp.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`."""
    for temp in folder.glob(f".*{TEMP_SUFFIX}"):
        with writing(temp):
            temp.unlink(missing_ok=True)


def to_json(obj: Any, indent: int | None = None) -> str:
    """Strict JSON of `obj`; dataclasses become objects and paths strings.

    Raises `NonFiniteError` naming the key of a NaN or infinity, and `ConfigError` for what JSON cannot hold.
    """
    return json.dumps(_plain(obj, ""), indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Raises like `to_json` and `write_atomically`."""
    write_atomically(path, to_json(obj, indent=2) + "\n")


def _plain(obj: Any, key: str) -> Any:
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise NonFiniteError(f"{key or 'the value'} is {obj}: JSON files hold finite numbers only")
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
    raise ConfigError(f"{key or 'the value'} is a {type(obj).__name__}, which JSON cannot hold; use numbers, strings, lists and dicts")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
