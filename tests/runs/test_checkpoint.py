"""Checkpoints: exact round trip, identical bytes, atomic writes, and errors that name the file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DATA
from safetensors import safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from residual_rl.errors import CheckpointError, ConfigError, NonFiniteError, ResidualRLError
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder, from_bytes, load, save, save_dump, to_bytes
from residual_rl.utils.files import WriteError, write_atomically

GOLDEN = DATA / "golden_checkpoint_v1.safetensors"


def golden_state() -> dict[str, Any]:
    """A state with a value of each type.

    The golden file was written with `save(GOLDEN, golden_state(), "checkpoint")`.
    """
    return {
        "learner": {
            "actor": {
                "0.weight": torch.tensor([[0.5, -1.25], [2.0, 0.1]]),
                "0.bias": torch.tensor([1.0, 2.0], dtype=torch.float64),
            },
            "half": [torch.tensor([1.5], dtype=torch.float16), torch.tensor([-0.75], dtype=torch.bfloat16)],
            "count": torch.tensor(7),
            "learning_rate": 0.1 + 0.2,
            "tiny": 5e-324,
        },
        "env": {
            "queue": [3, 1, 2],
            "none": None,
            "mask": torch.tensor([True, False]),
            "generator": torch.arange(5, dtype=torch.uint8),
        },
        "a/b~c": torch.zeros(0, 3, dtype=torch.int32),
        "name": 'résumé "✓"',
        "big": 2**127 - 1,
        "done": False,
        "empty": {},
    }


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, dtype and shape, recursively; the order of keys does not matter."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and repr(a) == repr(b)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_load__returns_exactly_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "x.safetensors", golden_state(), "checkpoint")
    assert same(load(tmp_path / "x.safetensors", "checkpoint"), golden_state())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]
keys = st.text(st.characters(codec="utf-8"), max_size=6).filter(
    lambda k: k not in ("$tensor", "__metadata__")
)
tensors = st.builds(
    lambda dtype, shape: (torch.arange(shape[0] * shape[1]) % 2).to(dtype).reshape(shape),
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
leaves = tensors | numbers | st.text(st.characters(codec="utf-8")) | st.booleans() | st.none()
states = st.dictionaries(
    keys,
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(states)
def test_to_bytes__any_state_round_trips_with_unique_bytes(state: dict[str, Any]) -> None:
    data = to_bytes(state, "checkpoint")
    loaded = from_bytes(data, "checkpoint")
    assert same(loaded, state)
    assert to_bytes(loaded, "checkpoint") == data


def test_save__bytes_do_not_depend_on_the_order_of_keys_or_the_path(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"x": 1, "y": {"p": torch.ones(2), "q": torch.zeros(3)}}, "policy")
    save(tmp_path / "b.safetensors", {"y": {"q": torch.zeros(3), "p": torch.ones(2)}, "x": 1}, "policy")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_save__writes_the_documented_file_layout(tmp_path: Path) -> None:
    save(
        tmp_path / "x.safetensors",
        {"net": {"w": torch.ones(2), "layers": [torch.zeros(1), 4]}, "a/b~": torch.ones(1)},
        "policy",
    )
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["a~1b~0", "net/layers/0", "net/w"]
        assert list(file.metadata()) == ["residual_rl"]
        document = json.loads(file.metadata()["residual_rl"])
    assert document.pop("sha256")
    state = {
        "a/b~": {"$tensor": "a~1b~0"},
        "net": {"layers": [{"$tensor": "net/layers/0"}, 4], "w": {"$tensor": "net/w"}},
    }
    assert document == {"format_version": 1, "kind": "policy", "state": state}


def test_save__stores_the_values_of_shared_strided_and_trained_tensors() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(torch.ones(2))
    state = {
        "whole": whole,
        "row": whole[1],
        "turned": whole.T,
        "again": whole,
        "spread": torch.ones(1).expand(4),
        "parameter": parameter,
    }
    loaded = from_bytes(to_bytes(state, "checkpoint"), "checkpoint")
    assert loaded["row"].tolist() == [4, 5, 6, 7]
    assert loaded["turned"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert loaded["spread"].tolist() == [1, 1, 1, 1]
    assert type(loaded["parameter"]) is Tensor
    assert not loaded["parameter"].requires_grad
    loaded["whole"].zero_()
    assert loaded["again"].sum() == 66
    assert all(t.data_ptr() % 64 == 0 for t in loaded.values())  # the alignment of torch


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), torch.tensor([1.0, float("nan")]), torch.tensor(-float("inf")).bfloat16()],
)
def test_save__refuses_numbers_that_are_not_finite(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"fine": 1}, "checkpoint")
    with pytest.raises(NonFiniteError, match=r"^learner/layers/1 "):
        save(path, {"learner": {"layers": [0.0, bad]}}, "checkpoint")
    assert load(path, "checkpoint") == {"fine": 1}


def test_save_dump__allows_numbers_that_are_not_finite(tmp_path: Path) -> None:
    save_dump(
        tmp_path / "dump.safetensors",
        {"obs/state": torch.tensor([1.0, float("nan")]), "reward": float("inf"), "step": 3},
    )
    dump = load(tmp_path / "dump.safetensors", "dump")
    assert dump["obs/state"].isnan().tolist() == [False, True]
    assert (dump["reward"].item(), dump["step"]) == (float("inf"), 3)
    with pytest.raises(CheckpointError, match="is a residual_rl dump; expected a checkpoint"):
        load(tmp_path / "dump.safetensors", "checkpoint")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optimizer": {0: 1}}, "key 0 in state 'optimizer' is a int"),
        ({"betas": (0.9, 0.999)}, "betas is a tuple"),
        ({"x": [object()]}, "x/0 is a object"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "x is a .*complex64"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "x is a torch.sparse_coo"),
        ({"x": {"$tensor": 1}}, r"key '\$tensor' in state 'x'"),
        ({"__metadata__": torch.zeros(1)}, "__metadata__"),
        ([1], "a state is a dict"),
    ],
)
def test_to_bytes__refuses_unsupported_values_by_name(state: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_bytes(state, "checkpoint")


def with_metadata(text: str) -> bytes:
    return save_safetensors({"x": torch.ones(2)}, {"residual_rl": text})


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLE = to_bytes({"weights": torch.arange(100.0), "step": 1234}, "checkpoint")
EXPECTED = "expected a residual_rl checkpoint"
WRONG_FILES = [
    ("empty", b"", f"truncated or not a safetensors file; {EXPECTED}"),
    ("cut in the header", WHOLE[:50], f"truncated or not a safetensors file; {EXPECTED}"),
    ("cut in the data", WHOLE[:-1], f"truncated or not a safetensors file; {EXPECTED}"),
    ("zip", b"PK\x03\x04" + bytes(200), f"truncated or not a safetensors file; {EXPECTED}"),
    ("flipped bit in a tensor", flipped(WHOLE, len(WHOLE) - 10), "damaged: .* checksum"),
    ("flipped bit in a number", flipped(WHOLE, WHOLE.index(b"1234") + 1), "damaged: .* checksum"),
    (
        "another program's",
        save_safetensors({"x": torch.ones(2)}, {"format": "pt"}),
        f"of another program; {EXPECTED}",
    ),
    ("no metadata", save_safetensors({"x": torch.ones(2)}), f"of another program; {EXPECTED}"),
    ("not our JSON", with_metadata("{"), "description is unreadable"),
    ("no version", with_metadata("{}"), "description is unreadable"),
    ("other kind", to_bytes({}, "policy"), "is a residual_rl policy; expected a checkpoint"),
    (
        "newer version",
        with_metadata('{"format_version": 2}'),
        "format version 2; this release reads up to version 1: update residual_rl",
    ),
    (
        "unknown version",
        with_metadata('{"format_version": 0}'),
        "format version 0, which cannot be read; expected 1",
    ),
]


@pytest.mark.parametrize(("data", "message"), [w[1:] for w in WRONG_FILES], ids=[w[0] for w in WRONG_FILES])
def test_load__names_a_wrong_file_and_the_expected_kind(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, "checkpoint")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load__names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere\.safetensors does not exist; expected a residual_rl policy"
    ):
        load(tmp_path / "nowhere.safetensors", "policy")
    with pytest.raises(CheckpointError, match=r"cannot read .*it is not a regular file"):
        load(tmp_path, "policy")


def test_load__golden_file_is_readable_and_written_identically() -> None:
    assert same(load(GOLDEN, "checkpoint"), golden_state())
    assert to_bytes(golden_state(), "checkpoint") == GOLDEN.read_bytes()


def test_migrations__convert_earlier_versions_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    monkeypatch.setitem(checkpoint.MIGRATIONS, 1, lambda state, kind: {"kind": kind, "two": state["name"]})
    monkeypatch.setitem(checkpoint.MIGRATIONS, 2, lambda state, kind: {**state, "three": len(kind)})
    assert load(GOLDEN, "checkpoint") == {"kind": "checkpoint", "two": 'résumé "✓"', "three": 10}


def test_checkpoint_folder__keeps_the_last_few(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep=2)
    assert folder.latest() is None
    for step in (10_240, 20_480, 1_000_000_000):
        assert folder.save(step, {"step": step}) == folder.folder / f"step_{step:09d}.safetensors"
    assert sorted(p.name for p in folder.folder.iterdir()) == [
        "step_000020480.safetensors",
        "step_1000000000.safetensors",
    ]
    assert folder.latest() == (1_000_000_000, {"step": 1_000_000_000})
    with pytest.raises(ConfigError, match="keep must be at least 1"):
        CheckpointFolder(tmp_path, keep=0)


def test_latest__fails_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, {}).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be loaded; the last of 2: .*step_000000001"
    ):
        folder.latest()


def test_checkpoint_folder__removes_temporary_files_of_a_killed_process(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"step": 1})
    (tmp_path / ".step_000000002.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    assert folder.latest() == (1, {"step": 1})
    folder.save(2, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000001.safetensors",
        "step_000000002.safetensors",
    ]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_write_atomically__a_failed_write_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"old": 1}, "checkpoint")

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(WriteError if isinstance(error, OSError) else KeyboardInterrupt):
            save(path, {"new": 2}, "checkpoint")
    assert load(path, "checkpoint") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_write_atomically__syncs_file_and_folder_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "x", b"1")
    assert done[0].startswith(".x.")
    assert done[1:] == ["replace", tmp_path.name]


def test_checkpoint_folder__a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"step": 1})
    with (
        file_size_limit(20_000),
        pytest.raises(
            WriteError, match=r"cannot write .*step_000000002.*File too large; raise the file size"
        ),
    ):
        folder.save(2, {"weights": torch.zeros(10_000)})
    assert folder.latest() == (1, {"step": 1})
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoint_folder__a_full_file_system_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        folder = CheckpointFolder(tmp_path, keep=3)
        folder.save(1, {"weights": torch.zeros(10_000)})
        with pytest.raises(WriteError, match="No space left on device; free some space"):
            folder.save(2, {"weights": torch.zeros(100_000)})
        assert folder.latest()[0] == 1  # type: ignore[index]
        assert len(list(tmp_path.iterdir())) == 1
        folder.save(3, {"weights": torch.zeros(10_000)})
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_make_folder__names_a_folder_that_cannot_be_created(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place if place == "file" else Path(place)
    with pytest.raises(ResidualRLError, match=f"^cannot write {folder}: .*choose"):
        CheckpointFolder(folder).save(1, {})
