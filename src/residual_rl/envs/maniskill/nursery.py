"""The process that worker processes are forked from: ManiSkill takes seconds to import, and is imported once.

It is started with the first worker, and ends with the process that started it. It never makes a world itself, so that what is forked
holds no simulator and no thread.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from residual_rl.errors import ResidualRLError

STEP_WORLDS = "residual_rl.envs.maniskill.worker:run"
"""The worker that steps worlds."""
_LARGEST_MESSAGE = 1 << 16
_MOST_FDS = 8


class WorkerError(ResidualRLError):
    """A process that steps worlds has died."""


def last_words(log: IO[bytes]) -> str:
    """The last line that a process printed."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "(none)")


class Nursery:
    """Starts and buries worker processes."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # the terminal's signals are for the run alone
            env={**os.environ, **environment},
        )
        theirs.close()

    def start(self, log: int, fds: Sequence[int], run: str = STEP_WORLDS) -> int:
        """Fork a worker that prints into `log`; returns its process id.

        Args:
            log: a file descriptor.
            fds: those that `run` takes.
            run: `module:attribute` of the worker's whole life, which returns its exit code.
        """
        socket.send_fds(self._socket, [json.dumps({"path": sys.path, "run": run}).encode()], [log, *fds])
        return int(self._reply()["pid"])

    def bury(self, pid: int, patience: float) -> int | None:
        """The exit code of a worker that has ended (below 0: the signal that killed it); None where it has not in `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            self._socket.send(json.dumps({"bury": pid}).encode())
            reply = self._reply()
            if "code" in reply or time.monotonic() > deadline:
                return reply.get("code")
            time.sleep(0.01)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()
        self._log.close()

    def _reply(self) -> dict[str, Any]:
        try:
            message = self._socket.recv(_LARGEST_MESSAGE)
        except ConnectionResetError:
            message = b""
        if not message:
            code = self._process.wait()
            raise WorkerError(f"ManiSkill cannot be started (exit code {code}); its last words: {last_words(self._log)}")
        reply: dict[str, Any] = json.loads(message)
        return reply


@functools.cache
def nursery() -> Nursery:
    """This process's own."""
    return Nursery()


def main() -> None:
    """The process: `nursery SOCKET_FD`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import mani_skill.envs  # noqa: F401

    pkgutil.resolve_name(STEP_WORLDS)
    gc.collect()
    gc.freeze()  # what was imported stays where it is, in memory that all workers share
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, fds, _, _ = socket.recv_fds(requests, _LARGEST_MESSAGE, _MOST_FDS)
        if not message:
            return
        request = json.loads(message)
        if "bury" in request:
            pid, status = os.waitpid(request["bury"], os.WNOHANG)
            reply = {"code": os.waitstatus_to_exitcode(status)} if pid else {}
        else:
            pid = os.fork()
            if pid == 0:
                requests.close()
                os.dup2(fds[0], 1)
                os.dup2(fds[0], 2)
                sys.path[:] = request["path"]
                os._exit(pkgutil.resolve_name(request["run"])(*fds[1:]))
            for fd in fds:
                os.close(fd)
            reply = {"pid": pid}
        requests.send(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
