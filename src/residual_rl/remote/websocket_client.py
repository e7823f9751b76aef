"""Requests to an openpi policy server over one websocket for each env, with time-outs."""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import struct
import urllib.parse
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from residual_rl.errors import BasePolicyError, ConfigError, MissingDependencyError
from residual_rl.remote.client import ServerUnavailable, read_message, retry, too_large
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, WireError, pack
from residual_rl.utils.text import one_line

T = TypeVar("T")

_CLOSE_TIMEOUT = 0.5
"""Time-out for closing a connection [s]."""
_TOO_LARGE = 1009
"""Close code of a websocket that received too large a message (RFC 6455)."""


class WebsocketLink:
    """Sends requests to the server at `url` (`ws://…` or `wss://…`).

    A connection that fails is closed and opened again. A request without an answer within `timeout` [s] is
    repeated for `reconnect` [s]; after that, `BasePolicyError` is raised.
    """

    def __init__(self, url: str, timeout: float, reconnect: float, token: str | None):
        try:
            import websockets.exceptions
            import websockets.sync.client
        except ImportError:
            raise MissingDependencyError(
                "websockets", "install it with `pip install residual-rl[openpi]`"
            ) from None
        self._connect, self._errors = websockets.sync.client.connect, websockets.exceptions
        self._url = url
        self.server = f"the openpi server at {url}"
        """Name of the server in messages."""
        self._timeout, self._reconnect = timeout, reconnect
        self._headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._connections: dict[int, tuple[Any, contextlib.ExitStack]] = {}
        self._close = weakref.finalize(self, _close_all, self._connections)

    def metadata(self) -> dict[str, Any]:
        """The metadata of the server. Opens the connection of env 0."""
        return retry(lambda: self._open(0), self.server, self._reconnect)

    @property
    def connected(self) -> set[int]:
        """Indices of the envs with an open connection."""
        return set(self._connections)

    def request_all(self, requests: Mapping[int, Any]) -> dict[int, Any]:
        """Answers to `requests`, both by env index. All requests are sent before the first answer is read."""
        messages = {}
        for env_id, request in requests.items():
            try:
                messages[env_id] = pack(request, "openpi")
            except WireError as error:
                raise BasePolicyError(
                    f"the request to {self.server} {error}: use smaller images, or fewer envs"
                ) from error

        # An attempt that follows a failed one sends only the requests without an answer.
        replies: dict[int, Any] = {}
        retry(
            lambda: self._attempt({i: m for i, m in messages.items() if i not in replies}, replies),
            self.server,
            self._reconnect,
        )
        return replies

    def close(self) -> None:
        """Close the connections. Garbage collection closes them as well."""
        self._close()

    def _attempt(self, messages: Mapping[int, bytes], replies: dict[int, Any]) -> None:
        """Send `messages` and add the answers to `replies`, both by env index."""
        unanswered = set(messages)
        try:
            # Send everything first, so that the server can batch the requests.
            for env_id, message in messages.items():
                if env_id not in self._connections:
                    self._open(env_id)
                self._guarded(lambda c=self._connections[env_id][0], m=message: c.send(m))  # type: ignore[misc]
            for env_id in messages:
                connection = self._connections[env_id][0]
                reply = self._guarded(lambda c=connection: c.recv(timeout=self._timeout))  # type: ignore[misc]
                if isinstance(reply, str):
                    raise BasePolicyError(f"{self.server} refused: {one_line(reply)}")
                replies[env_id] = read_message(reply, self.server, "a dict with actions")
                unanswered.remove(env_id)
        finally:
            # A late answer must not be read as the answer to the next request: drop those connections.
            for env_id in unanswered & self._connections.keys():
                _hang_up(self._connections.pop(env_id))

    def _open(self, env_id: int) -> dict[str, Any]:
        """Open the connection of an env and return the metadata that the server sends first."""
        # Prepare the connection, without compression and proxy.
        self._check_health()
        calls = contextlib.ExitStack()
        call = functools.partial(
            self._connect,
            self._url,
            additional_headers=self._headers,
            compression=None,
            proxy=None,
            open_timeout=self._timeout,
            ping_timeout=self._timeout,
            close_timeout=_CLOSE_TIMEOUT,
            max_size=MAX_MESSAGE_BYTES,
        )

        # Connect. A refused token or a wrong address is final; anything else may pass.
        try:
            connection: Any = self._guarded(lambda: calls.enter_context(call()))
        except self._errors.InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise ConfigError(
                    f"{self.server} refused the token (HTTP {status}); set it as RESIDUAL_RL_TOKEN or"
                    " --base.api-token"
                ) from error
            raise ServerUnavailable(f"no websocket, but HTTP status {status}") from error
        except self._errors.InvalidURI as error:
            raise ConfigError(f"{self._url!r} is no websocket address: expected ws://HOST:PORT") from error
        except self._errors.InvalidHandshake as error:
            raise ServerUnavailable(f"no websocket there ({one_line(error)})") from error
        self._connections[env_id] = (connection, calls)

        # Set a time-out for sending, which the library does not have.
        seconds, fraction = divmod(self._timeout, 1)
        with contextlib.suppress(OSError):  # the server has closed it; its last message is read below
            connection.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(1e6 * fraction))
            )

        # Read the metadata; a text is an error message.
        try:
            first = self._guarded(lambda: connection.recv(timeout=self._timeout))
            if isinstance(first, str):
                raise BasePolicyError(f"{self.server} refused: {one_line(first)}")
            value = read_message(first, self.server, "its metadata")
            if not isinstance(value, dict):
                raise BasePolicyError(
                    f"{self.server} sent a {type(value).__name__}; expected a dict, its metadata"
                )
        except BaseException:
            _hang_up(self._connections.pop(env_id))
            raise
        return value

    def _check_health(self) -> None:
        """Raise `ServerUnavailable` if `/healthz` reports that the server is not ready.

        Servers without this page pass.
        """
        parts = urllib.parse.urlsplit(self._url)
        kind = http.client.HTTPSConnection if parts.scheme == "wss" else http.client.HTTPConnection
        page = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        try:
            page.request("GET", "/healthz")
            status = page.getresponse().status
        except TimeoutError as error:
            raise ServerUnavailable(f"no reply within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(f"no connection ({one_line(error) or type(error).__name__})") from error
        finally:
            page.close()
        if status >= 500:
            raise ServerUnavailable(f"/healthz returned {status}")

    def _guarded(self, call: Callable[[], T]) -> T:
        """The result of `call`. Errors of the connection are raised as `ServerUnavailable`."""
        try:
            return call()
        except TimeoutError as error:
            raise ServerUnavailable(f"no reply within {self._timeout:g} s") from error
        except self._errors.ConnectionClosed as error:
            if error.sent is not None and error.sent.code == _TOO_LARGE:
                raise too_large(self.server) from error
            raise ServerUnavailable("the connection was closed") from error
        except OSError as error:
            raise ServerUnavailable(f"no connection ({one_line(error)})") from error


def _hang_up(call: tuple[Any, contextlib.ExitStack]) -> None:
    """Close a connection without the closing handshake: a server that hangs would delay each of many.

    The connection is reset, so that sending to it fails on the server at once rather than after the minute
    for which the kernel would retry.
    """
    with contextlib.suppress(Exception):  # an error while closing has no consequence
        call[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        call[0].socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        call[1].close()


def _close_all(connections: dict[int, tuple[Any, contextlib.ExitStack]]) -> None:
    for call in connections.values():
        _hang_up(call)
    connections.clear()
