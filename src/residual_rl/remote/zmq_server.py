"""The socket of a ZeroMQ server: bounded queues, where each message came from, and who has disconnected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.remote.wire import MAX_MESSAGE_BYTES
from residual_rl.utils.text import one_line

_WAITING_REQUESTS, _WAITING_REPLIES = 2, 64
"""Messages of one connection that are queued at most: ZeroMQ stops reading further requests from the network,
and drops further replies."""


@dataclass(frozen=True)
class Client:
    """Where a request came from."""

    envelope: Sequence[bytes]
    """The frames in front of it, which the reply repeats; the first is ZeroMQ's name of the connection."""
    connection: int
    """File descriptor of the connection."""


class ServerSocket:
    """A ROUTER socket.

    Args:
        host: address to bind to.
        port: 0 takes a free one.

    Raises `ConfigError` for an address that cannot be used.
    """

    def __init__(self, host: str, port: int):
        try:
            import zmq
        except ImportError:
            raise MissingDependencyError(
                "pyzmq", "install it with `pip install residual-rl[gr00t]`"
            ) from None
        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.RCVHWM, _WAITING_REQUESTS),
            (zmq.SNDHWM, _WAITING_REPLIES),
            (zmq.IPV6, ":" in host),
            (zmq.TCP_KEEPALIVE, 1),  # so that a client without power is noticed, after about a minute
            (zmq.TCP_KEEPALIVE_IDLE, 30),
            (zmq.TCP_KEEPALIVE_INTVL, 10),
            (zmq.TCP_KEEPALIVE_CNT, 3),
        ):
            self._socket.setsockopt(option, value)
        self._closed = _ClosedConnections(zmq, self._context, self._socket)

        # Bind, and report a port that cannot be used.
        try:
            self._socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self.close()
            if error.errno == zmq.EADDRINUSE:
                raise ConfigError(f"port {port} on {host} is in use: choose another --port") from None
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {one_line(error)}; choose another --host or --port"
            ) from None
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def wait(self, seconds: float) -> bool:
        """Whether a message is there, at once or within `seconds`."""
        return bool(self._socket.poll(round(1000 * seconds)))

    def receive(self) -> tuple[Client, memoryview] | None:
        """The next message and its sender; None for a message that is to be ignored.

        Those are messages in the first versions of ZeroMQ's protocol, which have no handshake: a web page can
        hide them in an HTTP request.
        """
        *frames, last = self._socket.recv_multipart(copy=False)
        try:
            connection = last.get(self._zmq.SRCFD)
        except self._zmq.ZMQError:  # only a handshake gives connections properties
            return None
        return Client([frame.bytes for frame in frames], connection), last.buffer

    def send(self, client: Client, message: bytes) -> None:
        """Reply to a message; if the client has disconnected, or does not read, the reply is dropped."""
        self._socket.send_multipart([*client.envelope, message])

    def closed_connections(self) -> set[int]:
        """File descriptors of the connections that were closed since the last call."""
        return self._closed.read()

    def close(self) -> None:
        """Free the port."""
        self._closed.close()
        self._socket.close(linger=0)
        self._context.term()


class _ClosedConnections:
    def __init__(self, zmq: Any, context: Any, socket: Any):
        self._watched = socket
        address = f"inproc://closed-connections-{id(self)}"
        socket.monitor(address, zmq.EVENT_DISCONNECTED)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's own thread would wait for room
        self._events.connect(address)

    def read(self) -> set[int]:
        from zmq.utils.monitor import parse_monitor_message

        closed = set()
        while self._events.poll(0):
            closed.add(int(parse_monitor_message(self._events.recv_multipart())["value"]))
        return closed

    def close(self) -> None:
        self._watched.monitor(None, 0)
        self._events.close(linger=0)
