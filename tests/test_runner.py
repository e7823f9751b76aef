"""The training loop: exact resuming, signals, kills, full disks, what a run folder holds, and what is logged."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from residual_rl import checkpoint
from residual_rl.checkpoint import CheckpointFolder
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.envs.vec_env import VecEnv
from residual_rl.logger import read_metrics
from residual_rl.registry import BASE_POLICIES, BasePolicySpec, register_base_policy
from residual_rl.run_folder import RunFolder
from residual_rl.runner import Progress, Runner, stop_signals
from residual_rl.seeding import EVAL_SEED, TRAINING_EVAL_SEED, training_seed_start
from residual_rl.tasks.so101_paper.task import SO101Paper
from residual_rl.types import BasePolicy, Obs, State

TINY: dict[str, Any] = {
    "num_envs": 4,
    "num_steps": 8,
    "minibatch_size": 16,
    "num_epochs": 2,
    "hidden_sizes": (8, 8),
    "max_episode_steps": 20,
    "eval_episodes": 2,
    "total_timesteps": 256,
    "eval_freq": 96,
    "save_freq": 32,
    "num_threads": 1,
    # Some sheets lie in the rectangle from the start, so that episodes terminate as well as being cut off.
    "tolerance": 0.08,
    "success_hold_steps": 5,
}
"""32 env steps an iteration, 8 iterations."""

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

CLI_TINY = ["--num-envs", "4", "--num-steps", "8", "--minibatch-size", "16", "--num-epochs", "2", "--hidden-sizes", "8", "8"]
CLI_TINY += ["--max-episode-steps", "20", "--eval-episodes", "2"]


def config(base_policy: str = "jacobian", **settings: Any) -> TrainCfg:
    return replace_fields(TrainCfg.default("so101-paper", base_policy), {**TINY, **settings})


def train(path: Path, stop_at: int | None = None, resume: bool = False, **settings: Any) -> Runner:
    """Train in this process; `stop_at` sends it a SIGTERM in the iteration that reaches this step."""
    cfg, folder = config(**settings), RunFolder(path)
    with folder.resume() if resume else folder.start(cfg.to_dict()):
        runner = Runner(cfg, folder, resume=resume)
        if stop_at is not None:
            update = runner._update

            def update_and_stop() -> Any:
                if runner.progress.step == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return update()

            runner._update = update_and_stop  # type: ignore[method-assign]
        summary = runner.learn()
        runner.env.close()
        runner.eval_env.close()
    assert summary["signal"] == (None if stop_at is None else signal.SIGTERM)
    assert summary["steps"] == (cfg.run.total_timesteps if stop_at is None else stop_at)
    return runner


def flat(state: Any, key: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for name, value in state.items() for k, v in flat(value, f"{key}/{name}").items()}
    if isinstance(state, list):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{key}/{i}").items()}
    return {key: state}


def different(a: Any, b: Any) -> list[str]:
    """Keys of two nested states that differ in any bit."""
    x, y = flat(a), flat(b)
    same = {
        k: torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype if isinstance(x[k], Tensor) else x[k] == y[k] for k in x.keys() & y.keys()
    }
    return sorted({k for k, equal in same.items() if not equal} | (x.keys() ^ y.keys()))


def last_state(path: Path) -> Any:
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    return latest[1]


def figures(path: Path) -> list[dict[str, Any]]:
    """What was logged, but for the times."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(path / "metrics.jsonl")]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Remembering(BasePolicy):
    """Chunks of three, two of which are executed, that depend on how many each world has had in its episode."""

    inputs = {"state": (25,)}  # noqa: RUF012
    chunk_size, num_action_steps = 3, 2

    def __init__(self, num_envs: int):
        self._count = torch.zeros(num_envs)

    def plan(self, obs: Obs, worlds: Tensor) -> Tensor:
        self._count = self._count.index_add(0, worlds, torch.ones(len(worlds)))
        return torch.sin(self._count[worlds][:, None, None] + torch.arange(3.0)[:, None]).expand(-1, 3, 6)

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


# --- exact resuming -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("remembering")
@pytest.mark.parametrize(
    "settings", [{"noise_correlation": 0.0}, SCHEDULED, {"base_policy": "remembering"}], ids=["plain", "scheduled", "remembering"]
)
def test_training_in_pieces_is_training_at_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Stopped at an evaluation's step (96) and again between two (160): weights, optimiser, normalisers, env, figures, files."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train(whole, **settings)
    train(pieces, stop_at=96, **settings)
    assert CheckpointFolder(pieces / "checkpoints").latest()[0] == 96  # type: ignore[index]
    train(pieces, stop_at=160, resume=True, **settings)
    train(pieces, resume=True, **settings)

    assert set(last_state(whole)) == {"progress", "learner", "env"}
    assert set(different(last_state(whole), last_state(pieces))) <= {"/progress/wall_time", "/progress/time_to_95"}
    assert figures(whole) == figures(pieces)
    assert [row["step"] for row in figures(pieces)] == list(range(0, 257, 32))
    for folder in ("best_model", "final_model", "eval_results"):
        assert files(whole / folder) == files(pieces / folder), folder


def test_resuming_restores_what_the_logs_show(tmp_path: Path) -> None:
    train(tmp_path / "run", stop_at=160)
    before = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    runner = Runner(config(), RunFolder(tmp_path / "run"), resume=True)
    progress = runner.progress
    assert progress.step == 160
    assert len(progress.success) > 0
    assert sum(progress.success) / len(progress.success) == before["rollout/success_rate_100"]
    assert sum(progress.returns) / len(progress.returns) == before["rollout/ep_rew_mean"]
    assert sum(progress.lengths) / len(progress.lengths) == before["rollout/ep_len_mean"]
    assert progress.wall_time == pytest.approx(before["time/wall"])
    assert progress.best is not None
    assert progress.success.maxlen == 100


def test_progress_round_trips_through_a_file(tmp_path: Path) -> None:
    progress = Progress(step=5, best=(0.5, -1.25), wall_time=3.5, time_to_95=2.0, step_to_95=4)
    progress.success.extend([1.0, 0.0])
    checkpoint.save(tmp_path / "p.safetensors", progress.state_dict(), "checkpoint")
    loaded = Progress()
    loaded.load_state_dict(checkpoint.load(tmp_path / "p.safetensors", "checkpoint"))
    assert loaded == progress


def test_equal_seeds_give_identical_files_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tmp_path / name, seed=seed, total_timesteps=64, eval_freq=0)
    a, b, c = ((tmp_path / name / "final_model" / "policy.safetensors").read_bytes() for name in "abc")
    assert a == b
    weights = [checkpoint.from_bytes(data, "policy")["policy"] for data in (a, c)]
    assert "/actor.layers.0.weight" in different(*weights)
    for word in (str(tmp_path), os.uname().nodename, time.strftime("%Y-%m")):
        assert word.encode() not in a


def test_simulator_threads_do_not_change_the_weights(tmp_path: Path) -> None:
    for threads in (1, 3):
        train(tmp_path / str(threads), num_threads=threads, total_timesteps=64, eval_freq=0)
    assert different(*(last_state(tmp_path / str(threads))["learner"] for threads in (1, 3))) == []


def test_a_finished_run_resumes_to_its_end_at_once(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=64)
    before = files(tmp_path / "run" / "final_model") | {"metrics": (tmp_path / "run" / "metrics.jsonl").read_bytes()}
    train(tmp_path / "run", resume=True, total_timesteps=64)
    assert before == files(tmp_path / "run" / "final_model") | {"metrics": (tmp_path / "run" / "metrics.jsonl").read_bytes()}


def test_a_damaged_newest_checkpoint_gives_way_loudly_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "run", stop_at=160)
    newest = tmp_path / "run" / "checkpoints" / "step_000000160.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", resume=True)
    assert "step_000000160.safetensors" in caplog.text
    assert "FALLING BACK" in caplog.text
    assert set(different(last_state(tmp_path / "whole"), last_state(tmp_path / "run"))) <= {"/progress/wall_time", "/progress/time_to_95"}
    assert figures(tmp_path / "whole") == figures(tmp_path / "run")  # what was logged after step 128 is there once


# --- schedules and evaluations in training --------------------------------------------------------------------------


def test_schedules_take_the_values_worked_out_by_hand(tmp_path: Path) -> None:
    settings = {"curriculum": "schedule", "curriculum_tolerance": 0.2, "curriculum_fraction": 0.5, "residual_scale_start": 0.1}
    runner = train(tmp_path / "run", **settings, residual_scale=0.5, residual_scale_fraction=1.0, total_timesteps=128, eval_freq=0)
    rows = figures(tmp_path / "run")[1:]
    # Fractions 0, 1/4, 2/4, 3/4. Scale: 0.1 + 0.4 f. Tolerance: 0.08 + 0.12 (1 - 2 f), from f = 1/2 on 0.08.
    assert [row["residual/scale"] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [row["curriculum/tolerance"] for row in rows] == pytest.approx([0.2, 0.14, 0.08, 0.08])
    # Adam's rate falls linearly to 0.
    assert [row["train/learning_rate"] for row in rows] == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
    assert runner.eval_env.residual_scale == pytest.approx(0.4)


@pytest.mark.parametrize("curriculum", ["schedule", "success"])
def test_a_curriculum_holds_from_the_first_episode_on_and_never_in_evaluation(
    tmp_path: Path, curriculum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[float]] = {}
    randomize = SO101Paper.randomize

    def spy(task: SO101Paper, seed: Tensor) -> Any:
        episode = randomize(task, seed)
        drawn.setdefault(id(task), []).extend(episode["tolerance"].tolist())
        return episode

    monkeypatch.setattr(SO101Paper, "randomize", spy)
    runner = train(tmp_path / "run", curriculum=curriculum, curriculum_tolerance=0.2, tolerance=0.01, total_timesteps=128)
    training, evaluation = (drawn[id(env.env.task)] for env in (runner.env, runner.eval_env))  # type: ignore[attr-defined]
    assert training[:4] == pytest.approx([0.2] * 4)
    assert evaluation == pytest.approx([0.01] * len(evaluation))


def test_every_seed_is_new_in_training_and_the_evaluations_have_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, list[int]] = {}
    randomize = SO101Paper.randomize

    def spy(task: SO101Paper, seed: Tensor) -> Any:
        drawn.setdefault(id(task), []).extend(seed.tolist())
        return randomize(task, seed)

    monkeypatch.setattr(SO101Paper, "randomize", spy)
    runner = train(tmp_path / "run", seed=5)
    training, evaluation = (drawn[id(env.env.task)] for env in (runner.env, runner.eval_env))  # type: ignore[attr-defined]
    first = training_seed_start(5)
    assert training == list(range(first, first + len(training)))
    assert len(training) > 12
    assert set(evaluation) - {-1} == {TRAINING_EVAL_SEED, TRAINING_EVAL_SEED + 1}
    # The final evaluation counts on from EVAL_SEED: ten million episodes before it meets those of training.
    assert EVAL_SEED + 10_000_000 <= TRAINING_EVAL_SEED
    assert training_seed_start(0) > TRAINING_EVAL_SEED + 2
    assert training_seed_start(4) + len(training) < first


def test_a_fresh_residual_is_evaluated_first_and_is_the_base_policy(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=32, eval_freq=0)
    first = json.loads((tmp_path / "run" / "eval_results" / "step_000000000.json").read_text())
    assert first["residual_size"] == [0.0, 0.0]
    assert sorted(p.name for p in (tmp_path / "run" / "eval_results").iterdir()) == ["step_000000000.json", "step_000000032.json"]


def test_the_best_model_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    train(tmp_path / "run", total_timesteps=128, eval_freq=32)
    scores = {row["step"]: (row["eval/success_rate"], row["eval/mean_reward"]) for row in figures(tmp_path / "run")}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert checkpoint.load(tmp_path / "run" / "best_model" / "policy.safetensors", "policy")["step"] == best
    assert checkpoint.load(tmp_path / "run" / "final_model" / "policy.safetensors", "policy")["step"] == 128


# --- what a run leaves ----------------------------------------------------------------------------------------------

TAGS = ["rollout/success_rate_100", "rollout/ep_rew_mean", "rollout/ep_len_mean", "residual/magnitude", "residual/penalty"]
TAGS += [f"train/{x}" for x in ("approx_kl", "clip_fraction", "entropy_loss", "policy_gradient_loss", "value_loss", "explained_variance")]
TAGS += ["task/dist_to_goal", "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate"]
TAGS += ["time/fps", "time/simulation", "time/base_policy", "time/learner"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "x"
    arguments = [*CLI_TINY, "--total-timesteps", "192", "--save-freq", "32", "--output-dir", str(path)]
    assert main(["train", "so101-paper", *arguments]) == 0
    return path


def test_the_run_folder_holds_what_tells_its_story(run: Path) -> None:
    names = ["config.json", "command.txt", "versions.json", "git.diff", "metrics.jsonl", "training_summary.json"]
    assert all((run / name).is_file() for name in names)
    for folder in ("tensorboard", "checkpoints", "best_model", "final_model", "eval_results"):
        assert list((run / folder).iterdir()), folder
    assert not (run / "interrupted_model").exists()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [f"step_{s:09d}.safetensors" for s in (128, 160, 192)]
    assert sorted(p.name for p in (run / "final_model").iterdir()) == ["config.json", "policy.safetensors"]
    cfg = TrainCfg.from_dict(json.loads((run / "config.json").read_text()))
    assert (cfg.task_id, cfg.base_policy_id, cfg.run.num_envs, cfg.task.max_episode_steps) == ("so101-paper", "jacobian", 4, 20)
    summary = json.loads((run / "training_summary.json").read_text())
    assert (summary["finished"], summary["signal"], summary["steps"], summary["model"]) == (True, None, 192, "final_model")
    assert summary["steps_per_second"] == pytest.approx(192 / summary["wall_time"])


def test_nothing_that_is_saved_is_a_pickle(run: Path) -> None:
    """Pickles of protocol 2 and later begin with 0x80, and torch's archives with PK."""
    for path in run.rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:2] != b"PK", path
            assert not path.read_bytes().startswith(b"\x80"), path


def test_every_tag_that_users_look_for_is_logged(run: Path) -> None:
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
        assert [e.value for e in board.Scalars(tag)] == pytest.approx([value for _, value in logged], rel=1e-6), tag


def test_the_parts_of_the_time_add_up(run: Path) -> None:
    row = read_metrics(run / "metrics.jsonl")[-1]
    parts = sum(row[f"time/{name}"] for name in ("simulation", "base_policy", "learner", "evaluation"))
    assert all(row[f"time/{name}"] > 0 for name in ("simulation", "base_policy", "learner", "evaluation"))
    assert parts <= row["time/wall"]
    assert row["time/fps"] == pytest.approx(192 / row["time/wall"])


# --- signals, kills, full disks -------------------------------------------------------------------------------------


def start(path: Path, *flags: str) -> subprocess.Popen[str]:
    """A training process that would go on for hours."""
    arguments = ["train", "so101-paper", *CLI_TINY, "--total-timesteps", "10000000", "--output-dir", str(path), *flags]
    return spawn(arguments)


def spawn(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "residual_rl.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the process ended early with {process.returncode}: {process.communicate()[1]}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(path: Path) -> list[int]:
    return sorted(CheckpointFolder(path / "checkpoints").files())


def errors(stderr: str) -> list[str]:
    """What was said but for the progress and for warnings."""
    return [line for line in stderr.splitlines() if line and not line.startswith(("train: ", "residual-rl: WARNING"))]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_with_its_own_code(
    tmp_path: Path, number: signal.Signals, code: int, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "run"
    process = start(path)
    processes.append(process)
    wait_for(lambda: lines(path / "metrics.jsonl") >= 3, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors(stderr) == []
    assert f"residual-rl train --resume {path}" in stdout
    summary = json.loads((path / "training_summary.json").read_text())
    assert (summary["finished"], summary["signal"], summary["model"]) == (False, number, "interrupted_model")
    step = summary["steps"]
    assert checkpoints(path)[-1] == step  # no save was due: it was made for the signal
    assert checkpoint.load(path / "interrupted_model" / "policy.safetensors", "policy")["step"] == step
    assert not (path / "final_model").exists()

    assert main(["train", "--resume", str(path), "--total-timesteps", str(step + 64)]) == 0
    assert json.loads((path / "training_summary.json").read_text())["steps"] == step + 64
    assert [row["step"] for row in figures(path)] == list(range(0, step + 65, 32))
    assert json.loads((path / "config.json").read_text())["run"]["total_timesteps"] == step + 64


def test_a_signal_in_the_first_evaluation_leaves_something_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", total_timesteps=64)
    evaluate = Runner._evaluate

    def evaluate_and_stop(runner: Runner) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(runner)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_evaluate", evaluate_and_stop)
        cfg = config(total_timesteps=64)
        with RunFolder(tmp_path / "run").start(cfg.to_dict()) as folder:
            assert Runner(cfg, folder).learn()["signal"] == signal.SIGINT
    assert checkpoints(tmp_path / "run") == [0]
    train(tmp_path / "run", resume=True, total_timesteps=64)
    assert figures(tmp_path / "run") == figures(tmp_path / "whole")
    assert set(different(last_state(tmp_path / "run"), last_state(tmp_path / "whole"))) <= {"/progress/wall_time", "/progress/time_to_95"}


def test_a_signal_in_the_last_iteration_still_gives_the_final_model(tmp_path: Path) -> None:
    train(tmp_path / "run", stop_at=64, total_timesteps=64)
    summary = json.loads((tmp_path / "run" / "training_summary.json").read_text())
    assert (summary["finished"], summary["model"]) == (True, "final_model")
    assert (tmp_path / "run" / "final_model" / "policy.safetensors").is_file()


def test_only_a_second_sigint_stops_at_once() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.slow
def test_a_second_sigint_ends_an_iteration_that_would_take_hours(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    path = tmp_path / "run"
    process = start(path, "--num-steps", "1000000")
    processes.append(process)
    wait_for(lambda: lines(path / "metrics.jsonl") >= 1, process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None  # the first one waits for the iteration
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors(stderr) == ["residual-rl: interrupted"]


@pytest.mark.slow
def test_kills_at_any_moment_leave_a_checkpoint_that_resumes(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    path, rng, done = tmp_path / "run", random.Random(3), 0
    for kill in range(4):
        process = spawn(["train", "--resume", str(path)]) if kill else start(path, "--save-freq", "32", "--eval-freq", "64")
        processes.append(process)
        wait_for(lambda: checkpoints(path) and checkpoints(path)[-1] > done, process)  # noqa: B023 (called in this iteration)
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        latest = CheckpointFolder(path / "checkpoints").latest()
        assert latest is not None
        assert latest[0] > done
        assert latest[0] == checkpoints(path)[-1]  # the newest is whole
        done = latest[0]
    assert main(["train", "--resume", str(path), "--total-timesteps", str(done + 64)]) == 0
    assert [row["step"] for row in figures(path)] == list(range(0, done + 65, 32))


@pytest.mark.slow
def test_a_full_disk_ends_training_with_one_line_and_the_last_checkpoint_whole(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """The disk fills while it runs: no file may grow beyond 4 kB any more."""
    path = tmp_path / "run"
    process = start(path, "--save-freq", "32")
    processes.append(process)
    wait_for(lambda: len(checkpoints(path)) == 3, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors(stderr)) == 1
    assert errors(stderr)[0].startswith("residual-rl: error: cannot write ")
    assert "File too large" in stderr
    resumable(path)


@pytest.mark.slow
def test_a_full_file_system_ends_training_with_one_line_and_the_last_checkpoint_whole(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        path = disk / "run"
        process = start(path, "--save-freq", "32")
        processes.append(process)
        wait_for(lambda: len(checkpoints(path)) == 3, process)
        fill(disk / "ballast")
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2
        assert len(errors(stderr)) == 1
        assert "No space left on device; free some space" in stderr
        (disk / "ballast").unlink()
        resumable(path)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def resumable(path: Path) -> None:
    latest = CheckpointFolder(path / "checkpoints").latest()
    assert latest is not None
    assert latest[0] == checkpoints(path)[-1]
    assert main(["train", "--resume", str(path), "--total-timesteps", str(latest[0] + 32)]) == 0
    assert [row["step"] for row in figures(path)] == list(range(0, latest[0] + 33, 32))


@pytest.mark.slow
def test_training_takes_less_than_one_and_a_half_gigabytes(tmp_path: Path) -> None:
    """An iteration of the default settings, evaluations shortened."""
    arguments = f"train so101-paper --total-timesteps 2048 --max-episode-steps 20 --output-dir {tmp_path / 'run'}".split()
    code = f"import resource; from residual_rl.cli.main import main; assert main({arguments!r}) == 0; "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes = int(done.stdout.splitlines()[-1]) / 1024
    assert megabytes < 1500, f"{megabytes:.0f} MB"
