"""Requests to an openpi policy server over one websocket for each env, with time-outs."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import struct
import urllib.parse
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from residual_rl.errors import BasePolicyError, ConfigError, MissingDependencyError
from residual_rl.remote.client import ServerUnavailable, read_message, retry, too_large
from residual_rl.remote.deadline import Deadline
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, WireError, pack
from residual_rl.utils.text import one_line

_CLOSE_TIMEOUT = 0.5
"""Time-out for closing a connection [s]."""
_TOO_LARGE, _TRY_LATER = 1009, 1013
"""Codes with which a websocket is closed that received too large a message, or whose server is full."""


class WebsocketLink:
    """Sends requests to the server at `url` (`ws://…` or `wss://…`).

    A connection that fails is closed and opened again. Requests without an answer within `timeout` [s] of
    sending them are repeated for `reconnect` [s]; after that, `BasePolicyError` is raised.
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
        try:
            parts = urllib.parse.urlsplit(url)
            self._tls = parts.scheme == "wss"
            self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
            if not self._host or parts.fragment:
                raise ValueError
        except ValueError:
            raise ConfigError(f"{url!r} is no websocket address: expected ws://HOST:PORT") from None
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
        for env_id in sorted(messages.keys() - self._connections.keys()):
            self._open(env_id)
        unanswered = set(messages)
        try:
            with Deadline(self._timeout) as deadline:
                self._exchange(deadline, messages, unanswered, replies)
        finally:
            # A late answer must not be read as the answer to the next request: drop those connections.
            for env_id in unanswered & self._connections.keys():
                _hang_up(self._connections.pop(env_id))

    def _exchange(
        self, deadline: Deadline, messages: Mapping[int, bytes], unanswered: set[int], replies: dict[int, Any]
    ) -> None:
        """`_attempt` over connections that are open; removes the answered requests from `unanswered`."""
        connections = {env_id: self._connections[env_id][0] for env_id in messages}
        with self._guarded(deadline):
            # Send everything first, so that the server can batch the requests.
            for env_id, connection in connections.items():
                deadline.add(connection.socket)
                connection.send(messages[env_id])
            for env_id, connection in connections.items():
                reply = connection.recv(timeout=deadline.left())
                if isinstance(reply, str):
                    raise BasePolicyError(f"{self.server} refused: {one_line(reply)}")
                replies[env_id] = read_message(reply, self.server, "a dict with actions")
                unanswered.remove(env_id)

    def _open(self, env_id: int) -> dict[str, Any]:
        """Open the connection of an env and return the metadata that the server sends first."""
        calls = contextlib.ExitStack()
        with Deadline(self._timeout) as deadline, self._guarded(deadline):
            self._check_health(deadline)

            # Connect. A refused token or a wrong address is final; anything else may pass.
            try:
                connection: Any = calls.enter_context(
                    self._connect(
                        self._url,
                        sock=deadline.connect(self._host, self._port),
                        additional_headers=self._headers,
                        compression=None,
                        open_timeout=deadline.left(),
                        ping_timeout=self._timeout,
                        close_timeout=_CLOSE_TIMEOUT,
                        max_size=MAX_MESSAGE_BYTES,
                        max_queue=1,
                    )
                )
            except self._errors.InvalidStatus as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise ConfigError(
                        f"{self.server} refused the token (HTTP {status}); set it as RESIDUAL_RL_TOKEN or"
                        " --base.api-token"
                    ) from error
                raise ServerUnavailable(f"no websocket, but HTTP status {status}") from error
            except self._errors.InvalidHandshake as error:
                raise ServerUnavailable(f"no websocket there ({one_line(error)})") from error
            self._connections[env_id] = (connection, calls)

            # Read the metadata; a text is an error message.
            try:
                first = connection.recv(timeout=deadline.left())
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

    def _check_health(self, deadline: Deadline) -> None:
        """Raise `ServerUnavailable` if `/healthz` reports that the server is not ready.

        Servers without this page pass.
        """
        page = http.client.HTTPConnection(self._host, self._port)
        page.sock = deadline.connect(self._host, self._port)
        try:
            if self._tls:
                page.sock = ssl.create_default_context().wrap_socket(page.sock, server_hostname=self._host)
            page.request("GET", "/healthz")
            status = page.getresponse().status
        except http.client.HTTPException as error:
            raise OSError(one_line(error) or type(error).__name__) from error
        finally:
            page.close()
        if status >= 500:
            raise ServerUnavailable(f"/healthz returned {status}")

    @contextlib.contextmanager
    def _guarded(self, deadline: Deadline) -> Iterator[None]:
        """Raise errors of connections as `ServerUnavailable`."""
        try:
            yield
        except (OSError, EOFError, self._errors.WebSocketException, ServerUnavailable) as error:
            # What ended because of the time limit may have any of these errors.
            if deadline.passed or isinstance(error, TimeoutError):
                raise ServerUnavailable(f"no reply within {self._timeout:g} s") from error
            if isinstance(error, self._errors.ConnectionClosed):
                raise self._closed(error) from error
            if isinstance(error, ServerUnavailable):
                raise
            raise ServerUnavailable(f"no connection ({one_line(error) or type(error).__name__})") from error

    def _closed(self, error: Any) -> Exception:
        """The error for a connection that was closed."""
        if error.sent is not None and error.sent.code == _TOO_LARGE:
            if error.rcvd_then_sent:
                return BasePolicyError(f"the request is too large for {self.server}: use smaller images")
            return too_large(self.server)
        if error.rcvd is not None and error.rcvd.code == _TRY_LATER:
            return BasePolicyError(f"{self.server} refused: {one_line(error.rcvd.reason)}")
        return ServerUnavailable("the connection was closed")


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
