"""Messages that a policy server must survive: mutated ones, counted, and the worst ones, with their costs.

    python benchmarks/hostile_messages.py
    python benchmarks/hostile_messages.py --messages 1000

It serves `jacobian` on loopback with each protocol in turn. First it sends mutations of valid messages and
counts the outcomes; now and then, another client must get the actions that it got at first. It does the same
with mutations of all bytes of a connection, from the first one on. Then it sends
the worst messages that it knows, one at a time, and measures the CPU time that each costs the server, by how
much the server's memory grows at most, and how long another client waits for its actions meanwhile. The
server's allocator returns large blocks to the system at once: each message then costs what the first one
costs, page faults included.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import websockets.exceptions
import websockets.sync.client
import zmq
from rich.console import Console
from rich.table import Table

from residual_rl.remote.message_limits import MAX_TEXT_BYTES, MAX_VALUES
from residual_rl.remote.wire import MAX_MESSAGE_BYTES, MAX_OBSERVATION_BYTES, pack, unpack
from residual_rl.utils.files import write_json
from residual_rl.utils.provenance import git_state, machine

PROTOCOLS = ("gr00t", "gr00t-n15", "openpi")
TASK, POLICY, TOKEN = "so101-paper", "jacobian", "sesame"
LONGEST_ANSWER = 20.0
"""A server that does not answer for so long hangs [s]."""
MIB = 2**20


def main() -> None:
    """Send, measure, save and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000, help="mutated messages for each protocol")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/hostile-messages.json"))
    options = parser.parse_args()
    results = {}
    for protocol in options.protocols:
        results[protocol] = {
            "mutated": _send_mutated(protocol, options.messages, options.seed),
            "mutated_connections": _send_streams(protocol, options.messages // 100, options.seed),
            "worst": _send_worst(protocol),
        }
        _show(protocol, results[protocol])
    write_json(
        options.output,
        {
            "task": TASK,
            "policy": POLICY,
            "seed": options.seed,
            "git": git_state()[0],
            "machine": machine(),
            "protocols": results,
        },
    )


def _show(protocol: str, result: dict[str, Any]) -> None:
    console = Console(width=110)
    mutated = result["mutated"]
    console.print(f"{protocol}: {mutated['messages']:,} mutated messages: {mutated['outcomes']}")
    console.print(
        f"another client served {mutated['checks']} times in between; server: {mutated['cpu_ms']:.2f} ms of"
        f" CPU for each message, at most {mutated['memory_growth_mib']:.0f} MiB more memory,"
        f" {mutated['log_lines']} lines of log, {mutated['tracebacks']} tracebacks"
    )
    streams = result["mutated_connections"]
    console.print(f"{streams['connections']:,} mutated connections: {streams['outcomes']}")
    table = Table("message", "MiB", "outcome", "CPU [ms]", "memory [MiB]", "other client waits [ms]")
    for row in result["worst"]:
        table.add_row(
            row["message"],
            f"{row['bytes'] / MIB:.2f}",
            row["outcome"],
            f"{row['cpu_ms']:.1f}",
            f"{row['memory_mib']:.1f}",
            f"{row['other_waits_ms']:.0f}",
        )
    console.print(table)


# --- a server in another process ----------------------------------------------------------------------------


class Served:
    """A server of `residual-rl serve`, and what it uses."""

    def __init__(self, protocol: str, folder: Path):
        self.protocol = protocol
        command = [sys.executable, "-m", "residual_rl.cli.main", "serve", POLICY, "--task", TASK]
        command += ["--protocol", protocol, "--port", "0", "--token", TOKEN]
        self.log = folder / "log.txt"
        self._errors = self.log.open("w")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
        )
        assert self.process.stdout is not None
        found = None
        while found is None:  # the line with the port
            found = re.search(r":(\d+), protocol", self.process.stdout.readline())
        self.port = int(found[1])

    def cpu(self) -> float:
        """CPU time so far, of all threads, in user and kernel mode [s] (clock_getcpuclockid)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory(self, name: str) -> float:
        """`VmRSS` or `VmHWM` [MiB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def reset_peak(self) -> None:
        """Set `VmHWM` to `VmRSS`."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def _serving(protocol: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        served = Served(protocol, Path(folder))
        try:
            yield served
            if served.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{served.log.read_text()[-3000:]}")
        finally:
            served.process.terminate()
            served.process.wait()


# --- clients ------------------------------------------------------------------------------------------------


class Gr00tClient:
    """Sends bytes to a GR00T server; several messages may be under way."""

    def __init__(self, served: Served):
        self._port = served.port
        self._open()

    def _open(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{self._port}")

    def exchange(self, messages: list[bytes]) -> list[bytes | str]:
        """The replies; a text where there is none."""
        for message in messages:
            self._socket.send_multipart([b"", message])
        replies: list[bytes | str] = []
        while len(replies) < len(messages):
            if not self._socket.poll(round(1000 * LONGEST_ANSWER)):
                raise SystemExit("the server does not answer")
            replies.append(self._socket.recv_multipart()[-1])
        return replies

    def close(self) -> None:
        self._socket.close()


class OpenPiClient:
    """Sends bytes to an openpi server, one message after the other."""

    def __init__(self, served: Served):
        self._url = f"ws://127.0.0.1:{served.port}"
        self._open()

    def _open(self) -> None:
        self._calls = contextlib.ExitStack()
        self._connection = self._calls.enter_context(
            websockets.sync.client.connect(
                self._url,
                compression=None,
                proxy=None,
                max_size=None,
                additional_headers={"Authorization": f"Api-Key {TOKEN}"},
            )
        )
        self._connection.recv(timeout=LONGEST_ANSWER)

    def exchange(self, messages: list[bytes]) -> list[bytes | str]:
        """The replies; a text where the server refuses, or closes the connection."""
        replies: list[bytes | str] = []
        for message in messages:
            try:
                self._connection.send(message)
                replies.append(self._connection.recv(timeout=LONGEST_ANSWER))
            except websockets.exceptions.ConnectionClosed:
                replies.append("connection closed")
                self.close()
                self._open()
        return replies

    def close(self) -> None:
        self._calls.close()


def _client(served: Served) -> Gr00tClient | OpenPiClient:
    return OpenPiClient(served) if served.protocol == "openpi" else Gr00tClient(served)


def _outcome(reply: bytes | str) -> str:
    """The kind of a reply."""
    if reply == "connection closed":
        return reply
    if isinstance(reply, str):
        text = reply
    else:
        value = unpack(reply)[0]
        if not isinstance(value, dict) or "error" not in value:
            return "answered"
        text = value["error"]
    assert len(text) <= 310, text
    assert text.isprintable(), text
    if "the log of the server" in text:
        return "failed"
    return "unauthorized" if "unauthorized" in text else "refused"


# --- valid messages -----------------------------------------------------------------------------------------


def _inputs(served: Served) -> dict[str, Any]:
    """A valid observation: zeros of the shapes in the handshake."""
    if served.protocol == "openpi":
        with websockets.sync.client.connect(
            f"ws://127.0.0.1:{served.port}", additional_headers={"Authorization": f"Api-Key {TOKEN}"}
        ) as connection:
            handshake = unpack(connection.recv(timeout=LONGEST_ANSWER))[0]["residual_rl"]
    else:
        client = Gr00tClient(served)
        request = {"endpoint": "get_modality_config", "api_token": TOKEN, "data": {"residual_rl": True}}
        (reply,) = client.exchange([pack(request, "npy")])
        assert isinstance(reply, bytes)
        handshake = unpack(reply)[0]["residual_rl"]
        client.close()
    steps = {"gr00t": (1, 1), "gr00t-n15": (1,), "openpi": ()}[served.protocol]
    generator = np.random.default_rng(1)
    return {
        entry["key"]: generator.uniform(-0.1, 0.1, (*steps, *entry["shape"])).astype(entry["dtype"])
        for entry in handshake["inputs"].values()
    }


def _requests(served: Served) -> list[Any]:
    """Valid requests, as values; the first asks for actions."""
    inputs = _inputs(served)
    if served.protocol == "openpi":
        return [
            inputs | {"prompt": "go"},
            {"__ctrl__": "reset"},
            {"__ctrl__": "episode_start", "__task__": "x"},
        ]
    if served.protocol == "gr00t-n15":
        data: Any = {f"state.{key}": value for key, value in inputs.items()}
        data |= {"annotation.human.task_description": ["go"], "residual_rl.actions": True}
    else:
        data = {"observation": {"state": inputs, "video": {}, "language": {"task": [["go"]]}}}
        data |= {"options": {"env_ids": [0], "residual_rl.actions": True}}
    requests = [
        {"endpoint": "get_action", "data": data},
        {"endpoint": "reset", "data": {"options": {"env_ids": [0]}}},
        {"endpoint": "get_modality_config", "data": {"residual_rl": True}},
        {"endpoint": "ping"},
        {"endpoint": "close", "session": "x"},
    ]
    return [{"api_token": TOKEN, **request} for request in requests]


def _encodings(served: Served) -> tuple[Any, ...]:
    return ("openpi",) if served.protocol == "openpi" else ("npy", "nd")


# --- mutations ----------------------------------------------------------------------------------------------

ODD_VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 2**63,
    lambda: float("nan"),
    lambda: 1e300,
    lambda: "",
    lambda: "\x1b[2J\n\u202egnp.exe",
    lambda: b"\x00\xff",
    list,
    dict,
    lambda: [[]] * 50,
    lambda: {"nd": True, "type": "|O", "shape": [1], "data": bytes(8)},
    lambda: {"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x01\x00\xff\xff{"},
    lambda: {"__ModalityConfig__": True, "as_json": "[" * 500},
    lambda: {b"__npgeneric__": True, b"data": 1e300, b"dtype": "<f2"},
    lambda: {f"key {n}": n for n in range(100)},
    lambda: np.zeros(0, "f4"),
    lambda: np.array(1.0),
    lambda: np.full((2, 1, 6), np.inf),
    lambda: np.zeros((3, 1, 6), "f2"),
    lambda: np.zeros(6, "u1"),
    lambda: msgpack.ExtType(5, b"abc"),
    lambda: msgpack.Timestamp(1, 1),
    lambda: list(range(3000)),
    lambda: "x" * 5000,
)


def _mutated_value(value: Any, draw: random.Random) -> Any:
    """`value` with an entry replaced, removed or added at a random place."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        if kind < 0.2:
            return value | {
                draw.choice(["x", "nd", "session", "\x1b]0;x\x07", b"endpoint"]): draw.choice(ODD_VALUES)()
            }
        return value | {key: _mutated_value(value[key], draw)}
    return draw.choice(ODD_VALUES)()


def _mutated_bytes(message: bytes, draw: random.Random) -> bytes:
    """`message` with bytes changed, removed, inserted or repeated."""
    data = bytearray(message)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        length = draw.choice((1, 1, 2, 4, 16))
        kind = draw.randrange(6)
        if kind <= 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = draw.randbytes(length)
        elif kind == 4:
            data[at:at] = data[at : at + 8 * length]
        else:
            data[at : at + 5] = draw.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6")) + draw.randbytes(4)
    return bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data)


def _mutations(served: Served, draw: random.Random) -> Iterator[bytes]:
    requests, encodings = _requests(served), _encodings(served)
    while True:
        request, encoding = draw.choice(requests), draw.choice(encodings)
        if draw.random() < 0.5:
            yield _mutated_bytes(pack(request, encoding), draw)
            continue
        value = _mutated_value(request, draw)
        if served.protocol != "openpi" and isinstance(value, dict) and draw.random() < 0.9:
            value = {**value, "api_token": TOKEN}
        with contextlib.suppress(Exception):  # no message
            yield pack(value, encoding)


def _send_mutated(protocol: str, number: int, seed: int) -> dict[str, Any]:
    with _serving(protocol) as served:
        # What a client that is not disturbed gets.
        good = pack(_requests(served)[0], _encodings(served)[0])
        other, hostile = _client(served), _client(served)
        expected = _actions(other.exchange([good])[0])

        # Send mutations, and look after the other client now and then.
        mutations = _mutations(served, random.Random(seed))
        outcomes: collections.Counter[str] = collections.Counter()
        checks, memory, cpu = 0, served.memory("VmRSS"), served.cpu()
        served.reset_peak()
        while (sent := outcomes.total()) < number:
            batch = [next(mutations) for _ in range(min(50, number - sent))]
            outcomes.update(map(_outcome, hostile.exchange(batch)))
            if checks * 1000 <= sent:
                checks += 1
                assert _actions(other.exchange([good])[0]) == expected
        cpu, grown = served.cpu() - cpu, served.memory("VmHWM") - memory
        log = served.log.read_text()
    return {
        "messages": number,
        "outcomes": dict(outcomes.most_common()),
        "checks": checks,
        "cpu_ms": 1000 * cpu / number,
        "memory_growth_mib": grown,
        "log_lines": log.count("\n"),
        "tracebacks": log.count("Traceback"),
    }


def _stream(served: Served, message: bytes, draw: random.Random) -> bytes:
    """All bytes of a connection that sends `message`."""
    if served.protocol == "openpi":
        lines = ["GET / HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        head = "\r\n".join([*lines, f"Authorization: Api-Key {TOKEN}", "", ""]).encode()
        return head + b"\x82\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message
    if draw.random() < 0.3:  # ZMTP 1.0
        return b"\x05\x00name" + b"\x01\x01\xff" + (1 + len(message)).to_bytes(8, "big") + b"\x00" + message
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(23, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    frame = b"\x02" + len(message).to_bytes(8, "big") + message
    return greeting + b"\x04" + bytes([len(ready)]) + ready + b"\x01\x00" + frame


def _send_streams(protocol: str, number: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    with _serving(protocol) as served:
        good = pack(_requests(served)[0], _encodings(served)[0])
        other = _client(served)
        expected = _actions(other.exchange([good])[0])
        outcomes: collections.Counter[str] = collections.Counter()
        for count in range(number):
            data = _stream(served, good, draw)
            data = _mutated_bytes(data, draw) if count else data
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                connection.settimeout(0.05)
                end, received = "left open", b""
                with contextlib.suppress(ConnectionError):
                    connection.sendall(data[:64])
                    time.sleep(0.01)  # ZeroMQ closes a connection that does not wait for its greeting
                    connection.sendall(data[64:])
                try:
                    while part := connection.recv(65536):
                        received += part
                    end = "closed"
                except TimeoutError:
                    pass
                except ConnectionError:
                    end = "reset"
            answered = b"single_arm" in received or b"actions" in received
            outcome = "answered" if answered else f"refused, {end}" if b"error" in received else end
            outcomes[outcome] += 1
            if count % 100 == 0:
                assert _actions(other.exchange([good])[0]) == expected
        log = served.log.read_text()
    return {
        "connections": number,
        "outcomes": dict(outcomes.most_common()),
        "log_lines": log.count("\n"),
        "tracebacks": log.count("Traceback"),
    }


def _actions(reply: bytes | str) -> bytes:
    """The actions in a reply, without times."""
    assert isinstance(reply, bytes), reply
    value = unpack(reply)[0]
    if isinstance(value, dict):
        value.pop("server_timing", None)
    return pack(value, "npy")


# --- the worst messages -------------------------------------------------------------------------------------


def _array_of(items: list[bytes]) -> bytes:
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def _npy(array: Any) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, array)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def _bytes_array(dtype: str, shape: list[int], data: bytes) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def _worst_values(largest: int) -> dict[str, bytes]:
    """Values in msgpack that cost much, of messages of up to `largest` bytes: beyond the limits, and as many
    or as much as the limits permit."""
    values = {}
    for size in sorted({4, min(16, largest // MIB), largest // MIB}):
        n = size * MIB - 200
        header, third = b"\xdd" + n.to_bytes(4, "big"), n // 3
        values[f"{size} MiB of {{}}"] = header + b"\x80" * n
        values[f"{size} MiB of []"] = header + b"\x90" * n
        values[f'{size} MiB of {{"": nil}}'] = b"\xdd" + third.to_bytes(4, "big") + b"\x81\xa0\xc0" * third
    size, most, packb = largest - 1000, MAX_VALUES - 20, msgpack.packb
    inner, name = np.zeros(size - 300, "u1"), f"{largest // MIB} MiB of"
    fortran = np.zeros((2,) * 20 + (size // 2**20,), "u1").T
    return values | {
        "most {}": _array_of([b"\x80"] * most),
        "most openpi arrays": _array_of([packb(_bytes_array("f4", [0], b""))] * (most // 10)),
        "most numbers": _array_of(
            [packb({b"__npgeneric__": True, b"data": 1, b"dtype": "<f4"})] * (most // 7)
        ),
        "most .npy files": _array_of([packb(_npy(np.zeros(n, "u1"))) for n in range(most // 5)]),
        "most texts": _array_of([b"\xae" + b"\xc3\xa9" * 7] * (most - most % 16)),
        "longest text": packb("a" * (MAX_TEXT_BYTES - 300) + "\U0001f600"),
        f"{name} bytes": packb(bytes(size)),
        f"{name} .npy": packb(_npy(inner)),
        f"{name} .npy, Fortran order": packb(_npy(fortran)),
        f"{name} big-endian numbers": packb(_bytes_array(">f2", [size // 2], bytes(size))),
    }


def _worst_messages(served: Served) -> dict[str, bytes]:
    if served.protocol == "openpi":
        packed = _worst_values(MAX_OBSERVATION_BYTES)
        return {name: b"\x81\xa1x" + value for name, value in packed.items()}
    packed = _worst_values(MAX_MESSAGE_BYTES)
    key = "observation" if served.protocol == "gr00t" else "state.joint_position"
    head = b"\x83" + b"".join(map(msgpack.packb, ("api_token", TOKEN, "endpoint", "get_action", "data")))
    head += b"\x81" + msgpack.packb(key)
    messages = {f"{name}, without token": value for name, value in packed.items() if "MiB of" in name}
    messages |= {name: head + value for name, value in packed.items()}

    # Many more rows than the server has envs.
    rows = MAX_MESSAGE_BYTES // 40
    large = np.zeros((rows, 1, 6) if served.protocol == "gr00t" else (rows, 6), "f4")
    request = _requests(served)[0]
    name = "joint_target"
    if served.protocol == "gr00t":
        request["data"]["observation"]["state"] = request["data"]["observation"]["state"] | {name: large}
        parts = {"single_arm": large[..., :5], "gripper": large[..., 5:]}
        arm = {"endpoint": "get_action", "api_token": TOKEN, "data": {"observation": {"state": parts}}}
    else:
        request["data"] = request["data"] | {f"state.{name}": large}
        parts = {"state.single_arm": large[..., :5], "state.gripper": large[..., 5:]}
        arm = {"endpoint": "get_action", "api_token": TOKEN, "data": parts}
    return messages | {"20 MiB of rows": pack(request, "nd"), "20 MiB of joints": pack(arm, "nd")}


def _send_worst(protocol: str) -> list[dict[str, Any]]:
    with _serving(protocol) as served:
        good = pack(_requests(served)[0], _encodings(served)[0])
        other, hostile = _client(served), _client(served)
        for _ in range(20):
            other.exchange([good])
        return [
            _row(served, name, message, other, hostile, good)
            for name, message in _worst_messages(served).items()
        ]


def _row(
    served: Served,
    name: str,
    message: bytes,
    other: Gr00tClient | OpenPiClient,
    hostile: Gr00tClient | OpenPiClient,
    good: bytes,
) -> dict[str, Any]:
    # Costs of the message alone: the median of several, for CPU time.
    outcome, cpu, memory = "", [], []
    for _ in range(5):
        served.reset_peak()
        before, start = served.memory("VmRSS"), served.cpu()
        (reply,) = hostile.exchange([message])
        time.sleep(0.02)  # what it does after its reply
        cpu.append(1000 * (served.cpu() - start))
        memory.append(served.memory("VmHWM") - before)
        outcome = _outcome(reply)

    # The waiting time of another client meanwhile.
    done = threading.Event()
    waits = []

    def ask() -> None:
        while not done.is_set():
            start = time.perf_counter()
            other.exchange([good])
            waits.append(1000 * (time.perf_counter() - start))

    thread = threading.Thread(target=ask)
    thread.start()
    hostile.exchange([message])
    done.set()
    thread.join()
    return {
        "message": name,
        "bytes": len(message),
        "outcome": outcome,
        "cpu_ms": statistics.median(cpu),
        "memory_mib": max(memory),
        "memory_ratio": max(memory) * MIB / len(message),
        "other_waits_ms": max(waits),
    }


if __name__ == "__main__":
    main()
