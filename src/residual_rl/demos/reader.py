"""Reader of demonstration files: HDF5 in the layout of ManiSkill 3's trajectories, written by us or by
ManiSkill, and files of Minari and robomimic (see `demos.minari_files`, `demos.robomimic_files`).

`FILE.h5` has a group `traj_<i>` per episode of T steps: `obs` (named arrays [T + 1, …], with "/" between the
names of nested groups, or a single array, which is called `state`), `actions` [T, A], `terminated`,
`truncated`, `success` [T] bool, `rewards` [T], `env_states`, and in our files `base_actions`,
`residual_actions`, `intended_actions` [T, A] if known and `episode`, the episode's draws [1, …].

ManiSkill describes a file in `FILE.json` beside it. Our files have the same text in `json` attributes of the
file and of each trajectory, so that the two always agree, and `FILE.json` is a copy. A checksum of the whole
file, appended to it, detects damage by a disk or a transfer before HDF5 reads it. A file without one, which
another program wrote or changed, is read in a child process (see `demos.hdf5`); in our files, the CRC-32 of
each array is then checked instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from residual_rl.config import read_task_settings
from residual_rl.demos import maniskill_files, minari_files, robomimic_files
from residual_rl.demos.attributes import JSON, crc32, get_json
from residual_rl.demos.checksum import verify_checksum
from residual_rl.demos.episode import OPTIONAL_ARRAYS, Array, Demo, Tree
from residual_rl.demos.foreign import ForeignFile
from residual_rl.demos.hdf5 import Attributes, ChildFile, Hdf5File, LocalFile, NotNumbersError, Shapes
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.registry import TASKS, TaskSpec, load
from residual_rl.utils.text import shell_command

FORMAT_VERSION = 1
SUFFIXES = (".h5", ".hdf5")
NUM_EPISODES = "num_episodes"
"""Name of an attribute of our files."""
ARRAYS = ("actions", "terminated", "truncated")
"""Arrays that each trajectory has."""
_FIX = "the file is damaged or incomplete: collect it again, or use an intact copy"


class Demonstrations:
    """A file of demonstrations, read episode by episode; a context manager.

    Errors in the file raise a `CheckpointError` that names the file, the trajectory and the expected content,
    and a file that another process is writing a `ConfigError`.

    Args:
        path: the HDF5 file, or the folder of a dataset of Minari.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._shapes: Shapes | None = None
        self._verified = False
        self._foreign: ForeignFile | None = None
        self._hdf5 = minari_files.data_file(self.path) if self.path.is_dir() else self.path
        self._file = self._opened()
        try:
            with self._reading("its description"):
                attributes = self._file.attributes("/")
                self.own = JSON in attributes
                """Whether this package wrote the file."""
                description = self._describe_own(attributes) if self.own else self._describe_other()
                self._names, self._crcs, self.info = description
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path | str) -> Demonstrations:
        """The demonstrations in `path`."""
        return cls(path)

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """The metadata of each episode in `FILE.json`: `episode_seed`, `elapsed_steps`, `success`, …"""
        entries: list[dict[str, Any]] = self.info["episodes"]
        return entries

    @property
    def program(self) -> str:
        """The program that wrote the file."""
        return "residual-rl" if self.own else self._foreign.program if self._foreign else "ManiSkill"

    @property
    def names_task(self) -> bool:
        """Whether the file determines one of our tasks."""
        return self._foreign is None

    @property
    def task_id(self) -> str:
        """Id of the task; the env's id in a file that determines none."""
        spec = self._external_task()
        return self.env_id if spec is None else spec.id

    @property
    def env_id(self) -> str:
        """The env's id in `FILE.json`: the task's id, or in a ManiSkill file the id of ManiSkill's env."""
        return str(self.info["env_info"]["env_id"])

    @property
    def task_settings(self) -> dict[str, Any]:
        """The settings of the task's envs, as far as the file determines them. Raises `ConfigError` for a
        ManiSkill file with unsupported actions."""
        if self._foreign is not None:
            return dict(self._foreign.task_settings)
        spec = self._external_task()
        if spec is not None and spec.external_trajectory_settings is not None:
            try:
                return dict(load(spec.external_trajectory_settings)(self.info))
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {error}") from None
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{self.path.with_suffix('.json')} has invalid trajectory settings ({error!r}); expected "
                    "those of ManiSkill's RecordEpisode"
                ) from error
        return dict(self.info["env_info"].get("env_kwargs") or {})

    @property
    def task_cfg(self) -> Any:
        """The settings of the task's envs, as the task's dataclass.

        Raises:
            ConfigError: the task is not registered, or the file determines none.
            CheckpointError: this release does not accept the settings.
            ConsentError: they name code, and the user has neither signed nor confirmed them.
        """
        if not self.names_task:
            command = shell_command("demos", "convert", self.path, "--task", "TASK", "--output", "FILE")
            raise ConfigError(
                f"{self.path} is a file of {self.program}, which names no task: convert it with `{command}`"
            )
        try:
            TASKS.get(self.task_id)
        except UnknownNameError as error:
            raise ConfigError(f"{self.path}: {error}; install the package that registers it") from None
        settings = self.task_settings
        try:
            return read_task_settings(self.task_id, settings, self.path, self.info.get("signature"))
        except (UnknownNameError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} has settings that task {self.task_id!r} of this release does not accept: "
                f"{error}"
            ) from error

    @property
    def shapes(self) -> Shapes:
        """Shapes of one step's actions and observations, with the names of `Demo.shapes`."""
        if self._shapes is None:
            name = self._names[0]
            with self._reading(name):
                if self._foreign is not None:
                    self._shapes = self._foreign.shapes()
                    return self._shapes
                arrays = self._file.shapes(name)
                self._require(name, arrays, ["actions"])
                obs = {f"obs/{key}": arrays[path][1:] for key, path in _observations(arrays).items()}
                self._shapes = {"actions": arrays["actions"][1:], **obs}
        return self._shapes

    @property
    def obs_shapes(self) -> Shapes:
        """Shape of each observation by name, without the step."""
        return {name.removeprefix("obs/"): shape for name, shape in self.shapes.items() if name != "actions"}

    @property
    def action_dim(self) -> int:
        """A, the number of action dimensions."""
        return int(self.shapes["actions"][0])

    @property
    def num_bytes(self) -> int:
        """Size of the HDF5 file."""
        return self._hdf5.stat().st_size

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Demo]:
        return (self.episode(i) for i in range(len(self)))

    def episode(self, index: int, obs: Collection[str] | None = None) -> Demo:
        """Episode `index`, with the observations named in `obs` (default: all).

        Raises `CheckpointError`, and `UnknownNameError` for an observation that the file does not have.
        """
        if not 0 <= index < len(self):
            raise ConfigError(f"{self.path} has the episodes 0 to {len(self) - 1}, not {index}")
        name = self._names[index]
        with self._reading(name):
            demo = self._foreign.episode(index, obs) if self._foreign else self._read(index, name, obs)
        problem = demo.problem()
        if problem is not None:
            raise self._error(name, problem)
        for what, shape in demo.shapes.items():
            expected = self.shapes.get(what)
            if shape != expected:
                there = "nothing" if expected is None else list(expected)
                raise self._error(
                    name, f"{what} has the shape {list(shape)} a step, but {there} in {self._names[0]}"
                )
        return demo

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Demonstrations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _external_task(self) -> TaskSpec | None:
        """The task of a file of ManiSkill; None for others."""
        if self.own or self._foreign:
            return None
        return next((spec for spec in TASKS.all() if spec.external_trajectory_settings is not None), None)

    def seed(self, index: int) -> int | None:
        """The seed of episode `index`, if it is known."""
        return maniskill_files.seed_of(self.episodes[index])

    # --- reading ---

    def _opened(self) -> Hdf5File:
        expected = (
            "expected demonstrations: HDF5 in the layout of ManiSkill's trajectories, Minari or robomimic"
        )
        try:
            # opening a named pipe would wait for its other end; other people's files may name one
            if self._hdf5.exists() and not self._hdf5.is_file():
                raise CheckpointError(f"{self.path} is not a regular file; {expected}")
            self._hdf5.open("rb").close()
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} does not exist; {expected}") from error
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}; {expected}") from error
        if not h5py.is_hdf5(self._hdf5):
            raise CheckpointError(f"{self.path} is not an HDF5 file; {expected}")
        with self._reading("its beginning"):
            self._verified = verify_checksum(self._hdf5)
            return LocalFile(self._hdf5) if self._verified else ChildFile(self._hdf5)

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn exceptions of h5py into errors that name `what` part of the file."""
        try:
            yield
        except (CheckpointError, ConfigError, UnknownNameError):
            raise
        except BlockingIOError as error:
            raise ConfigError(f"{self.path} is being written by another process; wait for it") from error
        except _UnsupportedError as error:
            raise CheckpointError(f"{self.path}: {what}: {error}") from None
        except Exception as error:
            why = str(error.args[0] if error.args else error).splitlines()
            raise CheckpointError(
                f"{self.path}: {what} cannot be read ({why[0] if why else type(error).__name__}); {_FIX}"
            ) from error

    def _error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {name}{' ' if problem.startswith('lacks') else ': '}{problem}; {_FIX}"
        )

    def _require(self, name: str, arrays: Shapes, wanted: Iterable[str]) -> None:
        """Raise `CheckpointError` unless the trajectory `name` has the arrays `wanted`."""
        for key in wanted:
            below = dict.fromkeys(
                path.removeprefix(f"{key}/").split("/")[0] for path in arrays if path.startswith(f"{key}/")
            )
            if below:
                raise _UnsupportedError(
                    f"{key} is a group of {', '.join(below)}, as in tasks with several robots, which are not "
                    "supported; use a task with one robot, whose actions are one array"
                )
            if key not in arrays:
                raise self._error(name, f"lacks {key!r}")

    def _describe_other(self) -> tuple[list[str], list[dict[str, int] | None], dict[str, Any]]:
        """The description of a file of another program, which its groups tell."""
        groups = self._file.names()
        if "episode_0" in groups:
            self._foreign = minari_files.MinariFile(self.path, self._file, self._hdf5.parent)
        elif robomimic_files.DATA in groups:
            self._foreign = robomimic_files.RobomimicFile(self.path, self._file)
        else:
            return maniskill_files.describe(self.path, self._file)
        return self._foreign.names, [None] * len(self._foreign.names), self._foreign.info

    def _describe_own(
        self, attributes: Attributes
    ) -> tuple[list[str], list[dict[str, int] | None], dict[str, Any]]:
        document = get_json(attributes)
        version = document["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{self.path} has format version {version}; this release reads up to {FORMAT_VERSION}: "
                "update residual_rl"
            )
        names = [f"traj_{i}" for i in range(int(attributes[NUM_EPISODES]))]
        if not names:
            raise CheckpointError(f"{self.path} has no episodes; collect it again")
        present = set(self._file.names())
        if present != set(names):
            raise CheckpointError(
                f"{self.path} should have {len(names)} trajectories but has {len(present)}; {_FIX}"
            )
        entries = [get_json(self._file.attributes(name)) for name in names]
        info = {**document, "episodes": [entry["episode"] for entry in entries]}
        return names, [entry["crc32"] for entry in entries], info

    def _read(self, index: int, name: str, wanted: Collection[str] | None) -> Demo:
        # Check that all arrays are present.
        shapes, crcs = self._file.shapes(name), self._crcs[index]
        self._require(name, shapes, (*ARRAYS, *(crcs or ())))

        # Read and check the arrays.
        def read(key: str, path: str) -> Array:
            try:
                value = self._file.read(f"{name}/{path}")
            except NotNumbersError as error:
                raise self._error(name, f"{key} has {error}") from error
            if crcs is not None and not self._verified and crcs.get(key) != crc32(value):
                raise self._error(name, f"{key} differs from the written data (by its CRC-32)")
            return value

        arrays = {key: read(key, key) for key in (*ARRAYS, *OPTIONAL_ARRAYS) if key in shapes}
        if not len(arrays["actions"]):
            raise _UnsupportedError(f"the episode has no steps; {maniskill_files.REMOVE_EMPTY}")
        observations = _observations(shapes)
        if wanted and not observations:
            raise _UnsupportedError(f"the episode has no observations; {maniskill_files.ADD_OBS}")
        for key in wanted or ():
            if key not in observations:
                raise UnknownNameError(f"observation of {self.path}:", key, observations)
        obs = {k: read(f"obs/{k}", path) for k, path in observations.items() if wanted is None or k in wanted}
        draws = {k: np.asarray(read(path, path)[0]) for k, path in _below(shapes, "episode").items()}
        states = _tree({k: read(path, path) for k, path in _below(shapes, "env_states").items()})

        # Convert the types.
        floats = {
            key: np.asarray(arrays[key], np.float32)
            for key in arrays
            if key == "rewards" or key.endswith("actions")
        }
        flags = {key: np.asarray(arrays[key], bool) for key in arrays if key not in floats}
        return Demo(
            actions=floats.pop("actions"),
            obs=obs,
            terminated=flags.pop("terminated"),
            truncated=flags.pop("truncated"),
            success=flags.get("success"),
            seed=self.seed(index),
            draws=draws,
            env_states=states,
            **floats,
        )


class _UnsupportedError(Exception):
    """The content is intact, but not what this package reads; the message ends with the fix."""


def _below(arrays: Shapes, group: str) -> dict[str, str]:
    """The paths of the arrays below `group`, by their path within it."""
    return {path.removeprefix(f"{group}/"): path for path in arrays if path.startswith(f"{group}/")}


def _observations(arrays: Shapes) -> dict[str, str]:
    """The paths of the observations by name."""
    return {"state": "obs"} if "obs" in arrays else _below(arrays, "obs")


def _tree(leaves: Mapping[str, Array]) -> Tree:
    tree: Tree = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree
