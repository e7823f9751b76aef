"""A worker process of a `WorkerPool`, and the fork server that starts it.

    python worker.py SOCKET_FD [MODULE …]

The file is run by its path and imports only NumPy and the standard library, so any Python with the packages
of the env can run it. The process imports the modules, which may take seconds, and then forks one worker per
request. Forking takes milliseconds, and the workers share the memory of the modules. The process and its
workers end when the process that started them ends.

A request is a JSON message on the socket with four file descriptors: the worker's connection, its output, the
pipe for its exit code, and the shared memory. A worker exchanges JSON messages through its connection:
`{"call": …, "arguments": …}` is answered with `{"result": …}` or `{"error": …}`. Nothing is pickled.

Each worker leads a process group. When it ends, the server kills what is left of the group, such as a
simulator that an env started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import mmap
import os
import re
import signal
import socket
import sys
import traceback
import types
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

_MAX_MESSAGE = 1 << 17
"""Largest size of a request, which contains `sys.path` [bytes]."""
_NUM_FDS = 4
_MAX_OUTPUT = 1 << 20
"""Size of a worker's output from which on only its end is kept [bytes]."""
_KEPT_OUTPUT = 1 << 12


def main() -> None:
    """Import the modules, then fork workers until the parent process ends."""
    # remove the script's folder: its `pool` and `worker` would hide modules of these names
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    requests = socket.socket(fileno=int(sys.argv[1]))
    parent = os.pidfd_open(os.getppid())
    # import the modules before forking, so that the workers share their memory
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):  # the worker imports it again, and reports the error
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # keeps the garbage collector off the pages that all workers share
    exit_pipes: dict[int, tuple[int, int]] = {}
    """Process id of each worker and the pipe for its exit code, by pidfd."""
    while True:
        for ready in wait([requests, parent, *exit_pipes]):
            if ready in exit_pipes:
                _report_exit(ready, *exit_pipes.pop(ready))
                continue
            message = b""
            fds: list[int] = []
            if ready is requests:
                message, fds, _, _ = socket.recv_fds(requests, _MAX_MESSAGE, _NUM_FDS)
            if not message:  # the parent has ended or closed the server
                for pid, _ in exit_pipes.values():
                    os.kill(pid, signal.SIGKILL)
                    _kill_group(pid)
                return
            connection, output, exit_pipe, memory = fds
            pid = os.fork()
            if pid == 0:
                # in the worker: close the server's files, redirect the output, and answer calls
                os.setpgid(0, 0)
                requests.close()
                for fd in (parent, exit_pipe, *exit_pipes, *(pipe for _, pipe in exit_pipes.values())):
                    os.close(fd)
                sys.path[:0] = [path for path in json.loads(message)["path"] if path not in sys.path]
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
                sys.stdin = _NoInput()
                os._exit(run(Connection(connection), memory))
            # in the server: close these, since the worker has its own copies
            for fd in (connection, output, memory):
                os.close(fd)
            exit_pipes[os.pidfd_open(pid)] = (pid, exit_pipe)


def _report_exit(pidfd: int, pid: int, exit_pipe: int) -> None:
    """Write a worker's exit code to its pipe; a negative one is the signal that killed it."""
    _kill_group(pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(exit_pipe, str(code).encode())
    os.close(exit_pipe)
    os.close(pidfd)


def _kill_group(pid: int) -> None:
    """Kill the processes that a worker has started. Until `waitpid`, its id cannot belong to another one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run(connection: Connection, memory: int) -> int:
    """Answer calls until the connection is closed. Returns the exit code of the process."""

    def send(message: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(message).encode())

    calls = Calls(memory)
    try:
        send({"result": os.getpid()})
        while True:
            message = json.loads(connection.recv_bytes())
            try:
                result = calls.execute(message["call"], message["arguments"])
            except BaseException as error:  # noqa: BLE001 (whatever an env raises ends its worker)
                sys.stdout.flush()
                sys.stderr.flush()
                # An error with an exit code is meant for the user, as those of `residual_rl.errors` are.
                user_message = str(error) if hasattr(error, "exit_code") else None
                send({"error": _describe(error), "user_message": user_message})
                return 1
            _shorten_output()
            send({"result": result})
    except (EOFError, ConnectionError):  # the pool was closed
        with contextlib.suppress(BaseException):
            calls.close()
        return 0


def _describe(error: BaseException) -> str:
    """An error in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = ([frame for frame in frames if frame.filename != __file__] or frames)[-1]
    text = " ".join([f"{type(error).__name__}:", *str(error).split()]).removesuffix(":")
    return f"{text} (at {place.filename}:{place.lineno})"


class _NoInput(io.TextIOBase):
    """Standard input of a worker."""

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]  # noqa: ARG002
        raise EOFError("it asks for input, which a worker process cannot give")


def _shorten_output() -> None:
    """Keep only the end of the output file if it has become large: some envs print in each step."""
    size = os.fstat(1).st_size
    if size > _MAX_OUTPUT:
        kept = os.pread(1, _KEPT_OUTPUT, size - _KEPT_OUTPUT)
        os.ftruncate(1, 0)
        os.lseek(1, 0, os.SEEK_SET)
        os.write(1, kept)


def load(place: str) -> types.ModuleType:
    """Import a module, or a file `FILE.py` that no installed package contains.

    The folder of such a file becomes a package of another name, so `from .other import …` finds the files
    beside it.
    """
    if not place.endswith(".py"):
        return importlib.import_module(place)
    folder, file = os.path.split(os.path.abspath(place))
    package = re.sub(r"\W", "_", f"files_of{folder}")
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [folder]
    return importlib.import_module(f"{package}.{file.removesuffix('.py')}")


def resolve(reference: str) -> Any:
    """The object `module:name` or `FILE.py:name`."""
    place, _, name = reference.rpartition(":")
    return getattr(load(place), name)


class Calls:
    """Functions that a pool calls in its workers: `make`, `share`, and the methods of the created envs."""

    def __init__(self, memory: int):
        self._memory = memory
        self._env: Any = None

    def execute(self, call: str, arguments: dict[str, Any]) -> Any:
        """Execute a call and return its result as JSON."""
        if call == "make":
            self._env = resolve(arguments["function"])(arguments["cfg"], arguments["num_envs"])
            return self._env.describe()
        if call == "share":
            return self._env.share(self._views(**arguments))
        return getattr(self._env, call)(**arguments)

    def close(self) -> None:
        """Close the envs, if they have a method for it."""
        if hasattr(self._env, "close"):
            self._env.close()

    def _views(
        self, layout: dict[str, Any], size: int, first: int, last: int
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The rows `first` to `last - 1` of the shared arrays, by name."""
        memory = mmap.mmap(self._memory, size)
        return {
            name: np.ndarray(shape, dtype, memory, offset)[first:last]
            for name, (shape, dtype, offset) in layout.items()
        }


if __name__ == "__main__":
    main()
