"""Distillation of a run into one policy: collection, training, and evaluation against the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_files import INFO, a_demo, write
from tiny_runs import Fails

from residual_rl.cli import distill as command
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.writer import DemoWriter
from residual_rl.errors import CheckpointError, ConfigError
from residual_rl.imitation import distill as module
from residual_rl.imitation.distill import (
    DEMOS_FILE,
    DistillCfg,
    check_same_teacher,
    default_imitation,
    find_teacher,
    gather,
    student_config,
)
from residual_rl.registry import BASE_POLICIES
from residual_rl.utils.files import WriteError
from residual_rl.utils.seeding import DEMO_SEED, EVAL_SEED

TINY = [
    "--n-episodes",
    "5",
    "--eval-episodes",
    "4",
    "--imitate.total-steps",
    "30",
    "--imitate.hidden-sizes",
    "16",
]
TINY += [
    "--imitate.batch-size",
    "16",
    "--imitate.eval-freq",
    "0",
    "--imitate.torch-threads",
    "1",
    "--imitate.save-freq",
    "10",
]


def episodes(path: Path, seeds: range, **info: Any) -> int:
    write(path, [dataclasses.replace(a_demo(), seed=seed) for seed in seeds], {**INFO, **info})
    return 0


def seeds_of(path: Path) -> list[int]:
    with Demonstrations.open(path) as demos:
        return [int(demos.episodes[i]["episode_seed"]) for i in range(len(demos))]


class Collector:
    """Writes the requested episodes, but in its first calls only as many as `given`, with the exit code of
    Ctrl-C."""

    def __init__(self, *given: int):
        self.given, self.requests = list(given), list[tuple[str, int, int]]()

    def __call__(self, file: Path, count: int, first_seed: int) -> int:
        self.requests.append((file.name, count, first_seed))
        given = self.given.pop(0) if self.given else count
        if given:
            episodes(file, range(first_seed, first_seed + given))
        return 0 if given == count else 130


TASK = INFO["env_info"]["env_id"]


def test_gather__continues_after_the_last_episode(tmp_path: Path) -> None:
    cfg, collect = DistillCfg(n_episodes=7, first_seed=100), Collector(0, 3, 0, 2)
    assert gather(tmp_path, cfg, TASK, collect) == 130
    assert not (tmp_path / DEMOS_FILE).exists()
    assert gather(tmp_path, cfg, TASK, collect) == 130
    assert gather(tmp_path, cfg, TASK, collect) == 130
    assert gather(tmp_path, cfg, TASK, collect) == 130
    assert seeds_of(tmp_path / DEMOS_FILE) == [100, 101, 102, 103, 104]
    assert gather(tmp_path, cfg, TASK, collect) == 0
    assert gather(tmp_path, cfg, TASK, collect) == 0  # nothing is missing
    assert seeds_of(tmp_path / DEMOS_FILE) == list(range(100, 107))
    rest = "demos-rest.h5"
    assert collect.requests == [(DEMOS_FILE, 7, 100)] * 2 + [(rest, 4, 103)] * 2 + [(rest, 2, 105)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [DEMOS_FILE, "demos.json"]


def test_gather__skips_episodes_that_were_merged_before_a_kill(tmp_path: Path) -> None:
    episodes(tmp_path / DEMOS_FILE, range(100, 104))
    episodes(tmp_path / "demos-rest.h5", range(102, 105))
    collect = Collector()
    assert gather(tmp_path, DistillCfg(n_episodes=5), TASK, collect) == 0
    assert seeds_of(tmp_path / DEMOS_FILE) == list(range(100, 105))
    assert collect.requests == []


def test_gather__loses_no_episode_if_merging_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after two of the six episodes."""
    episodes(tmp_path / DEMOS_FILE, range(100, 104))
    episodes(tmp_path / "demos-rest.h5", range(104, 106))
    add = DemoWriter.add

    def full(writer: DemoWriter, demo: Any) -> None:
        if writer.num_episodes == 2:
            raise WriteError("no space")
        add(writer, demo)

    with monkeypatch.context() as patch:
        patch.setattr(DemoWriter, "add", full)
        with pytest.raises(WriteError, match="no space"):
            gather(tmp_path, DistillCfg(n_episodes=6), TASK, Collector())
    assert seeds_of(tmp_path / DEMOS_FILE) == list(range(100, 104))
    collect = Collector()
    assert gather(tmp_path, DistillCfg(n_episodes=6), TASK, collect) == 0
    assert seeds_of(tmp_path / DEMOS_FILE) == list(range(100, 106))
    assert collect.requests == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [DEMOS_FILE, "demos.json"]


def test_gather__refuses_episodes_of_another_task(tmp_path: Path) -> None:
    episodes(tmp_path / DEMOS_FILE, range(3))
    with pytest.raises(
        ConfigError, match=f"has episodes of task '{TASK}', but the run was trained on 'another'"
    ):
        gather(tmp_path, DistillCfg(n_episodes=3), "another", Collector())


def test_default_imitation__observes_the_residuals_keys_except_the_base_action() -> None:
    cfg = TrainCfg.default("so101-paper")
    assert default_imitation("bc", cfg).obs_keys == ("state",)
    cfg = replace_fields(cfg, {"obs_keys": ("state", "joint_position", "base_action")})
    assert default_imitation("flow", cfg).obs_keys == ("state", "joint_position")
    assert default_imitation("flow", cfg).algo == "flow"


def test_student_config__has_no_residual(tmp_path: Path) -> None:
    cfg = replace_fields(
        TrainCfg.default("so101-paper"), {"chunk": "whole", "adaptive": "uncertainty", "tolerance": 0.07}
    )
    student = student_config(cfg, tmp_path)
    assert (student.base_policy_id, student.base.checkpoint) == ("il", str(tmp_path))
    assert (student.residual.chunk, student.residual.adaptive) == ("step", "off")
    assert student.task == cfg.task


@pytest.mark.slow
def test_distill__resumes_after_interruptions_and_evaluates_the_policy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    """Ctrl-C during collection and during training, each resumed. The policy alone has the same returns as in
    the comparison."""
    out = tmp_path / "policy"
    interrupted: list[str] = []

    def once(name: str, wrapped: Callable[..., Any], result: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name in interrupted:
                return wrapped(*arguments)
            interrupted.append(name)
            return result

        return call

    monkeypatch.setattr(command, "gather", once("gather", gather, 130))
    monkeypatch.setattr(command, "imitate", once("imitate", module.imitate, {"finished": False, "signal": 2}))
    assert main(["distill", str(run), "--out", str(out), *TINY]) == 130
    assert main(["distill", "--resume", str(out)]) == 130
    assert seeds_of(out / DEMOS_FILE) == list(range(DEMO_SEED, DEMO_SEED + 5))
    assert main(["distill", "--resume", str(out)]) == 0
    assert interrupted == ["gather", "imitate"]

    evaluation = json.loads((out / "eval.json").read_text())
    assert list(evaluation["policies"]) == ["residual", "base", "distilled"]
    assert evaluation["episode_seeds"] == list(range(EVAL_SEED, EVAL_SEED + 4))
    assert set(evaluation["paired"]) == {"distilled-residual", "distilled-base"}
    returns = {name: policy["return"]["per_episode"] for name, policy in evaluation["policies"].items()}
    difference = evaluation["paired"]["distilled-base"]["return"]["mean"]
    assert difference == pytest.approx(
        np.mean([returns["distilled"][s] - returns["base"][s] for s in returns["base"]])
    )
    assert (out / "report.html").read_text().count("distilled − residual") == 1
    assert (out / "eval_results" / "success.png").is_file()

    output = tmp_path / "alone.json"
    env_flags = ["--max-episode-steps", "20", "--num-threads", "1", "--n-episodes", "4"]
    alone = [
        "eval",
        "so101-paper",
        "--base-policy",
        "il",
        "--il-checkpoint",
        str(out),
        *env_flags,
        "--output",
        str(output),
    ]
    assert main(alone) == 0
    assert json.loads(output.read_text())["policies"]["base"]["return"]["per_episode"] == returns["distilled"]

    assert "is not empty; choose another --output-dir, or resume it" in fails("distill", run, "--out", out)
    (run / "best_model" / "policy.safetensors").write_bytes(
        (run / "final_model" / "policy.safetensors").read_bytes() + b" "
    )
    with pytest.raises(CheckpointError, match=r"has changed since this distillation started"):
        check_same_teacher(json.loads((out / "config.json").read_text())["sha256"], find_teacher_file(run))


def find_teacher_file(run: Path) -> Any:
    exported = find_teacher(run, "final").exported
    return module.Teacher(run, run / "best_model" / "policy.safetensors", exported)


def test_distill__refuses_invalid_arguments(
    run: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "policy"
    start = ("distill", run, "--out", out)
    assert "so101-paper is not a run folder: distill needs the output of `residual-rl train`" in fails(
        "distill", "so101-paper"
    )
    assert "it has no config.json" in fails("distill", tmp_path)
    assert f"{run} has best, final" in fails(*start, "--model", "beast")
    assert "distill needs a run folder" in fails("distill", "--n-episodes", "3")
    assert "n_episodes must be at least 1, not 0" in fails(*start, "--n-episodes", "0")
    assert "noise must be at least 0" in fails(*start, "--noise", "-1")
    assert "choose the algorithm with --algo flow" in fails(*start, "--imitate.algo", "flow")
    assert "choose how many episodes with --n-episodes 3" in fails(*start, "--imitate.n-episodes", "3")
    assert "unknown observation 'nope'" in fails(*start, "--imitate.obs-keys", "nope")
    assert "contains no run to resume" in fails("distill", "--resume", out)
    assert not out.exists()
    (run / "config.json").write_text("{}")
    assert "is not the configuration of a distillation" in fails("distill", "--resume", run)


def test_distill__names_a_base_policy_that_is_not_installed(
    run: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BASE_POLICIES, "_specs", {})
    monkeypatch.setattr(BASE_POLICIES, "_discovered", True)
    assert "has settings that this release cannot read: unknown base policy 'jacobian'" in fails(
        "distill", run
    )
