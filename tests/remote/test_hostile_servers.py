"""Clients and servers that mean harm or are broken: time limits hold, and texts are safe to show."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import websockets.sync.server
import zmq
from remote_case import Counting, connect, npy, packb, serving
from websockets.exceptions import ConnectionClosed
from websockets.server import ServerProtocol

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.base_policies.openpi import OpenPiCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.remote.deadline import Deadline
from residual_rl.types import Obs

ESCAPES = "\x1b[2J\x1b]0;title\x07\r\nWARNING forged line " + "x" * 100_000


@pytest.fixture(scope="module")
def env() -> VecEnv:
    return make_vec_env("so101-paper", 1, num_threads=1, control_mode="joint_target")


@pytest.fixture
def obs() -> Obs:
    return {"joint_position": torch.zeros(1, 6), "joint_target": torch.zeros(1, 6), "goal": torch.zeros(1, 3)}


def openpi(port: int, env: VecEnv, **settings: Any) -> BasePolicyExecutor:
    settings = {"timeout": 0.5, "reconnect": 0.0, "observation": ("goal",), **settings}
    return make_base_policy("openpi", OpenPiCfg(port=port, **settings), env)


# --- time limits --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accepting(converse: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that has `converse` for each connection; gives its port."""

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            converse(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]


def trickle(connection: socket.socket, data: bytes) -> None:
    """Send a byte at a time, each well within a time limit of 0.5 s, for a minute."""
    for byte in data + b"x" * 600:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def answer_health(connection: socket.socket) -> bytes:
    """Answer requests for `/healthz`; the request of a websocket, empty for others."""
    request = connection.recv(65536)
    if b"/healthz" not in request:
        return request
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    return b""


def trickle_health(connection: socket.socket) -> None:
    connection.recv(65536)
    trickle(connection, b"HTTP/1.1 200 OK\r\n" + b"X-A: y\r\n" * 100)


def trickle_handshake(connection: socket.socket) -> None:
    if answer_health(connection):
        trickle(connection, b"HTTP/1.1 101 Switching Protocols\r\n" + b"X-A: y\r\n" * 100)


def trickle_metadata(connection: socket.socket) -> None:
    request = answer_health(connection)
    if request:
        protocol = ServerProtocol()
        protocol.receive_data(request)
        protocol.send_response(protocol.accept(protocol.events_received()[0]))  # type: ignore[arg-type]
        connection.sendall(b"".join(protocol.data_to_send()))
        trickle(connection, b"\x82\x7e\x10\x00")


@pytest.mark.parametrize("converse", [trickle_health, trickle_handshake, trickle_metadata])
def test_websocket_link__timeout_bounds_the_whole_exchange(converse: Any, env: VecEnv) -> None:
    with accepting(converse) as port:
        start = time.monotonic()
        with pytest.raises(BasePolicyError, match=r"no reply within 0\.5 s; start it"):
            openpi(port, env)
        assert 0.4 < time.monotonic() - start < 5.0


@pytest.mark.slow
def test_websocket_link__timeout_bounds_all_requests_together(obs: Obs) -> None:
    """A server that answers each of four envs after 0.3 s, one after the other, takes 1.2 s for all."""
    env = make_vec_env("so101-paper", 4, num_threads=1, control_mode="joint_target")
    turn = threading.Lock()

    def converse(connection: Any) -> None:
        connection.send(packb({}))
        for _ in connection:
            with turn:
                time.sleep(0.3)
                connection.send(packb({"actions": np.zeros((8, 6), np.float32)}, npy))

    with websockets.sync.server.serve(converse, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        four = {name: value.expand(4, -1) for name, value in obs.items()}
        port = server.socket.getsockname()[1]
        policy = openpi(port, env, timeout=10.0)
        policy.act(four)
        policy = openpi(port, env, timeout=10.0)
        policy.policy._link._timeout = 0.5  # type: ignore[attr-defined]
        with pytest.raises(BasePolicyError, match=r"no reply within 0\.5 s"):
            policy.act(four)
        server.shutdown()


def test_zmq_link__timeout_bounds_all_requests_together(obs: Obs) -> None:
    env = make_vec_env("so101-paper", 4, num_threads=1, control_mode="joint_target")
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if router.poll(20):
                *envelope, _ = router.recv_multipart()
                time.sleep(0.3)
                router.send_multipart([*envelope, packb({"error": "Unknown endpoint"})])
        router.close()

    thread = threading.Thread(target=serve)
    thread.start()
    policy = make_base_policy("gr00t", Gr00tCfg(port=port, layout="n1.5", timeout=10.0, reconnect=0.0), env)
    policy.policy._link._timeout = 0.5  # type: ignore[attr-defined]
    with pytest.raises(BasePolicyError, match=r"no reply .* within 0\.5 s"):
        policy.act({name: value.expand(4, -1) for name, value in obs.items()})
    stop.set()
    thread.join()


def test_deadline__shuts_down_connections_that_are_added_late() -> None:
    one, two = socket.socketpair()
    with one, two, Deadline(0.05) as deadline:
        time.sleep(0.2)
        assert deadline.passed
        with pytest.raises(TimeoutError):
            deadline.left()
        deadline.add(one)
        assert one.recv(10) == b""
    with socket.socketpair()[0] as kept, Deadline(60.0) as deadline:
        deadline.add(kept)
        assert 59.0 < deadline.left() <= 60.0


@pytest.mark.parametrize("url", ["ws://", "ws://host:70000", "ws://host#fragment", "ws://[::1"])
def test_websocket_link__names_what_is_no_address(url: str, env: VecEnv) -> None:
    with pytest.raises(ConfigError, match="is no websocket address: expected ws://HOST:PORT"):
        openpi(1, env, url=url)


# --- refusals and texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_client__reads_that_the_server_is_full(protocol: str, obs: Obs) -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1)
    with serving(Counting(), protocol, sessions=1) as port:
        first = connect(protocol, port, env)
        first.act(obs)
        with pytest.raises(
            BasePolicyError, match=r"refused.*: 1 env\(s\) requested, 0 of 1 free: close other"
        ):
            connect(protocol, port, env, reconnect=30.0).act(obs)  # waiting would not help


def test_openpi_policy__names_a_request_that_the_server_does_not_read() -> None:
    size = (2000, 2200)
    env = make_vec_env("so101-paper", 1, num_threads=1, obs_mode="rgb", obs_cameras=("top",), image_size=size)

    def converse(connection: Any) -> None:
        connection.send(packb({}))
        with contextlib.suppress(ConnectionClosed):
            connection.recv()

    with websockets.sync.server.serve(converse, "127.0.0.1", 0, max_size=12 * 2**20) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        policy = openpi(server.socket.getsockname()[1], env, timeout=20.0, observation=("top=image",))
        with pytest.raises(BasePolicyError, match=r"the request is too large for the openpi server at ws://"):
            policy.act({"top": torch.zeros(1, *size, 3, dtype=torch.uint8)})
        server.shutdown()


class FakeGr00t:
    """Answers every request with `answers[endpoint]`."""

    def __init__(self, **answers: Any):
        self._answers = answers
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        import msgpack

        while not self._stop.is_set():
            if self._socket.poll(20):
                endpoint = msgpack.unpackb(self._socket.recv(), strict_map_key=False)["endpoint"]
                answer = self._answers.get(endpoint, {"error": "Unknown endpoint"})
                self._socket.send(answer if isinstance(answer, bytes) else packb(answer))
        self._socket.close()

    def __enter__(self) -> FakeGr00t:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def gr00t(server: FakeGr00t, env: VecEnv, **settings: Any) -> BasePolicyExecutor:
    return make_base_policy("gr00t", Gr00tCfg(port=server.port, timeout=10.0, reconnect=0.0, **settings), env)


ACTIONS: dict[str, Any] = {
    "an error": {"error": ESCAPES},
    "an error of another type": {"error": [[ESCAPES]]},
    "a deep error": b"\x81\xa5error" + b"\x91" * 900 + b"\x01",
    "other keys": [{ESCAPES: 1}, {}],
    "many keys": [dict.fromkeys(map(str, range(5000))), {}],
    "a long dtype": [{"single_arm": {"nd": True, "type": ESCAPES, "shape": [], "data": b""}}, {}],
}


@pytest.mark.parametrize("case", ACTIONS)
def test_gr00t_policy__shows_texts_of_a_server_escaped_and_cut(case: str, env: VecEnv, obs: Obs) -> None:
    with FakeGr00t(get_action=ACTIONS[case]) as server:
        policy = gr00t(server, env)
        with pytest.raises(BasePolicyError) as caught:
            policy.act(obs)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def modality(keys: Any, steps: Any = (0,)) -> Any:
    return {"__ModalityConfig__": True, "as_json": {"modality_keys": keys, "delta_indices": steps}}


HANDSHAKE = {
    "protocol": "gr00t",
    "task": "t",
    "policy": "p",
    "inputs": {},
    "chunk_size": 1,
    "num_action_steps": 1,
    "num_obs_steps": 1,
    "action_units": "hardware",
    "action_unit": [1.0],
}
CONFIGS: dict[str, Any] = {
    "names with escapes": {"state": modality([ESCAPES])},
    "an escape in a name": {"state": modality(["a\x1b[2J"])},
    "many names": {"state": modality([f"s{n}" for n in range(3000)])},
    "names that are numbers": {"state": modality([1])},
    "an array for a modality": {"state": np.zeros(3)},
    "steps that are infinite": {"state": modality(["single_arm"], [float("inf")])},
    "many steps": {"state": modality(["single_arm"], [0] * 3000)},
    "steps of the future": {"state": modality(["single_arm"], list(range(900)))},
    "a task with escapes": {"residual_rl": {**HANDSHAKE, "task": ESCAPES}},
    "an infinite chunk": {"residual_rl": {**HANDSHAKE, "chunk_size": float("inf")}},
    "an array for the inputs": {"residual_rl": {**HANDSHAKE, "inputs": np.zeros(3)}},
    "an array for the handshake": {"residual_rl": np.zeros(3)},
    "an input with escapes": {
        "residual_rl": {**HANDSHAKE, "inputs": {ESCAPES: {"key": "a", "shape": [1], "dtype": "u"}}}
    },
}


@pytest.mark.parametrize("case", CONFIGS)
def test_gr00t_policy__refuses_odd_descriptions_in_one_line(case: str, env: VecEnv) -> None:
    with (
        FakeGr00t(get_modality_config=CONFIGS[case]) as server,
        pytest.raises((BasePolicyError, ConfigError)) as caught,
    ):
        gr00t(server, env)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


# --- two grippers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["n1.5", "n1.6"])
@pytest.mark.parametrize("agree", [False, True])
def test_gr00t_policy__takes_the_gripper_from_its_own_key(
    layout: Any, agree: bool, env: VecEnv, obs: Obs, caplog: pytest.LogCaptureFixture
) -> None:
    """The arm's sixth column says 66 %, the gripper's key 25 %."""
    arm = np.full((16, 6), 10.0, np.float32)
    arm[:, 5] = 25.0 if agree else 66.0
    gripper = np.full((16, 1), 25.0, np.float32)
    if layout == "n1.5":
        answer: Any = {"action.single_arm": arm, "action.gripper": gripper}
    else:
        answer = [{"single_arm": arm[None], "gripper": gripper[None]}, {}]
    with FakeGr00t(get_action=answer) as server, caplog.at_level(logging.WARNING):
        policy = gr00t(server, env, layout=layout)
        for _ in range(20):
            action = policy.act(obs)
    assert action[0, 5].item() == pytest.approx(-0.5, abs=1e-6)  # a quarter of the range
    warnings = [record.getMessage() for record in caplog.records if "gripper" in record.getMessage()]
    assert len(warnings) == (0 if agree else 1)
    if not agree:
        key = "action.single_arm" if layout == "n1.5" else "single_arm"
        assert f"66 in the last column of '{key}' and 25 as" in warnings[0]
