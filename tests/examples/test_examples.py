"""The examples run and have the documented results."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
import torch
from paths import ROOT

from residual_rl import make_vec_env
from residual_rl.base_policies.executor import BasePolicyExecutor, make_base_policy
from residual_rl.registry import BASE_POLICIES, TASKS

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str | Path, cwd: Path) -> str:
    """Run an example and return its output."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example; its registrations are removed after the test."""
    for registry in (TASKS, BASE_POLICIES):
        registry.all()
        monkeypatch.setattr(registry, "_specs", dict(registry._specs))  # type: ignore[attr-defined]
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry)

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples__import_public_names_only(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = {node.module for node in nodes if node.module and node.module.startswith("residual_rl")}
    assert ours <= {"residual_rl", "residual_rl.cli.main"}


def test_custom_base_policy__is_short_and_turns_to_the_sheet(load: Any) -> None:
    load("custom_base_policy")
    assert len((EXAMPLES / "custom_base_policy.py").read_text().splitlines()) < 40
    env = make_vec_env("so101-paper", 4)
    policy: BasePolicyExecutor = make_base_policy("pan-to-sheet", None, env)

    def angle(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        sheet, finger = (
            torch.atan2(obs[name][:, 1], obs[name][:, 0]) for name in ("sheet_pose", "ee_position")
        )
        return (sheet - finger).abs()

    obs, _ = env.reset(seed=0)
    before = angle(obs)
    for _ in range(50):
        obs, *_ = env.step(policy.act(obs))
    assert (before > 0.05).all()
    assert (angle(obs) < 1e-3).all()
    env.close()


@pytest.mark.slow
def test_custom_base_policy__works_on_the_command_line(tmp_path: Path) -> None:
    arguments = (
        "so101-paper",
        "--base-policy",
        "pan-to-sheet",
        "--n-episodes",
        "2",
        "--max-episode-steps",
        "3",
        "--output",
        "eval.json",
    )
    run("custom_base_policy", "eval", *arguments, cwd=tmp_path)
    assert json.loads((tmp_path / "eval.json").read_text())["settings"]["base_policy"] == "pan-to-sheet"


def test_custom_task__episode_does_not_depend_on_the_batch(load: Any) -> None:
    load("custom_task")
    generator = torch.Generator().manual_seed(0)
    actions = 2.0 * torch.rand(10, 3, 2, generator=generator) - 1.0
    batch, alone = make_vec_env("point-reach", 3), make_vec_env("point-reach", 1)
    batch.reset(seed=[7, 8, 9])
    alone.reset(seed=8)
    for action in actions:
        together, reward, *_ = batch.step(action)
        single, single_reward, *_ = alone.step(action[1:2])
        assert torch.equal(together["state"][1:2], single["state"])
        assert torch.equal(reward[1:2], single_reward)


def test_custom_task__rewards_reaching_the_goal(load: Any) -> None:
    load("custom_task")
    env = make_vec_env("point-reach", 1)
    obs, _ = env.reset(seed=0)
    for _ in range(40):
        obs, reward, terminated, _, info = env.step((obs["state"][:, 2:] * 4.0).clamp(-1.0, 1.0))
        if terminated:
            break
    assert terminated
    distance = info["final_info"]["distance"]
    assert 0.0 < distance < 0.1
    assert reward == pytest.approx(10.0 - float(distance), abs=1e-6)
    assert gymnasium.make("examples/PointReach-v0").reset(seed=0)[0].shape == (4,)
    del gymnasium.registry["examples/PointReach-v0"]


@pytest.mark.slow
def test_custom_task__is_learned_on_the_command_line(tmp_path: Path) -> None:
    run(
        "custom_task",
        "train",
        "point-reach",
        "--output-dir",
        "run",
        "--eval-freq",
        "0",
        "--eval-episodes",
        "32",
        cwd=tmp_path,
    )
    run("custom_task", "eval", "run", "--n-episodes", "50", "--compare-base", cwd=tmp_path)
    policies = json.loads((tmp_path / "run" / "eval.json").read_text())["policies"]
    # Seeds 3 to 5 gave 1.0, the base policy 0.0. Rounding acts like another seed.
    assert policies["residual"]["success_once"]["mean"] >= 0.85
    assert policies["base"]["success_once"]["mean"] <= 0.2


@pytest.mark.slow
def test_train_with_sb3__prints_the_successes(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    arguments = (
        "--total-timesteps",
        "256",
        "--num-envs",
        "2",
        "--num-steps",
        "128",
        "--n-eval-episodes",
        "2",
    )
    printed = run("train_with_sb3", *arguments, cwd=tmp_path)
    assert printed.strip().splitlines()[-1] in [f"success in {n} of 2 episodes" for n in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual_with_sb3", "residual_with_cleanrl"])
def test_residual_wrapper__is_trained_by_other_libraries(name: str, tmp_path: Path) -> None:
    if name == "residual_with_sb3":
        pytest.importorskip("stable_baselines3")
        small = ("--total-timesteps", "600", "--n-eval-episodes", "20")
    else:
        small = ("--total-timesteps", "64", "--num-envs", "2", "--num-steps", "16")
    printed = run(name, *small, cwd=tmp_path).strip().splitlines()[-1]
    # 20 episodes, the same in both examples, of the base policy alone
    assert re.fullmatch(r"mean return: base -640, with residual -\d+", printed)


@pytest.mark.slow
def test_residual_vector_wrapper__residual_improves_the_base_policy(tmp_path: Path) -> None:
    printed = run("residual_with_cleanrl", "--total-timesteps", "32000", cwd=tmp_path)
    # Seeds 1 to 3 gave -132, -131 and -131.
    found = re.search(r"base (-\d+), with residual (-\d+)", printed)
    assert found is not None
    assert int(found[1]) < -600
    assert int(found[2]) > -200
