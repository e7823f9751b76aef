"""Segments: parts of a training state that never change again, each in a file of its own that is written once.

A checkpoint holds a manifest, each segment's name with the SHA-256 of its file, so that it is whole only with all of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.utils.files import make_folder, remove_leftovers, write_atomically, writing

FOLDER = "replay"
"""The segments' folder, beside that of the checkpoints."""
Manifest = dict[str, str]
"""Names of segments with the SHA-256 of their files."""

_NAME = re.compile(r"[a-z]+_\d+")


class SegmentFolder:
    """The files of a run's segments, `segment_000003.safetensors`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a segment. Raises `ConfigError` for what is no name of one."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"a segment's name is like segment_000003, not {name!r}")
        return self.folder / f"{name}.safetensors"

    def write(self, name: str, data: bytes) -> str:
        """Write a segment, atomically; gives its SHA-256. Raises `WriteError`."""
        make_folder(self.folder)
        write_atomically(self.path(name), data)
        return hashlib.sha256(data).hexdigest()

    def read(self, name: str, sha256: str) -> bytes:
        """What was written. Raises `CheckpointError` where it is missing or damaged."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"its segment {path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"its segment {path} is damaged or of another time: its SHA-256 is not that of the manifest")
        return data

    def keep(self, names: Collection[str]) -> None:
        """Remove all segments but these, and what killed processes left. Raises `WriteError`."""
        remove_leftovers(self.folder)
        for path in self.folder.glob("*.safetensors"):
            if path.stem not in names and _NAME.fullmatch(path.stem):
                with writing(path):
                    path.unlink(missing_ok=True)
