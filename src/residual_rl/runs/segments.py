"""Segments: immutable parts of a training state, each in its own file that is written once.

The manifest of a checkpoint has the name of each of its segments and the SHA-256 of its file. A checkpoint is
complete only if all of its segments are present and undamaged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.utils.files import make_folder, remove_leftovers, write_atomically, writing

FOLDER = "replay"
"""Name of the folder of segments, beside that of the checkpoints."""
Manifest = dict[str, str]
"""SHA-256 of the file of each segment, by name."""

_NAME = re.compile(r"[a-z]+_\d+")


class SegmentFolder:
    """The segment files of a run, such as `segment_000003.safetensors`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a segment. Raises `ConfigError` for an invalid name."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"the name of a segment must be like segment_000003, not {name!r}")
        return self.folder / f"{name}.safetensors"

    def write(self, name: str, data: bytes) -> str:
        """Write a segment atomically and return its SHA-256. Raises `WriteError`."""
        make_folder(self.folder)
        write_atomically(self.path(name), data)
        return hashlib.sha256(data).hexdigest()

    def read(self, name: str, sha256: str) -> bytes:
        """Read a segment and verify its SHA-256. Raises `CheckpointError` if it is missing or damaged."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"its segment {path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(
                f"its segment {path} is damaged or of another run: its SHA-256 differs from the manifest"
            )
        return data

    def keep(self, names: Collection[str]) -> None:
        """Remove all other segments, and temporary files of killed processes. Raises `WriteError`."""
        remove_leftovers(self.folder)
        for path in self.folder.glob("*.safetensors"):
            if path.stem not in names and _NAME.fullmatch(path.stem):
                with writing(path):
                    path.unlink(missing_ok=True)
