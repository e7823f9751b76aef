"""Our metadata in HDF5 files: JSON in attributes, and the checksums of arrays."""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import numpy as np

from residual_rl.demos.episode import Array
from residual_rl.demos.hdf5 import Attributes
from residual_rl.utils.files import parse_json

JSON, JSON_CRC = "json", "json_crc32"
"""Names of the attributes."""


def put_json(node: h5py.Group, text: str) -> None:
    """Store the JSON `text` in the attributes of `node`."""
    node.attrs[JSON], node.attrs[JSON_CRC] = text, zlib.crc32(text.encode())


def get_json(attributes: Attributes) -> dict[str, Any]:
    """Read the text that `put_json` stored. Raises `ValueError` if it is damaged."""
    text = str(attributes[JSON])
    if zlib.crc32(text.encode()) != int(attributes[JSON_CRC]):
        raise ValueError("its CRC-32 differs")
    document: dict[str, Any] = parse_json(text)
    return document


def crc32(value: Array) -> int:
    """Checksum of an array's type, shape and bytes."""
    return zlib.crc32(
        np.ascontiguousarray(value).data, zlib.crc32(f"{value.dtype.str}{value.shape}".encode())
    )
