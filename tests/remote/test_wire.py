"""Messages with arrays: each encoding in both directions, bytes worked out by hand, and invalid messages."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
import remote_case
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

from residual_rl.remote import wire
from residual_rl.remote.wire import WireError, modality_config, pack, unpack
from residual_rl.utils.text import one_line

ENCODINGS = ("npy", "nd", "openpi")
BY_HAND = {"npy": remote_case.npy, "nd": remote_case.nd, "openpi": remote_case.openpi_array}

plain_dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
arrays = npst.arrays(plain_dtypes, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


@st.composite
def views(draw: st.DrawFn) -> Any:
    """Arrays in C order, transposed, strided, reversed, read-only."""
    array = draw(arrays)
    if array.ndim and draw(st.booleans()):
        array = array.T
    if array.ndim and draw(st.booleans()):
        array = array[:: draw(st.sampled_from([-1, 2, -2]))]
    array.setflags(write=draw(st.booleans()))
    return array


# --- both directions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60)
@given(array=views())
def test_pack__unpack_restores_any_array(encoding: Any, array: Any) -> None:
    value, seen = unpack(pack({"a": [array]}, encoding))
    back = value["a"][0]
    assert seen == encoding
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.dtype.isnative
    assert back.shape == array.shape
    assert back.flags.owndata or back.base.flags.owndata
    assert back.flags.writeable
    # Equal bit for bit, including NaN.
    assert np.ascontiguousarray(back).tobytes() == np.ascontiguousarray(array).astype(back.dtype).tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=30)
@given(array=views())
def test_pack__is_compatible_with_independent_codecs(encoding: Any, array: Any) -> None:
    np.testing.assert_array_equal(remote_case.unpackb(pack(array, encoding)), array)
    back, seen = unpack(remote_case.packb(array, BY_HAND[encoding]))
    assert seen == encoding
    np.testing.assert_array_equal(back, array)


def test_pack__matches_bytes_worked_out_by_hand() -> None:
    """Bytes of [1.5, -2.0] in float32 with shape [2] in the three encodings, by the msgpack specification."""
    data = bytes.fromhex("0000c03f000000c0")
    nd = (
        b"\x85\xc4\x02nd\xc3\xc4\x04type\xa3<f4\xc4\x04kind\xc4\x00\xc4\x05shape\x91\x02\xc4\x04data\xc4\x08"
        + data
    )
    openpi = (
        b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08"
        + data
        + b"\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x02"
    )
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    file = b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + data
    npy = b"\x82\xb1__ndarray_class__\xc3\xa6as_npy\xc4" + bytes([len(file)]) + file
    for encoding, message in (("nd", nd), ("openpi", openpi), ("npy", npy)):
        assert pack(np.array([1.5, -2.0], np.float32), encoding) == message  # type: ignore[arg-type]
        value, seen = unpack(message)
        assert (value.tolist(), value.dtype, seen) == ([1.5, -2.0], np.float32, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_pack__unpack_restores_numbers_texts_and_nesting(encoding: Any) -> None:
    value = {
        "a": [1, 2.5, None, True, "näm", b"\x00\xff", {"b": []}],
        "n": np.float32(0.5),
        "i": np.int64(-3),
    }
    back, _ = unpack(pack(value, encoding))
    assert back == {"a": [1, 2.5, None, True, "näm", b"\x00\xff", {"b": []}], "n": 0.5, "i": -3}
    if encoding == "openpi":  # which stores the types of single numbers
        assert (type(back["n"]), type(back["i"])) == (np.float32, np.int64)


def test_unpack__reads_text_keys() -> None:
    table = {"nd": True, "type": "<i2", "kind": "", "shape": [2], "data": b"\x01\x00\x02\x00"}
    assert unpack(msgpack.packb(table))[0].tolist() == [1, 2]
    assert unpack(msgpack.packb({b"nd": False, b"type": "<f8", b"data": bytes(8)}))[0].shape == ()


@pytest.mark.parametrize("marker", ["__ModalityConfig_class__", "__ModalityConfig__"])
def test_unpack__reads_modalities_as_text_and_as_objects(marker: str) -> None:
    content = {"delta_indices": [0], "modality_keys": ["front"]}
    for written in ({"as_json": content}, {"as_json": json.dumps(content)}, {"as_dict": content}):
        assert unpack(msgpack.packb({"video": {marker: True, **written}}))[0] == {"video": content}
    assert modality_config(content, as_text=True) == {
        "__ModalityConfig_class__": True,
        "as_json": json.dumps(content),
    }
    assert modality_config(content, as_text=False) == {"__ModalityConfig_class__": True, "as_json": content}


def test_unpack__modality_marker_decides_the_array_encoding() -> None:
    """Isaac-GR00T changed both at once, and a client receives only a modality configuration before it sends
    arrays."""
    for marker, encoding in (("__ModalityConfig__", "nd"), ("__ModalityConfig_class__", "npy")):
        assert unpack(msgpack.packb({"video": {marker: True, "as_json": {}}}))[1] == encoding


# --- invalid messages ---------------------------------------------------------------------------------------


def npy_file(descr: Any, shape: Any, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> dict[str, Any]:
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version](
        file, header
    )
    return {"__ndarray_class__": True, "as_npy": file.getvalue() + data}


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was read",))


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    return file.getvalue()


REFUSED: dict[str, tuple[Any, str]] = {
    "npy of objects": ({"__ndarray_class__": True, "as_npy": pickled()}, "object"),
    "nd of objects": (
        {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": bytes(8)},
        "object",
    ),
    "openpi of objects": ({b"__ndarray__": True, b"dtype": "|O", b"shape": [1], b"data": bytes(8)}, "object"),
    "npy of records": (npy_file([("a", "<f4")], (1,), bytes(4)), "only booleans"),
    "nd of records": ({b"nd": True, b"type": "i4,f4", b"shape": [1], b"data": bytes(8)}, "only booleans"),
    "strings": ({b"__ndarray__": True, b"dtype": "<U2", b"shape": [1], b"data": bytes(8)}, "only booleans"),
    "times": ({b"__ndarray__": True, b"dtype": "<M8[s]", b"shape": [1], b"data": bytes(8)}, "only booleans"),
    "complex": ({b"__ndarray__": True, b"dtype": "<c8", b"shape": [1], b"data": bytes(8)}, "only booleans"),
    "long doubles": (
        {b"__ndarray__": True, b"dtype": "<f16", b"shape": [1], b"data": bytes(16)},
        "only booleans",
    ),
    "an unknown dtype": (
        {b"__ndarray__": True, b"dtype": "bfloat16", b"shape": [1], b"data": bytes(2)},
        "unknown dtype 'bfloat16'",
    ),
    "a long dtype": (
        {b"__ndarray__": True, b"dtype": "f4," * 9999, b"shape": [1], b"data": bytes(2)},
        "unknown dtype",
    ),
    "a dtype that is none": (
        {b"__ndarray__": True, b"dtype": 4, b"shape": [1], b"data": bytes(2)},
        "dtype is a int",
    ),
    "too little data": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [2, 3], b"data": bytes(20)},
        r"shape \(2, 3\) with 20 bytes",
    ),
    "too much data": (
        {b"nd": True, b"type": "<f4", b"shape": [2], b"data": bytes(9)},
        r"shape \(2,\) with 9 bytes",
    ),
    "npy that claims a terabyte": (npy_file("<f4", (1 << 40,)), r"shape \(1099511627776,\) with 0 bytes"),
    "nd that claims a terabyte": (
        {b"nd": True, b"type": "<f4", b"shape": [1 << 40], b"data": b""},
        "with 0 bytes",
    ),
    "npy with a rest": (npy_file("<f4", (1,), bytes(8)), "with 8 bytes"),
    "negative sizes": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [-1, -1], b"data": bytes(4)},
        "shape is not a list",
    ),
    "sizes that are none": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [True], b"data": bytes(4)},
        "shape is not a list",
    ),
    "a shape that is none": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": 1, b"data": bytes(4)},
        "shape is not a list",
    ),
    "too many sizes": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1] * 33, b"data": bytes(4)},
        "shape is not a list",
    ),
    "data that is a list": (
        {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1], b"data": [1.0]},
        "data is a list",
    ),
    "npy that is text": ({"__ndarray_class__": True, "as_npy": "x"}, "data is a str"),
    "npy that is none": (
        {"__ndarray_class__": True, "as_npy": b"PK\x03\x04 and so on"},
        "header cannot be read",
    ),
    "npy of another version": (
        {"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x03\x00" + bytes(20)},
        "header cannot be read",
    ),
    "a header that is code": (
        {"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os')".ljust(32)},
        "header",
    ),
    "nothing but the marker": ({"__ndarray_class__": True}, "without 'as_npy'"),
    "a modality without content": ({"__ModalityConfig__": True}, "without 'as_json'"),
    "a modality that is no JSON": ({"__ModalityConfig__": True, "as_json": "{"}, "no msgpack message"),
    "a number that is none": (
        {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
        "a number that is a str",
    ),
    "a number that is too large": (
        {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
        "the number 300 as uint8",
    ),
    "a single string": ({b"__npgeneric__": True, b"data": "go", b"dtype": "<U2"}, "only booleans"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unpack__refuses_an_invalid_array(case: str) -> None:
    table, reason = REFUSED[case]
    tracemalloc.start()
    with pytest.raises(WireError, match=reason):
        unpack(msgpack.packb({"a": table}))
    assert tracemalloc.get_traced_memory()[1] < 2e6  # independent of the claimed size
    tracemalloc.stop()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xa1\xff",
        b"\x81\x01\x02",
    ],
    ids=[
        "empty",
        "reserved",
        "cut off",
        "two messages",
        "long list",
        "long data",
        "deep",
        "no UTF-8",
        "number as key",
    ],
)
def test_unpack__refuses_bytes_that_are_not_a_message(message: bytes) -> None:
    with pytest.raises(WireError, match=rf"^{len(message):,} bytes that are no msgpack message"):
        unpack(message)


def refusal(message: bytes) -> str:
    """The error message of a refused message; empty for a valid one."""
    try:
        unpack(message)
    except WireError as error:
        return str(error)
    return ""


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_unpack__any_bytes_are_read_or_refused(message: bytes) -> None:
    assert "\n" not in refusal(message)


@settings(max_examples=200)
@given(st.data())
def test_unpack__corrupted_message_is_read_or_refused(data: st.DataObject) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = bytearray(pack({"endpoint": "get_action", "a": array}, data.draw(st.sampled_from(ENCODINGS))))  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    assert "\n" not in refusal(bytes(message))


def test_max_message_bytes__limits_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wire.MAX_MESSAGE_BYTES == 33_554_432
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 1000)
    assert unpack(pack(np.zeros(900, np.uint8), "nd"))[0].shape == (900,)
    with pytest.raises(WireError, match=r"would be a message of 1,0\d\d bytes; the limit is 1,000"):
        pack(np.zeros(1000, np.uint8), "nd")
    with pytest.raises(WireError, match="a message of 1,001 bytes; the limit is 1,000"):
        unpack(bytes(1001))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.array(["a"]), np.zeros(1, "<c8"), object(), {1, 2}, 1 << 70],
    ids=["objects", "text", "complex", "object", "set", "huge"],
)
def test_pack__refuses_unsupported_values(encoding: Any, value: Any) -> None:
    with pytest.raises(WireError):
        pack({"a": value}, encoding)


def test_pack__large_image_is_fast() -> None:
    """8 MiB in both directions; a loop over the bytes would take seconds."""
    image = np.random.default_rng(0).integers(0, 255, (4, 1024, 2048), dtype=np.uint8)
    start = time.thread_time()
    for encoding in ENCODINGS:
        assert np.array_equal(unpack(pack(image, encoding))[0], image)  # type: ignore[arg-type]
    assert time.thread_time() - start < 2.0


def test_one_line__keeps_the_error_of_a_traceback() -> None:
    assert (
        one_line("Traceback (most recent call last):\n  File x\nValueError: no state\n\n")
        == "ValueError: no state"
    )
    assert one_line("") == ""
    assert one_line("x" * 400) == "x" * 300 + "…"
