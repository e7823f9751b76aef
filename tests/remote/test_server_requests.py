"""Our servers with independent clients. No invalid request stops a server or affects other clients."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import remote_case
import torch
import zmq
from remote_case import (
    BackgroundServer,
    Counting,
    RobotClient,
    Waving,
    npy,
    open_one,
    packb,
    port_of,
    serving,
    unpackb,
)
from torch import Tensor
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as dial

from residual_rl.remote.wire import MAX_MESSAGE_BYTES
from residual_rl.types import ActionChunk, Obs

DEGREES = np.array([30.0, -45.0, 60.0, 10.0, -90.0], np.float32)
CLOSED, OPEN = -0.174533, 1.74533
RADIANS = [math.radians(x) for x in DEGREES] + [CLOSED + 0.25 * (OPEN - CLOSED)]
"""The same in radians, with the gripper a quarter open."""


class Echo(Waving):
    """Commands the observed joint positions, with those of the arm plus 0.01 rad per step, in joint_target
    mode."""

    inputs = {"joint_position": (6,)}  # noqa: RUF012

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        low, high = torch.tensor([CLOSED, OPEN])
        half = torch.tensor(
            [1.91986, 1.74533, 1.69, 1.65806, 0.5 * (2.84121 + 2.74385), 0.5 * (high - low)],
            dtype=torch.float64,
        )
        middle = torch.tensor(
            [0.0, 0.0, 0.0, 0.0, 0.5 * (2.84121 - 2.74385), 0.5 * (high + low)], dtype=torch.float64
        )
        steps = torch.zeros(self.chunk_size, 6, dtype=torch.float64)
        steps[:, :5] = 0.01 * torch.arange(self.chunk_size)[:, None]
        return ((obs["joint_position"].double()[:, None] + steps - middle) / half).float()


class Failing(Waving):
    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        raise RuntimeError("secret\npath /home/me/model")


def expected_chunk(steps: int) -> Any:
    """Degrees that `Echo` commands for DEGREES: 0.01 rad more at each step."""
    return DEGREES + np.degrees(0.01) * np.arange(steps)[:, None]


# --- robots with GR00T's protocols --------------------------------------------------------------------------


@pytest.mark.parametrize("array", [npy, remote_case.nd], ids=["N1.6", "N1.7"])
def test_gr00t_server__answers_a_robot_with_nested_keys(array: Any) -> None:
    """The state is (B, T, D) in degrees and percent. The reply is a list of actions (B, K, D) and info."""
    state = {"single_arm": DEGREES[None, None], "gripper": np.array([[[25.0]]], np.float32)}
    with serving(Echo(), "gr00t", control_mode="joint_target") as port, RobotClient(port, array) as robot:
        assert robot.ask("ping")["status"] == "ok"
        assert robot.ask("reset", {"options": None}) == {}
        actions, info = robot.get_action(state)
        assert info == {}  # extensions of the protocol are sent only on request
        assert {key: (value.shape, value.dtype) for key, value in actions.items()} == {
            "single_arm": ((1, 4, 5), np.float32),
            "gripper": ((1, 4, 1), np.float32),
        }
        np.testing.assert_allclose(actions["single_arm"][0], expected_chunk(4), atol=2e-5)
        np.testing.assert_allclose(actions["gripper"], 25.0, atol=2e-5)
        both = {key: np.concatenate([value, value + 1]) for key, value in state.items()}
        actions, _ = robot.get_action(both)
        np.testing.assert_allclose(actions["single_arm"][1], expected_chunk(4) + 1, atol=2e-5)


def test_gr00t_server__reply_has_the_encoding_of_the_request() -> None:
    state = {"single_arm": DEGREES[None, None], "gripper": np.zeros((1, 1, 1), np.float32)}
    with serving(Echo(), "gr00t", control_mode="joint_target") as port:
        for array, marker in ((npy, b"__ndarray_class__"), (remote_case.nd, b"\xc4\x02nd")):
            with RobotClient(port, array) as robot:
                robot.socket.send(
                    packb({"endpoint": "get_action", "data": {"observation": {"state": state}}}, array)
                )
                assert marker in robot.socket.recv()


def test_gr00t_server__answers_a_robot_with_flat_keys() -> None:
    """The state is (1, 5) in float64, as from the original client.

    The reply has action.single_arm (K, 5) and action.gripper (K, 1).
    """
    data = {
        "state.single_arm": DEGREES[None].astype(np.float64),
        "state.gripper": np.array([[25.0]]),
        "annotation.human.task_description": ["go"],
    }
    with (
        serving(Echo(chunk_size=16), "gr00t-n15", control_mode="joint_target") as port,
        RobotClient(port) as robot,
    ):
        actions = robot.ask("get_action", data)
        assert {key: value.shape for key, value in actions.items()} == {
            "action.single_arm": (16, 5),
            "action.gripper": (16, 1),
        }
        np.testing.assert_allclose(actions["action.single_arm"], expected_chunk(16), atol=2e-5)
        np.testing.assert_allclose(actions["action.gripper"], 25.0, atol=2e-5)
        config = robot.ask("get_modality_config")
        assert {name: json.loads(entry["as_json"])["modality_keys"] for name, entry in config.items()} == {
            "video": [],
            "state": ["state.single_arm", "state.gripper"],
            "action": ["action.single_arm", "action.gripper"],
            "language": ["annotation.human.task_description"],
        }


def test_modality_config__has_only_fields_of_the_protocol() -> None:
    with serving(Waving(num_obs_steps=3), "gr00t") as port, RobotClient(port) as robot:
        config = robot.ask("get_modality_config")
        assert config.keys() == {"video", "state", "action", "language"}
        assert all(entry.keys() == {"__ModalityConfig_class__", "as_json"} for entry in config.values())
        assert config["state"]["as_json"] == {
            "delta_indices": [-2, -1, 0],
            "modality_keys": ["single_arm", "gripper", "joint_target", "goal"],
        }
        assert config["action"]["as_json"] == {
            "delta_indices": [0, 1, 2, 3],
            "modality_keys": ["single_arm", "gripper"],
        }
        handshake = robot.ask("get_modality_config", {"residual_rl": True})["residual_rl"]
        assert {
            name: handshake[name]
            for name in ("protocol", "task", "chunk_size", "num_action_steps", "num_obs_steps")
        } == {
            "protocol": "gr00t",
            "task": "so101-paper",
            "chunk_size": 4,
            "num_action_steps": 4,
            "num_obs_steps": 3,
        }
        assert handshake["inputs"]["goal"] == {"key": "goal", "shape": [3], "dtype": "float32"}


def test_gr00t_server__rows_belong_to_their_session() -> None:
    """A socket is a session. Rows are numbered from 0, or by `env_ids`; `reset` takes some or all."""
    state = {"joint_target": np.zeros((2, 1, 6), np.float32)}

    def counted(robot: RobotClient, options: Any = None) -> Any:
        delta = robot.get_action(state, options=options)[0]["single_arm"][:, 0, 0]
        return np.round(np.radians(delta) / 0.02 * 100).tolist()

    with serving(Counting(), "gr00t") as port, RobotClient(port) as one, RobotClient(port) as two:
        assert counted(one) == [1, 1]
        assert counted(one) == [2, 2]
        assert counted(two) == [1, 1]
        assert counted(one, {"env_ids": [1, 7]}) == [3, 1]
        one.ask("reset", {"options": {"env_ids": [1]}})
        assert counted(one, {"env_ids": [0, 1]}) == [3, 1]
        one.ask("reset", {"options": {}})
        assert counted(one, {"env_ids": [7, 0]}) == [1, 1]
        assert counted(two) == [2, 2]
        one.ask("close")
        assert counted(one) == [1, 1]


# --- invalid requests, over GR00T's protocol ----------------------------------------------------------------

GOOD = {
    "joint_position": np.zeros((1, 1, 6), np.float32),
    "joint_target": np.zeros((1, 1, 6), np.float32),
    "goal": np.zeros((1, 1, 3), np.float32),
}


def state(**changes: Any) -> dict[str, Any]:
    """An observation with changes; None leaves one out."""
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not None}


def observation(options: Any = None, **changes: Any) -> Any:
    return {
        "endpoint": "get_action",
        "data": {"observation": {"state": state(**changes)}, "options": options},
    }


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (
        {"endpoint": "get_action", "data": {"observation": {}}},
        "missing: state.single_arm + state.gripper [6], state.joint_target [6], state.goal",
    ),
    "a state missing": (
        observation(goal=None),
        "missing: state.goal [3]; got state.joint_position, state.joint_target",
    ),
    "half an arm": (
        observation(joint_position=None, single_arm=np.zeros((1, 1, 5), "f4")),
        "missing: state.single_arm + state.gripper",
    ),
    "a wrong shape": (
        observation(goal=np.zeros((1, 1, 4), "f4")),
        "state.goal has shape (1, 1, 4); expected (envs, 1, 3)",
    ),
    "no time": (
        observation(goal=np.zeros((1, 3), "f4")),
        "state.goal has shape (1, 3); expected (envs, 1, 3)",
    ),
    "no envs": (
        observation(goal=np.zeros((0, 1, 3), "f4")),
        "state.goal has shape (0, 1, 3); expected (envs, 1, 3)",
    ),
    "different batches": (
        observation(goal=np.zeros((2, 1, 3), "f4")),
        "observations have batch sizes 1 and 2: they must be equal",
    ),
    "NaN": (observation(goal=np.full((1, 1, 3), np.nan)), "state.goal has NaN"),
    "too large a number": (
        observation(goal=np.full((1, 1, 3), 1e300)),
        "or numbers out of the range of float32",
    ),
    "bytes for state": (
        observation(goal=np.zeros((1, 1, 3), np.uint8)),
        "state.goal is an array of uint8; expected float32",
    ),
    "a list for an array": (
        observation(goal=[[[0.0, 0.0, 0.0]]]),
        "state.goal is a list; expected an array of float32",
    ),
    "odd joints": (
        observation(
            joint_position=None, single_arm=np.zeros((1, 1, 6), "f4"), gripper=np.zeros((1, 1, 1), "f4")
        ),
        "the arm has 5 joints and the gripper 1; got shapes (1, 1, 6) and (1, 1, 1)",
    ),
    "a request that is a list": ([1, 2], "a request is a dict, not a list"),
    "data that is a list": ({"endpoint": "get_action", "data": [1]}, "data is a dict, not a list"),
    "flat keys": (
        {"endpoint": "get_action", "data": {"state.goal": GOOD["goal"]}},
        "data must contain observation: {video: {…}, state: {…}",
    ),
    "options that are a list": (observation([1]), "options is a dict or nothing"),
    "duplicate env_ids": (observation({"env_ids": [1, 1]}), "distinct integers"),
    "negative env_ids": (observation({"env_ids": [-1]}), "distinct integers"),
    "more env_ids than rows": (observation({"env_ids": [0, 1]}), "got 2 env_ids for 1 rows"),
    "too many envs": (
        {
            "endpoint": "get_action",
            "data": {"observation": {"state": {k: v.repeat(17, 0) for k, v in GOOD.items()}}},
        },
        "17 env(s) requested, 16 of 16 free",
    ),
    "kill": ({"endpoint": "kill"}, "kill is refused"),
    "another endpoint": (
        {"endpoint": "get_weights"},
        "unknown endpoint 'get_weights'; known: get_action, get_modality",
    ),
    "an endpoint that is none": ({"endpoint": {"a": 1}}, "unknown endpoint"),
    "an array of objects": (
        {"data": {b"nd": True, b"type": "|O", b"kind": b"O", b"data": b"", b"shape": [0]}},
        "an array of object",
    ),
}


def test_gr00t_server__refuses_invalid_requests_and_continues(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot:
        expected = robot.get_action(GOOD)[0]["single_arm"]
        robot.ask("close")
        for name, (request, reason) in REFUSED.items():
            reply = robot.raw(packb(request))
            assert list(reply) == ["error"], name
            assert reply["error"].startswith(reason) or reason in reply["error"], (name, reply["error"])
            assert "\n" not in reply["error"]
            assert len(reply["error"]) <= 301
        for garbage in (b"", b"\xc1", b"\x80\x05", b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x91" * 5000):
            assert "no msgpack message" in robot.raw(garbage)["error"]
        np.testing.assert_array_equal(robot.get_action(GOOD)[0]["single_arm"], expected)
    assert len(caplog.records) == len(REFUSED) + 6
    assert not any(record.exc_info for record in caplog.records)


def test_gr00t_server__checks_the_token_first() -> None:
    with serving(Waving(), "gr00t", token="sesame") as port, RobotClient(port) as robot:
        for request in (
            {"endpoint": "ping"},
            {"endpoint": "kill"},
            {"endpoint": "ping", "api_token": "sesam"},
            {"endpoint": "ping", "api_token": 5},
        ):
            assert robot.raw(packb(request)) == {"error": "unauthorized: api_token is wrong or missing"}
        assert robot.ask("ping", api_token="sesame")["status"] == "ok"


def test_gr00t_server__too_large_message_closes_only_its_connection() -> None:
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot, RobotClient(port) as other:
        expected = other.get_action(GOOD)[0]["single_arm"]
        robot.socket.setsockopt(zmq.RCVTIMEO, 500)
        robot.socket.send(bytes(MAX_MESSAGE_BYTES + 1))
        with pytest.raises(zmq.Again):
            robot.socket.recv()
        np.testing.assert_array_equal(other.get_action(GOOD)[0]["single_arm"], expected)


def test_gr00t_server__survives_bytes_that_are_not_zeromq() -> None:
    with serving(Waving(), "gr00t") as port, RobotClient(port) as robot:
        for garbage in (
            b"GET /healthz HTTP/1.1\r\n\r\n",
            b"\xff" * 5000,
            b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + bytes(100),
        ):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(garbage)
        assert robot.ask("ping")["status"] == "ok"


def test_gr00t_server__answers_any_number_of_frames() -> None:
    """Sockets that send more or fewer frames than a REQ socket get answers too."""
    with serving(Waving(), "gr00t") as port:
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        ping = packb({"endpoint": "ping"})
        for frames in ([ping], [b"", ping], [b"a", b"b", b"", ping], [b""]):
            dealer.send_multipart(frames)
        replies = [dealer.recv_multipart() for _ in range(4)]
        assert [reply[:-1] for reply in replies] == [[], [b""], [b"a", b"b", b""], []]
        assert ["status" in unpackb(reply[-1]) for reply in replies] == [True, True, True, False]
        for _ in range(3):  # requests for one env must not be in one batch
            dealer.send_multipart([b"", packb(observation())])
        assert all(len(unpackb(dealer.recv_multipart()[-1])) == 2 for _ in range(3))
        dealer.close()


# --- openpi -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def calling(port: int, **options: Any) -> Iterator[ClientConnection]:
    """A connection like that of openpi's client."""
    with dial(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options) as connection:
        yield connection


OPENPI = {
    "observation/joint_position": np.zeros(6, "f4"),
    "observation/joint_target": np.zeros(6, "f4"),
    "observation/goal": np.zeros(3, "f4"),
}


def infer(connection: ClientConnection, request: Any) -> Any:
    connection.send(packb(request, remote_case.openpi_array))
    reply = connection.recv(timeout=10)
    return reply if isinstance(reply, str) else unpackb(reply)


def test_openpi_server__answers_a_robot() -> None:
    request = {"observation/joint_position": np.array(RADIANS), "prompt": "go"}
    with (
        serving(Echo(), "openpi", control_mode="joint_target", units="hardware") as port,
        calling(port) as connection,
    ):
        metadata = unpackb(connection.recv(timeout=10))
        assert metadata["residual_rl"]["inputs"] == {
            "joint_position": {"key": "observation/joint_position", "shape": [6], "dtype": "float32"}
        }
        reply = infer(connection, request)
        assert reply["server_timing"]["infer_ms"] > 0
        assert reply["actions"].shape == (4, 6)
        assert reply["actions"].dtype == np.float32
        np.testing.assert_allclose(reply["actions"][:, :5], expected_chunk(4), atol=2e-5)
        np.testing.assert_allclose(reply["actions"][:, 5], 25.0, atol=2e-5)
    with serving(Echo(), "openpi", control_mode="joint_target") as port, calling(port) as connection:
        connection.recv(timeout=10)
        np.testing.assert_allclose(
            infer(connection, request)["actions"][0, 0], math.radians(30.0) / 1.91986, atol=1e-6
        )


def test_openpi_server__history_has_a_leading_axis() -> None:
    with serving(Waving(num_obs_steps=3), "openpi") as port, calling(port) as connection:
        assert unpackb(connection.recv(timeout=10))["residual_rl"]["num_obs_steps"] == 3
        assert infer(connection, OPENPI) == "observation/joint_position has shape (6,); expected (3, 6)"
        assert infer(connection, {key: np.stack([value] * 3) for key, value in OPENPI.items()})[
            "actions"
        ].shape == (4, 6)


def test_openpi_server__refuses_invalid_requests_and_continues(caplog: pytest.LogCaptureFixture) -> None:
    refused: list[tuple[Any, str]] = [
        (
            {"prompt": "go"},
            (
                "missing: observation/joint_position [6], observation/joint_target [6], observation/goal [3];"
                " got prompt"
            ),
        ),
        ({**OPENPI, "observation/goal": np.zeros(4, "f4")}, "observation/goal has shape (4,); expected (3)"),
        ({**OPENPI, "observation/goal": np.full(3, np.inf)}, "observation/goal has NaN"),
        ({**OPENPI, "observation/goal": "here"}, "observation/goal is a str"),
        ([1], "an observation is a dict, not a list"),
        ({"__ctrl__": "stop"}, "unknown __ctrl__ 'stop'; known: reset, episode_start, episode_end"),
        ({"__ctrl__": {}}, "unknown __ctrl__"),
    ]
    with serving(Waving(), "openpi") as port, calling(port) as connection:
        connection.recv(timeout=10)
        expected = infer(connection, OPENPI)["actions"]
        for request, reason in refused:
            assert infer(connection, request).startswith(reason)
        connection.send("hello")
        assert connection.recv(timeout=10) == "a text; expected a binary message, with msgpack"
        for garbage in (b"", b"\xc1", b"\x80\x05"):
            connection.send(garbage)
            assert "no msgpack message" in str(connection.recv(timeout=10))
        np.testing.assert_array_equal(infer(connection, OPENPI)["actions"], expected)
    assert not any(record.exc_info for record in caplog.records if record.name.startswith("residual_rl"))


def test_openpi_server__resets_its_own_env_only() -> None:
    with serving(Counting(), "openpi") as port, calling(port) as one, calling(port) as two:
        request = {"observation/joint_target": np.zeros(6, "f4")}

        def counted(connection: ClientConnection) -> int:
            return round(100 * float(infer(connection, request)["actions"][0, 0]))

        one.recv(timeout=10), two.recv(timeout=10)
        assert [counted(one), counted(one), counted(two)] == [1, 2, 1]
        assert infer(one, {"__ctrl__": "reset"}) == {"__ack__": "reset"}
        assert [counted(one), counted(two)] == [1, 2]
        assert infer(one, {"__ctrl__": "episode_end"}) == {"__ack__": "episode_end"}
        assert infer(one, {"__ctrl__": "episode_start", "__task__": "x"}) == {"__ack__": "episode_start"}
        assert counted(one) == 1


def test_openpi_server__checks_token_and_message_size() -> None:
    with serving(Waving(), "openpi", token="sesame") as port:
        for headers in (None, {"Authorization": "Api-Key sesam"}, {"Authorization": "Bearer sesame"}):
            with pytest.raises(InvalidStatus, match="401"), calling(port, additional_headers=headers):
                pass
        headers = {"Authorization": "Api-Key sesame"}
        with (
            calling(port, additional_headers=headers) as connection,
            calling(port, additional_headers=headers) as other,
        ):
            connection.recv(timeout=10), other.recv(timeout=10)
            with contextlib.suppress(ConnectionClosedError):
                connection.send(bytes(MAX_MESSAGE_BYTES + 1))
            with pytest.raises(ConnectionClosedError, match="1009"):
                connection.recv(timeout=10)
            assert infer(other, OPENPI)["actions"].shape == (4, 6)


def test_openpi_server__refuses_more_than_max_sessions() -> None:
    with serving(Counting(), "openpi", sessions=1) as port:
        with calling(port) as one:
            one.recv(timeout=10)
            with calling(port) as two:
                assert str(two.recv(timeout=10)).startswith("1 env(s) requested, 0 of 1 free")
            assert infer(one, {"observation/joint_target": np.zeros(6, "f4")})["actions"].shape == (1, 6)
        with calling(port) as three:
            assert not isinstance(three.recv(timeout=10), str)


# --- failures of the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_policy_service__details_of_a_failure_are_only_logged(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Failing(), protocol) as port:
        for _ in range(2):
            if protocol == "gr00t":
                with RobotClient(port) as robot:
                    message = robot.raw(packb(observation()))["error"]
            else:
                with calling(port) as connection:
                    connection.recv(timeout=10)
                    message = infer(connection, OPENPI)
            assert message == "the policy failed; the log of the server has the reason"
    logged = next(record for record in caplog.records if record.exc_info)
    assert "secret" in str(logged.exc_info)


def test_policy_service__nan_of_the_policy_is_a_failure() -> None:
    class Blank(Waving):
        def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
            return torch.full((len(env_ids), 4, 6), torch.nan)

    with serving(Blank(), "gr00t") as port, RobotClient(port) as robot:
        assert (
            robot.raw(packb(observation()))["error"]
            == "the policy failed; the log of the server has the reason"
        )


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_open_server__concurrent_clients_are_independent(protocol: str) -> None:
    """Eight clients with thirty requests each; each has its own count."""
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        if protocol == "gr00t":
            with RobotClient(port) as robot:
                steps = [
                    robot.get_action({"joint_target": np.zeros((1, 1, 6), "f4")})[0]["single_arm"][0, 0, 0]
                    for _ in range(30)
                ]
            results[number] = np.round(np.radians(steps) / 0.02 * 100).astype(int).tolist()
        else:
            with calling(port) as connection:
                connection.recv(timeout=10)
                steps = [
                    infer(connection, {"observation/joint_target": np.zeros(6, "f4")})["actions"][0, 0]
                    for _ in range(30)
                ]
            results[number] = np.round(100 * np.array(steps)).astype(int).tolist()

    with serving(Counting(), protocol) as port:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: list(range(1, 31)) for number in range(8)}


@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_open_server__closes_while_a_client_waits_for_a_chunk(protocol: str) -> None:
    started = threading.Event()

    class Slow(Waving):
        def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
            started.set()
            time.sleep(1.0)
            return super().predict_action_chunk(obs, env_ids)

    def send() -> None:
        with contextlib.suppress(Exception):  # the answer is irrelevant here
            if protocol == "gr00t":
                with RobotClient(server_port) as robot:
                    robot.raw(packb(observation()))
            else:
                with calling(server_port) as connection:
                    connection.recv(timeout=10)
                    infer(connection, OPENPI)

    server = BackgroundServer(open_one(Slow(), protocol))
    server_port = port_of(server.address)
    threading.Thread(target=send, daemon=True).start()
    assert started.wait(10)
    threading.Thread(target=server.close, daemon=True).start()
    deadline = time.monotonic() + 10
    while server.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not server.running
    assert server.error is None
