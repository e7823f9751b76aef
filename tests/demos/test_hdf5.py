"""HDF5 files of unknown content: none can hang or crash this process."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_files import a_demo, maniskill, read, same, write

from residual_rl.demos import hdf5
from residual_rl.demos.checksum import append_checksum, verify_checksum
from residual_rl.demos.hdf5 import ChildFile, LocalFile
from residual_rl.demos.reader import Demonstrations
from residual_rl.errors import CheckpointError, ConfigError

# --- the checksum of a file ---------------------------------------------------------------------------------


def test_append_checksum__is_verified_and_cuts_off_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345 and reserved space of the file")
    assert not verify_checksum(path)
    append_checksum(path, 5)
    assert verify_checksum(path)
    data = path.read_bytes()
    assert (data[:5], len(data)) == (b"12345", 5 + 28)
    assert data[5:21] == b"residual_rl crc\n"
    assert int.from_bytes(data[-4:], "little") == 0xCBF53A1C  # CRC-32 of "12345"


def test_verify_checksum__every_changed_byte_is_found(tmp_path: Path) -> None:
    """A changed byte is an error, or the mark is lost and the file is one of unknown content."""
    path = write(tmp_path / "x.h5", [a_demo()])
    data = path.read_bytes()
    assert verify_checksum(path)
    for position in [*range(0, len(data), 97), *range(len(data) - 28, len(data))]:
        changed = bytearray(data)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        if position in range(len(data) - 28, len(data) - 12):
            assert not verify_checksum(path)
        else:
            with pytest.raises(CheckpointError, match=r"x\.h5 is damaged: its checksum differs"):
                verify_checksum(path)


def test_verify_checksum__a_file_that_another_program_changed_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [a_demo()])
    with h5py.File(path, "r+") as file:
        file.create_group("more")
        del file["more"]
    assert not verify_checksum(path)
    assert same(read(path)[0], a_demo())


def test_demo_writer__appends_a_checksum_to_every_published_file(tmp_path: Path) -> None:
    from residual_rl.demos.writer import DemoWriter

    with DemoWriter(tmp_path / "x.h5", {"env_info": {"env_kwargs": {}}}, clock=time.monotonic) as writer:
        writer.add(a_demo(0))  # published at once, since nothing was spent on it so far
        assert verify_checksum(tmp_path / "x.h5")
        writer.add(a_demo(1))
    assert verify_checksum(tmp_path / "x.h5")


def test_demonstrations__a_damaged_file_of_ours_is_not_given_to_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x.h5", [a_demo()])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for name in ("LocalFile", "ChildFile"):
        monkeypatch.setattr(f"residual_rl.demos.reader.{name}", None)
    with pytest.raises(CheckpointError, match=r"x\.h5 is damaged: its checksum differs"):
        Demonstrations(path)


# --- files of unknown content -------------------------------------------------------------------------------


def test_child_file__reads_what_the_local_file_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", [a_demo()])
    local, child = LocalFile(path), ChildFile(path)
    try:
        assert child.names() == local.names() == ["traj_0"]
        assert child.attributes("/") == local.attributes("/")
        assert child.shapes("traj_0") == local.shapes("traj_0")
        for name in local.shapes("traj_0"):
            mine, theirs = child.read(f"traj_0/{name}"), local.read(f"traj_0/{name}")
            assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    finally:
        child.close()
        local.close()


def link_to_pipe(path: Path) -> None:
    """Opening the array waits forever within the C library, as it does in some damaged files."""
    os.mkfifo(path.with_name("pipe"))
    with h5py.File(path, "r+") as file:
        del file["traj_1/actions"]
        file["traj_1/actions"] = h5py.ExternalLink("pipe", "/actions")


def test_demonstrations__a_hanging_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = maniskill(tmp_path / "trajectory.h5")
    link_to_pipe(path)
    monkeypatch.setattr(hdf5, "TIME_LIMIT", 1.0)
    with Demonstrations(path) as demos:
        assert len(demos.episode(0)) == 3
        begin = time.monotonic()
        with pytest.raises(
            CheckpointError, match=r"trajectory\.h5: traj_1 cannot be read \(.* did not finish within 1 s\)"
        ):
            demos.episode(1)
        assert time.monotonic() - begin < 10.0


def test_demonstrations__a_crash_of_the_hdf5_library_is_an_error(tmp_path: Path) -> None:
    with Demonstrations(maniskill(tmp_path / "trajectory.h5")) as demos:
        assert isinstance(demos._file, ChildFile)
        os.kill(demos._file._child.pid, signal.SIGSEGV)
        with pytest.raises(CheckpointError, match=r"traj_0 cannot be read \(the HDF5 library crashed"):
            demos.episode(0)


@pytest.mark.parametrize("make", [maniskill, lambda path: write(path, [a_demo()])])
def test_demonstrations__a_locked_file_is_not_called_damaged(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path / "x.h5")
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does while it writes
        with pytest.raises(ConfigError, match=r"x\.h5 is being written by another process; wait for it"):
            Demonstrations(path)
    assert len(read(path)) > 0


def test_child_file__ends_with_the_demonstrations(tmp_path: Path) -> None:
    with Demonstrations(maniskill(tmp_path / "trajectory.h5")) as demos:
        assert isinstance(demos._file, ChildFile)
        child = demos._file._child
        assert child.poll() is None
    assert child.poll() is not None


def test_child_file__imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "h5py", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    demo = read(maniskill(tmp_path / "trajectory.h5"))[0]
    np.testing.assert_array_equal(demo.actions, np.full((3, 8), 0.5))
    assert not (tmp_path / "ran").exists()
