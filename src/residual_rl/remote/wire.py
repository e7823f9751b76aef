"""Messages of policy servers: msgpack, with three encodings of arrays.

- `npy`: `{"__ndarray_class__": True, "as_npy": the bytes of a .npy file}`; Isaac-GR00T N1.5, N1.6 and the
  first releases of N1.7.
- `nd`: `{b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": bytes}`; Isaac-GR00T N1.7,
  which uses that of msgpack-numpy.
- `openpi`: `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}`, and
  `b"__npgeneric__"` for a single number.

All three are read in any message. Arrays contain only plain numbers, and no objects, strings or records, so
reading a message cannot run code. Limits apply before a message is decoded
(`residual_rl.remote.message_limits`).
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from residual_rl.errors import MissingDependencyError, ResidualRLError
from residual_rl.remote.message_limits import MessageLimitError, check_message, top_level_value
from residual_rl.utils.text import one_line

Encoding = Literal["npy", "nd", "openpi"]

MAX_MESSAGE_BYTES = 30 * 2**20
"""Larger messages are neither sent nor read. 32 images of 640 x 480 fit."""
MAX_OBSERVATION_BYTES = 12 * 2**20
"""Larger messages with the observation of a single env are not read by an openpi server."""
MAX_JSON_BYTES = 2**16
"""Bytes of JSON text in a message."""
_MODALITY = ("__ModalityConfig_class__", "__ModalityConfig__")
"""Marks the description of a modality; servers that mark it in the second way write arrays as `nd`."""
_CONTENT = ("as_json", "as_dict")
_MARKERS = frozenset(
    key
    for name in ("__ndarray_class__", "__ndarray__", "__npgeneric__", "nd", *_MODALITY)
    for key in (name, name.encode())
)
"""A table with none of these keys is returned as it is."""
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,700})\), \} *\n"
)
"""The header that NumPy writes into a .npy file for anything but records. Parsing Python literals, as NumPy's
reader does, takes as long as the sender likes."""


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


def unpack(data: bytes | memoryview) -> tuple[Any, Encoding | None]:
    """The content of a message and its array encoding, None for a message without arrays or modalities.

    Arrays are read-only and keep the byte order in which they were sent. Raises `WireError`.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}")
    decoder = _Decoder()
    try:
        check_message(data)
        value = _msgpack().unpackb(data, object_hook=decoder.decode, raw=False)
    except WireError:
        raise
    except MessageLimitError as error:
        raise WireError(f"a message of {len(data):,} bytes with {error}") from error
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise WireError(f"{len(data):,} bytes that are no msgpack message ({_reason(error)})") from error
    return value, decoder.encoding


def peek(data: bytes | memoryview, name: str) -> Any:
    """The value of the key `name` of a message, found without decoding the rest; None if it has none, or if
    the message cannot be decoded."""
    try:
        return top_level_value(data, name, _msgpack().unpackb)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None


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


class _Decoder:
    """Decodes the tables of one message that mark an array, a number or a modality."""

    def __init__(self) -> None:
        self.encoding: Encoding | None = None
        """That of the first array or modality."""
        self._json_bytes = 0

    def decode(self, table: dict[Any, Any]) -> Any:
        """The array, number or modality of a table; any other table as it is."""
        if _MARKERS.isdisjoint(table):
            return table

        def has(name: str) -> bool:
            return name in table or name.encode() in table

        def get(name: str) -> Any:
            if not has(name):
                raise WireError(f"an array or a modality without {name!r}")
            return table[name] if name in table else table[name.encode()]

        # Arrays and numbers, in the three encodings.
        if has("__ndarray_class__"):
            self._found("npy")
            return _from_npy(get("as_npy"))
        if has("__ndarray__"):
            self._found("openpi")
            return _from_bytes(get("data"), get("dtype"), get("shape"))
        if has("__npgeneric__"):
            return _number(get("data"), get("dtype"))
        if has("nd") and has("type"):
            self._found("nd")
            return _from_bytes(get("data"), get("type"), get("shape") if get("nd") else [])
        # The description of a modality.
        if any(has(marker) for marker in _MODALITY):
            self._found("npy" if has(_MODALITY[0]) else "nd")
            content = get(next((name for name in _CONTENT if has(name)), _CONTENT[0]))
            return self._json(content) if isinstance(content, str | bytes) else content
        return table

    def _found(self, encoding: Encoding) -> None:
        self.encoding = self.encoding or encoding

    def _json(self, text: str | bytes) -> Any:
        self._json_bytes += len(text)
        if self._json_bytes > MAX_JSON_BYTES:
            raise WireError(f"more than {MAX_JSON_BYTES:,} bytes of JSON")
        return json.loads(text)


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


def _from_bytes(
    data: Any, name: Any, shape: Any, order: Literal["C", "F"] = "C", start: int = 0
) -> NDArray[Any]:
    """The array of this dtype and shape, whose size must match the data from `start` on."""
    dtype = _dtype(name)
    if not isinstance(data, bytes):
        raise WireError(f"an array whose data is a {type(data).__name__}, not bytes")
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > 32
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise WireError("an array whose shape is not a list of at most 32 sizes")
    size = len(data) - start
    if math.prod(shape) * dtype.itemsize != size:
        raise WireError(f"an array of {dtype} and shape {tuple(shape)} with {size:,} bytes of data")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)


def _from_npy(file: Any) -> NDArray[Any]:
    """The array of a .npy file. NumPy's own reader would allocate whatever size the header claims."""
    if not isinstance(file, bytes):
        raise WireError(f"an array whose data is a {type(file).__name__}, not bytes")
    if file[:6] != b"\x93NUMPY" or file[6:8] not in (b"\x01\x00", b"\x02\x00"):
        raise WireError("an array that is no .npy file of version 1.0 or 2.0")
    start = 10 if file[6:7] == b"\x01" else 12  # version 1 has the header's length in two bytes, 2 in four
    end = start + int.from_bytes(file[8:start], "little")
    header = _NPY_HEADER.fullmatch(file, start, min(end, len(file)))
    if header is None:
        raise WireError("an array whose .npy header cannot be read, or describes records")
    descr, fortran, sizes = header.groups()
    shape = [int(size) for size in sizes.split(b",") if size.strip()]
    return _from_bytes(file, descr, shape, "F" if fortran == b"True" else "C", end)


def _reason(error: BaseException) -> str:
    return one_line(error, 120) or type(error).__name__
