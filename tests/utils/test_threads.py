"""Default numbers of threads: OMP_NUM_THREADS, the cores of the process, and the quota of a container."""

from __future__ import annotations

import os
from pathlib import Path

import il_case
import pytest
import torch

from residual_rl.cli.main import main
from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.factory import make_vec_env
from residual_rl.utils import threads


@pytest.fixture
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores and no limit; gives the file with the container's quota."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(threads, "_QUOTA_FILE", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("", 8),
        ("9 0 1", 8),
    ],
)
def test_num_cores__respects_the_quota_of_a_container(quota: str, cores: int, eight_cores: Path) -> None:
    assert threads.num_cores() == 8
    eight_cores.write_text(quota)
    assert threads.num_cores() == cores


@pytest.mark.parametrize(
    ("value", "simulator", "network"),
    [(None, 8, 4), ("1", 1, 1), ("6", 6, 6), ("3,2", 3, 3), ("0", 8, 4), ("many", 8, 4), ("", 8, 4)],
)
@pytest.mark.usefixtures("eight_cores")
def test_default_threads__obey_omp_num_threads(
    value: str | None, simulator: int, network: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.simulator_threads() == simulator
    assert threads.network_threads() == network


def test_network_threads__leave_cores_to_others(eight_cores: Path) -> None:
    for cores, expected in ((1, 1), (2, 1), (4, 2), (8, 4)):
        eight_cores.write_text(f"{cores}00000 100000")
        assert threads.network_threads() == expected


@pytest.mark.parametrize("flags", [[], ["--torch-threads", "3"]])
def test_imitate__obeys_omp_num_threads(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    demos = il_case.write_demos(tmp_path / "demos.h5")
    command = ["imitate", str(demos), "--algo", "bc", "--total-steps", "1", "--eval-freq", "0"]
    assert main([*command, "--output-dir", str(tmp_path / "model"), *flags]) == 0
    assert used == [int(flags[1]) if flags else 2]


def test_mujoco_physics__obeys_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for num_threads, expected in ((0, 3), (1, 1)):
        physics = make_vec_env("so101-paper", 4, num_threads=num_threads).physics
        assert isinstance(physics, MujocoPhysics)
        assert physics.batch.nthread == expected


def test_threads__no_other_module_counts_cores() -> None:
    package = Path(threads.__file__).parents[1]
    counting = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in ("cpu_count", "sched_getaffinity"))
    ]
    assert counting == ["utils/threads.py"]
