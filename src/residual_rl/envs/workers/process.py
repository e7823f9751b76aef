"""Worker processes and the fork servers that start them, as the pool's own process sees them.

The fork server is not `multiprocessing`'s, which is worse here in two ways: it needs this package in the
worker's Python, and each worker imports the program's main module again, so that a script without
`if __name__ == "__main__"` fails. Without a fork server each worker would import its modules itself: 4.1 s of
CPU time for ManiSkill. From a running fork server, a worker starts in 0.03 s.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
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

_WORKER = Path(__file__).with_name("worker.py")
_STOP_SECONDS = 5.0
"""How long a process that is ending may take [s]."""
_NUM_LINES = 3
"""Lines of a process's output that an error quotes."""

_servers: dict[tuple[str, tuple[str, ...]], ForkServer] = {}
"""The running fork servers, by their Python and the modules that they have imported."""


def last_lines(output: IO[bytes]) -> str:
    """The last lines that a process printed, in one line."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-_NUM_LINES:]) or "(none)"


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


class ForkServer:
    """A process that forks workers.

    Args:
        python: the interpreter.
        modules: what it imports before the first worker is forked. None of them may start a thread.
    """

    def __init__(self, python: str, modules: Sequence[str]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the process runs)
        # one thread per worker: the workers use the cores
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._is_our_python = python == sys.executable
        if self._is_our_python:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                [python, str(_WORKER), str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for the program alone
                env={**os.environ, **environment},
            )

    @property
    def is_running(self) -> bool:
        """Whether it can fork workers."""
        return self._process.poll() is None

    def start(self, memory: int) -> Worker:
        """Start a worker with shared memory from a file descriptor. It is not waited for."""
        connection, their_connection = socket.socketpair()
        exit_code, exit_pipe = os.pipe()
        path = sys.path if self._is_our_python else []
        output = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as the worker runs)
        fds = [their_connection.fileno(), output.fileno(), exit_pipe, memory]
        with (
            contextlib.suppress(ConnectionError),
            their_connection,
        ):  # the worker's first answer shows what is wrong
            socket.send_fds(self._socket, [json.dumps({"path": path}).encode()], fds)
        os.close(exit_pipe)
        return Worker(self, Connection(connection.detach()), exit_code, output)

    def exit_code(self) -> int | None:
        """The exit code once it has ended; None if it still runs after a few seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_STOP_SECONDS)
        return None

    def close(self) -> None:
        """End it, and its workers with it."""
        self._socket.close()
        self._process.wait()
        self.output.close()


def fork_server(python: str, modules: Sequence[str]) -> ForkServer:
    """The fork server of a Python with the modules imported. It serves all pools of this process."""
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
    """What the process prints."""
    pid: int | None = None
    """None until the process has started."""
    _pidfd: int | None = None

    def started(self, pid: int) -> None:
        """Store its process id."""
        self.pid = pid
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._pidfd = os.pidfd_open(pid)

    @property
    def sentinel(self) -> int:
        """A file descriptor that is ready once the process has ended, or before its start the fork server."""
        return self.exit_code if self._pidfd is None else self._pidfd

    def send(self, call: str, arguments: dict[str, Any]) -> None:
        """Call a function of the worker. The result is for `receive`."""
        with contextlib.suppress(ConnectionError):  # it has ended: `receive` finds out how
            self.connection.send_bytes(json.dumps({"call": call, "arguments": arguments}).encode())

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next answer. Raises `WorkerEndedError` or, after `timeout` seconds, `TimeoutError`."""
        ready = wait([self.connection, self.sentinel], timeout)
        if not ready:
            raise TimeoutError
        if self.connection in ready:
            with contextlib.suppress(EOFError, ConnectionError):
                answer: dict[str, Any] = json.loads(self.connection.recv_bytes())
                return answer
        raise WorkerEndedError(self._how_it_ended())

    def kill(self) -> None:
        """End it at once: it has nothing to save."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            wait([self._pidfd], _STOP_SECONDS)

    def close(self) -> None:
        """End it, and free what leads to it. One that has not started yet ends when it does."""
        self.connection.close()
        self.kill()
        os.close(self.exit_code)
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.output.close()

    def _how_it_ended(self) -> str:
        # the fork server reports the exit code, unless it has ended itself
        text = os.read(self.exit_code, 16) if wait([self.exit_code], _STOP_SECONDS) else b""
        server_code = None if text else self.server.exit_code()
        how, output = "lost its connection", self.output
        if text:
            how = describe_exit(int(text))
        elif server_code is not None:
            how, output = (
                f"ended with its fork server, which {describe_exit(server_code)}",
                self.server.output,
            )
        return f"{how}; last lines of its output: {last_lines(output)}"
