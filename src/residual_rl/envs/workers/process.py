"""Worker processes and the fork servers that start them, seen from the process of the pool.

The fork server of `multiprocessing` has two disadvantages here: it needs this package in the worker's Python,
and each worker imports the program's main module again, so a script without `if __name__ == "__main__"`
fails. Without a fork server, each worker would import its modules itself, which takes 4.1 s of CPU time for
ManiSkill. A running fork server starts a worker in 0.03 s.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from residual_rl.errors import ConfigError

_WORKER = Path(__file__).with_name("worker.py")
_STOP_SECONDS = 5.0
"""Longest time for a process to end [s]."""
_NUM_LINES = 3
"""Number of output lines that an error message quotes."""
_MAX_LINE = 300
"""Number of characters of each of them."""

_servers: dict[tuple[str, tuple[str, ...]], ForkServer] = {}
"""The running fork servers, by interpreter and preloaded modules."""


def last_lines(output: IO[bytes]) -> str:
    """The last lines of a process's output, joined to one line."""
    output.seek(0)
    lines = [line.strip()[:_MAX_LINE] for line in output.read().decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-_NUM_LINES:]) or "(none)"


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


class ForkServer:
    """A process that forks workers.

    Args:
        python: the interpreter.
        modules: modules to import before the first worker is forked. They must not start threads.

    Raises:
        ConfigError: the interpreter cannot be run.
    """

    def __init__(self, python: str, modules: Sequence[str]):
        self._socket, server_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the process runs)
        # one thread per worker, since the workers use all cores
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._is_same_python = python == sys.executable
        if self._is_same_python:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        with server_socket:
            try:
                self._process = subprocess.Popen(
                    [python, str(_WORKER), str(server_socket.fileno()), *modules],
                    stdin=subprocess.DEVNULL,
                    stdout=self.output,
                    stderr=self.output,
                    pass_fds=[server_socket.fileno()],
                    start_new_session=True,  # so that Ctrl-C in a terminal reaches only the program
                    env={**os.environ, **environment},
                )
            except OSError as error:
                self._socket.close()
                self.output.close()
                raise ConfigError(f"cannot run the interpreter {python}: {error.strerror}") from error

    @property
    def is_running(self) -> bool:
        """Whether the process is running and can fork workers."""
        return self._process.poll() is None

    def start(self, memory: int) -> Worker:
        """Start a worker without waiting for it. `memory` is the file descriptor of the shared memory."""
        connection, worker_connection = socket.socketpair()
        exit_code, exit_pipe = os.pipe()
        path = sys.path if self._is_same_python else []
        output = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the worker runs)
        fds = [worker_connection.fileno(), output.fileno(), exit_pipe, memory]
        # if the server has ended, waiting for the worker's first answer raises the error
        with contextlib.suppress(ConnectionError), worker_connection:
            socket.send_fds(self._socket, [json.dumps({"path": path}).encode()], fds)
        os.close(exit_pipe)
        return Worker(self, Connection(connection.detach()), exit_code, output)

    def exit_code(self) -> int | None:
        """Wait a few seconds for the process to end and return its exit code; None if it is still running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_STOP_SECONDS)
        return None

    def close(self) -> None:
        """End the process and its workers."""
        self._socket.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:  # somebody has suspended it
            self._process.kill()
            self._process.wait()
        self.output.close()


def fork_server(python: str, modules: Sequence[str]) -> ForkServer:
    """The fork server of an interpreter with these modules, shared by all pools of this process."""
    key = (python, tuple(modules))
    if key not in _servers or not _servers[key].is_running:
        _servers[key] = ForkServer(python, modules)
    return _servers[key]


@atexit.register
def close_fork_servers() -> None:
    """End all fork servers and their workers."""
    while _servers:
        _servers.popitem()[1].close()


class WorkerEndedError(Exception):
    """A worker has ended; the message describes how."""


@dataclass(eq=False)
class Worker:
    """A worker process."""

    server: ForkServer
    connection: Connection
    exit_code: int
    """A pipe for the exit code, which the fork server writes to."""
    output: IO[bytes]
    """Standard output and error of the process."""
    pid: int | None = None
    """None until the process has started."""
    _pidfd: int | None = None
    _poll: select.poll | None = None
    """Waits for an answer or for the end of the process."""

    def started(self, pid: int) -> None:
        """Store the process id."""
        self.pid = pid
        self._poll = None  # the sentinel changes
        with contextlib.suppress(ProcessLookupError):  # the process may have ended already
            self._pidfd = os.pidfd_open(pid)

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes ready when the process ends, or the fork server before it starts."""
        return self.exit_code if self._pidfd is None else self._pidfd

    def send(self, call: str, arguments: dict[str, Any]) -> None:
        """Call a function of the worker; `receive` returns the result."""
        with contextlib.suppress(ConnectionError):  # the process has ended; `receive` raises the error
            self.connection.send_bytes(json.dumps({"call": call, "arguments": arguments}).encode())

    def receive(self, timeout: float) -> dict[str, Any]:
        """Wait for the next answer. Raises `WorkerEndedError`, or `TimeoutError` after `timeout` seconds."""
        if self._poll is None:
            self._poll = select.poll()  # kept, since `wait` would create one for each answer
            self._poll.register(self.connection.fileno(), select.POLLIN)
            self._poll.register(self.sentinel, select.POLLIN)
        ready = [fd for fd, _ in self._poll.poll(1000.0 * timeout)]
        if not ready:
            raise TimeoutError
        if self.connection.fileno() in ready:
            with contextlib.suppress(EOFError, ConnectionError):
                answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
                return answer
        raise WorkerEndedError(self._describe_end())

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the process to end."""
        wait([self.sentinel], timeout)

    def kill(self) -> None:
        """Kill the process; it has nothing to save."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            wait([self._pidfd], _STOP_SECONDS)

    def close(self) -> None:
        """Kill the process and close its files. If it has not started yet, it ends at its start."""
        self.connection.close()
        self.kill()
        os.close(self.exit_code)
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.output.close()

    def _describe_end(self) -> str:
        # the fork server reports the exit code, unless it has also ended
        text = os.read(self.exit_code, 16) if wait([self.exit_code], _STOP_SECONDS) else b""
        server_code = None if text else self.server.exit_code()
        end, output = "lost its connection", self.output
        if text:
            end = describe_exit(int(text))
        elif server_code is not None:
            end = f"ended with its fork server, which {describe_exit(server_code)}"
            output = self.server.output
        return f"{end}; last lines of its output: {last_lines(output)}"
