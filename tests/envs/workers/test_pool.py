"""The pool of worker processes: shared arrays, failures and cleanup."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worker_case

from residual_rl.envs.workers import process
from residual_rl.envs.workers.pool import WorkerError, WorkerPool
from residual_rl.envs.workers.process import close_fork_servers
from residual_rl.envs.workers.shared_memory import ArraySpec, SharedArrays
from residual_rl.errors import ConfigError

SPECS = {
    "action": ArraySpec((2,), "float32"),
    "sum": ArraySpec((2,), "float64"),
    "image": ArraySpec((3, 5), "uint8"),
}
HELPERS = Path(worker_case.__file__).parent
SRC = Path(sys.modules[WorkerPool.__module__].__file__ or "").parents[3]


def make_pool(num_envs: int = 3, num_workers: int = 2, timeout: float = 60.0, **cfg: str) -> WorkerPool:
    return WorkerPool("Toy", worker_case.FUNCTION, cfg, num_envs, num_workers, timeout=timeout)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = make_pool()
    yield made
    made.close()


def is_running(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before or during the reading
        return False


def wait_for_end(pids: list[int], seconds: float = 10.0) -> list[int]:
    """Wait for processes to end, and return those that are still running."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_worker_pool__divides_the_envs_and_shares_their_arrays(pool: WorkerPool) -> None:
    assert [description["num_envs"] for description in pool.descriptions] == [1, 2]
    arrays = pool.share(SPECS)
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "action": ((3, 2), "float32"),
        "sum": ((3, 2), "float64"),
        "image": ((3, 3, 5), "uint8"),
    }
    arrays["action"][:] = [[1, 2], [3, 4], [5, 6]]
    pool.call("step")
    pool.call("step")
    pool.call("step", mask=[False, False, True])  # only the second worker
    assert arrays["sum"].tolist() == [[2, 4], [9, 12], [15, 18]]
    assert not arrays["image"].any()


def test_worker_pool__starts_no_more_workers_than_envs() -> None:
    pool = make_pool(num_envs=2, num_workers=9)
    assert len(pool.pids) == 2
    pool.close()


def test_worker_pool_close__ends_the_workers_and_keeps_the_arrays(pool: WorkerPool) -> None:
    arrays = pool.share(SPECS)
    arrays["action"][:] = 7
    pids = pool.pids
    pool.close()
    assert not wait_for_end(pids)
    assert (arrays["action"] == 7).all()
    with pytest.raises(WorkerError, match="the Toy workers have ended; create a new env"):
        pool.call("step")


def test_worker_pool__workers_do_not_import_this_package(pool: WorkerPool) -> None:
    assert [description["is_ours"] for description in pool.descriptions] == [False, False]


def test_worker_pool__runs_workers_in_another_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter has only NumPy and the helpers; this package cannot be imported."""
    numpy = Path(np.__file__).parents[1]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={HELPERS}:{numpy} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    pool = WorkerPool("Toy", worker_case.FUNCTION, {}, 1, 1, python=str(python), preload=("json",))
    arrays = pool.share(SPECS)
    arrays["action"][:] = 4
    pool.call("step")
    assert arrays["sum"].tolist() == [[4, 4]]
    assert not pool.descriptions[0]["is_ours"]
    pool.close()
    close_fork_servers()


def test_worker_pool__loads_a_file_by_path_with_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "envs.py").write_text("from .beside import make_envs\n\nmake = make_envs\n")
    (tmp_path / "beside.py").write_text(
        "class Envs:\n"
        "    def __init__(self, cfg, num_envs): self.num_envs = num_envs\n"
        "    def describe(self): return [__name__.startswith('files_of_'), self.num_envs]\n"
        "make_envs = Envs\n"
    )
    pool = WorkerPool("Toy", f"{tmp_path / 'envs.py'}:make", {}, 3, 2)
    assert pool.descriptions == [[True, 1], [True, 2]]
    pool.close()


def test_worker_pool_share__further_calls_keep_earlier_arrays(pool: WorkerPool) -> None:
    arrays = pool.share({"action": SPECS["action"]})
    arrays["action"][:] = 7
    others = pool.share({"sum": SPECS["sum"]})
    assert (arrays["action"] == 7).all()
    assert set(others) == {"sum"}
    pool.call("step")
    assert others["sum"].tolist() == [[7, 7]] * 3
    assert (arrays["action"] == 7).all()


def test_worker_pool_call__returns_the_results_of_the_called_workers(pool: WorkerPool) -> None:
    assert [result["num_envs"] for result in pool.call("describe")] == [1, 2]
    assert [result["num_envs"] for result in pool.call("describe", [False, True, False])] == [2]
    pool.share(SPECS)
    assert pool.call("step") == [None, None]


@pytest.mark.parametrize("close_seconds", [0.0, 5.0])
def test_worker_pool_close__gives_the_envs_time_to_close(close_seconds: float, tmp_path: Path) -> None:
    note = tmp_path / "note"
    pool = WorkerPool("Toy", worker_case.FUNCTION, {"note": str(note)}, 2, 1, close_seconds=close_seconds)
    start, pids = time.monotonic(), pool.pids
    pool.close()
    assert time.monotonic() - start < 4.0
    assert note.exists() or not close_seconds
    assert not wait_for_end(pids)


def test_worker_pool_close__kills_an_env_whose_close_hangs() -> None:
    pool = WorkerPool("Toy", worker_case.FUNCTION, {"in_close": "hang"}, 2, 1, close_seconds=0.2)
    pids = pool.pids
    pool.close()
    assert not wait_for_end(pids)


@pytest.mark.parametrize("how", ["close", "kill"])
def test_worker_pool__ends_what_an_env_has_started(how: str) -> None:
    pool = WorkerPool("Toy", worker_case.FUNCTION, {"child": "sleep"}, 1, 1)
    pids = [*pool.pids, pool.descriptions[0]["child"]]
    assert all(is_running(pid) for pid in pids)
    if how == "close":
        pool.close()
    else:
        os.kill(pool.pids[0], signal.SIGKILL)
    assert not wait_for_end(pids)
    pool.close()


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "raise",
            r"raised RuntimeError: the gripper fell off \(at .*worker_case\.py:\d+\); last lines of its"
            r" output: the last words before$",
        ),
        ("exit", r"exited with code 3; last lines of its output: \(none\)$"),
        ("kill", r"was killed by SIGKILL; last lines of its output: \(none\)$"),
    ],
)
@pytest.mark.parametrize("when", ["in_make", "in_step"])
def test_worker_error__is_one_line_that_names_the_worker(how: str, message: str, when: str) -> None:
    pids: list[int] = []
    with pytest.raises(WorkerError, match=rf"^Toy worker 1 of 2 \(env 0\) {message}") as caught:  # noqa: PT012
        pool = make_pool(**{when: how})
        pids = pool.pids
        pool.share(SPECS)
        pool.call("step")
    assert "\n" not in str(caught.value)
    assert not wait_for_end(pids)


def test_worker_error__names_the_envs_of_the_worker(pool: WorkerPool) -> None:
    pool.share(SPECS)
    os.kill(pool.pids[1], signal.SIGSEGV)
    with pytest.raises(WorkerError, match=r"^Toy worker 2 of 2 \(envs 1 to 2\) was killed by SIGSEGV; "):
        pool.call("step")


def test_worker_pool__raises_a_user_error_as_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^no such task; choose another$"):
        make_pool(in_make="user")


def test_worker_pool__kills_a_worker_after_the_timeout() -> None:
    pool = make_pool(in_step="hang", timeout=5.0)
    pool.share(SPECS)
    pool._timeout = 0.5
    pids = pool.pids
    with pytest.raises(
        WorkerError, match=r"did not answer within 0\.5 s and was killed; .* waiting for Godot$"
    ):
        pool.call("step")
    assert not wait_for_end(pids)


def test_fork_server__error_of_a_preloaded_module_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WorkerError, match=r"its fork server, which exited with code 1; .* no licence$"):
        WorkerPool("Toy", worker_case.FUNCTION, {}, 1, 1, preload=("broken_module",))


def test_fork_server__leaves_missing_modules_to_the_workers() -> None:
    WorkerPool("Toy", worker_case.FUNCTION, {}, 1, 1, preload=("no_such_module",)).close()
    with pytest.raises(WorkerError, match=r"raised ModuleNotFoundError: No module named 'no_such_module'"):
        WorkerPool("Toy", "no_such_module:make", {}, 1, 1, preload=("no_such_module",))


def test_fork_server__interpreter_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"^cannot run the interpreter no/python: No such file or directory$"
    ):
        WorkerPool("Toy", worker_case.FUNCTION, {}, 1, 1, python="no/python")


def test_fork_server_close__ends_a_suspended_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = process.ForkServer(sys.executable, ())
    os.kill(server._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(process, "_STOP_SECONDS", 0.1)
    server.close()
    assert not server.is_running


def test_fork_server__is_replaced_after_being_killed(pool: WorkerPool) -> None:
    arrays, pids = pool.share(SPECS), pool.pids
    os.kill(pool._workers[0].server._process.pid, signal.SIGKILL)
    pool._workers[0].server._process.wait()
    arrays["action"][:] = 1
    pool.call("step")  # the workers still run
    assert arrays["sum"].tolist() == [[1, 1]] * 3
    make_pool().close()
    pool.close()
    assert not wait_for_end(pids)


# --- cleanup ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from residual_rl.envs.workers.pool import WorkerPool
from residual_rl.envs.workers.shared_memory import ArraySpec, SharedArrays
pool = WorkerPool("Toy", "worker_case:make", {"in_step": sys.argv[1]}, 3, 2)
pool.share({"action": ArraySpec((2,), "float32"), "sum": ArraySpec((2,), "float32")})
print(*pool.pids, pool._workers[0].server._process.pid, flush=True)
pool.call("step")
time.sleep(60)
"""


@pytest.mark.parametrize("step", ["raise", "none", "hang"])
@pytest.mark.parametrize("sent", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_worker_pool__leaves_no_process_or_memory_after_the_program_ends(
    step: str, sent: signal.Signals | None, processes: list[Any]
) -> None:
    """After an exception, Ctrl-C, SIGTERM and kill -9, between two steps and during a step."""
    if (sent is None) != (step == "raise"):
        pytest.skip("the program ends either by an exception or by a signal")
    segments = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "PYTHONPATH": f"{SRC}:{HELPERS}"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, step],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    processes.append(program)
    assert program.stdout is not None
    assert program.stderr is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 3
    if sent is not None:
        time.sleep(0.3)
        program.send_signal(sent)
    errors = program.stderr.read()
    program.wait(30)
    assert not wait_for_end(pids)
    # other programs on this machine use the folder too, for a while
    deadline = time.monotonic() + 20.0
    while (left := set(os.listdir("/dev/shm")) - segments) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert ("the gripper fell off" in errors) == (step == "raise")


@pytest.mark.parametrize("dtype", ["object", "O", "O,i4", "V8", "M8[s]", "U4"])
def test_shared_arrays__have_only_numbers(dtype: str) -> None:
    """A worker describes its arrays. One of Python objects would make its bytes addresses in this process."""
    memory = os.memfd_create("test")
    try:
        with pytest.raises(ConfigError, match=f"x has dtype .*{re.escape(dtype)}, expected numbers"):
            SharedArrays(memory, {"x": ArraySpec((4,), dtype)}, num_envs=2)
    finally:
        os.close(memory)
