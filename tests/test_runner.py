"""The training loop: exact resuming, schedules, evaluations, contents of the run folder, and logs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import HELPERS
from tiny_runs import CLI_TINY, config, different, files, last_state, metric_rows, slow, train
from torch import Tensor

from residual_rl.cli.main import main
from residual_rl.config import TrainCfg
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import CheckpointError
from residual_rl.registry import BASE_POLICIES, TASKS, BasePolicySpec, register_base_policy
from residual_rl.runner import Runner
from residual_rl.runs import checkpoint
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.progress import Progress
from residual_rl.runs.run_folder import RunFolder
from residual_rl.tasks.so101_paper.task import SO101Paper
from residual_rl.types import BasePolicy, Obs, State
from residual_rl.utils.seeding import EVAL_SEED, TRAINING_EVAL_SEED, training_seed_start

SCHEDULED: dict[str, Any] = {
    "curriculum": "schedule",
    "curriculum_tolerance": 0.2,
    "residual_scale_start": 0.1,
    "residual_scale": 0.5,
    "residual_scale_schedule": "cosine",
    "residual_scale_fraction": 1.0,
    "noise_correlation": 0.9,
    "seed": 7,
}


class Remembering(BasePolicy):
    """Chunks of three, of which two are executed, that depend on the number of queries in the episode."""

    inputs = {"state": (25,)}  # noqa: RUF012
    chunk_size, num_action_steps = 3, 2

    def __init__(self, num_envs: int):
        self._count = torch.zeros(num_envs)

    def predict_action_chunk(self, obs: Obs, env_ids: Tensor) -> Tensor:
        self._count = self._count.index_add(0, env_ids, torch.ones(len(env_ids)))
        return torch.sin(self._count[env_ids][:, None, None] + torch.arange(3.0)[:, None]).expand(-1, 3, 6)

    def reset(self, mask: Tensor) -> None:
        self._count = self._count.masked_fill(mask, 0.0)

    def state_dict(self) -> State:
        return {"count": self._count}

    def load_state_dict(self, state: State) -> None:
        self._count = state["count"]


def make_remembering(cfg: None, env: VecEnv) -> Remembering:
    return Remembering(env.num_envs)


@pytest.fixture
def remembering() -> Iterator[str]:
    yield register_base_policy(BasePolicySpec("remembering", "counts", f"{__name__}:make_remembering")).id
    del BASE_POLICIES._specs["remembering"]


# --- exact resuming -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("remembering")
@pytest.mark.parametrize(
    "settings",
    [{"noise_correlation": 0.0}, SCHEDULED, {"base_policy": "remembering"}],
    ids=["plain", "scheduled", "remembering"],
)
def test_runner__training_in_pieces_equals_training_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    """It is stopped at the step of an evaluation (96) and between two evaluations (160)."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train(whole, **settings)
    train(pieces, stop_at=96, **settings)
    assert CheckpointFolder(pieces / "checkpoints").latest()[0] == 96  # type: ignore[index]
    train(pieces, stop_at=160, resume=True, **settings)
    train(pieces, resume=True, **settings)

    assert set(last_state(whole)) == {"progress", "learner", "env"}
    assert set(different(last_state(whole), last_state(pieces))) == set()
    assert metric_rows(whole) == metric_rows(pieces)
    assert [row["step"] for row in metric_rows(pieces)] == list(range(0, 257, 32))
    for folder in ("best_model", "final_model", "eval_results"):
        assert files(whole / folder) == files(pieces / folder), folder


def test_runner__resuming_restores_progress_and_wall_time(tmp_path: Path) -> None:
    train(tmp_path / "run", stop_at=160)
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    runner = Runner(config(), RunFolder(tmp_path / "run"), resume=True)
    progress = runner.progress
    assert progress.step == 160
    assert len(progress.success) > 0
    assert sum(progress.success) / len(progress.success) == before["rollout/success_rate_100"]
    assert sum(progress.returns) / len(progress.returns) == before["rollout/ep_rew_mean"]
    assert sum(progress.lengths) / len(progress.lengths) == before["rollout/ep_len_mean"]
    assert runner.wall_time == pytest.approx(before["time/wall"])
    assert progress.best is not None
    assert progress.success.maxlen == 100


def test_progress__round_trips_through_a_file(tmp_path: Path) -> None:
    progress = Progress(step=5, best=(0.5, -1.25))
    progress.success.extend([1.0, 0.0])
    checkpoint.save(tmp_path / "p.safetensors", progress.state_dict(), "checkpoint")
    loaded = Progress()
    loaded.load_state_dict(checkpoint.load(tmp_path / "p.safetensors", "checkpoint"))
    assert loaded == progress


@pytest.mark.slow
def test_runner__equal_seeds_give_identical_files(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tmp_path / name, seed=seed, total_timesteps=64, eval_freq=0)
    a, b, c = ((tmp_path / name / "final_model" / "policy.safetensors").read_bytes() for name in "abc")
    assert a == b
    weights = [checkpoint.from_bytes(data, "policy")["policy"] for data in (a, c)]
    assert "/actor.layers.0.weight" in different(*weights)
    for word in (str(tmp_path), os.uname().nodename, time.strftime("%Y-%m")):
        assert word.encode() not in a


@pytest.mark.slow
def test_num_threads__does_not_change_the_weights(tmp_path: Path) -> None:
    for threads in (1, 3):
        train(tmp_path / str(threads), num_threads=threads, total_timesteps=64, eval_freq=0)
    assert different(*(last_state(tmp_path / str(threads))["learner"] for threads in (1, 3))) == []


def test_runner__resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=64)
    before = files(tmp_path / "run" / "final_model") | {
        "metrics": (tmp_path / "run" / "metrics.jsonl").read_bytes()
    }
    train(tmp_path / "run", resume=True, total_timesteps=64)
    assert before == files(tmp_path / "run" / "final_model") | {
        "metrics": (tmp_path / "run" / "metrics.jsonl").read_bytes()
    }


@pytest.mark.slow
def test_runner__damaged_checkpoint_falls_back_to_the_previous_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "run", stop_at=160)
    newest = tmp_path / "run" / "checkpoints" / "step_000000160.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", resume=True)
    assert "step_000000160.safetensors" in caplog.text
    assert "FALLING BACK" in caplog.text
    assert set(different(last_state(tmp_path / "whole"), last_state(tmp_path / "run"))) == set()
    # Rows after step 128 are logged only once.
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "run")


# --- schedules and evaluations in training ------------------------------------------------------------------


def test_runner__schedules_match_values_worked_out_by_hand(tmp_path: Path) -> None:
    settings = {
        "curriculum": "schedule",
        "curriculum_tolerance": 0.2,
        "curriculum_fraction": 0.5,
        "residual_scale_start": 0.1,
    }
    runner = train(
        tmp_path / "run",
        **settings,
        residual_scale=0.5,
        residual_scale_fraction=1.0,
        total_timesteps=128,
        eval_freq=0,
    )
    rows = metric_rows(tmp_path / "run")[1:]
    # Fractions 0, 1/3, 2/3, 1. Scale: 0.1 + 0.4 f. Tolerance: 0.08 + 0.12 (1 - 2 f), from f = 1/2 on 0.08.
    assert [row["residual/scale"] for row in rows] == pytest.approx([0.1, 0.7 / 3, 1.1 / 3, 0.5])
    assert [row["curriculum/tolerance"] for row in rows] == pytest.approx([0.2, 0.12, 0.08, 0.08])
    # Adam's learning rate decreases linearly, to 0 after the last update.
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
    assert runner.eval_env.residual_scale == pytest.approx(0.5)


@pytest.mark.parametrize("curriculum", ["schedule", "success"])
def test_curriculum__applies_from_the_first_episode_and_never_in_evaluation(
    tmp_path: Path, curriculum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[float]] = {}
    randomize = SO101Paper.randomize

    def spy(task: SO101Paper, seed: Tensor) -> Any:
        episode = randomize(task, seed)
        drawn.setdefault(id(task), []).extend(episode["tolerance"].tolist())
        return episode

    monkeypatch.setattr(SO101Paper, "randomize", spy)
    runner = train(
        tmp_path / "run", curriculum=curriculum, curriculum_tolerance=0.2, tolerance=0.01, total_timesteps=128
    )
    training, evaluation = (drawn[id(env.vec_env.task)] for env in (runner.env, runner.eval_env))  # type: ignore[attr-defined]
    assert training[:4] == pytest.approx([0.2] * 4)
    assert evaluation == pytest.approx([0.01] * len(evaluation))


@pytest.mark.slow
def test_runner__training_seeds_are_new_and_disjoint_from_evaluation_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[int]] = {}
    randomize = SO101Paper.randomize

    def spy(task: SO101Paper, seed: Tensor) -> Any:
        drawn.setdefault(id(task), []).extend(seed.tolist())
        return randomize(task, seed)

    monkeypatch.setattr(SO101Paper, "randomize", spy)
    runner = train(tmp_path / "run", seed=5)
    training, evaluation = (drawn[id(env.vec_env.task)] for env in (runner.env, runner.eval_env))  # type: ignore[attr-defined]
    first = training_seed_start(5)
    assert training == list(range(first, first + len(training)))
    assert len(training) > 12
    assert set(evaluation) - {-1} == {TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + 1}
    # The final evaluation has ten million seeds from EVAL_SEED on before it reaches those of training.
    assert EVAL_SEED + 10_000_000 <= TRAINING_EVAL_SEED
    assert training_seed_start(0) > TRAINING_EVAL_SEED + 2
    assert training_seed_start(4) + len(training) < first


def test_runner__evaluates_the_untrained_residual_first(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=32, eval_freq=0)
    first = json.loads((tmp_path / "run" / "eval_results" / "step_000000000.json").read_text())
    assert first["residual_magnitude"] == [0.0, 0.0]
    assert sorted(p.name for p in (tmp_path / "run" / "eval_results").iterdir()) == [
        "step_000000000.json",
        "step_000000032.json",
    ]


@pytest.mark.slow
def test_success_rate__95_of_100_episodes_are_exactly_95_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest float32 to 0.95 is smaller."""
    success = (torch.arange(100) >= 5).float()
    episodes = {"success_once": success, "return": success, "episode_length": success + 20.0}
    monkeypatch.setattr("residual_rl.evaluation.selection.evaluate", lambda *_, **__: episodes)
    train(tmp_path / "run", total_timesteps=32, eval_freq=0, eval_episodes=100, confirm_episodes=0)
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert (summary["best_success_rate"], summary["step_to_95"]) == (0.95, 32)


@pytest.mark.slow
def test_best_model__is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=128, eval_freq=32)
    scores = {
        row["step"]: (row["eval/success_rate"], row["eval/mean_reward"])
        for row in metric_rows(tmp_path / "run")
    }
    best = max(scores, key=lambda step: (scores[step], -step))
    assert checkpoint.load(tmp_path / "run" / "best_model" / "policy.safetensors", "policy")["step"] == best
    assert checkpoint.load(tmp_path / "run" / "final_model" / "policy.safetensors", "policy")["step"] == 128


@pytest.mark.parametrize(("total_timesteps", "steps"), [(95, 64), *slow((1, 32), (32, 32), (96, 96))])
def test_total_timesteps__is_rounded_down_to_whole_iterations_and_at_least_one(
    tmp_path: Path, total_timesteps: int, steps: int
) -> None:
    """An iteration has 32 env steps."""
    cfg, folder = config(total_timesteps=total_timesteps, eval_freq=0), RunFolder(tmp_path / "run")
    with folder.start(cfg.to_dict()):
        summary = Runner(cfg, folder).learn()
    assert (summary["finished"], summary["steps"], summary["model"]) == (True, steps, "final_model")
    rows = metric_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(0, steps + 1, 32))
    # Adam's learning rate decreases linearly over the iterations.
    assert [row["train/learning_rate"] for row in rows[1:]] == pytest.approx(
        [5e-4 * (1 - at / steps) for at in range(0, steps, 32)]
    )
    assert "eval/success_rate" in rows[-1]
    assert last_state(tmp_path / "run")["progress"]["step"] == steps


def test_set_training_progress__receives_the_number_of_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    set_progress = SO101Paper.set_training_progress

    def spy(task: SO101Paper, fraction: float, success_rate: float, episodes: int) -> Any:
        received.append(episodes)
        return set_progress(task, fraction, success_rate, episodes)

    monkeypatch.setattr(SO101Paper, "set_training_progress", spy)
    # The episodes of four envs are truncated at steps 5, 10, …: too short for a success.
    runner = train(
        tmp_path / "run", total_timesteps=96, max_episode_steps=5, success_hold_steps=10, eval_freq=0
    )
    assert received == [0, 0, 4, 12]  # before the first episode, and before each iteration of 8 steps
    assert runner.progress.episodes == 16


def test_runner__trains_outside_of_the_main_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        runner = pool.submit(train, tmp_path / "run", total_timesteps=32, eval_freq=0).result()
    assert runner.progress.step == 32


@pytest.mark.parametrize("part", ["learner", *slow("progress", "env")])
def test_runner__checkpoint_with_other_contents_is_an_error(tmp_path: Path, part: str) -> None:
    train(tmp_path / "run", stop_at=32)
    file = tmp_path / "run" / "checkpoints" / "step_000000032.safetensors"
    state = checkpoint.load(file, "checkpoint")
    for damaged in (
        {k: v for k, v in state.items() if k != part},
        {**state, part: {"other": 1}},
        {**state, part: [1]},
    ):
        checkpoint.save(file, damaged, "checkpoint")
        with pytest.raises(CheckpointError, match=r"step_000000032.safetensors does not match this run \("):
            Runner(config(), RunFolder(tmp_path / "run"), resume=True)


# --- the run folder -----------------------------------------------------------------------------------------

TAGS = [
    "rollout/success_rate_100",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "residual/magnitude",
    "residual/penalty",
]
TAGS += [
    f"train/{x}"
    for x in (
        "approx_kl",
        "clip_fraction",
        "entropy_loss",
        "policy_gradient_loss",
        "value_loss",
        "explained_variance",
    )
]
TAGS += ["task/dist_to_goal", "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate"]
TAGS += ["time/fps", "time/simulation", "time/base_policy", "time/learner"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "x"
    arguments = [*CLI_TINY, "--total-timesteps", "192", "--save-freq", "32", "--output-dir", str(path)]
    assert main(["train", "so101-paper", *arguments]) == 0
    return path


def test_run_folder__contains_settings_metrics_and_models(run: Path) -> None:
    names = [
        "config.json",
        "command.txt",
        "versions.json",
        "git.diff",
        "metrics.jsonl",
        "training_summary.json",
    ]
    assert all((run / name).is_file() for name in names)
    for folder in ("tensorboard", "checkpoints", "best_model", "final_model", "eval_results"):
        assert list((run / folder).iterdir()), folder
    assert not (run / "interrupted_model").exists()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        f"step_{s:09d}.safetensors" for s in (128, 160, 192)
    ]
    assert sorted(p.name for p in (run / "final_model").iterdir()) == ["config.json", "policy.safetensors"]
    cfg = TrainCfg.from_dict(json.loads((run / "config.json").read_text()), None)
    assert (cfg.task_id, cfg.base_policy_id, cfg.run.num_envs, cfg.task.max_episode_steps) == (
        "so101-paper",
        "jacobian",
        4,
        20,
    )
    summary = json.loads((run / "training_summary.json").read_text())
    assert (summary["finished"], summary["signal"], summary["steps"], summary["model"]) == (
        True,
        None,
        192,
        "final_model",
    )
    assert summary["steps_per_second"] == pytest.approx(192 / summary["wall_time"])


def test_run_folder__contains_no_pickle(run: Path) -> None:
    """Pickles of protocol 2 and later begin with 0x80 and its number, and torch's archives with PK."""
    for path in run.rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:2] != b"PK", path
            assert not re.match(rb"\x80[\x02-\x05]", path.read_bytes()), path


def test_logger__writes_the_documented_tags(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(0, 193, 32))
    assert set(TAGS) <= set(rows[-1])
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert set(TAGS) <= set(board.Tags()["scalars"])
    for tag in TAGS:
        logged = [(row["step"], row[tag]) for row in rows if tag in row]
        assert [e.step for e in board.Scalars(tag)] == [step for step, _ in logged], tag
        assert [e.value for e in board.Scalars(tag)] == pytest.approx(
            [value for _, value in logged], rel=1e-6
        ), tag


def test_times__parts_are_positive_and_within_the_wall_time(run: Path) -> None:
    row = read_metrics(run / "metrics.jsonl")[-1]
    names = ("setup", "simulation", "base_policy", "learner", "evaluation")
    parts = sum(row[f"time/{name}"] for name in names)
    assert all(row[f"time/{name}"] > 0 for name in names)
    assert parts <= row["time/wall"]
    assert row["time/fps"] == pytest.approx(192 / row["time/wall"])


@pytest.mark.slow
def test_wall_time__counts_from_the_start_of_the_process(tmp_path: Path) -> None:
    """A process sleeps before its imports: the first run counts from the start of the process, the second
    from its own start."""
    code = f"""
import time
time.sleep(1.5)
import json, pathlib, sys
sys.path.insert(0, {str(HELPERS)!r})
from tiny_runs import train
for name in ("first", "second"):
    begin = time.perf_counter()
    train(pathlib.Path({str(tmp_path)!r}) / name, total_timesteps=32, eval_freq=0)
print(time.perf_counter() - begin)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    second = json.loads(done.stdout.splitlines()[-1])
    walls = [
        json.loads((tmp_path / name / "training_summary.json").read_text())["wall_time"]
        for name in ("first", "second")
    ]
    assert walls[0] > 1.5 + read_metrics(tmp_path / "first" / "metrics.jsonl")[-1]["time/evaluation"]
    assert read_metrics(tmp_path / "first" / "metrics.jsonl")[-1]["time/setup"] > 1.5
    assert walls[1] < second


@pytest.mark.slow
def test_max_eval_envs__bounds_the_envs_and_not_the_episodes_of_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "default", total_timesteps=32, eval_episodes=3)
    spec = dataclasses.replace(TASKS.get("so101-paper"), max_eval_envs=2)
    monkeypatch.setitem(TASKS._specs, "so101-paper", spec)
    runner = train(tmp_path / "bounded", total_timesteps=32, eval_episodes=3)
    assert runner.eval_env.num_envs == 2
    first = [tmp_path / name / "eval_results" / "step_000000000.json" for name in ("bounded", "default")]
    assert first[0].read_bytes() == first[1].read_bytes()  # later ones round differently, in float32
    assert [spec.eval_envs(n) for n in (1, 2, 100)] == [1, 2, 2]
