"""Segments: written once, removed with the last checkpoint that contains them, safe against interruptions."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from residual_rl.errors import CheckpointError, ConfigError, NonFiniteError
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder, copy_state, from_bytes, load, save, to_bytes
from residual_rl.runs.segments import SegmentFolder
from residual_rl.types import Segment, State
from residual_rl.utils.files import WriteError


def segment(number: int, reads: list[int] | None = None) -> Segment:
    def read() -> State:
        if reads is not None:
            reads.append(number)
        return {"first_row": 10 * number, "columns": {"obs": torch.full((3, 2), float(number))}}

    return Segment(f"segment_{number:06d}", read)


def state(first: int, last: int, reads: list[int] | None = None) -> State:
    return {"buffer": [segment(i, reads) for i in range(first, last + 1)], "step": last}


def folder(tmp_path: Path, keep: int = 2) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "run" / "checkpoints", keep)


def names(tmp_path: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("segment_")) for file in (tmp_path / "run" / "replay").iterdir())


def numbers(loaded: Any) -> list[float]:
    assert [part["first_row"] for part in loaded["buffer"]] == [
        10 * part["columns"]["obs"][0, 0].item() for part in loaded["buffer"]
    ]
    return [part["columns"]["obs"].unique().item() for part in loaded["buffer"]]


def test_checkpoint_folder__writes_each_segment_once_and_removes_it_with_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    reads: list[int] = []
    checkpoints = folder(tmp_path)
    for step, (first, last) in enumerate([(0, 1), (0, 2), (2, 4), (3, 4), (4, 5)], 1):
        checkpoints.save(step, state(first, last, reads))
        kept = {1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3, 4], 4: [2, 3, 4], 5: [3, 4, 5]}[step]
        assert names(tmp_path) == kept
        assert numbers(checkpoints.latest()[1]) == list(range(first, last + 1))  # type: ignore[index]
    assert reads == [0, 1, 2, 3, 4, 5]
    resumed = folder(tmp_path)  # a new process reads the names of the segments from the checkpoint
    assert resumed.latest()[0] == 5  # type: ignore[index]
    resumed.save(6, state(4, 6, reads))
    assert reads == [0, 1, 2, 3, 4, 5, 6]


def test_manifest__has_the_sha256_of_each_file(tmp_path: Path) -> None:
    path = folder(tmp_path).save(1, state(0, 1))
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["residual_rl"])
    files = {
        p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "run" / "replay").iterdir()
    }
    assert document["segments"] == files
    assert len(files) == 2
    assert document["state"]["buffer"] == [{"$segment": "segment_000000"}, {"$segment": "segment_000001"}]
    assert numbers(load(path, "checkpoint")) == [0, 1]


def test_save__stores_segments_in_the_file_outside_a_checkpoint_folder(tmp_path: Path) -> None:
    plain = {"buffer": [part.contents() for part in state(0, 1)["buffer"]], "step": 1}
    assert to_bytes(state(0, 1), "checkpoint") == to_bytes(plain, "checkpoint")
    save(tmp_path / "x.safetensors", state(0, 1), "checkpoint")
    assert numbers(load(tmp_path / "x.safetensors", "checkpoint")) == [0, 1]
    held = state(0, 0)
    assert copy_state(held)["buffer"][0] is held["buffer"][0]


def test_segment_keep__reads_the_contents_once() -> None:
    reads: list[int] = []
    part = segment(3, reads)
    part.keep()
    part.keep()
    assert part.contents() is part.contents()
    assert reads == [3]


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "other"])
def test_latest__falls_back_if_a_segment_is_missing_or_damaged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(1, state(0, 1))
    checkpoints.save(2, state(0, 2))
    file = tmp_path / "run" / "replay" / "segment_000002.safetensors"
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        other = (file.with_name("segment_000001.safetensors")).read_bytes()
        file.write_bytes(
            {"cut": data[:-1], "flip": data[:-3] + bytes([data[-3] ^ 4]) + data[-2:], "other": other}[damage]
        )
    again = folder(tmp_path)
    step, loaded = again.latest()  # type: ignore[misc]
    assert (step, numbers(loaded)) == (1, [0, 1])
    assert f"step_000000002.safetensors is incomplete: its segment {file}" in caplog.text
    assert "FALLING BACK" in caplog.text
    again.save(2, state(0, 2))  # the resumed run reaches the same step again
    assert numbers(folder(tmp_path).latest()[1]) == [0, 1, 2]  # type: ignore[index]


def test_checkpoint_folder__writes_a_removed_segment_again(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(1, state(0, 1))
    (tmp_path / "run" / "replay" / "segment_000000.safetensors").unlink()
    checkpoints.save(2, state(0, 2))
    assert numbers(folder(tmp_path).latest()[1]) == [0, 1, 2]  # type: ignore[index]


def test_checkpoint_folder__refuses_nan_and_invalid_names_in_segments(tmp_path: Path) -> None:
    bad = Segment("segment_000001", lambda: {"obs": torch.tensor([torch.nan])})
    with pytest.raises(NonFiniteError, match="obs contains NaN"):
        folder(tmp_path).save(1, {"buffer": bad})
    assert folder(tmp_path).latest() is None
    with pytest.raises(ConfigError, match=r"the name of a segment must be like segment_000003, not '\.\./x'"):
        folder(tmp_path).save(1, {"buffer": Segment("../x", dict)})
    with pytest.raises(ConfigError, match=r"key '\$segment' in state 'x' is reserved"):
        to_bytes({"x": {"$segment": "y"}}, "checkpoint")
    foreign = to_bytes({"x": segment(0)}, "checkpoint", {"../../x": "0"})
    with pytest.raises(
        CheckpointError, match=r"the data is incomplete: the name of a segment must be like segment_000003"
    ):
        from_bytes(foreign, "checkpoint", segments=SegmentFolder(tmp_path))


def test_checkpoint_folder__keeps_unrelated_files(tmp_path: Path) -> None:
    mine = tmp_path / "run" / "replay" / "my-own.safetensors"
    mine.parent.mkdir(parents=True)
    mine.touch()
    checkpoints = folder(tmp_path, keep=1)
    checkpoints.save(1, state(0, 0))
    checkpoints.save(2, {})
    assert [file.name for file in mine.parent.iterdir()] == [mine.name]


class _Stopped(BaseException):
    """Like a kill: nothing handles it."""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), _Stopped()], ids=["full", "killed"]
)
def test_checkpoint_folder__an_interrupted_save_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Each write, sync, rename and removal of a save with two new segments fails in turn."""
    calls = {"n": 0, "fail_at": -1}

    def failing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["n"] += 1
            if calls["n"] == calls["fail_at"]:
                raise error
            return real(*args, **kwargs)

        return call

    outcomes = set()
    for fail_at in range(1, 100):
        with monkeypatch.context() as patch:
            place = tmp_path / str(fail_at)
            checkpoints = folder(place, keep=1)
            checkpoints.save(1, state(0, 1))
            calls.update(n=0, fail_at=fail_at)
            for module, name in ((os, "fsync"), (os, "replace"), (Path, "write_bytes")):
                patch.setattr(module, name, failing(getattr(module, name)))
            try:
                checkpoints.save(2, state(1, 3))
            except (WriteError, _Stopped):
                stopped = True
            else:
                stopped = False
        step, loaded = folder(place, keep=1).latest()  # type: ignore[misc]
        assert numbers(loaded) == {1: [0, 1], 2: [1, 2, 3]}[step]
        outcomes.add((stopped, step))
        again = folder(place, keep=1)
        again.latest()
        again.save(3, state(1, 3))  # a resumed run leaves no temporary files
        assert names(place) == [1, 2, 3]
        assert numbers(folder(place).latest()[1]) == [1, 2, 3]  # type: ignore[index]
        if not stopped:
            break
    assert outcomes == {(True, 1), (True, 2), (False, 2)}
    assert checkpoint.FORMAT_VERSION == 1
