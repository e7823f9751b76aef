"""Limits on msgpack messages from other machines, checked before anything of a message is built.

A message of 32 MiB can hold 32 million empty dicts, which take minutes to build and gigabytes to hold. The
library's own limits bound single containers, not their total, so the values are counted first. The number of
a container's entries precedes them, so that one pass over the bytes, without recursion, suffices.
"""

from __future__ import annotations

from typing import Any

MAX_VALUES = 2**14
"""Values in a message, counting containers, keys and entries; an array takes about ten."""
MAX_TEXT_BYTES = 2**18
"""Bytes of text in a message: text with one unusual character takes four times as much memory."""

_DATA, _TEXT, _ARRAY, _MAP = range(4)


class MessageLimitError(ValueError):
    """A message holds more than the limits permit."""


def check_message(data: bytes | memoryview) -> None:
    """Raise `MessageLimitError` for a message with too many values or too much text.

    The costs are bounded by `MAX_VALUES`, not by the message. Malformed messages are left to msgpack, which
    reads them no further than this does.
    """
    _skip(data, 0, MAX_VALUES)


def top_level_value(data: bytes | memoryview, name: str, unpackb: Any) -> Any:
    """The value of the text key `name` of a message that is a map; None if there is none.

    Nothing else of the message is built. Raises `MessageLimitError`, or `ValueError` for a malformed message.
    """
    kind, width, amount = _FORMATS[data[0]] if len(data) else (_DATA, 0, 0)
    if kind != _MAP:
        return None
    position = 1 + width
    left = MAX_VALUES
    for _ in range(amount + int.from_bytes(data[1:position], "big")):
        value, left = _skip(data, position, left)
        end, left = _skip(data, value, left)
        if value - position < len(name) + 6 and unpackb(data[position:value]) == name:
            return unpackb(data[value:end])
        position = end
    return None


def _skip(data: bytes | memoryview, position: int, most: int) -> tuple[int, int]:
    """The end of the value that begins at `position`, and how many of `most` values are left after it."""
    total, done, text, size = 1, 0, 0, len(data)
    while done < total and position < size:
        kind, width, amount = _FORMATS[data[position]]
        position += 1
        if width:
            amount += int.from_bytes(data[position : position + width], "big")
            position += width
        done += 1
        if kind == _DATA:
            position += amount
        elif kind == _TEXT:
            position += amount
            text += amount
            if text > MAX_TEXT_BYTES:
                raise MessageLimitError(f"more than {MAX_TEXT_BYTES:,} bytes of text")
        else:
            total += amount if kind == _ARRAY else 2 * amount
        if total > most:
            raise MessageLimitError(f"more than {MAX_VALUES:,} values")
    return position, most - done


def _formats() -> list[tuple[int, int, int]]:
    """By the first byte of a value: its kind, the width of the number that follows, and what is added to that
    number to get the bytes of the content, or the entries (msgpack's specification, "Formats")."""
    formats = [(_DATA, 0, 0)] * 256
    formats[0x80:0x90] = [(_MAP, 0, n) for n in range(16)]
    formats[0x90:0xA0] = [(_ARRAY, 0, n) for n in range(16)]
    formats[0xA0:0xC0] = [(_TEXT, 0, n) for n in range(32)]
    formats[0xC4:0xC7] = [(_DATA, width, 0) for width in (1, 2, 4)]  # bytes
    formats[0xC7:0xCA] = [(_DATA, width, 1) for width in (1, 2, 4)]  # extensions, with a byte for their type
    formats[0xCA:0xD4] = [(_DATA, 0, width) for width in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)]  # numbers
    formats[0xD4:0xD9] = [(_DATA, 0, 1 + width) for width in (1, 2, 4, 8, 16)]  # extensions of fixed sizes
    formats[0xD9:0xDC] = [(_TEXT, width, 0) for width in (1, 2, 4)]
    formats[0xDC:0xDE] = [(_ARRAY, width, 0) for width in (2, 4)]
    formats[0xDE:0xE0] = [(_MAP, width, 0) for width in (2, 4)]
    return formats


_FORMATS = _formats()
