"""Messages of policy servers: msgpack, with three encodings of arrays.

- `npy`: `{"__ndarray_class__": True, "as_npy": the bytes of a .npy file}`; Isaac-GR00T N1.5, N1.6 and the
  first releases of N1.7.
- `nd`: `{b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": bytes}`; Isaac-GR00T N1.7,
  which uses that of msgpack-numpy.
- `openpi`: `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}`, and
  `b"__npgeneric__"` for a single number.

All three are read in any message. Arrays contain only plain numbers, and no objects, strings or records, so
reading a message cannot run code.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import MissingDependencyError, ResidualRLError
from residual_rl.utils.text import one_line

Encoding = Literal["npy", "nd", "openpi"]

MAX_MESSAGE_BYTES = 32 * 2**20
"""Larger messages are neither sent nor read."""
_MODALITY = ("__ModalityConfig_class__", "__ModalityConfig__")
"""Marks the description of a modality; servers that mark it in the second way write arrays as `nd`."""
_CONTENT = ("as_json", "as_dict")
_MAX_HEADER = 10_000
"""Bytes of a .npy file up to its data; NumPy's own limit."""


class WireError(ResidualRLError):
    """A message that is too large, invalid, or has unsupported content."""


def pack(value: Any, encoding: Encoding) -> bytes:
    """Encode nested dicts, lists, numbers, strings and NumPy arrays as a message.

    Raises `WireError` for other types and for messages that are too large.
    """
    try:
        data: bytes = _msgpack().packb(value, default=_ENCODERS[encoding])
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be written as a message: {_reason(error)}") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"would be a message of {len(data):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}")
    return data


def unpack(data: bytes) -> tuple[Any, Encoding | None]:
    """The content of a message and its array encoding, None for a message without arrays or modalities.

    Arrays are in native byte order and belong to the caller. Raises `WireError`.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}")
    seen: list[Encoding] = []
    try:
        value = _msgpack().unpackb(data, object_hook=lambda table: _decode(table, seen), raw=False)
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise WireError(f"{len(data):,} bytes that are no msgpack message ({_reason(error)})") from error
    return value, seen[0] if seen else None


def modality_config(content: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """The description of a modality as GR00T servers encode it: content as an object, or (N1.5) as text."""
    return {_MODALITY[0]: True, _CONTENT[0]: json.dumps(content) if as_text else content}


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise MissingDependencyError(
            "msgpack", "install it with `pip install residual-rl[gr00t]` or `residual-rl[openpi]`"
        ) from None
    return msgpack


def _plain(value: Any) -> NDArray[Any]:
    """`value`, checked to be an array of a supported type."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"a {type(value).__name__} is neither a number, a string, a list, a dict nor an array"
        )
    _check_dtype(value.dtype)
    return value


def _as_npy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    file = io.BytesIO()
    np.save(file, _plain(value), allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _as_nd(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    array = _plain(value)
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def _as_openpi(value: Any) -> Any:
    if isinstance(value, np.generic):
        _check_dtype(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    array = _plain(value)
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


_ENCODERS: dict[Encoding, Callable[[Any], Any]] = {"npy": _as_npy, "nd": _as_nd, "openpi": _as_openpi}


def _decode(table: dict[Any, Any], seen: list[Encoding]) -> Any:
    """Decode a table that marks an array, a number or a modality; return any other as it is."""

    def has(name: str) -> bool:
        return name in table or name.encode() in table

    def get(name: str) -> Any:
        if not has(name):
            raise WireError(f"an array or a modality without {name!r}")
        return table[name] if name in table else table[name.encode()]

    # Arrays and numbers, in the three encodings.
    if has("__ndarray_class__"):
        seen.append("npy")
        return _from_npy(get("as_npy"))
    if has("__ndarray__"):
        seen.append("openpi")
        return _from_bytes(get("data"), get("dtype"), get("shape"))
    if has("__npgeneric__"):
        return _number(get("data"), get("dtype"))
    if has("nd") and has("type"):
        seen.append("nd")
        return _from_bytes(get("data"), get("type"), get("shape") if get("nd") else [])
    # The description of a modality.
    if any(has(marker) for marker in _MODALITY):
        seen.append("npy" if has(_MODALITY[0]) else "nd")
        content = get(next((name for name in _CONTENT if has(name)), _CONTENT[0]))
        return json.loads(content) if isinstance(content, str | bytes) else content
    return table


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise WireError(
            f"an array of {dtype}; only booleans, integers and floats of at most 64 bits are read and written"
        )


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str | bytes):
        raise WireError(f"an array whose dtype is a {type(name).__name__}, not its name")
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    try:
        dtype = np.dtype(text if len(text) < 20 else "")
    except (TypeError, ValueError, SyntaxError):
        raise WireError(f"an array of the unknown dtype {text[:20]!r}") from None
    _check_dtype(dtype)
    return dtype


def _number(value: Any, name: Any) -> Any:
    dtype = _dtype(name)
    if not isinstance(value, bool | int | float):
        raise WireError(f"a number that is a {type(value).__name__}")
    try:
        return dtype.type(value)
    except OverflowError:
        raise WireError(f"the number {value} as {dtype}") from None


def _from_bytes(data: Any, name: Any, shape: Any, order: Literal["C", "F"] = "C") -> NDArray[Any]:
    """The array of this dtype and shape, whose size must match the data."""
    dtype = _dtype(name)
    if not isinstance(data, bytes):
        raise WireError(f"an array whose data is a {type(data).__name__}, not bytes")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > 32
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise WireError("an array whose shape is not a list of at most 32 sizes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array of {dtype} and shape {tuple(shape)} with {len(data):,} bytes of data")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), order="C", copy=True)


def _from_npy(file: Any) -> NDArray[Any]:
    """The array of a .npy file. NumPy's own reader would allocate whatever size the header claims."""
    if not isinstance(file, bytes):
        raise WireError(f"an array whose data is a {type(file).__name__}, not bytes")
    # The header starts after its length, which has two bytes in version 1 and four in later versions.
    start = 12 if file[6:7] > b"\x01" else 10
    end = start + int.from_bytes(file[8:start], "little")
    shape, fortran, dtype = _npy_header(file[:end]) if end <= _MAX_HEADER else _npy_header(b"")
    return _from_bytes(file[end:], dtype.str, shape, "F" if fortran else "C")


@functools.lru_cache(maxsize=256)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype in the header of a .npy file. Cached: parsing is slow, and headers repeat."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # NumPy's reader passes on any error of Python's tokenizer
        raise WireError(f"an array whose .npy header cannot be read ({_reason(error)})") from error
    _check_dtype(dtype)
    return shape, fortran, dtype


def _reason(error: BaseException) -> str:
    return one_line(error, 120) or type(error).__name__
