"""openpi server for a policy: one websocket for each env, msgpack.

Format: Physical-Intelligence/openpi, `src/openpi/serving/websocket_policy_server.py`. A string is an error;
the connection stays open. Observations that arrive during a prediction form the next batch. An extension:
`{"__ctrl__": "reset"}` or `episode_start` resets the policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from residual_rl.errors import ConfigError, MissingDependencyError, ResidualRLError
from residual_rl.remote.handshake import HANDSHAKE
from residual_rl.remote.service import Answer, Axes, PolicyService, RequestError
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, WireError, pack, unpack
from residual_rl.types import Obs
from residual_rl.utils.text import one_line

_CONTROL = "__ctrl__"
_BEGIN, _END = ("reset", "episode_start"), ("episode_end",)
_TICK = 0.2
"""Interval at which the server checks whether to stop [s]."""
_TRY_LATER, _GOING_AWAY = 1013, 1001
_log = logging.getLogger(__name__)


class OpenPiServer:
    """Binds on construction and serves in `run`.

    Args:
        service: the policy.
        host: address to bind to.
        port: 0 takes a free one.
        token: required as `Authorization: Api-Key …`; None accepts all.
        idle: time without a request after which a connection is closed [s].
    """

    def __init__(self, service: PolicyService, host: str, port: int, token: str | None, idle: float):
        try:
            import websockets.asyncio.server
            import websockets.exceptions
        except ImportError:
            raise MissingDependencyError(
                "websockets", "install it with `pip install residual-rl[openpi]`"
            ) from None
        self._websockets, self._closed = websockets.asyncio.server, websockets.exceptions.ConnectionClosed
        self._service, self._token, self._idle = service, token, idle

        # Bind, and report a port that cannot be used.
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {error.strerror or one_line(error)}; choose another"
                " --host or --port"
            ) from None
        bound = self._socket.getsockname()
        self.address = (
            f"ws://[{bound[0]}]:{bound[1]}" if family == socket.AF_INET6 else f"ws://{bound[0]}:{bound[1]}"
        )
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        """Runs the policy in one thread, beside the event loop."""
        self._waiting: list[tuple[int, Obs, asyncio.Future[Answer]]] = []

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; then close."""
        try:
            asyncio.run(self._serve(stop))
        finally:
            self.close()

    def close(self) -> None:
        """Free the port."""
        self._socket.close()
        self._worker.shutdown()

    async def _serve(self, stop: threading.Event) -> None:
        self._has_requests = asyncio.Event()
        options: dict[str, Any] = {
            "compression": None,
            "max_size": MAX_MESSAGE_BYTES,
            "process_request": self._admit,
        }
        async with self._websockets.serve(self._converse, sock=self._socket, **options):
            predictor = asyncio.create_task(self._predict())
            while not stop.is_set() and not predictor.done():
                await asyncio.sleep(_TICK)
            predictor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await predictor  # raises its error, if any

    def _admit(self, connection: Any, request: Any) -> Any:
        """The response to a request that opens no websocket; None to accept it."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if self._token is not None and not hmac.compare_digest(
            given.encode(), f"Api-Key {self._token}".encode()
        ):
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "Authorization: Api-Key TOKEN is wrong or missing\n"
            )
        return None

    async def _converse(self, connection: Any) -> None:
        """Serve one connection until it closes."""
        # Assign an env to the connection.
        try:
            (env_id,) = await self._do(self._service.take, 1)
        except RequestError as error:
            await connection.send(one_line(error))
            await connection.close(_TRY_LATER)
            return

        # Send the metadata, then answer the messages one by one.
        try:
            await connection.send(pack({HANDSHAKE: self._service.handshake.to_wire()}, "openpi"))
            while True:
                async with asyncio.timeout(self._idle):
                    message = await connection.recv()
                await connection.send(await self._reply(env_id, message))
        except self._closed:
            pass
        except TimeoutError:
            _log.warning("a connection was idle for %.0f s: its env is free", self._idle)
            await connection.close(_GOING_AWAY)
        finally:
            await self._do(self._service.give_back, [env_id])

    async def _reply(self, env_id: int, message: bytes | str) -> bytes | str:
        """The reply to a message; a string is an error."""
        start = time.perf_counter()
        try:
            if isinstance(message, str):
                raise RequestError("a text; expected a binary message, with msgpack")
            request = unpack(message)[0]
            if not isinstance(request, dict):
                raise RequestError(f"an observation is a dict, not a {type(request).__name__}")
            if _CONTROL in request:
                return await self._control(env_id, request[_CONTROL])
            # Queue the observation for the next batch, and wait for its actions.
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting.append((env_id, self._read_observation(request), answer))
            self._has_requests.set()
            return self._actions(await answer, time.perf_counter() - start)
        except (RequestError, WireError) as error:
            return _refusal(error)
        except Exception as error:  # noqa: BLE001 (one client must not end the service of others)
            _log.error("a request failed", exc_info=error)
            return "the request failed; the log of the server has the reason"

    async def _control(self, env_id: int, command: Any) -> bytes:
        if command in _BEGIN:
            await self._do(self._service.reset, [env_id])
        elif command not in _END:
            raise RequestError(
                f"unknown {_CONTROL} {one_line(command, 40)!r}; known: {', '.join(_BEGIN + _END)}"
            )
        return pack({"__ack__": command}, "openpi")

    def _read_observation(self, request: dict[Any, Any]) -> Obs:
        """The observation of one env. Raises `RequestError` for missing entries."""
        handshake = self._service.handshake
        missing = [
            f"{served.key} {list(served.shape)}"
            for served in handshake.inputs.values()
            if served.key not in request
        ]
        if missing:
            raise RequestError(
                f"missing: {', '.join(missing)}; got {', '.join(map(str, request)) or 'nothing'}"
            )
        axes: Axes = "steps" if handshake.num_obs_steps > 1 else "none"
        return {
            name: self._service.observation(name, request[served.key], served.key, axes)
            for name, served in handshake.inputs.items()
        }

    def _actions(self, answer: Answer, took: float) -> bytes:
        actions = answer.actions
        if self._service.joints is not None and answer.targets is not None:
            actions = self._service.joints.hardware.to_hardware(answer.targets).float()
        reply: dict[str, Any] = {"actions": actions[0].numpy(), "server_timing": {"infer_ms": 1000 * took}}
        if answer.uncertainty is not None:
            reply["uncertainty"] = answer.uncertainty[0].numpy()
        return pack(reply, "openpi")

    # --- prediction -----------------------------------------------------------------------------------------

    async def _do(self, call: Any, *arguments: Any) -> Any:
        """The result of a call that must not run during a prediction."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)

    async def _predict(self) -> None:
        """Predict actions for all waiting observations, as one batch, in a loop."""
        while True:
            # Take the observations that arrived during the last prediction.
            await self._has_requests.wait()
            self._has_requests.clear()
            batch, self._waiting = self._waiting, []
            env_ids = [env_id for env_id, _, _ in batch]
            obs = {name: torch.cat([rows[name] for _, rows, _ in batch]) for name in batch[0][1]}

            # Predict in the worker thread; errors go to all clients of the batch.
            try:
                answer = await self._do(self._service.predict, env_ids, obs)
            except RequestError as error:
                for _, _, future in batch:
                    if not future.done():  # not of a closed connection
                        future.set_exception(RequestError(str(error)))
                continue
            except asyncio.CancelledError:  # the server ends, and waiting connections would delay it
                for _, _, future in batch + self._waiting:
                    future.cancel()
                raise

            # Hand each client its row.
            for row, (_, _, future) in enumerate(batch):
                if not future.done():
                    future.set_result(answer.rows(slice(row, row + 1)))


def _refusal(error: ResidualRLError) -> str:
    _log.warning("refused a request: %s", one_line(error))
    return one_line(error)
