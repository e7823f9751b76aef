"""Policy servers in threads, and messages of external clients, written from the protocols' descriptions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import zmq
from torch import Tensor

from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.base_policies.openpi import OpenPiCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.factory import make_vec_env
from residual_rl.remote.server import BackgroundServer, Server, open_server
from residual_rl.remote.service import PolicyService
from residual_rl.types import ActionChunk, BasePolicy, Obs

Config = Gr00tCfg | OpenPiCfg
LAYOUTS = {"gr00t": "n1.6", "gr00t-n15": "n1.5"}


class Waving(BasePolicy):
    """A stateless policy whose small actions depend on every bit of the last `num_obs_steps` observations.

    It computes elementwise in float64.
    """

    inputs = {"joint_position": (6,), "joint_target": (6,), "goal": (3,)}  # noqa: RUF012

    def __init__(
        self, num_obs_steps: int = 1, chunk_size: int = 4, num_action_steps: int = 4, unsure: bool = False
    ):
        self.num_obs_steps, self.chunk_size, self.num_action_steps, self._unsure = (
            num_obs_steps,
            chunk_size,
            num_action_steps,
            unsure,
        )

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor | ActionChunk:
        joints, target, goal = (
            obs[name].double().reshape(len(env_ids), self.num_obs_steps, -1) for name in self.inputs
        )
        phase = 3.0 * joints + target + goal.repeat(1, 1, 2)
        oldest_first = phase * torch.arange(1.0, 1.0 + self.num_obs_steps, dtype=torch.float64)[:, None]
        total = oldest_first[:, 0]
        for step in range(1, self.num_obs_steps):
            total = total + oldest_first[:, step]
        actions = (0.3 * torch.sin(total[:, None] + 0.7 * torch.arange(self.chunk_size)[:, None])).float()
        # The gripper starts at its limit, and joint positions cannot represent a motion beyond it.
        actions[..., 5] = actions[..., 5].abs()
        return ActionChunk(actions, 0.5 + 0.5 * actions[..., 0]) if self._unsure else actions


class Counting(BasePolicy):
    """Counts the queries since each env's reset; the action is 0.01 times the count."""

    inputs = {"joint_target": (6,)}  # noqa: RUF012

    def __init__(self) -> None:
        self.counts = torch.zeros(1024)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self.counts = self.counts.index_add(0, env_ids, torch.ones(len(env_ids)))
        return (0.01 * self.counts[env_ids])[:, None, None].expand(-1, 1, 6)

    def reset(self, mask: Tensor) -> None:
        self.counts[: len(mask)] = self.counts[: len(mask)].masked_fill(mask, 0.0)


Served = BasePolicy | str | tuple[str, Any]
"""A policy, the id of a registered one, or an id and settings."""


def served_policy(policy: Served, env: VecEnv) -> BasePolicyExecutor:
    """The policy to serve, in an executor for `env`."""
    if isinstance(policy, BasePolicy):
        return BasePolicyExecutor(policy, env)
    return make_base_policy(policy, None, env) if isinstance(policy, str) else make_base_policy(*policy, env)


def open_one(policy: Served, protocol: Any, sessions: int = 16, **options: Any) -> Server:
    """A bound server of this project for so101-paper.

    Options are `port`, `token`, `idle`, `units`, `keys`, and settings of the task.
    """
    port, token, idle = options.pop("port", 0), options.pop("token", None), options.pop("idle", 600.0)
    units = options.pop("units", "normalized" if protocol == "openpi" else "hardware")
    keys = options.pop("keys", None)
    env = make_vec_env("so101-paper", sessions, num_threads=1, **options)
    service = PolicyService(served_policy(policy, env), env, "so101-paper", "it", protocol, units, keys)
    return open_server(service, "127.0.0.1", port, token, idle)


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


@contextlib.contextmanager
def serving(policy: Served, protocol: Any, **options: Any) -> Iterator[int]:
    """A running server of this project; yields its port."""
    with BackgroundServer(open_one(policy, protocol, **options)) as server:
        yield port_of(server.address)
    assert server.error is None


def client_cfg(protocol: str, port: int, **settings: Any) -> Config:
    """Settings of the client for a server of `serving`."""
    settings = {"port": port, "timeout": 20.0, "reconnect": 0.0, **settings}
    return OpenPiCfg(**settings) if protocol == "openpi" else Gr00tCfg(layout=LAYOUTS[protocol], **settings)  # type: ignore[arg-type]


def connect(protocol: str, port: int, env: VecEnv, **settings: Any) -> BasePolicyExecutor:
    """The client of this project, as constructed in a run."""
    return make_base_policy(
        "openpi" if protocol == "openpi" else "gr00t", client_cfg(protocol, port, **settings), env
    )


_KEPT: list[BackgroundServer] = []


def make_case_gr00t(folder: Path) -> Config:
    """A server that runs until the tests end, for a policy with chunks and a history."""
    _KEPT.append(
        BackgroundServer(
            open_one(Waving(num_obs_steps=2, chunk_size=16, num_action_steps=8), "gr00t", sessions=512)
        )
    )
    return client_cfg("gr00t", port_of(_KEPT[-1].address))


def make_case_openpi(folder: Path) -> Config:
    """The same over websockets, for a policy with an uncertainty."""
    _KEPT.append(BackgroundServer(open_one(Waving(unsure=True), "openpi", sessions=512)))
    return client_cfg("openpi", port_of(_KEPT[-1].address))


# --- messages of external programs --------------------------------------------------------------------------


def npy(array: Any) -> dict[str, Any]:
    """An array in the encoding of Isaac-GR00T N1.5 and N1.6."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def nd(array: Any) -> dict[bytes, Any]:
    """An array in the encoding of msgpack-numpy, which Isaac-GR00T N1.7 uses."""
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def openpi_array(array: Any) -> dict[bytes, Any]:
    """An array in the encoding of openpi's client and server."""
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def _hook(table: dict[Any, Any]) -> Any:
    if "__ndarray_class__" in table:
        return np.load(io.BytesIO(table["as_npy"]), allow_pickle=False)
    if b"nd" in table:
        return np.frombuffer(table[b"data"], table[b"type"]).reshape(table[b"shape"])
    if b"__ndarray__" in table:
        return np.ndarray(buffer=table[b"data"], dtype=np.dtype(table[b"dtype"]), shape=table[b"shape"])
    return table


def packb(value: Any, array: Any = npy) -> bytes:
    """Encode `value`, with its arrays encoded by `array`."""
    data: bytes = msgpack.packb(value, default=lambda v: array(v) if isinstance(v, np.ndarray) else v)
    return data


def unpackb(data: bytes) -> Any:
    """Decode a message."""
    return msgpack.unpackb(data, object_hook=_hook, raw=False)


class RobotClient:
    """A GR00T client of a robot: one REQ socket, without the options of this project."""

    def __init__(self, port: int, array: Any = npy):
        self.array = array
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def raw(self, message: bytes) -> Any:
        self.socket.send(message)
        return unpackb(self.socket.recv())

    def ask(self, endpoint: str, data: Any = None, **more: Any) -> Any:
        return self.raw(
            packb({"endpoint": endpoint, **({} if data is None else {"data": data}), **more}, self.array)
        )

    def get_action(
        self, state: dict[str, Any], video: dict[str, Any] | None = None, options: Any = None
    ) -> Any:
        language = {"annotation.human.task_description": [["go"]]}
        return self.ask(
            "get_action",
            {"observation": {"video": video or {}, "state": state, "language": language}, "options": options},
        )

    def __enter__(self) -> RobotClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()
