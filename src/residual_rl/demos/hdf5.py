"""HDF5 files, opened in this process or in another one.

In a damaged file, the C library may loop forever, which Ctrl-C does not interrupt, or crash. A file of
unknown content is therefore opened in a child process with a time limit. The child runs this module as a
script, without importing the rest of this package.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import numpy as np

TIME_LIMIT = 60.0
"""Longest time for opening a file, for listing a group, and for reading an array [s]."""
_MIN_RATE = 10e6
"""Bytes per second that are expected of a slow disk: large arrays have more time."""
_DAY = 86400.0
_PIPE_SIZE = 1 << 20
Attributes = dict[str, str | int]
Shapes = dict[str, tuple[int, ...]]


class NotNumbersError(Exception):
    """An array contains something other than numbers."""


_ERRORS: dict[str, type[Exception]] = {"locked": BlockingIOError, "not numbers": NotNumbersError}
"""Errors that the child's answer can name; all others are an `OSError` here."""


class Hdf5File(Protocol):
    """A file that is open for reading.

    Methods raise `OSError` and other exceptions of h5py if the file is damaged, and opening it
    `BlockingIOError` if another process has locked it.
    """

    def names(self) -> list[str]:
        """Names of the groups and arrays in the root group."""
        ...

    def attributes(self, name: str) -> Attributes:
        """The attributes of a group that are texts or integers."""
        ...

    def shapes(self, name: str) -> Shapes:
        """Shape of each array below a group, by path."""
        ...

    def read(self, path: str) -> np.ndarray:
        """An array of numbers or booleans."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class LocalFile:
    """A file of known content, opened in this process."""

    def __init__(self, path: Path | str):
        self._file = h5py.File(path, "r")

    def names(self) -> list[str]:
        return list(self._file)

    def attributes(self, name: str) -> Attributes:
        return {
            key: value if isinstance(value, str) else int(value)
            for key, value in self._file[name].attrs.items()
            if isinstance(value, str | np.integer)
        }

    def shapes(self, name: str) -> Shapes:
        return _shapes(self._file[name])

    def num_bytes(self, path: str) -> int:
        """Size of an array."""
        dataset = self._file[path]
        return math.prod(dataset.shape) * int(dataset.dtype.itemsize)

    def read(self, path: str) -> np.ndarray:
        dataset = self._file[path]
        if dataset.dtype.kind not in "biuf":
            raise NotNumbersError(f"dtype {dataset.dtype}, expected numbers")
        return np.asarray(dataset[()])

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a damaged file may not even close
            self._file.close()


def _shapes(node: Any, prefix: str = "") -> Shapes:
    found: Shapes = {}
    for name in node:  # items() would give None for unreadable objects
        child = node[name]
        path = f"{prefix}{name}"
        found.update(_shapes(child, f"{path}/") if isinstance(child, h5py.Group) else {path: child.shape})
    return found


class ChildFile:
    """A file of unknown content, opened in a child process.

    Raises `TimeoutError` if a request takes longer than `TIME_LIMIT`, and `OSError` if the child crashes.
    """

    def __init__(self, path: Path | str):
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__, os.fspath(path), str(TIME_LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=_PIPE_SIZE,
            start_new_session=True,  # so that Ctrl-C in a terminal reaches only the program
            env={**os.environ, **environment},
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        found: list[str] = self._request("names")
        return found

    def attributes(self, name: str) -> Attributes:
        found: Attributes = self._request("attributes", name)
        return found

    def shapes(self, name: str) -> Shapes:
        return {path: tuple(shape) for path, shape in self._request("shapes", name).items()}

    def read(self, path: str) -> np.ndarray:
        found: np.ndarray = self._request("read", path)
        return found

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _request(self, method: str, *arguments: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the child has ended: there is no answer
            self._child.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")  # type: ignore[union-attr]
            self._child.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> Any:
        pipe: BinaryIO = self._child.stdout  # type: ignore[assignment]
        line = pipe.readline()
        if not line:
            raise self._end()
        answer = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["kind"], OSError)(answer["error"])
        if "dtype" not in answer:
            return answer["value"]
        array = np.empty(answer["shape"], answer["dtype"])
        rest = array.reshape(-1).view(np.uint8).data
        while rest:
            count = pipe.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise self._end()
            rest = rest[count:]
        return array

    def _end(self) -> OSError:
        """The reason why the child has ended."""
        code = self._child.wait()
        if code == -signal.SIGALRM:
            return TimeoutError(f"the HDF5 library did not finish within {TIME_LIMIT:g} s")
        return OSError(f"the HDF5 library crashed, exit code {code}")


def _serve(path: str, limit: float) -> None:
    """Answer the requests on stdin until it is closed."""
    # The timer's signal ends the process, even within the C library.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    file: LocalFile | None = None
    method, arguments = "", list[str]()
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            if file is None:
                file, value = LocalFile(path), None
            else:
                if method == "read":
                    seconds = limit + file.num_bytes(*arguments) / _MIN_RATE
                    signal.setitimer(signal.ITIMER_REAL, min(seconds, _DAY))
                value = getattr(file, method)(*arguments)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            _send(value)
        except Exception as error:  # noqa: BLE001 (h5py raises many kinds)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            text = str(error.args[0] if error.args else error) or type(error).__name__
            kind = next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), None)
            _send_line({"error": text, "kind": kind})
        line = sys.stdin.buffer.readline()
        if not line:
            return
        method, *arguments = json.loads(line)


def _send(value: Any) -> None:
    if not isinstance(value, np.ndarray):
        _send_line({"value": value})
        return
    _send_line({"dtype": value.dtype.str, "shape": value.shape})
    sys.stdout.buffer.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    sys.stdout.buffer.flush()


def _send_line(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
