"""Crash-safe writer of demonstration files.

A crash, a kill or a full disk never leaves a partial file, and never loses complete episodes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from residual_rl.demos.attributes import crc32, put_json
from residual_rl.demos.checksum import append_checksum
from residual_rl.demos.episode import Array, Demo, Tree
from residual_rl.demos.reader import FORMAT_VERSION, NUM_EPISODES, SUFFIXES
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.utils.files import TEMP_SUFFIX, make_folder, replacing, to_json, write_json, writing
from residual_rl.utils.provenance import git_state, versions

SNAPSHOT_SHARE = 0.1
"""Largest share of the time spent on publishing the file before its end."""
_MARGIN = 1 << 18
"""Space that HDF5 may need for a trajectory in addition to its arrays [bytes]."""


def describe(
    task_id: str,
    task_settings: Mapping[str, Any],
    *,
    max_episode_steps: int,
    control_hz: float,
    source_type: str,
    source_desc: str,
    **more: Any,
) -> dict[str, Any]:
    """The content of `FILE.json` except for the episodes: ManiSkill's keys, and `more` of our own.

    Args:
        task_id: id of the task.
        task_settings: all settings of its envs, as plain values.
        max_episode_steps: steps after which an episode is truncated.
        control_hz: steps per second [Hz].
        source_type: kind of source in a word: `rl`, `controller`, `teleoperation`, …
        source_desc: description of the source in a sentence.
        more: further keys, with JSON values.
    """
    git = git_state()[0]
    return {
        "format_version": FORMAT_VERSION,
        "env_info": {
            "env_id": task_id,
            "env_kwargs": dict(task_settings),
            "max_episode_steps": max_episode_steps,
            "control_hz": control_hz,
        },
        "source_type": source_type,
        "source_desc": source_desc,
        "commit_info": None if git is None else {"commit_hash": git["commit"], "dirty": git["dirty"]},
        "versions": versions(),
        **more,
    }


def action_units(env: VecEnv) -> dict[str, Any]:
    """What the actions of `env` mean in physical units, or in those of another program, for `describe`."""
    units = {"action_unit": env.action_unit.tolist(), "action_unit_name": env.action_unit_name}
    centre = {} if env.action_centre is None else {"action_centre": env.action_centre.tolist()}
    return units | centre


class DemoWriter:
    """Writes `FILE.h5` and `FILE.json`, episode by episode; a context manager.

    Episodes are written to a hidden file in the same folder. The complete ones are published atomically from
    time to time, as long as this takes a small share of the total time, and at the end, even after an error.
    Disk space is reserved before an episode is written, because a full disk would corrupt the HDF5 file.

    Args:
        path: the file, which must end in `.h5` or `.hdf5`.
        info: the result of `describe`.
        overwrite: whether an existing file may be replaced, once there is an episode to publish.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        path: Path | str,
        info: Mapping[str, Any],
        overwrite: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path = check_output(path, overwrite)
        self.info = dict(info)
        self.num_episodes = 0
        """Number of episodes added."""
        self.published = 0
        """Number of episodes in the published file."""
        self._episodes: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._clock = clock
        self._begin = clock()
        self._spent = 0.0
        self._last_cost = 0.0
        self._remove_leftovers()
        self._work = self.path.parent / f".{self.path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
        with _storing(self.path):
            # Version 1.8 of the file format allows large attributes, and every later HDF5 can read it.
            self._file: h5py.File | None = h5py.File(
                self._work, "x", libver=("v108", "v108"), locking="best-effort"
            )
        put_json(self._file, to_json(self.info))
        self._file.attrs[NUM_EPISODES] = np.int64(0)

    def add(self, demo: Demo) -> None:
        """Append an episode. Raises `ConfigError` if it is invalid or does not fit the others, and
        `WriteError`."""
        assert self._file is not None, "add after close"
        self._check(demo)
        name = f"traj_{self.num_episodes}"
        arrays = _arrays_of(demo)
        self._reserve(sum(value.nbytes for value in arrays.values()))
        entry = self._entry(demo)
        try:
            with _storing(self.path):
                group = self._file.create_group(name)
                for key, value in arrays.items():
                    _store(group, key, value)
                put_json(
                    group,
                    to_json(
                        {"episode": entry, "crc32": {key: crc32(value) for key, value in arrays.items()}}
                    ),
                )
                self._file.attrs.modify(NUM_EPISODES, np.int64(self.num_episodes + 1))
        except BaseException:
            self._file.attrs.modify(NUM_EPISODES, np.int64(self.num_episodes))
            if name in self._file:
                del self._file[name]
            raise
        self._episodes.append(entry)
        self.num_episodes += 1
        if self._spent + self._last_cost <= SNAPSHOT_SHARE * (self._clock() - self._begin):
            self._snapshot()

    def close(self) -> None:
        """Publish all episodes, if there are any. Raises `WriteError`."""
        if self._file is None:
            return
        try:
            with _storing(self.path):
                self._file.flush()
                size = self._file.id.get_filesize()
                self._file.close()
            if self.num_episodes > self.published:
                with replacing(self.path) as temp:
                    append_checksum(self._work, size)  # in the reserved space, whose rest is freed
                    os.replace(self._work, temp)
                self.published = self.num_episodes
                self._write_side()
        finally:
            self._file = None
            self._work.unlink(missing_ok=True)

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A failure to close must not hide an earlier error.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    # --- parts ---

    def _check(self, demo: Demo) -> None:
        problem = demo.problem()
        self._shapes = self._shapes or demo.shapes
        if problem is None and demo.shapes != self._shapes:
            problem = f"a step has the shapes {demo.shapes}, but in the previous episodes {self._shapes}"
        if problem is not None:
            raise ConfigError(f"the episode of seed {demo.seed} cannot be stored in {self.path}: {problem}")

    def _entry(self, demo: Demo) -> dict[str, Any]:
        """The metadata of an episode in `FILE.json`."""
        return {
            "episode_id": self.num_episodes,
            "episode_seed": demo.seed,
            "control_mode": self.info["env_info"]["env_kwargs"].get("control_mode"),
            "elapsed_steps": len(demo),
            "success": demo.succeeded,
            "reset_kwargs": {} if demo.seed is None else {"seed": demo.seed, "options": {}},
        }

    def _reserve(self, num_bytes: int) -> None:
        """Reserve disk space for an episode of `num_bytes`."""
        assert self._file is not None
        with writing(self.path), self._work.open("r+b") as file:
            try:
                os.posix_fallocate(
                    file.fileno(), self._file.id.get_filesize(), num_bytes + num_bytes // 64 + _MARGIN
                )
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not supported by some file systems
                    raise

    def _snapshot(self) -> None:
        assert self._file is not None
        begin = self._clock()
        with _storing(self.path):
            self._file.flush()
        with replacing(self.path) as temp:
            shutil.copyfile(self._work, temp)
            append_checksum(temp, self._file.id.get_filesize())
        self.published = self.num_episodes
        self._write_side()
        self._last_cost = self._clock() - begin
        self._spent += self._last_cost

    def _write_side(self) -> None:
        write_json(self.path.with_suffix(".json"), {**self.info, "episodes": self._episodes})

    def _remove_leftovers(self) -> None:
        """Remove files left by a killed process. Raises `ConfigError` if a running process writes the same
        file."""
        with writing(self.path), contextlib.ExitStack() as stack:
            leftovers = _leftovers(self.path)
            for leftover in leftovers:
                with contextlib.suppress(FileNotFoundError):
                    file = stack.enter_context(leftover.open("rb"))
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as HDF5 does
                    except BlockingIOError:
                        raise ConfigError(
                            f"{self.path} is being written by another process; wait for it, "
                            "or choose another --output"
                        ) from None
            for leftover in [*leftovers, *_leftovers(self.path.with_suffix(".json"))]:
                leftover.unlink(missing_ok=True)


def _leftovers(path: Path) -> list[Path]:
    """Temporary files of an incomplete write of `path`."""
    return [
        p for p in path.parent.iterdir() if p.name.startswith(f".{path.name}.") and p.suffix == TEMP_SUFFIX
    ]


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """`writing` for HDF5, which reports some failures as a `RuntimeError`."""
    with writing(path):
        try:
            yield
        except RuntimeError as error:
            raise OSError(str(error)) from error


def check_output(path: Path | str, overwrite: bool) -> Path:
    """Check that demonstrations can be written to `path`, and create its folder.

    Raises `ConfigError` and `WriteError`.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} must end in {' or '.join(SUFFIXES)}: demonstrations are HDF5 files")
    for file in (path, path.with_suffix(".json")):
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; choose another --output")
        if file.exists() and not overwrite:
            raise ConfigError(
                f"{file} already exists; choose another --output, or replace it with --overwrite"
            )
    make_folder(path.parent)
    return path


def _arrays_of(demo: Demo) -> dict[str, Array]:
    """The arrays of an episode by path in its group."""
    arrays: dict[str, Array | None] = {f"obs/{name}": value for name, value in demo.obs.items()}
    arrays |= {"actions": demo.actions, "rewards": demo.rewards}
    arrays |= {"terminated": demo.terminated, "truncated": demo.truncated, "success": demo.success}
    arrays |= {"base_actions": demo.base_actions, "residual_actions": demo.residual_actions}
    if demo.intended_actions is not demo.actions:
        arrays["intended_actions"] = demo.intended_actions
    arrays |= {f"episode/{name}": np.asarray(value)[None] for name, value in demo.draws.items()}
    arrays |= {f"env_states/{name}": value for name, value in _flat(demo.env_states)}
    return {name: value for name, value in arrays.items() if value is not None}


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Array]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _store(group: h5py.Group, name: str, value: Array) -> None:
    # Images are compressed, in chunks of one step.
    if value.dtype == np.uint8 and value.ndim >= 3:
        group.create_dataset(
            name, data=value, chunks=(1, *value.shape[1:]), compression="gzip", compression_opts=1
        )
    else:
        group.create_dataset(name, data=value)
