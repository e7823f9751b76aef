"""Imports of a command before its work starts. CPU time is compared with that of importing torch on the same
machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tiny_runs import cpu_seconds

HELP = """
import sys
from residual_rl.cli.main import main
try:
    main({arguments})
except SystemExit as ended:
    assert ended.code == 0
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
FIRST_STEP = """
import os, sys
import residual_rl.residual_env as residual_env
from residual_rl.cli.main import main

def first_step(*args):
    print(*sys.modules, file=sys.stderr, flush=True)
    os._exit(0)

residual_env.ResidualEnv.step = first_step
main({arguments})
"""
TRAIN = ["train", "so101-paper", "--num-envs", "8", "--total-timesteps", "512", "--eval-episodes", "1"]


def run(script: str, arguments: list[str]) -> tuple[float, set[str]]:
    """CPU seconds of a process that runs a command, and the modules that it has imported."""
    code = script.format(arguments=arguments)
    seconds, done = cpu_seconds(sys.executable, "-c", code, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return seconds, set(done.stderr.split())


def torch_seconds() -> float:
    """CPU seconds of a process that only imports torch; the minimum of three."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return min(cpu_seconds(sys.executable, "-c", "import torch", env=environment)[0] for _ in range(3))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "so101-paper", "--help"],
        ["train", "maniskill", "--help"],
        ["train-robot", "so101-paper", "--help"],
    ],
)
def test_help__imports_no_torch_and_no_simulator(arguments: list[str]) -> None:
    _, modules = run(HELP, arguments)
    assert "residual_rl" in modules
    assert modules.isdisjoint({"torch", "mujoco", "matplotlib", "mani_skill", "h5py", "tensorboard"})


@pytest.mark.slow
def test_help__takes_less_than_importing_torch() -> None:
    """On a quiet machine: 0.2 and 0.4 s of CPU, where `import torch` takes 1.1 s."""
    torch = torch_seconds()
    for arguments, share in ((["--help"], 0.4), (["train", "so101-paper", "--help"], 0.75)):
        seconds = min(run(HELP, arguments)[0] for _ in range(3))
        print(f"{' '.join(arguments)}: {seconds:.2f} s of CPU, import torch: {torch:.2f} s")
        assert seconds < share * torch, (arguments, seconds, torch)


@pytest.mark.slow
def test_train__imports_little_before_the_first_step(tmp_path: Path) -> None:
    """On a quiet machine: 2.1 s of CPU, where `import torch` takes 1.1 s; importing torch._dynamo and SymPy
    would double it."""
    seconds, modules = run(FIRST_STEP, [*TRAIN, "--output-dir", str(tmp_path / "run")])
    heavy = {
        "torch._dynamo",
        "torch._inductor",
        "sympy",
        "scipy",
        "matplotlib",
        "tensordict",
        "h5py",
        "PIL",
        "pandas",
        "wandb",
    }
    assert "torch" in modules
    assert modules.isdisjoint(heavy), modules & heavy
    torch = torch_seconds()
    print(f"first step after {seconds:.2f} s of CPU, import torch: {torch:.2f} s")
    assert seconds < 3.0 * torch, (seconds, torch)
