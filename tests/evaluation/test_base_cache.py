"""Evaluations of the base policy on disk: what they depend on, and damaged files."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import point_runs
import pytest
import torch

from residual_rl.base_policies.hybrid import HybridCfg
from residual_rl.base_policies.lerobot import LeRobotCfg
from residual_rl.base_policies.model import ModelCfg
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.evaluation import base_cache
from residual_rl.evaluation.base_cache import BaseEvaluations, cache_folder
from residual_rl.evaluation.evaluate import Episodes, evaluate
from residual_rl.factory import make_residual_env
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec
from residual_rl.residual_env import ResidualEnv

SEEDS = range(20, 26)
CODE_OF = base_cache._code_of


@dataclasses.dataclass(frozen=True)
class FileCfg:
    checkpoint: str = ""
    speed: float = 1.0


def make_from_file(cfg: FileCfg, env: VecEnv) -> fakes.Homing:
    """A base policy whose speed is in a file or a folder."""
    path = Path(cfg.checkpoint)
    file = path / "weights.txt" if path.is_dir() else path
    return fakes.Homing(cfg.speed * float(file.read_text()))


FROM_FILE = BasePolicySpec("from-file", "speed", f"{__name__}:make_from_file", f"{__name__}:FileCfg")


@pytest.fixture(autouse=True)
def evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """The number of evaluations, in a list of one number."""
    point_runs.register(monkeypatch)
    monkeypatch.setitem(BASE_POLICIES._specs, "from-file", FROM_FILE)
    monkeypatch.setenv("RESIDUAL_RL_CACHE_DIR", str(tmp_path / "cache"))
    # The code of this test is in no package that can be found.
    monkeypatch.setattr(base_cache, "_code_of", lambda name: f"code of {name}")
    count = [0]

    def counted(*arguments: Any) -> Episodes:
        count[0] += 1
        return evaluate(*arguments)

    monkeypatch.setattr(base_cache, "evaluate", counted)
    return count


def base(cfg: TrainCfg | None = None, seeds: range = SEEDS, num_envs: int = 3) -> Episodes:
    cfg = cfg or point_runs.config()
    return BaseEvaluations(cfg, make_residual_env(cfg, num_envs))(seeds)


def cached_files() -> list[Path]:
    folder = cache_folder()
    assert folder is not None
    return sorted(folder.iterdir()) if folder.exists() else []


def from_file(path: Path, speed: float = 0.3) -> TrainCfg:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(speed))
    checkpoint = path.parent if path.name == "weights.txt" else path
    return replace_fields(point_runs.config("from-file"), {"base.checkpoint": str(checkpoint)})


def test_base_evaluations__are_read_by_another_run(evaluations: list[int]) -> None:
    first = base()
    again = base()
    assert evaluations == [1]
    assert len(cached_files()) == 1
    assert first.keys() == again.keys()
    for name, values in first.items():
        assert torch.equal(values, again[name]), name
        assert values.dtype == again[name].dtype
    # The settings of the learner and of the residual do not matter.
    base(point_runs.config(residual_scale=0.1, homing=1.0, seed=3, total_timesteps=999))
    assert evaluations == [1]


def test_base_evaluations__are_repeated_for_other_settings(evaluations: list[int]) -> None:
    base()
    base(point_runs.config(max_episode_steps=9))
    base(point_runs.config("zero"))
    base(seeds=range(20, 27))
    base(num_envs=2)
    base(point_runs.config(chunk="whole"))
    assert evaluations == [6]
    assert len(cached_files()) == 6


def test_base_evaluations__are_repeated_for_other_weights(tmp_path: Path, evaluations: list[int]) -> None:
    for name in ("weights.bin", "model/weights.txt"):
        evaluations[0] = 0
        slow = base(from_file(tmp_path / name))
        base(from_file(tmp_path / name))
        fast = base(from_file(tmp_path / name, 1.0))
        assert evaluations == [2], name
        assert not torch.equal(slow["return"], fast["return"])
        # The training state of a run is not part of its policy.
        if name == "model/weights.txt":
            (tmp_path / "model" / "checkpoints").mkdir()
            (tmp_path / "model" / "checkpoints" / "step").write_text("…")
            base(from_file(tmp_path / name, 1.0))
            assert evaluations == [2]


def test_base_evaluations__are_repeated_for_other_code_and_libraries(
    monkeypatch: pytest.MonkeyPatch, evaluations: list[int]
) -> None:
    base()
    with monkeypatch.context() as patch:
        patch.setattr(base_cache, "_version", lambda package: "2.0")
        base()
    monkeypatch.setattr(base_cache, "_code_of", lambda name: f"new code of {name}")
    base()
    assert evaluations == [3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"weak"', '"other"'),
        lambda text: text.replace('"success_once"', '"other"'),
        lambda text: json.dumps({**json.loads(text), "episodes": {"success_once": [1.0]}}),
        lambda text: json.dumps({**json.loads(text), "episodes": {"success_once": ["1"] * 6}}),
        lambda text: json.dumps({**json.loads(text), "episodes": {"success_once": [[1.0]] * 6}}),
        lambda text: json.dumps({**json.loads(text), "episodes": {"success_once": [1] * 6}}),
        lambda text: json.dumps({**json.loads(text), "episodes": [1.0]}),
    ],
)
def test_base_evaluations__replace_a_damaged_file(damage: Any, evaluations: list[int]) -> None:
    first = base()
    (file,) = cached_files()
    whole = file.read_text()
    file.write_text(damage(whole))
    again = base()
    assert evaluations == [2]
    assert torch.equal(first["return"], again["return"])
    assert file.read_text() == whole
    assert cached_files() == [file]


def test_base_evaluations__are_kept_in_memory_only_where_they_cannot_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluations: list[int]
) -> None:
    def uncached(cfg: TrainCfg, env: ResidualEnv) -> None:
        evaluations[0] = 0
        kept = BaseEvaluations(cfg, env)
        assert kept(SEEDS) is kept(SEEDS)
        BaseEvaluations(cfg, env)(SEEDS)
        assert evaluations == [2]
        assert cached_files() == []

    cfg = point_runs.config()
    # Envs that are not deterministic.
    other = point_runs.config(defect="undeterministic")
    uncached(other, make_residual_env(other, 3))
    # A base policy on a server.
    env = make_residual_env(cfg, 3)
    env.base_policy.policy.remote = True
    uncached(cfg, env)
    # A residual on top of another one, whose base policy may change.
    model = tmp_path / "run" / "best_model"
    model.mkdir(parents=True)
    (model / "policy.safetensors").touch()
    stacked = from_file(tmp_path / "run" / "weights.txt")
    uncached(stacked, make_residual_env(stacked, 3))
    # A task that reads a file.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "robot.xml").touch()
    monkeypatch.setitem(TASKS._specs, "point", point_runs.TASK)
    reading = point_runs.config(defect="robot.xml")
    uncached(reading, make_residual_env(reading, 3))
    # Code that cannot be found.
    monkeypatch.setattr(base_cache, "_code_of", lambda name: None)
    uncached(cfg, make_residual_env(cfg, 3))


@pytest.mark.parametrize(
    ("base_cfg", "repeatable"),
    [
        (None, True),
        (ModelCfg("some-folder"), True),
        (LeRobotCfg("lerobot/act"), False),  # on the hub, which may change
        (HybridCfg(("zero", "lerobot"), ("1.checkpoint=lerobot/act",)), False),
        (HybridCfg(("zero", "zero"), mode="switch", switch="my_module:choose"), False),
    ],
)
def test_is_repeatable__is_false_for_what_is_elsewhere(base_cfg: Any, repeatable: bool) -> None:
    cfg = point_runs.config()
    env = make_residual_env(cfg, 1)
    assert base_cache._is_repeatable(dataclasses.replace(cfg, base=base_cfg), env) is repeatable


def test_paths__finds_those_in_the_settings_of_members(tmp_path: Path) -> None:
    folder, file = tmp_path / "flow 20", tmp_path / "bc.safetensors"
    folder.mkdir()
    file.touch()
    settings = (f"0.checkpoint={shlex.quote(str(folder))}", f"1.checkpoint={file}")
    assert list(base_cache._paths(HybridCfg(("il", "il"), settings))) == [folder, file]


def test_cache_folder__can_be_moved_and_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluations: list[int]
) -> None:
    assert cache_folder() == tmp_path / "cache" / "base_evaluations"
    monkeypatch.setenv("RESIDUAL_RL_CACHE_DIR", "")
    assert cache_folder() is None
    base()
    base()
    assert evaluations == [2]
    monkeypatch.delenv("RESIDUAL_RL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "residual_rl" / "base_evaluations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "residual_rl" / "base_evaluations"


def test_base_evaluations__do_without_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESIDUAL_RL_CACHE_DIR", str(tmp_path / "file"))
    assert len(base()["return"]) == len(SEEDS)
    assert "the evaluation of the base policy is not kept for other runs: cannot write" in caplog.text


def test_code_of__changes_with_any_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_of = CODE_OF
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "my_lab_of_this_test"
    package.mkdir()
    (package / "__init__.py").touch()
    digests = []
    for text in ("a = 1", "a = 1", "a = 2"):
        (package / "task.py").write_text(text)
        code_of.cache_clear()
        digests.append(code_of("my_lab_of_this_test"))
    assert digests[0] == digests[1] != digests[2]
    assert code_of("no_such_module_of_this_test") is None
    assert len(str(code_of("point_runs"))) == 64
    assert len(str(code_of("residual_rl"))) == 64


def test_base_evaluations__depend_on_the_versions_of_another_interpreter(evaluations: list[int]) -> None:
    cfg = point_runs.config()
    for version in ("3.0", "3.1", "3.0"):
        env = make_residual_env(cfg, 3)
        env.vec_env.software = {"metaworld": version}
        BaseEvaluations(cfg, env)(SEEDS)
    assert evaluations == [2]
