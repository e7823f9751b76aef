"""Requests to a GR00T inference server over ZeroMQ, with time-outs and one socket for each open request."""

from __future__ import annotations

import contextlib
import functools
import secrets
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from residual_rl.errors import BasePolicyError, MissingDependencyError
from residual_rl.remote.client import ServerUnavailable, read_message, retry
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, Encoding, WireError, pack, unpack
from residual_rl.utils.text import one_line

_FAREWELL = 0.2
"""Time limit for a closing socket to send its last message [s]."""


class RefusedError(BasePolicyError):
    """The server answered with an error."""


class ZmqLink:
    """Sends requests to the server at `host`:`port`.

    A REQ socket without a reply cannot send again, and is replaced. A request without an answer within
    `timeout` [s] is repeated for `reconnect` [s]; after that, `BasePolicyError` is raised.
    """

    def __init__(self, host: str, port: int, timeout: float, reconnect: float, token: str | None):
        try:
            import zmq
        except ImportError:
            raise MissingDependencyError(
                "pyzmq", "install it with `pip install residual-rl[gr00t]`"
            ) from None
        self._zmq = zmq
        self._address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        self.server = f"the GR00T server at {self._address}"
        """Name of the server in messages."""
        self.encoding: Encoding = "npy"
        """Encoding of arrays in requests."""
        self._timeout, self._reconnect = timeout, reconnect
        self._sign = functools.partial(_request, secrets.token_hex(16), token)
        """Adds session and token to a request; `residual-rl serve` groups requests by session."""
        self._sockets: dict[int, Any] = {}
        self._close = weakref.finalize(self, _close_all, self._sockets)

    def request(self, endpoint: str, data: Any = None) -> Any:
        """The answer to one request.

        Raises `RefusedError` if the answer is an error, and `BasePolicyError` without a valid answer.
        """
        return self.request_all(endpoint, {0: data})[0]

    def request_all(self, endpoint: str, data: Mapping[int, Any]) -> dict[int, Any]:
        """Answers to several requests, by number. All are sent before the first answer is read."""
        replies = self._exchange(
            {number: self._request(endpoint, number, content) for number, content in data.items()}
        )
        return {number: self._read(reply, endpoint) for number, reply in replies.items()}

    def describe(self, data: Any) -> Any:
        """The server's modality configuration, or None. Also selects the array encoding of that server."""
        reply = self._exchange({0: self._request("get_modality_config", 0, data)})[0]
        try:
            value = self._read(reply, "get_modality_config")
        except RefusedError as refused:
            if "nauthorized" in str(refused):
                raise
            return None
        self.encoding = unpack(reply)[1] or self.encoding
        return value

    def close_session(self) -> None:
        """Send `close` to the server when the link is closed: `residual-rl serve` then frees the envs."""
        self._close.detach()
        self._close = weakref.finalize(
            self, _close_all, self._sockets, functools.partial(_farewell, self._sign, self._zmq)
        )

    def close(self) -> None:
        """Close the sockets. Garbage collection closes them as well."""
        self._close()

    def _request(self, endpoint: str, number: int, data: Any) -> bytes:
        try:
            return pack(self._sign(endpoint, number, data), self.encoding)
        except WireError as error:
            raise BasePolicyError(
                f"the request to {self.server} {error}: use smaller images, or fewer envs"
            ) from error

    def _read(self, reply: bytes, endpoint: str) -> Any:
        if reply == b"ERROR":  # as the first releases of these servers answer
            raise RefusedError(f"{self.server} refused {endpoint!r} without a reason")
        value = read_message(reply, self.server, f"the answer to {endpoint!r}")
        if isinstance(value, dict) and "error" in value:
            raise RefusedError(f"{self.server} refused {endpoint!r}: {one_line(value['error'])}")
        return value

    def _exchange(self, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        replies: dict[int, bytes] = {}
        retry(
            lambda: self._attempt({n: m for n, m in messages.items() if n not in replies}, replies),
            self.server,
            self._reconnect,
        )
        return replies

    def _attempt(self, messages: Mapping[int, bytes], replies: dict[int, bytes]) -> None:
        """Send all `messages`, then read the `replies` in the order in which they come."""
        waiting = {self._socket(number): number for number in messages}
        try:
            # Send everything first, so that the server can batch the requests.
            for socket, number in waiting.items():
                socket.send(messages[number])
            poller = self._zmq.Poller()
            for socket in waiting:
                poller.register(socket, self._zmq.POLLIN)

            # Read the replies.
            while waiting:
                ready = poller.poll(round(1000 * self._timeout))
                if not ready:
                    raise ServerUnavailable(
                        f"no reply (of at most {MAX_MESSAGE_BYTES >> 20} MiB) within {self._timeout:g} s"
                    )
                for socket, _ in ready:
                    poller.unregister(socket)
                    replies[waiting.pop(socket)] = socket.recv()
        except self._zmq.ZMQError as error:
            what = (
                f"no connection within {self._timeout:g} s"
                if isinstance(error, self._zmq.Again)
                else one_line(error)
            )
            raise ServerUnavailable(what) from error
        finally:
            # A REQ socket without a reply cannot send again: drop it.
            for number in waiting.values():
                self._sockets.pop(number).close(linger=0)

    def _socket(self, number: int) -> Any:
        if number not in self._sockets:
            zmq = self._zmq
            socket = zmq.Context.instance().socket(zmq.REQ)
            for option, value in (
                (zmq.LINGER, 0),
                (zmq.RCVTIMEO, round(1000 * self._timeout)),
                (zmq.SNDTIMEO, round(1000 * self._timeout)),
                (zmq.IMMEDIATE, 1),  # sending to a server that does not exist fails
                (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
                (zmq.IPV6, "[" in self._address),
            ):
                socket.setsockopt(option, value)
            socket.connect(self._address)
            self._sockets[number] = socket
        return self._sockets[number]


def _request(name: str, token: str | None, endpoint: str, number: int, data: Any) -> dict[str, Any]:
    request = {"endpoint": endpoint, "session": f"{name}-{number}"}
    if data is not None:
        request["data"] = data
    if token is not None:
        request["api_token"] = token
    return request


def _close_all(sockets: dict[int, Any], farewell: Callable[[int, Any], None] | None = None) -> None:
    for number, socket in sockets.items():
        if farewell is not None:
            farewell(number, socket)
        socket.close(linger=round(1000 * _FAREWELL) if farewell else 0)
    sockets.clear()


def _farewell(sign: Callable[[str, int, Any], dict[str, Any]], zmq: Any, number: int, socket: Any) -> None:
    with contextlib.suppress(zmq.ZMQError):
        socket.send(pack(sign("close", number, None), "npy"), zmq.NOBLOCK)
