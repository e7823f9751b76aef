"""Runs with a replay buffer: rows of metrics, exact resuming, segments on disk, and a lost policy server."""

from __future__ import annotations

import json
import logging
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from full_disk import fill
from tiny_runs import config, different, files, metric_rows, train

from residual_rl.errors import BasePolicyError, ConfigError
from residual_rl.evaluation.evaluate import evaluate, no_residual
from residual_rl.factory import make_residual_env
from residual_rl.learners.off_policy import replay_buffer
from residual_rl.runner import Runner
from residual_rl.runs import disk_space
from residual_rl.runs.checkpoint import from_bytes, to_bytes
from residual_rl.runs.logger import read_metrics
from residual_rl.runs.run_folder import RunFolder
from residual_rl.utils.files import WriteError
from residual_rl.utils.seeding import TRAINING_EVAL_SEED


@pytest.fixture(autouse=True)
def _eight_rows_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment has 32 env steps of 4 envs. A buffer of 96 consists of three."""
    monkeypatch.setattr(replay_buffer, "SEGMENT_ROWS", 8)


def state(runner: Runner) -> Any:
    return from_bytes(to_bytes(runner.state_dict(), "checkpoint"), "checkpoint")


def segments(path: Path) -> list[str]:
    return [file.name for file in sorted((path / "replay").iterdir())]


# --- rows of metrics ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_log_freq__adds_rows_at_its_interval_and_at_every_evaluation_and_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "run", learner="sac", log_freq=24, save_freq=64, eval_freq=80, total_timesteps=128)
    rows = metric_rows(tmp_path / "run")
    # logged at 24 48 72 96 120, saved at 64 128, evaluated at 80 and at the end
    assert [row["step"] for row in rows] == [0, 24, 48, 64, 72, 80, 96, 120, 128]
    assert [row["step"] for row in rows if "eval/success_rate" in row] == [0, 80, 128]


@pytest.mark.slow
def test_log_freq__row_has_means_since_the_last_row_and_latest_counts(tmp_path: Path) -> None:
    for name, log_freq in (("each", 0), ("third", 24)):
        train(
            tmp_path / name,
            learner="sac",
            log_freq=log_freq,
            save_freq=10**6,
            eval_freq=0,
            total_timesteps=96,
        )
    each, third = (metric_rows(tmp_path / name) for name in ("each", "third"))
    assert [row["step"] for row in each] == list(range(0, 97, 8))
    assert [row["step"] for row in third] == [0, 24, 48, 72, 96]
    for i, row in enumerate(third[1:-1]):
        between = each[1 + 3 * i : 4 + 3 * i]
        for tag in ("residual/magnitude", "task/dist_to_goal", "train/critic_loss", "train/entropy"):
            values = [one[tag] for one in between if tag in one]
            assert (tag in row) == bool(values)
            assert not values or row[tag] == pytest.approx(sum(values) / len(values))
        for tag in ("train/buffer_size", "train/updates", "rollout/ep_rew_mean"):
            assert row.get(tag) == between[-1].get(tag), tag
    assert "train/critic_loss" in third[2]


def test_log_freq__defaults_to_each_update_for_ppo_and_to_500_steps_for_off_policy() -> None:
    assert [config(learner=name).run.log_freq for name in ("ppo", "sac")] == [0, 24]
    from residual_rl.config import TrainCfg

    assert [
        TrainCfg.default("so101-paper", learner_id=name).run.log_freq for name in ("ppo", "sac", "td3")
    ] == [0, 500, 500]


@pytest.mark.parametrize("learner", ["sac", "td3"])
def test_runner__first_evaluation_equals_the_base_policy(tmp_path: Path, learner: str) -> None:
    runner = train(tmp_path / "run", learner=learner, total_timesteps=8)
    first = json.loads((tmp_path / "run" / "eval_results" / "step_000000000.json").read_text())
    assert first["residual_magnitude"] == [0.0, 0.0]
    env = make_residual_env(runner.cfg, 2)
    base = evaluate(env, no_residual(env), range(TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + 2))
    assert {name: first[name] for name in ("success_once", "return", "episode_length")} == {
        name: base[name].tolist() for name in ("success_once", "return", "episode_length")
    }


# --- exact resuming -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"learner": "sac"}, {"learner": "td3", "prog_explore": 200, "normalize_targets": True}],
    ids=str,
)
def test_runner__resumed_off_policy_run_equals_an_uninterrupted_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The run is stopped when a row is due (96) and when none is (136, 176). States, metrics and files are
    equal."""
    settings = {**settings, "save_freq": 64}
    whole = train(tmp_path / "whole", **settings)
    path = tmp_path / "pieces"
    train(path, stop_at=96, **settings)
    train(path, stop_at=136, resume=True, **settings)
    assert metric_rows(path)[-1]["step"] == 136  # a stopped run adds a row
    train(path, stop_at=176, resume=True, **settings)
    pieces = train(path, resume=True, **settings)
    assert different(state(whole), state(pieces)) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(path)
    assert 136 not in [row["step"] for row in metric_rows(path)]
    for folder in ("best_model", "final_model", "eval_results"):
        assert files(tmp_path / "whole" / folder) == files(path / folder), folder
    # Of the eight segments of 64 rows, the kept checkpoints (128, 192, 256) contain all but the first.
    assert segments(tmp_path / "whole") == [f"segment_{i:06d}.safetensors" for i in range(1, 8)]


@pytest.mark.slow
def test_replay_segments__are_written_once_and_not_copied_into_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(path, learner="sac", stop_at=72, buffer_size=10_000, eval_freq=0)
    before = {file.name: file.stat().st_mtime_ns for file in (path / "replay").iterdir()}
    assert segments(path) == ["segment_000000.safetensors", "segment_000001.safetensors"]
    train(path, learner="sac", resume=True, buffer_size=10_000, eval_freq=0)
    after = {file.name: file.stat().st_mtime_ns for file in (path / "replay").iterdir()}
    assert after | before == after
    assert len(after) == 8
    sizes = {file.stat().st_size for file in (path / "checkpoints").iterdir()}
    assert max(sizes) - min(sizes) < (path / "replay" / "segment_000000.safetensors").stat().st_size


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """An uninterrupted run whose buffer keeps all segments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_buffer, "SEGMENT_ROWS", 8)
        return train(tmp_path_factory.mktemp("runs") / "whole", learner="sac", buffer_size=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_replay_segments__damaged_segment_falls_back_to_the_previous_checkpoint(
    whole_run: Runner, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"learner": "sac", "buffer_size": 10_000}
    path = tmp_path / "run"
    train(path, stop_at=168, **settings)  # checkpoints 128, 160 and 168; 160 is the first with segment 4
    segment = path / "replay" / "segment_000004.safetensors"
    data = segment.read_bytes()
    if damage == "remove":
        segment.unlink()
    else:
        segment.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with caplog.at_level(logging.WARNING):
        resumed = train(path, resume=True, **settings)
    assert "FALLING BACK to the previous checkpoint" in caplog.text
    assert str(segment) in caplog.text
    assert "step_000000168.safetensors is incomplete" in caplog.text
    assert "step_000000160.safetensors is incomplete" in caplog.text
    assert different(state(whole_run), state(resumed)) == []
    assert metric_rows(whole_run.folder.path) == metric_rows(path)


# --- a lost server -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runner__lost_server_saves_the_previous_state_with_few_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"learner": "sac", "eval_freq": 0}
    whole = train(tmp_path / "whole", **settings)
    cfg, folder = config(**settings), RunFolder(tmp_path / "run")
    copied: list[int] = []
    with folder.start(cfg.to_dict()):
        runner = Runner(cfg, folder)
        monkeypatch.setattr(runner.env.base_policy.policy, "remote", True, raising=False)
        buffer, update = runner.learner.buffer, runner._update  # type: ignore[attr-defined]
        segment = buffer.segment
        monkeypatch.setattr(buffer, "segment", lambda number: (copied.append(number), segment(number))[1])

        def fail() -> Any:
            metrics = update()
            # in the middle of an iteration: the learner already has new weights
            if runner.progress.step == 176:
                raise BasePolicyError("the server is gone")
            return metrics

        monkeypatch.setattr(runner, "_update", fail)
        with pytest.raises(BasePolicyError, match="the server is gone; saved a checkpoint at 168 steps"):
            runner.learn()
    # incomplete segments in each iteration, new ones for each checkpoint, and each overwritten one once
    assert len(copied) < 22 + 6 + 6 + 8
    monkeypatch.undo()
    monkeypatch.setattr(replay_buffer, "SEGMENT_ROWS", 8)
    resumed = train(tmp_path / "run", resume=True, **settings)
    assert different(state(whole), state(resumed)) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "run")


# --- disks --------------------------------------------------------------------------------------------------


def test_disk_space__too_little_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        total = free = 10**9

    checked: list[Path] = []
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: (checked.append(path), Usage)[1])
    monkeypatch.setattr(disk_space, "GIB", 1)
    runner = train(tmp_path / "other", learner="sac", total_timesteps=64)
    Usage.free = 100_000
    with pytest.raises(ConfigError) as refusal:
        Runner(config(learner="sac", total_timesteps=64), RunFolder(tmp_path / "not" / "there" / "yet"))
    metrics = [
        float(word.strip("("))
        for word in str(refusal.value).split()
        if word.strip("(").replace(".", "").isdigit()
    ]
    free, checkpoints, replay, more = metrics
    assert (free, more) == (100_000, checkpoints + replay)
    assert replay == 16 * runner.learner.buffer.row_bytes  # type: ignore[attr-defined]  # 64 steps of 4 envs
    assert (
        "free some space, or choose another --output-dir, a smaller --buffer-size or fewer --keep-checkpoints"
        in str(refusal.value)
    )
    written = sum(
        file.stat().st_size
        for part in ("checkpoints", "replay")
        for file in (tmp_path / "other" / part).iterdir()
    )
    assert 0.5 * written < more < 2.0 * written
    assert checked == [tmp_path / "other", tmp_path]


@pytest.mark.slow
def test_replay_segments__full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        path, settings = (
            tmp_path / "run",
            {"learner": "sac", "buffer_size": 10_000, "eval_freq": 0, "keep_checkpoints": 2},
        )
        with monkeypatch.context() as patch:
            save = Runner.state_dict

            def full_then(runner: Runner) -> Any:
                if runner.progress.step == 160:  # the disk is full at the third checkpoint
                    fill(tmp_path / "ballast")
                return save(runner)

            patch.setattr(Runner, "state_dict", full_then)
            with pytest.raises(
                WriteError, match=r"cannot write .*: No space left on device; free some space"
            ):
                train(path, **settings)
        (tmp_path / "ballast").unlink()
        rows = read_metrics(path / "metrics.jsonl")
        assert rows
        assert math.isfinite(rows[-1]["time/wall"])
        resumed = train(path, resume=True, total_timesteps=192, **settings)
        assert resumed.progress.step == 192
        assert [file.name for file in (path / "replay").iterdir() if file.name.startswith(".")] == []
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
