"""Requests to an openpi policy server: a websocket for each world, with time-outs that apply."""

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
"""How long an end may take [s]."""
_TOO_LARGE = 1009
"""The code that a websocket is closed with for the size of a message."""


class WebsocketLink:
    """Asks the server at `url` (`ws://…` or `wss://…`).

    A connection that fails is closed and made anew. What the server does not answer within `timeout` [s] is asked again for
    `reconnect` [s]; then `BasePolicyError`.
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
        """What messages call it."""
        self._timeout, self._reconnect = timeout, reconnect
        self._headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._connections: dict[int, tuple[Any, contextlib.ExitStack]] = {}
        self._close = weakref.finalize(self, _close_all, self._connections)

    def metadata(self) -> dict[str, Any]:
        """What the server tells of itself; world 0 is connected then."""
        return retry(lambda: self._open(0), self.server, self._reconnect)

    @property
    def connected(self) -> set[int]:
        """The worlds that have a connection."""
        return set(self._connections)

    def ask_all(self, requests: Mapping[int, Any]) -> dict[int, Any]:
        """The answers to the worlds' requests, all of which are sent before one is read."""
        messages = {}
        for world, request in requests.items():
            try:
                messages[world] = pack(request, "openpi")
            except WireError as error:
                raise BasePolicyError(
                    f"the request to {self.server} {error}: use smaller images, or fewer worlds"
                ) from error
        replies: dict[int, Any] = {}
        retry(
            lambda: self._attempt({w: m for w, m in messages.items() if w not in replies}, replies),
            self.server,
            self._reconnect,
        )
        return replies

    def close(self) -> None:
        """Close the connections. It is called when the link is no longer used, too."""
        self._close()

    def _attempt(self, messages: Mapping[int, bytes], replies: dict[int, Any]) -> None:
        unanswered = set(messages)
        try:
            for world, message in messages.items():
                if world not in self._connections:
                    self._open(world)
                self._guarded(lambda c=self._connections[world][0], m=message: c.send(m))  # type: ignore[misc]
            for world in messages:
                connection = self._connections[world][0]
                reply = self._guarded(lambda c=connection: c.recv(timeout=self._timeout))  # type: ignore[misc]
                if isinstance(reply, str):
                    raise BasePolicyError(f"{self.server} refused: {one_line(reply)}")
                replies[world] = read_message(reply, self.server, "a dict with actions")
                unanswered.remove(world)
        finally:
            for world in unanswered & self._connections.keys():
                _hang_up(self._connections.pop(world))

    def _open(self, world: int) -> dict[str, Any]:
        """Connect a world; returns what the server tells of itself."""
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
        try:
            connection: Any = self._guarded(lambda: calls.enter_context(call()))
        except self._errors.InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise ConfigError(
                    f"{self.server} refused the token (HTTP {status}); set it as RESIDUAL_RL_TOKEN or --base.api-token"
                ) from error
            raise ServerUnavailable(f"no websocket, but HTTP status {status}") from error
        except self._errors.InvalidURI as error:
            raise ConfigError(f"{self._url!r} is no websocket address: expected ws://HOST:PORT") from error
        except self._errors.InvalidHandshake as error:
            raise ServerUnavailable(f"no websocket there ({one_line(error)})") from error
        self._connections[world] = (connection, calls)
        seconds, fraction = divmod(self._timeout, 1)
        with contextlib.suppress(OSError):  # closed by the server already: what it said before is read below
            connection.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(1e6 * fraction))
            )
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
            _hang_up(self._connections.pop(world))
            raise
        return value

    def _check_health(self) -> None:
        """A server that says at /healthz that it is not ready is waited for; those that have no such page are taken as they are."""
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
            raise ServerUnavailable(f"/healthz says {status}")

    def _guarded(self, call: Callable[[], T]) -> T:
        """The result of `call`; what means that the server does not answer becomes `ServerUnavailable`."""
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
    """End a connection without waiting for the server's consent: there may be many, of a server that hangs.

    It is reset, so that a server that is still sending to it is told at once, and not when the kernel has tried for a minute.
    """
    with contextlib.suppress(Exception):  # it is of no use any more, whatever its end is
        call[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        call[0].socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        call[1].close()


def _close_all(connections: dict[int, tuple[Any, contextlib.ExitStack]]) -> None:
    for call in connections.values():
        _hang_up(call)
    connections.clear()
