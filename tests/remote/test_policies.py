"""The clients `gr00t` and `openpi` with fake servers, written from the protocols alone.

Units, layouts, invalid replies and time-outs.
"""

from __future__ import annotations

import contextlib
import http
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import remote_case
import tiny_runs
import torch
import websockets.sync.server
import zmq
from remote_case import (
    BackgroundServer,
    Waving,
    connect,
    npy,
    open_one,
    openpi_array,
    packb,
    port_of,
    serving,
    unpackb,
)
from websockets.server import ServerProtocol

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.base_policies.openpi import OpenPiCfg
from residual_rl.cli.main import main
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import BasePolicyError, ConfigError, MissingDependencyError
from residual_rl.factory import make_vec_env
from residual_rl.remote import wire
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.types import Obs

CLOSED, OPEN = -0.174533, 1.74533
MIDDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.5 * (2.84121 - 2.74385), 0.5 * (OPEN + CLOSED)])
HALF = np.array([1.91986, 1.74533, 1.69, 1.65806, 0.5 * (2.84121 + 2.74385), 0.5 * (OPEN - CLOSED)])
"""Joint ranges of the arm [rad]: an absolute action spans them."""
JOINTS = [math.pi / 2, -math.pi / 4, 0.0, math.radians(12.0), -1.0, CLOSED + 0.25 * (OPEN - CLOSED)]
IN_DEGREES = [90.0, -45.0, 0.0, 12.0, -57.29578, 25.0]
"""The same in the units of the robot."""
WANTED = [45.0, 30.0, -60.0, 9.0, 90.0, 75.0]
"""Degrees and percent that the fake servers command; those of the arm increase by one degree per step."""


@pytest.fixture(scope="module")
def env() -> VecEnv:
    """Two envs with absolute actions."""
    return make_vec_env("so101-paper", 2, num_threads=1, control_mode="joint_target")


@pytest.fixture(scope="module")
def delta_env() -> VecEnv:
    return make_vec_env("so101-paper", 2, num_threads=1)


def obs_of(*joints: list[float], **more: Any) -> Obs:
    position = torch.tensor(joints or [JOINTS, [0.0] * 6])
    return {
        "joint_position": position,
        "joint_target": position,
        "goal": torch.tensor([[0.1, 0.2, 0.3]]).repeat(len(position), 1),
        **more,
    }


def wanted(steps: int = 16) -> Any:
    """Degrees and percent [steps, 6]."""
    return np.array(WANTED) + np.array([1.0] * 5 + [0.0]) * np.arange(steps)[:, None]


def as_actions(degrees: Any) -> Any:
    """The same as absolute actions, computed independently."""
    radians = np.concatenate(
        [np.radians(degrees[..., :5]), CLOSED + degrees[..., 5:] / 100 * (OPEN - CLOSED)], -1
    )
    return (radians - MIDDLE) / HALF


# --- foreign GR00T servers ----------------------------------------------------------------------------------


class FakeGr00t:
    """A REP socket that answers with `answers[endpoint](data)`, a value or raw bytes, after `sleep` [s]."""

    def __init__(
        self,
        array: Callable[[Any], Any] = npy,
        port: int = 0,
        sleep: float = 0.0,
        **answers: Callable[[Any], Any],
    ):
        self.array, self.sleep, self.answers = array, sleep, answers
        self.requests: list[Any] = []
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = port_of(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(20):
                request = unpackb(self._socket.recv())
                self.requests.append(request)
                answer = self.answers.get(request["endpoint"], lambda data: {"error": "Unknown endpoint"})
                if request["endpoint"] == "get_action":
                    self._stop.wait(self.sleep)
                value = answer(request.get("data"))
                self._socket.send(value if isinstance(value, bytes) else packb(value, self.array))
        self._socket.close()

    def received(self, endpoint: str = "get_action") -> list[Any]:
        return [request.get("data") for request in self.requests if request["endpoint"] == endpoint]

    def __enter__(self) -> FakeGr00t:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def flat(arm: Any, gripper: Any = None) -> Callable[[Any], Any]:
    parts = {"action.single_arm": arm} | ({} if gripper is None else {"action.gripper": gripper})
    return lambda data: parts


def nested(steps: int = 16, **changes: Any) -> Callable[[Any], Any]:
    """Answers each env with the same chunk."""

    def answer(data: Any) -> Any:
        number = len(next(iter(data["observation"]["state"].values())))
        chunk = np.repeat(wanted(steps)[None], number, 0).astype(np.float32)
        return [{"single_arm": chunk[..., :5], "gripper": chunk[..., 5:], **changes}, {}]

    return answer


def modality(keys: list[str], steps: list[int], marker: str = "__ModalityConfig_class__") -> Any:
    content = {
        "delta_indices": steps,
        "modality_keys": keys,
        "sin_cos_embedding_keys": None,
        "action_configs": [],
    }
    return {marker: True, "as_json": content}


def config(
    video: Any = (),
    state: Any = ("single_arm", "gripper"),
    steps: Any = (0,),
    chunk: int = 16,
    marker: str = "__ModalityConfig_class__",
) -> Any:
    modalities = {
        "video": modality(list(video), list(steps), marker),
        "state": modality(list(state), [0], marker),
        "action": modality(["single_arm", "gripper"], list(range(chunk)), marker),
        "language": modality(["annotation.human.task_description"], [0], marker),
    }
    return lambda data: modalities


def gr00t(server: FakeGr00t | int, env: VecEnv, **settings: Any) -> BasePolicyExecutor:
    port = server if isinstance(server, int) else server.port
    return make_base_policy(
        "gr00t", Gr00tCfg(port=port, **{"timeout": 10.0, "reconnect": 0.0, **settings}), env
    )


@pytest.mark.parametrize("form", ["(16, 5) and (16, 1)", "(16, 5) and (16,)", "(16, 6)"])
def test_gr00t_policy__flat_layout_matches_values_worked_out_by_hand(form: str, env: VecEnv) -> None:
    """90 degrees are π/2; a request contains one env with a time axis; 8 of 16 actions are executed."""
    arm, gripper = wanted()[:, :5], wanted()[:, 5:]
    replies = {
        "(16, 5) and (16, 1)": (arm, gripper),
        "(16, 5) and (16,)": (arm, gripper[:, 0]),
        "(16, 6)": (wanted(),),
    }
    with FakeGr00t(get_action=flat(*(part.astype(np.float32) for part in replies[form]))) as server:
        policy = gr00t(server, env, layout="n1.5", task_description="slide it")
        policy.reset(torch.ones(2, dtype=torch.bool))
        for step in range(9):
            expected = as_actions(wanted()[step % 8])
            np.testing.assert_allclose(policy.act(obs_of()), np.stack([expected] * 2), atol=1e-6)
        requests = server.received()
        assert len(requests) == 4  # two envs, two chunks
        assert not server.received("reset")
        # The requests of the envs arrive in any order.
        first = max(requests[:2], key=lambda data: data["state.single_arm"][0, 0])
        assert first.keys() == {"state.single_arm", "state.gripper", "annotation.human.task_description"}
        assert first["annotation.human.task_description"] == ["slide it"]
        assert first["state.single_arm"].dtype == np.float32
        np.testing.assert_allclose(first["state.single_arm"], [IN_DEGREES[:5]], atol=1e-4)
        np.testing.assert_allclose(first["state.gripper"], [[25.0]], atol=1e-4)


def test_gr00t_policy__nested_layout_matches_values_worked_out_by_hand(env: VecEnv) -> None:
    """All envs in one request, (B, T, D), with the observations of this step and of two steps before, as the
    server requires."""
    with FakeGr00t(
        get_action=nested(), get_modality_config=config(steps=(-2, 0)), reset=lambda data: {}
    ) as server:
        policy = gr00t(server, env, task_description="slide it")
        assert (policy.policy.num_obs_steps, policy.policy.chunk_size, policy.policy.num_action_steps) == (
            3,
            16,
            8,
        )
        np.testing.assert_allclose(policy.act(obs_of()), np.stack([as_actions(wanted()[0])] * 2), atol=1e-6)
        (request,) = server.received()
        assert request["options"] == {"env_ids": [0, 1]}
        assert request["observation"]["language"] == {
            "annotation.human.task_description": [["slide it"], ["slide it"]]
        }
        assert request["observation"]["video"] == {}
        sent = request["observation"]["state"]
        assert {key: (value.shape, value.dtype) for key, value in sent.items()} == {
            "single_arm": ((2, 1, 5), np.float32),
            "gripper": ((2, 1, 1), np.float32),
        }
        np.testing.assert_allclose(sent["single_arm"][:, 0], [IN_DEGREES[:5], [0.0] * 5], atol=1e-4)
        np.testing.assert_allclose(
            sent["gripper"].ravel(), [25.0, 100 * -CLOSED / (OPEN - CLOSED)], atol=1e-4
        )


def test_gr00t_policy__sends_mapped_cameras_and_extra_state(env: VecEnv) -> None:
    seeing = make_vec_env(
        "so101-paper", 1, num_threads=1, obs_mode="rgb+state", image_size=(6, 8), control_mode="joint_target"
    )
    modalities = config(video=["front", "wrist"], state=["single_arm", "gripper", "where"], steps=(-1, 0))
    with FakeGr00t(get_action=nested(), get_modality_config=modalities) as server:
        mapped: Any = {"cameras": ("top=front", "wrist"), "extra_state": ("goal=where",)}
        policy = gr00t(server, seeing, **mapped, num_action_steps=1)
        images = [
            {name: torch.randint(0, 256, (1, 6, 8, 3), dtype=torch.uint8) for name in ("top", "wrist")}
            for _ in range(2)
        ]
        for image in images:
            policy.act(obs_of(JOINTS, **image))
        sent = server.received()[1]["observation"]
        assert sent["video"]["front"].dtype == np.uint8
        for key, name in (("front", "top"), ("wrist", "wrist")):
            np.testing.assert_array_equal(
                sent["video"][key][0], np.stack([image[name][0] for image in images])
            )
        np.testing.assert_allclose(sent["state"]["where"], [[[0.1, 0.2, 0.3]]])
        for settings, message in (
            (
                {"cameras": ("top=front",), "extra_state": ("goal=where",)},
                "needs video.wrist, and nothing is mapped to it; the env has .*state",
            ),
            ({"cameras": ("top=front", "wrist")}, "needs state.where, and nothing is mapped"),
            ({"cameras": ("side=front",)}, "video.front: the env has no camera 'side'; it has top, wrist"),
            ({"cameras": ("goal=front",)}, "video.front: the env has no camera 'goal'"),
            ({"extra_state": ("top=x",)}, "state.x: the env has no state 'top'; it has ee_position"),
            ({**mapped, "chunk_size": 8}, "predicts 16 actions, not chunk_size 8"),
            ({**mapped, "num_action_steps": 17}, "num_action_steps must be from 1 to chunk_size 16, not 17"),
        ):
            with pytest.raises(ConfigError, match=message):
                gr00t(server, seeing, **settings)
        with pytest.raises(ConfigError, match=r"needs video\.front, video\.wrist, state\.where"):
            gr00t(server, env)


def test_gr00t_policy__uses_the_array_encoding_of_the_server(env: VecEnv) -> None:
    """N1.7: the marker of the modality configuration selects the encoding. Chunks have 40 actions."""

    def only_new(data: Any) -> Any:
        assert isinstance(data["observation"]["state"]["gripper"], np.ndarray)
        return nested(40)(data)

    modalities = config(chunk=40, marker="__ModalityConfig__")
    with FakeGr00t(array=remote_case.nd, get_action=only_new, get_modality_config=modalities) as server:
        policy = gr00t(server, env)
        assert policy.policy.chunk_size == 40
        np.testing.assert_allclose(policy.act(obs_of())[0], as_actions(wanted()[0]), atol=1e-6)
        assert policy.policy._link.encoding == "nd"  # type: ignore[attr-defined]


def test_gr00t_policy__converts_units_gripper_direction_and_relative_actions(
    env: VecEnv, delta_env: VecEnv
) -> None:
    """Radians; a gripper that is 0 when open; relative actions of the arm, absolute ones of the gripper."""
    chunk = np.zeros((2, 16, 6), np.float32)
    chunk[..., 0], chunk[..., 5] = 0.1, 1.0
    answer = {"get_action": lambda data: [{"single_arm": chunk[..., :5], "gripper": chunk[..., 5:]}, {}]}
    with FakeGr00t(**answer) as server:
        action = gr00t(server, env, units="rad").act(obs_of(JOINTS, JOINTS))
        np.testing.assert_allclose(action[0], (np.array([0.1, 0, 0, 0, 0, 1.0]) - MIDDLE) / HALF, atol=1e-6)
        np.testing.assert_allclose(
            server.received()[-1]["observation"]["state"]["single_arm"][0, 0], JOINTS[:5], atol=1e-6
        )
        np.testing.assert_allclose(
            server.received()[-1]["observation"]["state"]["gripper"][:, 0], [[JOINTS[5]]] * 2, atol=1e-6
        )

        chunk[..., 0], chunk[..., 5] = -3.0, 30.0
        action = gr00t(server, env, action_mode="relative", invert_gripper=True).act(obs_of(JOINTS, JOINTS))
        np.testing.assert_allclose(
            action[0], as_actions(np.array([*IN_DEGREES[:5], 70.0]) - [3.0, 0, 0, 0, 0, 0]), atol=1e-6
        )
        np.testing.assert_allclose(
            server.received()[-1]["observation"]["state"]["gripper"][:, 0], [[75.0]] * 2, atol=1e-4
        )

        chunk[..., 0], chunk[..., 5] = math.degrees(0.03), 25.0
        policy = gr00t(server, delta_env, action_mode="relative")
        actions = torch.cat([policy.act(obs_of(JOINTS, JOINTS)) for _ in range(3)])
        np.testing.assert_allclose(actions[::2, 0], [1.0, 0.5, 0.0], atol=1e-4)  # 0.03 rad at 0.02 rad a step
        np.testing.assert_allclose(actions[:, 1:], 0.0, atol=1e-4)


def test_gr00t_policy__foreign_servers_reset_all_envs_or_none(env: VecEnv) -> None:
    with FakeGr00t(get_action=nested(), reset=lambda data: {}) as server:
        policy = gr00t(server, env)
        policy.reset(torch.tensor([True, False]))
        assert server.received("reset") == []
        policy.reset(torch.tensor([True, True]))
        assert server.received("reset") == [{"options": None}]
    with FakeGr00t(get_action=nested()) as server:  # without a reset endpoint
        gr00t(server, env).reset(torch.tensor([True, True]))


def test_gr00t_policy__queries_all_envs_at_the_same_time() -> None:
    """The server answers only after the requests of all eight envs have arrived."""
    env = make_vec_env("so101-paper", 8, num_threads=1, control_mode="joint_target")
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def serve() -> None:
        envelope = router.recv_multipart()
        router.send_multipart([*envelope[:-1], packb({"error": "Unknown endpoint"})])
        for frames in [router.recv_multipart() for _ in range(8)]:
            router.send_multipart([*frames[:-1], packb(flat(wanted().astype(np.float32))(None))])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    action = gr00t(port, env, layout="n1.5").act(obs_of(*[[0.0] * 6] * 8))
    np.testing.assert_allclose(action, np.stack([as_actions(wanted()[0])] * 8), atol=1e-6)
    thread.join()
    router.close()


# --- foreign openpi servers ---------------------------------------------------------------------------------


class FakeOpenPi:
    """Sends `metadata`, then answers with `answer(observation)`: a value, raw bytes or text, or None for no
    answer."""

    def __init__(
        self,
        answer: Callable[[Any], Any] = lambda _: None,
        metadata: Any = None,
        port: int = 0,
        health: int = 200,
    ):
        self.answer, self.metadata, self.health = answer, {} if metadata is None else metadata, health
        self.requests: list[Any] = []
        self.headers: list[Any] = []
        self._server = websockets.sync.server.serve(
            self._converse, "127.0.0.1", port, process_request=self._admit, compression=None, max_size=None
        )
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._connections: list[Any] = []

    def _admit(self, connection: Any, request: Any) -> Any:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus(self.health), "\n")
        self.headers.append(request.headers)
        return None

    def _converse(self, connection: Any) -> None:
        self._connections.append(connection)
        connection.send(
            self.metadata if isinstance(self.metadata, str | bytes) else packb(self.metadata, openpi_array)
        )
        for message in connection:
            self.requests.append(unpackb(message))
            value = self.answer(self.requests[-1])
            if value is not None:
                connection.send(value if isinstance(value, str | bytes) else packb(value, openpi_array))

    def __enter__(self) -> FakeOpenPi:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        for connection in self._connections:
            connection.close()
        self._thread.join()


def openpi(server: FakeOpenPi | int, env: VecEnv, **settings: Any) -> BasePolicyExecutor:
    port = server if isinstance(server, int) else server.port
    settings = {
        "timeout": 10.0,
        "reconnect": 0.0,
        "observation": ("joint_position=observation/state", "goal"),
        **settings,
    }
    return make_base_policy("openpi", OpenPiCfg(port=port, **settings), env)


def test_openpi_policy__matches_values_worked_out_by_hand(env: VecEnv) -> None:
    """A request is the flat observation of one env; of the 10 actions of the reply, 4 are executed."""
    actions = np.linspace(-0.9, 0.9, 60, dtype=np.float32).reshape(10, 6)
    with FakeOpenPi(
        lambda _: {"actions": actions, "server_timing": {"infer_ms": np.float64(1.0)}}, {"robot": "so101"}
    ) as server:
        policy = openpi(server, env, prompt="slide it", num_action_steps=4, api_token="sesame")
        policy.reset(torch.tensor([True, True]))
        for step in range(5):
            assert torch.equal(policy.act(obs_of()), torch.from_numpy(actions[[step % 4] * 2]))
        assert len(server.requests) == 4
        # The requests arrive in any order.
        second, first = sorted(server.requests[:2], key=lambda request: request["observation/state"][0])
        assert first.keys() == {"observation/state", "goal", "prompt"}
        assert first["prompt"] == "slide it"
        np.testing.assert_array_equal(first["observation/state"], np.array(JOINTS, np.float32))
        # One connection for each env.
        assert [headers["Authorization"] for headers in server.headers] == ["Api-Key sesame"] * 2
        np.testing.assert_array_equal(second["observation/state"], np.zeros(6, np.float32))


def test_openpi_policy__converts_actions_in_units_of_the_robot(env: VecEnv) -> None:
    with FakeOpenPi(lambda _: {"actions": wanted(10).astype(np.float64)}) as server:
        url = f"ws://127.0.0.1:{server.port}"
        action = openpi(server, env, url=url, action_units="hardware").act(obs_of())
        np.testing.assert_allclose(action, np.stack([as_actions(wanted()[0])] * 2), atol=1e-6)


def test_openpi_policy__foreign_server_needs_a_map_of_observations(env: VecEnv) -> None:
    with FakeOpenPi() as server:
        for observation, message in (
            ((), "does not describe its inputs: map them, e.g. --base.observation state=observation/state"),
            (("gaol=observation/goal",), "the env has no observation gaol; it has ee_position, goal"),
        ):
            with pytest.raises(ConfigError, match=message):
                openpi(server, env, observation=observation)


# --- invalid replies ----------------------------------------------------------------------------------------

GOOD = {"single_arm": np.zeros((2, 16, 5), np.float32), "gripper": np.zeros((2, 16, 1), np.float32)}
INVALID: dict[str, tuple[Any, str]] = {
    "an error": (
        {"error": "Traceback\n  File x\nAssertionError: no video\n"},
        r"refused 'get_action': AssertionError: no video$",
    ),
    "the first servers' error": (b"ERROR", "refused 'get_action' without a reason"),
    "garbage": (
        b"\xc1\x00",
        "sent 2 bytes that are no msgpack message .*; expected the answer to 'get_action'",
    ),
    "a pickle": (b"\x80\x05]\x94.", "sent 5 bytes that are no msgpack message"),
    "a dict": (GOOD, "gave a dict; expected a list of two dicts"),
    "nothing": ([{}, {}], "gave nothing; expected actions with 'single_arm'"),
    "other keys": (
        [{"left_arm": GOOD["single_arm"]}, {}],
        "gave left_arm; expected actions with 'single_arm'",
    ),
    "no gripper": (
        [{"single_arm": GOOD["single_arm"]}, {}],
        "gave single_arm; expected 'gripper' besides the arm's 5 joints",
    ),
    "fewer steps": (
        [{**GOOD, "single_arm": np.zeros((2, 8, 5), "f4")}, {}],
        r"gave single_arm of shape \(2, 8, 5\)",
    ),
    "fewer envs": (
        [{**GOOD, "gripper": np.zeros((1, 16, 1), "f4")}, {}],
        r"gave gripper of shape \(1, 16, 1\); expected",
    ),
    "more joints": (
        [{**GOOD, "single_arm": np.zeros((2, 16, 7), "f4")}, {}],
        r"gave single_arm of shape \(2, 16, 7\)",
    ),
    "integers": (
        [{**GOOD, "single_arm": np.zeros((2, 16, 5), "i4")}, {}],
        "gave single_arm of dtype int32; expected floats",
    ),
    "a list": ([{**GOOD, "single_arm": [[0.0]]}, {}], "gave single_arm as list; expected floats"),
    "NaN": (
        [{**GOOD, "single_arm": np.full((2, 16, 5), np.nan, "f4")}, {}],
        "gave single_arm with NaN or infinity",
    ),
    "infinity": (
        [{**GOOD, "gripper": np.full((2, 16, 1), np.inf, "f4")}, {}],
        "gave gripper with NaN or infinity",
    ),
    "objects": (
        [{b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": bytes(8)}, {}],
        "sent an array of object",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_gr00t_policy__invalid_reply_raises(case: str, env: VecEnv) -> None:
    value, message = INVALID[case]
    with FakeGr00t(get_action=lambda data: value) as server:
        policy = gr00t(server, env)
        with pytest.raises(
            BasePolicyError, match=rf"^the GR00T server at tcp://127.0.0.1:{server.port} {message}"
        ) as caught:
            policy.act(obs_of())
        assert "\n" not in str(caught.value)
        assert len(server.received()) == 1  # it is not repeated
        server.answers["get_action"] = nested()
        policy.act(obs_of())


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"video": {"modality_keys": ["front"]}}, "a modality configuration whose 'video' cannot be read"),
        ({"video": modality(["front"], [0, 1])}, "requires future observations"),
        ({"state": modality(["single_arm"], [-(10**9)])}, "at most 1000 steps are supported"),
        ({"residual_rl": {"inputs": 5}}, "sent a handshake that cannot be read"),
    ],
    ids=["half", "future", "far", "handshake"],
)
def test_gr00t_policy__invalid_description_of_the_server_raises(
    modalities: Any, message: str, env: VecEnv
) -> None:
    with (
        FakeGr00t(get_modality_config=lambda data: modalities) as server,
        pytest.raises((BasePolicyError, ConfigError), match=message),
    ):
        gr00t(server, env)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Traceback (most recent call last):\n  File x\nKeyError: 'state'\n", "refused: KeyError: 'state'$"),
        (b"\xc1", "sent 1 bytes that are no msgpack message .*; expected a dict with actions"),
        ([1.0], "gave list; expected a dict with 'actions'"),
        ({"action": np.zeros((10, 6), "f4")}, "gave action; expected a dict with 'actions'"),
        (
            {"actions": np.zeros((10, 32), "f4")},
            r"gave actions of shape \(10, 32\); expected floats of shape \(any, 6\)",
        ),
        ({"actions": np.zeros((10, 6), "i8")}, "gave actions of dtype int64"),
        ({"actions": np.zeros((7, 6), "f4")}, "gave 7 actions; num_action_steps 8 needs at least as many"),
        ({"actions": np.full((10, 6), np.nan, "f4")}, "gave actions with NaN or infinity"),
        (bytes(31 * 2**20), "sent a message of more than 31,457,280 bytes"),
    ],
    ids=["error", "garbage", "list", "other key", "other robot", "integers", "too few", "NaN", "huge"],
)
def test_openpi_policy__invalid_reply_raises(value: Any, message: str, env: VecEnv) -> None:
    with FakeOpenPi(lambda _: value) as server:
        policy = openpi(server, env)
        with pytest.raises(
            BasePolicyError, match=rf"^the openpi server at ws://127.0.0.1:{server.port} {message}"
        ) as caught:
            policy.act(obs_of())
        assert "\n" not in str(caught.value)
        server.answer = lambda _: {"actions": np.zeros((8, 6), np.float32)}
        assert not policy.act(obs_of()).any()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("all places are taken", "refused: all places are taken"),
        ([1], "sent a list; expected a dict, its metadata"),
        (b"\xc1", "no msgpack message .*; expected its metadata"),
        ({"residual_rl": {}}, "sent a handshake that cannot be read"),
    ],
    ids=["refusal", "list", "garbage", "handshake"],
)
def test_openpi_policy__invalid_metadata_raises(metadata: Any, message: str, env: VecEnv) -> None:
    with FakeOpenPi(metadata=metadata) as server, pytest.raises(BasePolicyError, match=message):
        openpi(server, env)


def test_max_message_bytes__larger_requests_are_not_sent(
    env: VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeGr00t(get_action=nested()) as server, FakeOpenPi() as other:
        policies = gr00t(server, env), openpi(other, env)
        monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 100)
        for policy in policies:
            with pytest.raises(
                BasePolicyError, match=r"the limit is 100: use smaller images, or fewer envs$"
            ):
                policy.act(obs_of())
        assert server.received() == other.requests == []


# --- silent, slow and missing servers -----------------------------------------------------------------------


@contextlib.contextmanager
def taking(least: float, most: float) -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert least <= time.perf_counter() - start < most


def set_timeout(policy: BasePolicyExecutor, seconds: float) -> None:
    """Set the time-out of later requests; connecting may take longer on a busy machine."""
    policy.policy._link._timeout = seconds  # type: ignore[attr-defined]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("layout", ["n1.5", "n1.6"])
def test_gr00t_policy__raises_after_the_timeout(layout: str, env: VecEnv) -> None:
    """0.5 s, with a window of 0.6 s: the client sends at 0 and 0.6 s, the server would answer at 60 s."""
    answer = nested() if layout == "n1.6" else flat(wanted().astype(np.float32))
    with FakeGr00t(get_action=answer) as server:
        policy = gr00t(server, env, reconnect=0.6, layout=layout)
        set_timeout(policy, 0.5)
        server.sleep = 60.0
        message = (
            r"no reply \(of at most 30 MiB\) within 0\.5 s, nor in the 0\.6 s after that; start it, or raise"
            r" --base\.timeout"
        )
        with taking(1.0, 60.0), pytest.raises(BasePolicyError, match=message):
            policy.act(obs_of())


def test_openpi_policy__raises_after_the_timeout() -> None:
    env = make_vec_env("so101-paper", 8, num_threads=1, control_mode="joint_target")
    with FakeOpenPi() as server:
        policy = openpi(server, env)
        set_timeout(policy, 0.5)
        with (
            taking(0.4, 60.0),
            pytest.raises(
                BasePolicyError, match=r"no reply within 0\.5 s; start it, or raise --base\.timeout"
            ),
        ):
            policy.act(obs_of(*[JOINTS] * 8))  # closes eight connections


@pytest.mark.slow
def test_openpi_policy__timeout_applies_to_sending() -> None:
    """The server does not read from its connection, and the observation exceeds the buffers of the system."""
    env = make_vec_env(
        "so101-paper", 1, num_threads=1, obs_mode="rgb", obs_cameras=("top",), image_size=(2000, 2000)
    )
    kept = []

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listening.accept()[0]
                request = connection.recv(65536)
                if b"/healthz" in request:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    connection.close()
                    continue
                protocol = ServerProtocol()
                protocol.receive_data(request)
                protocol.send_response(protocol.accept(protocol.events_received()[0]))  # type: ignore[arg-type]
                protocol.send_binary(packb({}))
                connection.sendall(b"".join(protocol.data_to_send()))
                kept.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        policy = openpi(listening.getsockname()[1], env, timeout=1.0, observation=("top=image",))
        with taking(0.8, 60.0), pytest.raises(BasePolicyError, match="no reply within 1 s; start it"):
            policy.act({"top": torch.zeros(1, 2000, 2000, 3, dtype=torch.uint8)})
    assert len(kept) == 1


@pytest.mark.parametrize("make", [gr00t, openpi])
def test_retry__no_server_raises_after_the_window(make: Any, env: VecEnv) -> None:
    with (
        taking(0.5, 8.0),
        pytest.raises(BasePolicyError, match=r"no connection .*, nor in the 0\.5 s after that; start it"),
    ):
        make(free_port(), env, timeout=0.3, reconnect=0.5)


def test_retry__silent_server_raises(env: VecEnv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for make in (gr00t, openpi):
            with (
                taking(0.3, 8.0),
                pytest.raises(BasePolicyError, match=r"no (connection|reply) within 0\.4 s; start it"),
            ):
                make(listening.getsockname()[1], env, timeout=0.4)


def test_openpi_policy__failing_health_page_raises(env: VecEnv) -> None:
    with (
        FakeOpenPi(health=503) as server,
        pytest.raises(BasePolicyError, match=r"/healthz returned 503, nor in the 0\.2 s after that"),
    ):
        openpi(server, env, reconnect=0.2)
    with FakeOpenPi(health=404) as server:  # one without such a page
        openpi(server, env)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["gr00t", "gr00t-n15", "openpi"])
def test_retry__continues_when_the_server_is_back(
    protocol: str, env: VecEnv, caplog: pytest.LogCaptureFixture
) -> None:
    """The client waits with one warning, and continues."""
    options = {"control_mode": "joint_target"}
    server = BackgroundServer(open_one(Waving(), protocol, **options))
    port = port_of(server.address)
    policy, local = (
        connect(protocol, port, env, timeout=0.5, reconnect=20.0),
        BasePolicyExecutor(Waving(), env),
    )
    np.testing.assert_allclose(policy.act(obs_of()), local.act(obs_of()), atol=1e-6)
    server.close()
    again: list[BackgroundServer] = []
    timer = threading.Timer(
        1.0, lambda: again.append(BackgroundServer(open_one(Waving(), protocol, port=port, **options)))
    )
    caplog.clear()
    with taking(0.8, 15.0):
        timer.start()
        for _ in range(4):
            np.testing.assert_allclose(policy.act(obs_of()), local.act(obs_of()), atol=1e-6)
    warnings = [
        record.getMessage() for record in caplog.records if record.name == "residual_rl.remote.client"
    ]
    assert len(warnings) == 1
    assert f":{port}" in warnings[0]
    assert "waiting up to 20 s for it" in warnings[0]
    timer.join()
    again[0].close()


def test_zmq_link__late_reply_is_not_taken_for_the_next(env: VecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request times out, its late reply is dropped, and the next one gets its own reply."""
    marks: list[float] = []
    timed_out = threading.Event()

    class Warned(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            set_timeout(policy, 60.0)
            timed_out.set()

    def answer(data: Any) -> Any:
        assert timed_out.wait(60.0)
        marks.append(10.0 * (len(marks) + 1))
        return nested(single_arm=np.full((2, 16, 5), marks[-1], np.float32))(data)

    with FakeGr00t(get_action=answer) as server:
        policy = gr00t(server, env, reconnect=5.0)
        set_timeout(policy, 1.0)
        monkeypatch.setattr(logging.getLogger("residual_rl.remote.client"), "handlers", [Warned()])
        action = policy.act(obs_of())
    assert marks == [10.0, 20.0]
    assert np.degrees(action[0, 0].item() * HALF[0]) == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("zmq", gr00t, r"pyzmq is not available; install it with `pip install residual-rl\[gr00t\]`"),
        (
            "websockets.sync.client",
            openpi,
            r"websockets is not available; install it with `pip install residual-rl\[openpi\]`",
        ),
        ("msgpack", gr00t, r"msgpack is not available; install it with `pip install residual-rl\[gr00t\]`"),
    ],
    ids=["zmq", "websockets", "msgpack"],
)
def test_missing_dependency_error__names_the_install_command_of_a_client(
    module: str, make: Any, message: str, env: VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=message):
        make(1, env)


@pytest.mark.parametrize(
    ("cfg", "settings", "message"),
    [
        (Gr00tCfg, {"port": 0}, "port must be from 1 to 65535, not 0"),
        (Gr00tCfg, {"timeout": 0.0}, "timeout must be above 0"),
        (Gr00tCfg, {"reconnect": -1.0}, "reconnect must be at least 0"),
        (Gr00tCfg, {"layout": "n1.7"}, r"layout must be one of n1\.5, n1\.6, not 'n1\.7'"),
        (Gr00tCfg, {"num_action_steps": 0}, "num_action_steps must be from 1 to 16384, not 0"),
        (Gr00tCfg, {"cameras": ("=front",)}, "cameras '=front': expected ENV_NAME=SERVER_KEY, each key once"),
        (Gr00tCfg, {"extra_state": ("a=x", "b=x")}, "extra_state 'b=x': expected"),
        (OpenPiCfg, {"url": "http://x"}, "url must be empty or begin with ws:// or wss://"),
        (OpenPiCfg, {"action_units": "rad"}, "action_units must be one of normalized, hardware, not 'rad'"),
        (OpenPiCfg, {"timeout": float("nan")}, "timeout must be finite"),
        (OpenPiCfg, {"observation": ("a=", "a")}, "observation 'a': expected"),
    ],
)
def test_remote_cfg__invalid_settings_raise(cfg: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfg(**settings)


def test_hardware__env_without_it_raises() -> None:
    with pytest.raises(
        ConfigError,
        match="base policy 'gr00t': it needs an env with the units of a robot",
    ):
        gr00t(1, fakes.PointEnv(fakes.PointCfg(), 1))
    with (
        FakeOpenPi() as server,
        pytest.raises(ConfigError, match="action_units 'hardware' needs an env with the units of a robot"),
    ):
        openpi(server, fakes.PointEnv(fakes.PointCfg(), 1), observation=("state",), action_units="hardware")


# --- a whole run --------------------------------------------------------------------------------------------


class Dying(Waving):
    """Closes its server after this number of observations."""

    def __init__(self, observations: int):
        super().__init__(chunk_size=1, num_action_steps=1)
        self.left = observations
        self.server: list[BackgroundServer] = []

    def predict_action_chunk(self, obs: Obs, env_ids: Any) -> Any:
        before, self.left = self.left, self.left - len(env_ids)
        if before > 0 >= self.left:
            threading.Thread(target=self.server[0].close).start()
        if self.left <= 0:
            time.sleep(1.0)  # the server stops within 0.2 s, before it answers again
        return super().predict_action_chunk(obs, env_ids)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["gr00t", "openpi"])
def test_train__lost_server_leaves_a_checkpoint_that_resumes_with_another(
    protocol: str, tmp_path: Path, fails: tiny_runs.Fails
) -> None:
    """The base policy is stateless, so the resumed run equals an uninterrupted one bit for bit."""
    timeout = {"gr00t": "6", "openpi": "30"}[
        protocol
    ]  # over ZeroMQ, only the time-out shows that a server is gone
    command = ["--base-policy", protocol, "--base.timeout", timeout, "--base.reconnect", "0"]
    command += [*tiny_runs.FAILING_TINY, "--total-timesteps", "128"]
    command += ["--learner", "ppo", "--residual-scale", "0.6"]
    with serving(Waving(chunk_size=1, num_action_steps=1), protocol) as port:
        arguments = [*command, "--base.port", str(port), "--output-dir", str(tmp_path / "whole")]
        assert main(["train", "so101-paper", *arguments]) == 0
    dying = Dying(observations=120)  # the first evaluation takes about 45, an iteration 32
    dying.server.append(BackgroundServer(open_one(dying, protocol, sessions=32, port=port)))
    message = fails("train", "so101-paper", *command, "--base.port", port, "--output-dir", tmp_path / "run")
    assert f":{port}: " in message
    assert "resume with: residual-rl train --resume" in message
    latest = CheckpointFolder(tmp_path / "run" / "checkpoints").latest()
    assert latest is not None
    assert 0 < latest[0] < 128, message
    with serving(Waving(chunk_size=1, num_action_steps=1), protocol, port=port):
        assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (
        tiny_runs.different(tiny_runs.last_state(tmp_path / "run"), tiny_runs.last_state(tmp_path / "whole"))
        == []
    )
