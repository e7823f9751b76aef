"""Servers and clients that mean harm, are broken, or are gone: the others are served all the same."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from remote_case import Counting, RobotClient, Waving, npy, openpi_array, packb, serving, unpackb
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as dial

from residual_rl.remote import gr00t_server, openpi_server

MIB = 2**20
GOOD = {
    "joint_position": np.zeros((1, 1, 6), np.float32),
    "joint_target": np.zeros((1, 1, 6), np.float32),
    "goal": np.zeros((1, 1, 3), np.float32),
}
COUNTED = {"joint_target": np.zeros((1, 1, 6), np.float32)}
OPENPI = {f"observation/{key}": value[0, 0] for key, value in GOOD.items()}
BOMB = b"\xdd" + (4 * MIB).to_bytes(4, "big") + b"\x80" * (4 * MIB)


@contextlib.contextmanager
def calling(port: int, **options: Any) -> Iterator[ClientConnection]:
    """A connection as openpi's client opens it."""
    with dial(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options) as connection:
        yield connection


def infer(connection: ClientConnection, request: Any) -> Any:
    connection.send(request if isinstance(request, bytes) else packb(request, openpi_array))
    reply = connection.recv(timeout=10)
    return reply if isinstance(reply, str) else unpackb(reply)


# --- messages that cost a lot -------------------------------------------------------------------------------


def test_gr00t_server__checks_the_token_before_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    unpack = gr00t_server.unpack
    monkeypatch.setattr(gr00t_server, "unpack", lambda data: decoded.append(len(data)) or unpack(data))
    with serving(Waving(), "gr00t", token="sesame") as port, RobotClient(port) as robot:
        for message in (BOMB, b"\xc1", packb({"endpoint": "ping"}), packb({"api_token": 5, "x": [[]]})):
            assert robot.raw(message) == {"error": "unauthorized: api_token is wrong or missing"}
        assert decoded == []
        assert robot.ask("ping", api_token="sesame")["status"] == "ok"
        assert len(decoded) == 1
        # The token counts that comes first, whatever is decoded later.
        twice = b"\x83" + b"".join(
            map(msgpack.packb, ("api_token", "no", "api_token", "sesame", "endpoint", "ping"))
        )
        assert "unauthorized" in robot.raw(twice)["error"]


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_server__serves_others_while_one_client_sends_bombs(protocol: str) -> None:
    """The other client's requests wait for less than a second each; one bomb took 5 s."""
    done = threading.Event()

    def bombard() -> None:
        if protocol == "gr00t":
            with RobotClient(port) as robot:
                while not done.is_set():
                    assert "values" in robot.raw(BOMB)["error"]
        else:
            with calling(port) as connection:
                connection.recv(timeout=10)
                while not done.is_set():
                    assert "values" in infer(connection, BOMB)

    with serving(Waving(), protocol) as port:
        thread = threading.Thread(target=bombard)
        thread.start()
        waits = []
        with contextlib.ExitStack() as stack:
            if protocol == "gr00t":
                robot = stack.enter_context(RobotClient(port))
            else:
                connection = stack.enter_context(calling(port))
                connection.recv(timeout=10)
            for _ in range(10):
                start = time.monotonic()
                if protocol == "gr00t":
                    assert len(robot.get_action(GOOD)) == 2
                else:
                    assert "actions" in infer(connection, OPENPI)
                waits.append(time.monotonic() - start)
        done.set()
        thread.join()
    assert max(waits) < 1.0


def test_openpi_server__decodes_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    unpack = openpi_server.unpack
    monkeypatch.setattr(
        openpi_server, "unpack", lambda data: names.append(threading.current_thread().name) or unpack(data)
    )
    with serving(Waving(), "openpi") as port, calling(port) as connection:
        connection.recv(timeout=10)
        assert "actions" in infer(connection, OPENPI)
    assert [name.split("_")[0] for name in names] == ["decoder"]


def test_gr00t_server__converts_no_more_rows_than_it_has_envs() -> None:
    large = np.zeros((100_000, 1, 6), np.float32)
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot:
        for state in (
            {**GOOD, "joint_target": large},
            {"single_arm": large[..., :5], "gripper": large[..., 5:]},
        ):
            request = {"endpoint": "get_action", "data": {"observation": {"state": state}}}
            assert robot.raw(packb(request))["error"].startswith("100000 env(s) requested, 16 of 16 free")


def test_gr00t_server__answers_while_refused_requests_keep_coming() -> None:
    """A batch is not extended for ever by messages that are refused."""
    done = threading.Event()

    def flood() -> None:
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        while not done.is_set():
            for _ in range(50):
                dealer.send_multipart([b"", b"\xc1"])
            for _ in range(50):
                if dealer.poll(1000):
                    dealer.recv_multipart()
        dealer.close()

    with serving(Waving(), "gr00t") as port:
        threads = [threading.Thread(target=flood) for _ in range(2)]
        for thread in threads:
            thread.start()
        with RobotClient(port) as robot:
            start = time.monotonic()
            for _ in range(5):
                assert len(robot.get_action(GOOD)) == 2
            assert time.monotonic() - start < 5.0
        done.set()
        for thread in threads:
            thread.join()


# --- web pages ----------------------------------------------------------------------------------------------


def test_openpi_server__refuses_web_pages() -> None:
    """Browsers name the page's origin, also `null`, and after DNS rebinding the server's own."""
    with serving(Waving(), "openpi") as port:
        for origin in ("https://evil.example", "null", f"http://127.0.0.1:{port}"):
            with pytest.raises(InvalidStatus, match="403"), calling(port, origin=origin):
                pass
        with calling(port) as connection:
            assert b"residual_rl" in connection.recv(timeout=10)  # type: ignore[operator]


@pytest.mark.parametrize("method", [b"POST", b"GET", b"HEAD"])
def test_gr00t_server__ignores_messages_in_http_requests(method: bytes) -> None:
    """ZeroMQ reads an HTTP request as its first version, which knows no handshake: the first two bytes are a
    length and flags, then comes a name, and a page can put messages into the rest."""
    with serving(Counting(), "gr00t", sessions=1) as port, RobotClient(port) as robot:
        name = method[2:] + b" /" + b"a" * (method[0] - 1 - len(method[2:]) - 2)
        request = packb({"endpoint": "get_action", "data": {"observation": {"state": COUNTED}}})
        message = b"\x01\x01" + b"\xff" + (1 + len(request)).to_bytes(8, "big") + b"\x00" + request
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(method[:2] + name + message)
            raw.settimeout(0.5)
            received = b""
            with contextlib.suppress(TimeoutError):
                while data := raw.recv(1000):
                    received += data
        assert b"single_arm" not in received
        assert len(robot.get_action(COUNTED)) == 2  # the one env is free


# --- clients that are gone ----------------------------------------------------------------------------------


def test_gr00t_server__gives_envs_of_disconnected_clients_to_others() -> None:
    """A robot's script that is started again and again; none of them says goodbye."""
    with serving(Counting(), "gr00t", sessions=4) as port:
        for _ in range(9):
            with RobotClient(port) as robot:
                assert counted(robot, patience=10.0) == [1]


def test_gr00t_server__keeps_the_envs_of_connected_clients() -> None:
    request = {"endpoint": "get_action", "data": {"observation": {"state": COUNTED}}}
    with (
        serving(Counting(), "gr00t", sessions=2) as port,
        RobotClient(port) as one,
        RobotClient(port) as two,
        RobotClient(port) as three,
    ):
        assert [counted(one), counted(two), counted(one)] == [[1], [1], [2]]
        assert robot_error(three, request).startswith("1 env(s) requested, 0 of 2 free")
        assert [counted(one), counted(two)] == [[3], [2]]


def test_gr00t_server__takes_the_env_that_was_used_least_recently() -> None:
    with serving(Counting(), "gr00t", sessions=2) as port:
        for name in ("first", "second"):
            with RobotClient(port) as robot:
                assert counted(robot, session=name) == [1]
        with RobotClient(port) as robot:
            assert counted(robot, patience=10.0) == [1]
            assert counted(robot, session="second") == [2]  # it came back over another connection


def counted(robot: RobotClient, patience: float = 0.0, **more: Any) -> list[int]:
    """How often `Counting` has seen this client. With `patience` [s], a refusal is no error: the server may
    not have noticed yet that others are gone."""
    end = time.monotonic() + patience
    request = {"endpoint": "get_action", "data": {"observation": {"state": COUNTED}}, **more}
    while isinstance(reply := robot.raw(packb(request)), dict) and time.monotonic() < end:
        time.sleep(0.05)
    return np.round(np.radians(reply[0]["single_arm"][:, 0, 0]) / 0.02 * 100).astype(int).tolist()


def robot_error(robot: RobotClient, request: Any) -> str:
    return str(robot.raw(packb(request))["error"])


def test_openpi_server__says_in_the_closing_that_it_is_full() -> None:
    """openpi's client unpacks the first message, which is the metadata, and cannot read a text there; the
    reason for which a connection was closed is in the error that it raises."""
    with serving(Counting(), "openpi", sessions=1) as port, calling(port) as one:
        one.recv(timeout=10)
        with calling(port) as two, pytest.raises(ConnectionClosedError) as caught:
            msgpack.unpackb(two.recv())
        assert "1 env(s) requested, 0 of 1 free: close other clients, or raise --max-sessions" in str(
            caught.value
        )


def test_modality_config__omits_modalities_without_keys() -> None:
    """Clients of N1.7 require at least one key in each."""
    with serving("zero", "gr00t", control_mode="joint_target") as port, RobotClient(port) as robot:
        assert robot.ask("get_modality_config").keys() == {"action", "language"}


# --- text and odd types -------------------------------------------------------------------------------------

ESCAPES = "\x1b[2J\x1b]0;title\x07\r\nWARNING forged line " + "x" * 100_000


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_server__escapes_and_cuts_texts_of_clients(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    def gr00t_requests() -> Iterator[str]:
        with RobotClient(port) as robot:
            yield robot_error(robot, {"endpoint": ESCAPES})
            yield robot_error(
                robot, {"endpoint": "get_action", "data": {"observation": {"state": {ESCAPES: 1}}}}
            )
            yield robot_error(
                robot,
                {
                    "endpoint": "get_action",
                    "data": {"observation": {"state": dict.fromkeys(map(str, range(5000)))}},
                },
            )
            yield robot_error(
                robot,
                {"endpoint": "ping", "x": {"__ndarray__": True, "data": b"", "dtype": ESCAPES, "shape": []}},
            )

    def openpi_requests() -> Iterator[str]:
        with calling(port) as connection:
            connection.recv(timeout=10)
            yield infer(connection, {"__ctrl__": ESCAPES})
            yield infer(connection, {ESCAPES: 1})
            yield infer(connection, dict.fromkeys(map(str, range(5000))))

    with serving(Waving(), protocol) as port:
        replies = list(gr00t_requests() if protocol == "gr00t" else openpi_requests())
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == len(replies)
    for text in [*replies, *logged]:
        assert text.isprintable()
        assert len(text) <= 340


def test_server__limits_what_it_logs_of_refusals(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot:
        for _ in range(200):
            robot.raw(b"\xc1")
    assert len(caplog.records) == 61
    assert "are only counted" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    "value", [np.zeros(3), [1], {"a": 1}, None, 5, b"ping"], ids=lambda v: type(v).__name__
)
def test_server__refuses_names_of_other_types(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot:
        assert (
            f"unknown endpoint: a {type(value).__name__}, not a name"
            in robot.raw(packb({"endpoint": value}))["error"]
        )
    with serving(Waving(), "openpi") as port, calling(port) as connection:
        connection.recv(timeout=10)
        assert f"unknown __ctrl__ 'a {type(value).__name__}'" in infer(connection, {"__ctrl__": value})
    assert not any(record.exc_info for record in caplog.records)


def test_openpi_server__refuses_two_tokens_and_odd_ones(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Waving(), "openpi", token="sésame") as port:
        for headers in (
            [("Authorization", "Api-Key sésame"), ("Authorization", "Api-Key sésame")],
            [("Authorization", "Api-Key s\u00e9sam")],
            [],
        ):
            with pytest.raises(InvalidStatus, match="401"), calling(port, additional_headers=headers):
                pass
        with calling(port, additional_headers=[("Authorization", "Api-Key sésame")]) as connection:
            connection.recv(timeout=10)
    assert not any(record.exc_info for record in caplog.records)


def test_openpi_server__logs_no_traceback_for_what_is_no_websocket(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Waving(), "openpi") as port:
        for data in (b"\xff" * 100, b"POST / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                raw.recv(1000)
        with calling(port) as connection:
            connection.recv(timeout=10)
    assert not any(record.exc_info for record in caplog.records)


def test_openpi_server__reads_no_more_than_an_observation_needs() -> None:
    with serving(Waving(), "openpi") as port, calling(port) as connection:
        connection.recv(timeout=10)
        assert "missing" in infer(connection, {"x": bytes(11 * MIB)})
        with contextlib.suppress(ConnectionClosedError):
            connection.send(packb({"x": bytes(13 * MIB)}, npy))
        with pytest.raises(ConnectionClosedError, match="1009"):
            connection.recv(timeout=10)
