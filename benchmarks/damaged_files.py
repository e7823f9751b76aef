"""Damaged files of each kind, opened with the readers of the commands: each is read or is a clear error.

python benchmarks/damaged_files.py
.venv-lerobot/bin/python benchmarks/damaged_files.py --kinds lerobot

Each file is a copy of an intact one, damaged in one way: cut off, bits flipped, a part zeroed, a part of the
file inserted elsewhere, or a number in the header replaced. The way `settings` replaces or removes a value of
its JSON and stores the file with a correct checksum. The reader runs in another process and has a time limit.
The outcomes:

- opened: the damage did not matter, or made another valid file
- clear error: a message of one line that names the file
- traceback: any other exception; crash: the process died; hang: the time limit was exceeded
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from residual_rl.demos import hdf5
from residual_rl.errors import ResidualRLError
from residual_rl.utils.files import make_folder, write_json
from residual_rl.utils.provenance import git_state, machine

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))

OUTCOMES = ("opened", "clear error", "traceback", "crash", "hang")
LIMIT = 300.0
"""Time limit of a reader [s]."""
HDF5_LIMIT = 60.0
"""Time limit of the process that opens an HDF5 file of unknown content [s]."""
MEMORY = 32 << 30
"""Address space of a reader [bytes]."""
ODD = [
    None,
    True,
    -1,
    0,
    10**6,
    10**30,
    1e30,
    -1e-30,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    {},
    [1],
    {"a": 1},
    [[[]]],
]
"""Values that replace one in JSON."""


# --- kinds of files -----------------------------------------------------------------------------------------


@dataclass
class Kind:
    """A kind of file.

    Args:
        make: creates an intact file or folder at a path.
        read: opens it.
        files: patterns of the files to damage, within a folder.
        change_settings: stores the file again with changed settings and a correct checksum.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    change_settings: Callable[[Path, np.random.Generator], str] | None = None


def _make_run(path: Path) -> None:
    import tiny_runs

    from residual_rl.cli.main import main

    tiny_runs.train(path, eval_freq=0)
    assert main(["eval", str(path), "--model", "final", "--n-episodes", "2", "--num-threads", "1"]) == 0


def _make_policy(path: Path) -> None:
    _make_run(path.with_name("run"))
    shutil.copy(path.with_name("run") / "final_model" / "policy.safetensors", path)
    shutil.rmtree(path.with_name("run"))


def _make_checkpoint(path: Path) -> None:
    _make_run(path.with_name("run"))
    shutil.copy(sorted((path.with_name("run") / "checkpoints").glob("*.safetensors"))[-1], path)
    shutil.rmtree(path.with_name("run"))


def _read_policy(path: Path) -> None:
    from residual_rl.base_policies.executor import make_base_policy
    from residual_rl.base_policies.model import ModelCfg

    make_base_policy("model", ModelCfg(str(path)), _env())


def _read_checkpoint(path: Path) -> None:
    from residual_rl.runs import checkpoint

    checkpoint.load(path, "checkpoint")


def _make_model(path: Path) -> None:
    import il_case

    il_case.model().save(path)


def _read_model(path: Path) -> None:
    from residual_rl.base_policies.executor import make_base_policy
    from residual_rl.base_policies.il import ILCfg

    obs, _ = _env().reset(seed=0)
    make_base_policy("il", ILCfg(checkpoint=str(path)), _env()).act(obs)


def _make_demos(path: Path) -> None:
    import demo_files

    demo_files.write(path, [demo_files.a_demo(seed) for seed in range(3)])


def _make_maniskill(path: Path) -> None:
    import demo_files

    images = {"agent/qpos": np.ones((4, 9)), "rgb": np.ones((4, 8, 8, 3), np.uint8)}
    demo_files.maniskill(path, images)


def _make_minari(path: Path) -> None:
    import foreign_demos

    foreign_demos.minari(path)


def _make_robomimic(path: Path) -> None:
    import foreign_demos

    foreign_demos.robomimic(path, episodes=2)


def _read_demos(path: Path) -> None:
    from residual_rl.demos.reader import Demonstrations

    with Demonstrations(path) as demos:
        assert all(len(demo) > 0 for demo in demos)


def _read_run(path: Path) -> None:
    from residual_rl.cli.train import read_config
    from residual_rl.evaluation.report import write_report
    from residual_rl.runs.run_folder import RunFolder

    read_config(RunFolder(path))
    write_report(path)


def _make_lerobot(path: Path) -> None:
    import lerobot_case

    lerobot_case.make_checkpoint(path)


def _read_lerobot(path: Path) -> None:
    from residual_rl.base_policies.executor import make_base_policy
    from residual_rl.base_policies.lerobot import LeRobotCfg

    make_base_policy("lerobot", LeRobotCfg(checkpoint=str(path)), _env())


def _env() -> Any:
    """One env of so101-paper, made once in each process."""
    from residual_rl.factory import make_vec_env

    if not _envs:
        _envs.append(make_vec_env("so101-paper", 2, num_threads=1))
    return _envs[0]


_envs: list[Any] = []


def _change_settings(kind: str, key: str) -> Callable[[Path, np.random.Generator], str]:
    def change(path: Path, rng: np.random.Generator) -> str:
        from residual_rl.runs import checkpoint

        state = checkpoint.load(path, kind)  # type: ignore[arg-type]
        state[key], change = _odd_json(state[key], rng, finite=True)
        checkpoint.save(path, state, kind)  # type: ignore[arg-type]
        return change

    return change


KINDS: dict[str, Kind] = {
    "policy": Kind(_make_policy, _read_policy, change_settings=_change_settings("policy", "config")),
    "checkpoint": Kind(_make_checkpoint, _read_checkpoint),
    "imitation": Kind(_make_model, _read_model, change_settings=_change_settings("model", "settings")),
    "demonstrations": Kind(_make_demos, _read_demos),
    "maniskill": Kind(_make_maniskill, _read_demos),
    "minari": Kind(_make_minari, _read_demos, ("data/*",)),
    "robomimic": Kind(_make_robomimic, _read_demos),
    "run": Kind(_make_run, _read_run, ("config.json", "eval.json")),
    "lerobot": Kind(_make_lerobot, _read_lerobot, ("*.json",)),
}
NAMES = {
    "demonstrations": "file.h5",
    "maniskill": "file.h5",
    "minari": "set",
    "robomimic": "file.h5",
    "run": "run",
    "lerobot": "checkpoint",
}


# --- damage -------------------------------------------------------------------------------------------------


def _truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def _zero(data: bytearray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(len(data)))
    end = min(len(data), begin + int(rng.integers(1, 2 + len(data) // 8)))
    data[begin:end] = bytes(end - begin)


def _splice(data: bytearray, rng: np.random.Generator) -> None:
    """Insert or overwrite with a part from another place."""
    source, target = (int(i) for i in rng.integers(len(data), size=2))
    length = int(rng.integers(1, 2 + len(data) // 4))
    part = bytes(data[source : source + length])
    data[target : target + (len(part) if rng.random() < 0.5 else 0)] = part


def _edit_header(data: bytearray, rng: np.random.Generator) -> None:
    """Replace a number in the first 4 kB: digits in text, or a binary number of 1, 2, 4 or 8 bytes."""
    size = min(len(data), 4096)
    digits = [i for i in range(size) if chr(data[i]).isdigit()]
    if digits and rng.random() < 0.5:
        data[(at := int(rng.choice(digits))) : at + 1] = [b"9", b"0", b"-1", b"99999999999", b"1e30"][
            rng.integers(5)
        ]
        return
    width = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(max(1, size - width)))
    value = [0, 1, 255, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), int(rng.integers(size))][rng.integers(6)]
    data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")


BYTES = {"truncate": _truncate, "flip": _flip, "zero": _zero, "splice": _splice, "header": _edit_header}


def _odd_json(document: Any, rng: np.random.Generator, finite: bool = False) -> tuple[Any, str]:
    """`document` with one value replaced or removed, and the change in words."""
    document = copy.deepcopy(document)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(document)
    node, key = places[rng.integers(len(places))]
    if rng.random() < 0.1:
        del node[key]
        change = f"{key} removed"
    else:
        odd = [value for value in ODD if not (finite and value != value)]
        node[key] = copy.deepcopy(odd[rng.integers(len(odd))])
        change = f"{key} = {node[key]!r}"
    return document, change


def _damage(kind: Kind, path: Path, rng: np.random.Generator) -> tuple[str, str]:
    """Damage the file or folder `path` in one way, and return the name of the way and its details."""
    files = [path]
    if kind.files:
        files = sorted(file for pattern in kind.files for file in path.glob(pattern))
    file = files[rng.integers(len(files))]
    ways = [*BYTES, *(["settings"] if kind.change_settings or file.suffix == ".json" else [])]
    way = ways[rng.integers(len(ways))]
    if way == "settings" and kind.change_settings:
        return way, kind.change_settings(path, rng)
    if way == "settings":
        document, change = _odd_json(json.loads(file.read_text()), rng)
        file.write_text("[" * 100_000 if rng.random() < 0.02 else json.dumps(document))
        return way, f"{file.name}: {change}"
    data = bytearray(file.read_bytes())
    BYTES[way](data, rng)
    file.write_bytes(data)
    return way, file.name


# --- reading ------------------------------------------------------------------------------------------------


def _work(connection: Any, read: Callable[[Path], Any]) -> None:
    """Answer paths with the outcome of reading them, until None."""
    torch.set_num_threads(1)
    hdf5.TIME_LIMIT = HDF5_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (path := connection.recv()) is not None:
        try:
            read(path)
            connection.send(("opened", ""))
        except ResidualRLError as error:
            text = str(error)
            clear = str(path) in text and "\n" not in text
            connection.send(("clear error" if clear else "traceback", f"{type(error).__name__}: {text}"))
        except BaseException as error:  # noqa: BLE001 (all are counted)
            connection.send(("traceback", f"{type(error).__name__}: {error}"))


class Reader:
    """A process that reads files, restarted when it hangs or dies."""

    def __init__(self, read: Callable[[Path], Any]):
        self._read = read
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._read), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self, path: Path) -> tuple[str, str]:
        """The outcome of reading `path`, and the message."""
        self._connection.send(path)
        try:
            if self._connection.poll(LIMIT):
                return self._connection.recv()  # type: ignore[no-any-return]
            found = ("hang", f"longer than {LIMIT:g} s")
        except EOFError:
            found = ("crash", "the process died")
        self._process.kill()
        self._process.join()
        self._start()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def measure(name: str, count: int, seed: int) -> dict[str, Any]:
    """The outcomes of `count` damaged files of a kind."""
    kind, rng = KINDS[name], np.random.default_rng(seed)
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    problems: list[str] = []
    begin, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        # An intact file is opened.
        intact, path = Path(folder, "intact", NAMES.get(name, "file.safetensors")), Path(folder, "damaged")
        make_folder(intact.parent)
        kind.make(intact)
        path = path / intact.name
        reader = Reader(kind.read)
        assert reader.outcome(intact)[0] == "opened", reader.outcome(intact)
        # So are damaged copies, or they are refused.
        for _ in range(count):
            shutil.rmtree(path.parent, ignore_errors=True)
            shutil.copytree(intact.parent, path.parent)
            way, detail = _damage(kind, path, rng)
            start = time.monotonic()
            outcome, text = reader.outcome(path)
            slowest = max(slowest, time.monotonic() - start)
            outcomes[way, outcome] += 1
            if outcome not in ("opened", "clear error"):
                problems.append(f"{way}, {detail}: {outcome}: {text}".replace(str(path), "FILE")[:300])
        reader.close()
    return {
        "files": count,
        "seed": seed,
        **{o: sum(n for (_, found), n in outcomes.items() if found == o) for o in OUTCOMES},
        "ways": {
            way: {o: n for (w, o), n in sorted(outcomes.items()) if w == way} for way, _ in sorted(outcomes)
        },
        "slowest_seconds": round(slowest, 1),
        "seconds": round(time.monotonic() - begin),
        "problems": problems[:50],
    }


def main() -> int:
    """Damage, read, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[name for name in KINDS if name != "lerobot"]
    )
    parser.add_argument("--count", type=int, default=2500, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/damaged-files.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'kind':15}" + "".join(f"{outcome:>13}" for outcome in OUTCOMES), flush=True)
    failed = False
    for name in options.kinds:
        found = measure(name, options.count, options.seed)
        failed |= any(found[outcome] for outcome in OUTCOMES[2:])
        print(f"{name:15}" + "".join(f"{found[outcome]:13}" for outcome in OUTCOMES), flush=True)
        for problem in found["problems"]:
            print(f"    {problem}", flush=True)
        _save(options.output, name, {**found, "git": git_state()[0], "machine": machine()})
    return int(failed)


def _save(output: Path, name: str, found: dict[str, Any]) -> None:
    """Replace a kind in the file `output`, and keep the others."""
    make_folder(output.parent)
    results = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    write_json(output, {**results, name: found})


if __name__ == "__main__":
    raise SystemExit(main())
