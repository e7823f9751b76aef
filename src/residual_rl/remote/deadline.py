"""A time limit of a whole exchange with a server, which one that answers a byte at a time cannot extend."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType


class Deadline:
    """Context manager that shuts down the connections added to it when `seconds` have passed.

    A time limit of a socket applies to each call and starts again with each byte. When a connection is shut
    down, all calls on it end with an error, whichever library makes them; `passed` tells that error from
    others.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self.passed = False
        """Whether the connections were shut down."""
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True

    def left(self) -> float:
        """Remaining time [s]. Raises `TimeoutError` if there is none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def add(self, connection: socket.socket) -> None:
        """Shut down `connection` too."""
        # A descriptor of its own refers to the connection even after TLS has wrapped the socket.
        with self._lock:
            self._connections.append(socket.socket(fileno=socket.dup(connection.fileno())))
            if self.passed:
                self._connections[-1].shutdown(socket.SHUT_RDWR)

    def connect(self, host: str, port: int) -> socket.socket:
        """A new connection, without a time limit of its own."""
        failed: OSError = ConnectionError(f"{host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.left())
                connection.connect(address)
            except OSError as error:
                connection.close()
                failed = error
                continue
            connection.settimeout(None)
            self.add(connection)
            return connection
        raise failed

    def _shut_down(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
