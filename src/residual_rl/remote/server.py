"""Servers by protocol, and a server in a thread."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol as Interface

from residual_rl.errors import ConfigError
from residual_rl.remote.service import PolicyService
from residual_rl.utils.network import is_loopback


class Server(Interface):
    """Interface of a server, which binds its port on construction."""

    address: str

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set, then close."""

    def close(self) -> None:
        """Free the port."""


def open_server(service: PolicyService, host: str, port: int, token: str | None, idle: float) -> Server:
    """Open a server for the protocol of `service`.

    Raises `ConfigError` if it cannot listen at this address, or if the address needs a token.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines: set a token with --token or RESIDUAL_RL_TOKEN"
        )
    protocol = service.handshake.protocol
    if protocol == "openpi":
        from residual_rl.remote.openpi_server import OpenPiServer

        return OpenPiServer(service, host, port, token, idle)
    from residual_rl.remote.gr00t_server import Gr00tServer

    return Gr00tServer(service, host, port, token, idle, flat=protocol == "gr00t-n15")


class BackgroundServer:
    """Runs `server` in a thread until `close`, or until the `with` block ends."""

    def __init__(self, server: Server):
        self.address = server.address
        self.error: BaseException | None = None
        """The error that ended the server, if any."""
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._run, name="policy server", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run(self._stop)
        except BaseException as error:  # noqa: BLE001 (stored for the owner of the server)
            self.error = error

    @property
    def running(self) -> bool:
        """Whether the server is still running."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop the server and wait until its port is free."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> BackgroundServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
