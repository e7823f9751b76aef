"""A checksum of a whole file, appended to it.

HDF5 stores the length of its own part and ignores what follows, so that other programs read such a file as
usual. One that they change loses its checksum.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from residual_rl.errors import CheckpointError

_MAGIC = b"residual_rl crc\n"
_TRAILER = struct.Struct("<16sQI")
"""The last bytes of a file: a mark, the number of bytes before it, and their CRC-32."""
_BLOCK = 1 << 20


def append_checksum(path: Path, size: int) -> None:
    """Append the checksum of the first `size` bytes of the file `path`, or of all if it is shorter, and cut
    off the rest.

    No disk space is needed if the file is longer than `size` by `_TRAILER`. Raises `OSError`.
    """
    size = min(size, path.stat().st_size)
    with path.open("r+b") as file:
        crc = _crc32(file, size)
        file.seek(size)
        file.write(_TRAILER.pack(_MAGIC, size, crc))
        file.truncate()


def verify_checksum(path: Path) -> bool:
    """Whether the file has a checksum, which is verified.

    Raises:
        CheckpointError: the file was changed after the checksum was appended.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size - _TRAILER.size
        file.seek(max(size, 0))
        trailer = file.read(_TRAILER.size)
        if len(trailer) < _TRAILER.size or not trailer.startswith(_MAGIC):
            return False
        if trailer != _TRAILER.pack(_MAGIC, size, _crc32(file, size)):
            raise CheckpointError(
                f"{path} is damaged: its checksum differs; use an intact copy, or collect it again"
            )
    return True


def _crc32(file: BinaryIO, size: int) -> int:
    """CRC-32 of the first `size` bytes."""
    file.seek(0)
    crc = 0
    block = memoryview(bytearray(_BLOCK))
    while size > 0:
        count = file.readinto(block[: min(_BLOCK, size)])  # type: ignore[attr-defined]
        if not count:
            raise OSError("it became shorter while it was read")
        crc = zlib.crc32(block[:count], crc)
        size -= count
    return crc
