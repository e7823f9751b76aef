"""Checkpoints: exact round trip, identical bytes, atomic writes, and errors that name the file."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
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
    """One of everything that a state can hold. The golden file was written with `save(GOLDEN, golden_state(), "checkpoint")`."""
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
    """Equal in value, type, dtype and shape, all the way down; the order of keys does not count."""
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


def test_round_trip_is_exact(tmp_path: Path) -> None:
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
def test_any_state_round_trips_and_its_bytes_are_its_own(state: dict[str, Any]) -> None:
    data = to_bytes(state, "checkpoint")
    loaded = from_bytes(data, "checkpoint")
    assert same(loaded, state)
    assert to_bytes(loaded, "checkpoint") == data


def test_bytes_do_not_depend_on_the_order_of_keys_nor_on_the_path(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"x": 1, "y": {"p": torch.ones(2), "q": torch.zeros(3)}}, "policy")
    save(tmp_path / "b.safetensors", {"y": {"q": torch.zeros(3), "p": torch.ones(2)}, "x": 1}, "policy")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_layout_in_the_file(tmp_path: Path) -> None:
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


def test_shared_strided_and_trained_tensors_are_stored_as_their_values() -> None:
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
    assert all(t.data_ptr() % 64 == 0 for t in loaded.values())  # torch's own alignment


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), torch.tensor([1.0, float("nan")]), torch.tensor(-float("inf")).bfloat16()],
)
def test_nothing_that_is_not_finite_reaches_a_checkpoint(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"fine": 1}, "checkpoint")
    with pytest.raises(NonFiniteError, match=r"^learner/layers/1 "):
        save(path, {"learner": {"layers": [0.0, bad]}}, "checkpoint")
    assert load(path, "checkpoint") == {"fine": 1}


def test_a_dump_may_hold_what_led_to_the_failure(tmp_path: Path) -> None:
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
def test_what_a_state_cannot_hold_is_refused_by_name(state: Any, message: str) -> None:
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
def test_wrong_files_are_named_with_what_was_expected(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, "checkpoint")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere\.safetensors does not exist; expected a residual_rl policy"
    ):
        load(tmp_path / "nowhere.safetensors", "policy")
    with pytest.raises(CheckpointError, match=r"cannot read .*Is a directory"):
        load(tmp_path, "policy")


class _Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(_Payload(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.safetensors", "checkpoint")
    assert not (tmp_path / "ran").exists()


def test_golden_file_stays_loadable_and_is_written_the_same() -> None:
    assert same(load(GOLDEN, "checkpoint"), golden_state())
    assert to_bytes(golden_state(), "checkpoint") == GOLDEN.read_bytes()


def test_earlier_versions_migrate_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    monkeypatch.setitem(checkpoint.MIGRATIONS, 1, lambda state, kind: {"kind": kind, "two": state["name"]})
    monkeypatch.setitem(checkpoint.MIGRATIONS, 2, lambda state, kind: {**state, "three": len(kind)})
    assert load(GOLDEN, "checkpoint") == {"kind": "checkpoint", "two": 'résumé "✓"', "three": 10}


def test_folder_keeps_the_last_few(tmp_path: Path) -> None:
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


def test_damaged_latest_falls_back_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path)
    paths = [folder.save(step, {"step": step}) for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-3])
    assert folder.latest() == (2, {"step": 2})
    record = next(r for r in caplog.records if r.levelno == logging.WARNING)
    assert paths[2].name in record.getMessage()
    assert f"FALLING BACK to the previous checkpoint, {paths[1]}" in record.getMessage()
    # training goes on from step 2 and saves before it comes to 3 again: the damaged file must not hide the new one
    caplog.clear()
    assert CheckpointFolder(tmp_path, keep=1).save(2, {"again": 2}).exists()
    assert folder.latest() == (2, {"again": 2})
    assert "step_000000003.safetensors.abandoned" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_000000002.safetensors",
        "step_000000003.safetensors.abandoned",
    ]


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, {}).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be loaded; the last of 2: .*step_000000001"
    ):
        folder.latest()


def test_leftovers_of_a_kill_are_ignored_and_cleaned(tmp_path: Path) -> None:
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
def test_failed_write_leaves_the_earlier_file(
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


def test_file_and_folder_are_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "x", b"1")
    assert done[0].startswith(".x.")
    assert done[1:] == ["replace", tmp_path.name]


def test_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
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


def test_full_file_system_leaves_the_last_checkpoint(tmp_path: Path) -> None:
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
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place if place == "file" else Path(place)
    with pytest.raises(ResidualRLError, match=f"^cannot write {folder}: .*choose"):
        CheckpointFolder(folder).save(1, {})


SAVER = """
import os, sys, torch
torch.set_num_threads(1)
from residual_rl.runs.checkpoint import CheckpointFolder
folder = CheckpointFolder(sys.argv[1])
for line in sys.stdin:
    step, pid = int(line), os.fork()
    while pid == 0:
        step += 1
        folder.save(step, {"step": step, "weights": torch.full((200_000,), float(step))})
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_time_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    folder, rng, halves, last = CheckpointFolder(tmp_path), random.Random(0), 0, 0
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(1000):  # on a tmpfs few hit a write
            print(last, file=saver.stdin, flush=True)
            pid = int(saver.stdout.readline())
            end = time.monotonic() + 60.0
            try:
                while folder.files().keys() <= {*range(last + 1)}:  # until it has written at least one
                    assert time.monotonic() < end, "waited too long"
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.02))
            finally:
                os.kill(pid, signal.SIGKILL)  # or the saver would be waited for without end
            assert int(saver.stdout.readline()) == signal.SIGKILL
            found = folder.latest()
            assert found is not None
            step, state = found
            assert step == state["step"] > last
            assert state["weights"].unique().tolist() == [step]
            last = step
            halves += any(p.suffix == ".tmp" for p in tmp_path.iterdir())
            if halves >= 2:
                break
        saver.stdin.close()
    assert halves >= 2, "no kill hit a write: the test shows nothing"
