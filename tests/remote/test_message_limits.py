"""Messages that would cost a lot: they are refused before they are decoded."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
import remote_case
from hypothesis import given, settings

from residual_rl.remote import message_limits
from residual_rl.remote.message_limits import MAX_TEXT_BYTES, MAX_VALUES, MessageLimitError, check_message
from residual_rl.remote.wire import MAX_JSON_BYTES, WireError, peek, unpack

MIB = 2**20


def array_of(item: bytes, number: int) -> bytes:
    return b"\xdd" + number.to_bytes(4, "big") + item * number


BOMBS = {
    "{}": array_of(b"\x80", 4 * MIB),
    "[]": array_of(b"\x90", 4 * MIB),
    '{"": nil}': array_of(b"\x81\xa0\xc0", MIB),
    "nil": array_of(b"\xc0", 4 * MIB),
    "lists of lists": array_of(array_of(b"\x90", 1000), 1000),
    "one map": b"\xdf" + (MIB).to_bytes(4, "big") + b"\xa0\xc0" * MIB,
    "texts that need four bytes for each character": msgpack.packb(
        ["a" * (MAX_TEXT_BYTES // 2) + "\U0001f600"] * 3
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_unpack__refuses_too_many_values_before_decoding(bomb: str) -> None:
    message = BOMBS[bomb]
    tracemalloc.start()
    start = time.thread_time()
    with pytest.raises(
        WireError, match=rf"^a message of {len(message):,} bytes with more than [\d,]+ (values|bytes)"
    ):
        unpack(message)
    assert time.thread_time() - start < 0.5
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_unpack__reads_as_many_values_as_permitted() -> None:
    assert unpack(array_of(b"\x80", MAX_VALUES - 1))[0] == [{}] * (MAX_VALUES - 1)
    with pytest.raises(WireError, match="more than 16,384 values"):
        unpack(array_of(b"\x80", MAX_VALUES))


def test_unpack__needs_no_more_memory_than_the_message_has() -> None:
    """Arrays share the memory of msgpack's copy of their bytes, in each encoding."""
    image = np.zeros((8, MIB), np.uint8)
    for array in (remote_case.npy, remote_case.nd, remote_case.openpi_array):
        message = remote_case.packb({"a": image}, array)
        tracemalloc.start()
        assert unpack(message)[0]["a"].shape == (8, MIB)
        assert tracemalloc.get_traced_memory()[1] < 1.05 * len(message)
        tracemalloc.stop()


@pytest.mark.parametrize("number", [1, 2])
def test_unpack__limits_json(number: int) -> None:
    table = {"__ModalityConfig__": True, "as_json": "[" + "[]," * (MAX_JSON_BYTES // 3 // number) + "1]"}
    with pytest.raises(WireError, match="more than 65,536 bytes of JSON"):
        unpack(msgpack.packb([table] * number))


def test_npy_header__is_never_parsed_as_python() -> None:
    """It is a Python literal, which may nest as deeply and take as long as its sender likes."""
    for header in (
        b"(" * 9000,
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 5000 + b"1,), }\n",
    ):
        file = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        start = time.thread_time()
        with pytest.raises(WireError, match=r"\.npy header cannot be read"):
            unpack(msgpack.packb({"__ndarray_class__": True, "as_npy": file}))
        assert time.thread_time() - start < 0.05


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.binary(), inner, max_size=4),
    max_leaves=8,
)


def number_of_values(value: Any) -> int:
    if isinstance(value, msgpack.ExtType):
        return 1
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(number_of_values, value.values()))
    return 1 + sum(map(number_of_values, value)) if isinstance(value, list) else 1


@settings(max_examples=60)
@given(value=values)
def test_check_message__counts_as_msgpack_does(value: Any) -> None:
    message = msgpack.packb(value)
    end, left = message_limits._skip(message, 0, MAX_VALUES)
    assert end == len(message)
    assert MAX_VALUES - left == number_of_values(value)


@pytest.mark.parametrize(
    "value",
    [
        b"x" * 70_000,
        "x" * 70_000,
        [0] * 9000,
        {str(n): n for n in range(5000)},
        msgpack.ExtType(1, bytes(70_000)),
    ],
    ids=["bytes", "text", "list", "map", "extension"],
)
def test_check_message__knows_the_long_formats(value: Any) -> None:
    test_check_message__counts_as_msgpack_does.hypothesis.inner_test(value)  # type: ignore[attr-defined]


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_check_message__stops_at_the_end_of_any_bytes(message: bytes) -> None:
    with contextlib.suppress(MessageLimitError):
        check_message(message)


@settings(max_examples=40)
@given(value=values, others=st.lists(st.tuples(st.text(), values), max_size=3), place=st.integers(0, 3))
def test_peek__finds_a_key_anywhere(value: Any, others: list[Any], place: int) -> None:
    others.insert(place, ("api_token", value))
    message = bytes([0x80 + len(others)]) + b"".join(msgpack.packb(k) + msgpack.packb(v) for k, v in others)
    first = next(v for k, v in others if k == "api_token")
    assert peek(message, "api_token") == first
    assert peek(memoryview(message), "api_token") == first


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x81\xa9api_token",
        b"\xa9api_token",
        b"\x91\xa9api_token",
        b"\x81\xc4\x09api_token\x01",
        *BOMBS.values(),
    ],
)
def test_peek__finds_nothing_in_other_messages(message: bytes) -> None:
    assert peek(message, "api_token") is None
