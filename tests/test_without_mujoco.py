"""MuJoCo is an extra: what does not simulate with it works where `import mujoco` fails."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium_toys
import pytest
from foreign_demos import minari
from paths import HELPERS, ROOT

from residual_rl.errors import MissingDependencyError

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mujoco":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from residual_rl.cli.main import main
code = main(sys.argv[1:])
assert "mujoco" not in sys.modules
sys.exit(code)
"""
TOY = ["--env-id", "Toys/Point-v0", "--env-modules", gymnasium_toys.MODULE, "--env-kwargs", "habit=flat"]


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    """Run a command where `import mujoco` fails."""
    paths = os.pathsep.join([str(ROOT / "src"), str(HELPERS)])
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, argv)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["list"], pytest.param(["train", "so101-paper", "--help"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_main__help_and_lists_need_no_mujoco(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "so101-paper" in done.stdout or argv != ["list"]


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "so101-paper", "--total-timesteps", "64", "--output-dir", "OUT"],
        *(
            pytest.param(argv, marks=pytest.mark.slow)
            for argv in (
                ["eval", "so101-paper-precise", "--base-policy", "jacobian", "--n-episodes", "1"],
                ["doctor", "so101-paper", "--quick"],
                ["view", "so101-paper", "--video", "OUT"],
                ["bench", "so101-paper"],
            )
        ),
    ],
    ids=lambda argv: argv[0],
)
def test_mujoco_library__a_task_that_needs_it_names_the_command_that_installs_it(
    argv: list[str], tmp_path: Path
) -> None:
    done = run(*[tmp_path / "out" if word == "OUT" else word for word in argv])
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "residual-rl: error: MuJoCo is not available; install it with `pip install 'residual-rl[mujoco]'` "
        "(No module named 'mujoco')"
    )
    assert not (tmp_path / "out").exists()


def test_mujoco_library__an_old_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "residual_rl.utils.mujoco_library", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace(__version__="3.3.0"))
    with pytest.raises(
        MissingDependencyError, match=r"MuJoCo 4\.0 is not available; .*replaces version 3\.3\.0"
    ):
        importlib.import_module("residual_rl.utils.mujoco_library")


@pytest.mark.slow
def test_train__a_gymnasium_env_needs_no_mujoco(tmp_path: Path) -> None:
    size = ["--num-envs", 2, "--total-timesteps", 64, "--warmup-steps", 32, "--eval-episodes", 2]
    train = run("train", "gymnasium", *TOY, *size, "--num-threads", 1, "--output-dir", tmp_path / "run")
    assert train.returncode == 0, train.stderr
    again = run("eval", tmp_path / "run", "--n-episodes", 2, "--num-threads", 1)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_imitate__needs_no_mujoco(tmp_path: Path) -> None:
    dataset = minari(tmp_path / "set")
    done = run("imitate", dataset, "--algo", "bc", "--total-steps", 2, "--output-dir", tmp_path / "bc")
    assert done.returncode == 0, done.stderr
