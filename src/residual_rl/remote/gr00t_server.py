"""GR00T inference server for a policy: ZeroMQ, msgpack, N1.5's flat keys or the nested ones of N1.6 and N1.7.

Formats: NVIDIA/Isaac-GR00T, `gr00t/eval/service.py` and `gr00t/policy/server_client.py`. Requests that are
waiting at the same time are predicted as one batch. Extensions of the protocol: `session` groups the requests
of a client (default: those of a socket); `env_ids` in the options gives the env index of each row, for
policies with a state, and for `reset`; `close` frees the envs of a session. `kill` is refused.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from residual_rl.base_policies.gr00t import Gr00tCfg
from residual_rl.errors import ConfigError, MissingDependencyError, ResidualRLError
from residual_rl.remote.client import ACTIONS, UNCERTAINTY
from residual_rl.remote.gr00t_policy import LANGUAGE_KEY
from residual_rl.remote.handshake import HANDSHAKE
from residual_rl.remote.service import Answer, PolicyService, RequestError, numeric
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, Encoding, WireError, modality_config, pack, unpack
from residual_rl.robots.arm_joints import ArmJoints
from residual_rl.types import Obs
from residual_rl.utils.text import one_line

ENDPOINTS = ("get_action", "get_modality_config", "reset", "ping", "close")
ARM_KEY, GRIPPER_KEY = Gr00tCfg.arm_key, Gr00tCfg.gripper_key
JOINTS = "joint_position"
"""The observation that robots send as the arm's and the gripper's joints, in their own units."""
_TICK = 0.2
"""Interval at which an idle server checks whether to stop [s]."""
_LULL, _ACTIVE = 0.001, 1.0
"""To fill a batch, the server waits `_LULL` [s] for each request, up to the number of sessions that were in
use within the last `_ACTIVE` [s]."""
_log = logging.getLogger(__name__)


@dataclass
class Session:
    """The envs of one client."""

    env_ids: dict[int, int] = field(default_factory=dict)
    """Env index of the service by the client's own env index."""
    last_used: float = 0.0


@dataclass(frozen=True)
class ActionRequest:
    """A valid request for actions."""

    envelope: list[bytes]
    encoding: Encoding
    env_ids: list[int]
    obs: Obs
    exact: bool
    """Whether the reply must also contain the normalised actions."""


class Gr00tServer:
    """Binds on construction and serves in `run`.

    Args:
        service: the policy; its actions must be joint positions.
        host: address to bind to.
        port: 0 takes a free one.
        token: required as `api_token` in each request; None accepts all.
        idle: time without a request after which the envs of a session are freed [s].
        flat: whether to use the layout of N1.5.
    """

    def __init__(
        self, service: PolicyService, host: str, port: int, token: str | None, idle: float, flat: bool = False
    ):
        try:
            import zmq
        except ImportError:
            raise MissingDependencyError(
                "pyzmq", "install it with `pip install residual-rl[gr00t]`"
            ) from None
        self._zmq, self._service, self._token, self._idle, self._flat = zmq, service, token, idle, flat
        assert service.joints is not None
        self._joints: ArmJoints = service.joints
        self._sessions: dict[str | bytes, Session] = {}

        # Bind, and report a port that cannot be used.
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.IPV6, ":" in host)
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

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; then close."""
        try:
            while not stop.is_set():
                if self._socket.poll(round(1000 * _TICK)):
                    self._serve_waiting()
                self._free_idle()
        finally:
            self.close()

    def close(self) -> None:
        """Free the port."""
        self._socket.close(linger=0)
        self._context.term()

    # --- requests -------------------------------------------------------------------------------------------

    def _serve_waiting(self) -> None:
        """Answer the waiting requests. Requests for different envs are predicted as one batch."""
        # Read requests until the batch is full or none is waiting.
        batch: list[ActionRequest] = []
        recently = time.monotonic() - _ACTIVE
        active = sum(session.last_used > recently for session in self._sessions.values())
        while (
            self._socket.poll(round(1000 * _LULL) if len(batch) < active else 0)
            and len(batch) < self._service.env.num_envs
        ):
            *envelope, message = self._socket.recv_multipart()
            encoding: Encoding = "npy"
            try:
                # Decode and authenticate the request.
                request, written = unpack(message)
                encoding = written or encoding
                if not isinstance(request, dict):
                    raise RequestError(f"a request is a dict, not a {type(request).__name__}")
                self._check_token(request)
                endpoint = request.get("endpoint", "get_action")
                if endpoint != "get_action":  # keep the order: it may reset an env of the batch
                    self._answer(batch)
                    batch = []
                    self._reply(envelope, self._do(endpoint, request, envelope), encoding)
                    continue
                # An env can be in a batch once: answer the earlier request first.
                action_request = self._read(request, envelope, encoding)
                if any(set(action_request.env_ids) & set(other.env_ids) for other in batch):
                    self._answer(batch)
                    batch = []
                batch.append(action_request)
            except (RequestError, WireError) as error:
                self._refuse(envelope, error, encoding)
            except Exception as error:  # noqa: BLE001 (one client must not end the service of others)
                _log.error("a request failed", exc_info=error)
                self._refuse(
                    envelope,
                    RequestError("the request failed; the log of the server has the reason"),
                    encoding,
                )
        self._answer(batch)

    def _check_token(self, request: Mapping[str, Any]) -> None:
        if self._token is None:
            return
        given = request.get("api_token")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise RequestError("unauthorized: api_token is wrong or missing")

    def _do(self, endpoint: Any, request: Mapping[str, Any], envelope: list[bytes]) -> Any:
        """The reply to a request other than `get_action`."""
        if endpoint == "ping":
            return {"status": "ok", "message": f"serving {self._service.name}"}
        if endpoint == "get_modality_config":
            described, data = self._describe(), request.get("data")
            # Other clients would take the handshake for a modality.
            if isinstance(data, dict) and HANDSHAKE in data:
                described[HANDSHAKE] = self._service.handshake.to_wire()
            return described
        if endpoint == "reset":
            session = self._session(request, envelope)
            rows = _client_env_ids(_options(request.get("data")), None)
            self._service.reset(
                [env_id for row, env_id in session.env_ids.items() if rows is None or row in rows]
            )
            return {}
        if endpoint == "close":
            session = self._sessions.pop(self._name_of(request, envelope), Session())
            self._service.give_back(list(session.env_ids.values()))
            return {}
        if endpoint == "kill":
            raise RequestError("kill is refused: stop the server on its own machine")
        raise RequestError(f"unknown endpoint {one_line(endpoint, 40)!r}; known: {', '.join(ENDPOINTS)}")

    def _describe(self) -> dict[str, Any]:
        """The modality configuration in the format of the GR00T servers."""
        # Collect the keys of each modality.
        handshake = self._service.handshake
        past = list(range(1 - handshake.num_obs_steps, 1))
        keys: dict[str, list[str]] = {
            "video": [],
            "state": [],
            "action": self._action_keys(),
            "language": [LANGUAGE_KEY],
        }
        for name, served in handshake.inputs.items():
            kind = "video" if served.dtype == "uint8" else "state"
            keys[kind] += self._action_keys() if name == JOINTS else [served.key]

        # Add the delta indices: the observation history, and the steps of the action chunk.
        steps = {"video": past, "state": past, "action": list(range(handshake.chunk_size)), "language": [0]}
        described = {}
        for kind, names in keys.items():
            prefix = f"{kind}." if self._flat and kind != "language" else ""
            content = {"delta_indices": steps[kind], "modality_keys": [prefix + name for name in names]}
            described[kind] = modality_config(content, as_text=self._flat)
        return described

    def _action_keys(self) -> list[str]:
        return [ARM_KEY, GRIPPER_KEY] if self._joints.gripper else [ARM_KEY]

    # --- sessions -------------------------------------------------------------------------------------------

    def _name_of(self, request: Mapping[str, Any], envelope: list[bytes]) -> str | bytes:
        name = request.get("session")
        return name if isinstance(name, str) and len(name) <= 64 else envelope[0]

    def _session(self, request: Mapping[str, Any], envelope: list[bytes]) -> Session:
        """The session of a request. A new one is stored only once it has an env."""
        session = self._sessions.get(self._name_of(request, envelope), Session())
        session.last_used = time.monotonic()
        return session

    def _env_ids_of(self, request: Mapping[str, Any], envelope: list[bytes], rows: list[int]) -> list[int]:
        """The env indices of the service for a client's `rows`; those of new rows are reset."""
        session = self._session(request, envelope)
        new = [row for row in rows if row not in session.env_ids]
        session.env_ids.update(zip(new, self._service.take(len(new)), strict=True))
        self._sessions[self._name_of(request, envelope)] = session
        return [session.env_ids[row] for row in rows]

    def _free_idle(self) -> None:
        now = time.monotonic()
        for name, session in list(self._sessions.items()):
            if now - session.last_used > self._idle:
                _log.warning(
                    "a session was idle for %.0f s: its %d env(s) are free",
                    now - session.last_used,
                    len(session.env_ids),
                )
                self._service.give_back(list(self._sessions.pop(name).env_ids.values()))

    # --- observations and actions ---------------------------------------------------------------------------

    def _read(self, request: Mapping[str, Any], envelope: list[bytes], encoding: Encoding) -> ActionRequest:
        """A request for actions."""
        data = request.get("data")
        if not isinstance(data, dict):
            raise RequestError(f"data is a dict, not a {type(data).__name__}")
        if self._flat:
            sent = {str(key): value for key, value in data.items()}
        else:
            nested = data.get("observation")
            if not isinstance(nested, dict) or not all(
                isinstance(nested.get(kind, {}), dict) for kind in ("video", "state")
            ):
                raise RequestError("data must contain observation: {video: {…}, state: {…}, language: {…}}")
            sent = {
                f"{kind}.{key}": value
                for kind in ("video", "state")
                for key, value in nested.get(kind, {}).items()
            }
        obs = self._collect(sent)
        sizes = {len(value) for value in obs.values()}
        if len(sizes) > 1:
            raise RequestError(
                f"observations have batch sizes {' and '.join(map(str, sorted(sizes)))}: they must be equal"
            )
        options = {} if self._flat else _options(data)
        rows = _client_env_ids(options, next(iter(sizes), None))
        env_ids = self._env_ids_of(request, envelope, [0] if rows is None else rows)
        return ActionRequest(
            envelope, encoding, env_ids, obs, exact=(data if self._flat else options).get(ACTIONS) is True
        )

    def _collect(self, sent: Mapping[str, Any]) -> Obs:
        """The observations of the policy from the entries `sent`, by `video.*` and `state.*`.

        Raises `RequestError` for missing ones.
        """
        obs: Obs = {}
        missing = []
        for name, served in self._service.handshake.inputs.items():
            key = f"{'video' if served.dtype == 'uint8' else 'state'}.{served.key}"
            parts = [f"state.{part}" for part in self._action_keys()]
            # Joint positions may also come as arm and gripper, in the units of the robot.
            if key in sent:
                value = sent[key]
            elif name == JOINTS and all(part in sent for part in parts):
                key, value = (
                    " and ".join(parts),
                    self._from_robot([numeric(sent[part], part, "float32") for part in parts]),
                )
            else:
                missing.append(f"{' + '.join(parts) if name == JOINTS else key} {list(served.shape)}")
                continue
            obs[name] = self._service.observation(
                name, value, key, "steps" if self._flat else "envs and steps"
            )
        if missing:
            raise RequestError(f"missing: {', '.join(missing)}; got {', '.join(map(str, sent)) or 'nothing'}")
        return obs

    def _from_robot(self, parts: list[Any]) -> Any:
        """Joint angles [rad] from arrays for arm and gripper in the robot's units."""
        sizes = [len(self._joints.arm), len(self._joints.gripper)][: len(parts)]
        leads = {part.shape[:-1] for part in parts}
        if len(leads) > 1 or [part.shape[-1:] for part in parts] != [(n,) for n in sizes]:
            raise RequestError(
                f"the arm has {sizes[0]} joints and the gripper 1; got shapes"
                f" {' and '.join(str(p.shape) for p in parts)}"
            )
        arm, *gripper = (torch.from_numpy(part) for part in parts)
        return self._joints.from_server(
            arm.double(), gripper[0].double() if gripper else arm[..., :0].double()
        ).numpy()

    def _answer(self, batch: list[ActionRequest]) -> None:
        """Predict actions for all requests as one batch, and reply to each."""
        if not batch:
            return
        env_ids = [env_id for action_request in batch for env_id in action_request.env_ids]
        try:
            names = batch[0].obs
            answer = self._service.predict(
                env_ids,
                {name: torch.cat([action_request.obs[name] for action_request in batch]) for name in names},
            )
        except RequestError as error:
            for action_request in batch:
                self._refuse(action_request.envelope, error, action_request.encoding)
            return
        # Split the batch into the replies.
        first = 0
        for action_request in batch:
            rows = slice(first, first := first + len(action_request.env_ids))
            self._reply(
                action_request.envelope,
                self._actions(answer.rows(rows), action_request.exact),
                action_request.encoding,
            )

    def _actions(self, answer: Answer, exact: bool) -> Any:
        """The reply to a request for actions; with `exact`, also the normalised actions and uncertainty."""
        assert answer.targets is not None
        arm, gripper = (part.float().numpy() for part in self._joints.to_server(answer.targets))
        parts = dict(zip(self._action_keys(), (arm, gripper), strict=False))
        more = {ACTIONS: answer.actions, UNCERTAINTY: answer.uncertainty} if exact else {}
        info = {name: value.numpy() for name, value in more.items() if value is not None}
        if self._flat:
            return {f"action.{key}": part[0] for key, part in parts.items()} | {
                name: value[0] for name, value in info.items()
            }
        return [parts, info]

    def _refuse(self, envelope: list[bytes], error: ResidualRLError, encoding: Encoding) -> None:
        _log.warning("refused a request: %s", one_line(error))
        self._reply(envelope, {"error": one_line(error)}, encoding)

    def _reply(self, envelope: list[bytes], value: Any, encoding: Encoding) -> None:
        try:
            message = pack(value, "npy" if encoding == "openpi" else encoding)
        except WireError as error:
            message = pack({"error": f"the reply {error}"}, "npy")
        self._socket.send_multipart([*envelope, message])


def _options(data: Any) -> Mapping[str, Any]:
    options = data.get("options") if isinstance(data, dict) else None
    if options is not None and not isinstance(options, dict):
        raise RequestError(f"options is a dict or nothing, not a {type(options).__name__}")
    return options or {}


def _client_env_ids(options: Mapping[str, Any], number: int | None) -> list[int] | None:
    """The client's env index of each of `number` rows; None if neither is given, which means all envs."""
    env_ids = options.get("env_ids")
    if env_ids is None:
        return None if number is None else list(range(number))
    if (
        not isinstance(env_ids, list)
        or not all(type(env_id) is int and env_id >= 0 for env_id in env_ids)
        or len(set(env_ids)) != len(env_ids)
    ):
        raise RequestError("env_ids must be distinct integers of at least 0")
    if number is not None and len(env_ids) != number:
        raise RequestError(f"got {len(env_ids)} env_ids for {number} rows")
    return env_ids
