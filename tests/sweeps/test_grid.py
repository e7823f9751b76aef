"""Sweeps: the grid, the trials and their processes, the ranking, and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_runs import CLI_TINY, Fails

from residual_rl.cli import sweep as command
from residual_rl.cli import train as train_command
from residual_rl.cli.main import main
from residual_rl.config import TrainCfg, replace_fields
from residual_rl.errors import CheckpointError, ConfigError, UnknownNameError
from residual_rl.sweeps.grid import (
    SweepCfg,
    Trial,
    check_train_flags,
    make_trials,
    parse_grid,
    read_sweep,
    state_of,
)
from residual_rl.sweeps.live_table import SweepTable
from residual_rl.sweeps.ranking import _bootstrap, difference_of, rank, success_of
from residual_rl.sweeps.report import make_report, ranking_table, write_report
from residual_rl.sweeps.trial import TrialProcess, TrialProgress, next_command, trial_metrics
from residual_rl.utils.files import write_json
from residual_rl.utils.statistics import paired_difference, proportion

CFG = TrainCfg.default("so101-paper")
TRAIN = (
    *CLI_TINY,
    "--tolerance",
    "0.08",
    "--success-hold-steps",
    "5",
    "--save-freq",
    "32",
    "--eval-freq",
    "0",
)


def make_sweep(**values: Any) -> SweepCfg:
    return SweepCfg("so101-paper", **{"train": TRAIN, "n_episodes": 4, "seeds": (1,), **values})


def make_trial(folder: Path, steps: int = 64, **values: Any) -> Trial:
    sweep = make_sweep(train=(*TRAIN, "--total-timesteps", str(steps)), **values)
    cfg = train_command.parse("so101-paper", sweep.train).cfg
    (trial,) = make_trials(sweep, cfg, folder)
    return trial


# --- the grid -----------------------------------------------------------------------------------------------


def test_parse_grid__accepts_settings_of_every_part() -> None:
    grid = parse_grid(
        ["residual-scale=0.1,0.3", "gamma=0.97", "hidden_sizes=64 64,128 128", "damping=0.1", "num_envs=8"],
        CFG,
    )
    assert grid == {
        "residual_scale": ("0.1", "0.3"),
        "gamma": ("0.97",),
        "hidden_sizes": ("64 64", "128 128"),
        "damping": ("0.1",),
        "num_envs": ("8",),
    }


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (
            ["residual_skale=0.1"],
            UnknownNameError,
            "unknown setting 'residual_skale'; did you mean 'residual_scale'",
        ),
        (["learning-rte=0.1"], UnknownNameError, "did you mean 'learning_rate'"),
        (["residual_scale=0.1,x"], ConfigError, "--grid residual_scale=x: 'x' is not a number"),
        (
            ["residual_scale=0.1,3"],
            ConfigError,
            "--grid residual_scale=3: residual_scale must be from 0 to 2",
        ),
        (
            ["gamma=0.9", "residual_scale=0.1,3"],
            ConfigError,
            "--grid gamma=0.9,residual_scale=3: residual_scale must be from 0 to 2",
        ),
        (["alpha=0.1", "residual_scale=0.2"], ConfigError, "--grid has residual_scale twice"),
        (["learner=sac,td3"], ConfigError, "--grid cannot have learner: a sweep has one"),
        (["num_envs=1.5"], ConfigError, "--grid num_envs=1.5: '1.5' is not a whole number"),
        (["chunk=step,hole"], ConfigError, "'hole' is not one of step, whole"),
        (
            ["hidden_sizes=64 x"],
            ConfigError,
            "'64 x' is not a whole number, or several with blanks between them",
        ),
        (["gamma"], ConfigError, "--grid 'gamma' is not of the form SETTING=VALUE,VALUE,…"),
        (["gamma=0.9,"], ConfigError, "is not of the form"),
        (["gamma=0.9,0.90"], ConfigError, "--grid gamma has the value 0.9 twice"),
        (["gamma=0.9", "gamma=0.8"], ConfigError, "--grid has gamma twice"),
        (["seed=1,2"], ConfigError, "--grid cannot have seed: the seeds are those of --seeds"),
    ],
)
def test_parse_grid__invalid_entry_is_named(entries: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make_trials(make_sweep(grid=parse_grid(entries, CFG)), CFG, Path())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_make_trials__one_per_point_and_seed_with_the_settings_of_the_grid(tmp_path: Path) -> None:
    entries = ["residual_scale=0.1,0.3", "hidden_sizes=16 16", "normalize_reward=False", "damping=0.2"]
    sweep = make_sweep(
        grid=parse_grid(entries, CFG), seeds=(4, 5), train=("--total-timesteps", "4096"), cpus_per_trial=2
    )
    cfg = train_command.parse("so101-paper", sweep.train).cfg
    trials = make_trials(sweep, cfg, tmp_path)
    assert [(trial.point.split(",")[0], trial.seed) for trial in trials] == [
        ("residual_scale=0.1", 4),
        ("residual_scale=0.1", 5),
        ("residual_scale=0.3", 4),
        ("residual_scale=0.3", 5),
    ]
    assert trials[0].name == "residual_scale=0.1,hidden_sizes=16x16,normalize_reward=False,damping=0.2,seed=4"
    assert trials[0].run.path == tmp_path / "trials" / trials[0].name
    task, *flags = trials[2].train
    read = train_command.parse(task, flags).cfg
    wanted = {
        "residual_scale": 0.3,
        "hidden_sizes": (16, 16),
        "normalize_reward": False,
        "damping": 0.2,
        "seed": 4,
    }
    assert read == replace_fields(CFG, {**wanted, "total_timesteps": 4096, "num_threads": 2})
    assert trials[2].total_steps == 4096
    assert Trial.from_json(trials[2].to_json()) == trials[2]


def test_make_trials__without_a_grid_there_is_one_point(tmp_path: Path) -> None:
    assert [trial.name for trial in make_trials(make_sweep(seeds=(1, 2)), CFG, tmp_path)] == [
        "default,seed=1",
        "default,seed=2",
    ]


def test_sweep_cfg__invalid_settings_raise(tmp_path: Path) -> None:
    cfg = replace_fields(CFG, {"residual_scale_start": 0.1})
    assert parse_grid(["total_timesteps=1"], cfg) == {"total_timesteps": ("1",)}
    assert parse_grid(["alpha=0.1", "n-envs=4"], cfg) == {"residual_scale": ("0.1",), "num_envs": ("4",)}
    with pytest.raises(ConfigError, match="seeds must be one or more different values"):
        make_sweep(seeds=(1, 1))
    with pytest.raises(ConfigError, match="cpus_per_trial must be at least 1, not 0"):
        make_sweep(cpus_per_trial=0)


def test_make_trials__validates_combinations_of_values(tmp_path: Path) -> None:
    """One critic is incompatible with the default of two critics in the target."""
    cfg = TrainCfg.default("so101-paper", learner_id="sac")
    grid = parse_grid(["num_critics=1", "num_target_critics=1,2"], cfg)
    with pytest.raises(
        ConfigError,
        match=r"--grid num_critics=1,num_target_critics=2: num_target_critics must be at most num_critics",
    ):
        make_trials(make_sweep(grid=grid), cfg, tmp_path)
    grid = parse_grid(["num_critics=1", "num_target_critics=1"], cfg)
    assert [trial.point for trial in make_trials(make_sweep(grid=grid), cfg, tmp_path)] == [
        "num_critics=1,num_target_critics=1"
    ]


def test_make_trials__long_points_get_short_folder_names(tmp_path: Path) -> None:
    cfg = TrainCfg.default("so101-paper", learner_id="sac")
    grid = parse_grid([f"demos=/data/{'ä' * 150}/1.h5,/data/{'ä' * 150}/2.h5", "demo_share=0.5"], cfg)
    trials = make_trials(make_sweep(grid=grid, seeds=(1, 2)), cfg, tmp_path)
    names = [trial.name for trial in trials]
    assert len(set(names)) == 4
    assert names[0].startswith("demos=xdatax")
    assert names[0].endswith(",seed=1")
    assert max(len(name.encode()) for name in names) <= 200
    trials[0].run.path.mkdir(parents=True)
    trials[0].log.parent.mkdir()
    trials[0].failure_file.touch()


def test_check_train_flags__flags_that_the_sweep_sets_raise() -> None:
    for flag, message in (
        ("--seed", "give --seeds instead"),
        ("--output_dir=x", "no flag for the trials of a sweep"),
        ("--quick", "a whole training"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_train_flags([flag], {})
    with pytest.raises(ConfigError, match="gamma is in --grid and a flag of all trials"):
        check_train_flags(["--gamma", "0.9"], {"gamma": ("0.97",)})
    for flag, key in (
        ("--alpha=0.3", "residual_scale"),
        ("--n-envs", "num_envs"),
        ("--no-normalize-reward", "normalize_reward"),
    ):
        with pytest.raises(ConfigError, match=f"{key} is in --grid and a flag of all trials"):
            check_train_flags([flag], {key: ("1",)}, CFG)
    check_train_flags(["--alpha", "0.3"], {"gamma": ("0.97",)}, CFG)


def test_sweep__wrong_arguments_leave_no_folder(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    start = ("sweep", "so101-paper", "--output-dir", out)
    assert "did you mean 'residual_scale'" in fails(*start, "--grid", "residual_scal=0.1")
    assert "is not a number" in fails(*start, "--grid", "residual_scale=a")
    assert "seeds must be at least 1, not 0" in fails(*start, "--seeds", "0")
    assert "give --seeds instead" in fails(*start, "--seed", "3")
    assert "unknown task 'so101'" in fails("sweep", "so101")
    assert "sweep needs a task id" in fails("sweep", "--seeds", "3")
    assert "contains no sweep to resume" in fails("sweep", "--resume", out)
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    message = fails(*start, "--grid", "residual_scale=0.1", "--ray-address", "auto")
    assert "install it with `pip install 'residual-rl[ray]'`" in message
    assert not out.exists()


# --- processes of the trials --------------------------------------------------------------------------------


def until(process: TrialProcess, *states: str, seconds: float = 180.0) -> TrialProgress:
    end = time.monotonic() + seconds
    while (progress := process.poll(0.2)).state not in states:
        assert time.monotonic() < end, progress
    return progress


@pytest.mark.slow
def test_trial_process__stopped_trial_resumes_and_is_evaluated(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, steps=100_000)
    assert state_of(trial) == "waiting"
    process = TrialProcess(trial)
    end = time.monotonic() + 180.0
    while (progress := process.poll(0.2)).step < 64:
        assert time.monotonic() < end, progress
    process.stop()
    assert state_of(trial) == "interrupted"
    assert not trial.run.held
    stopped_at = json.loads(trial.run.summary_file.read_text())["steps"]
    assert stopped_at >= 64
    config = json.loads(trial.run.config_file.read_text())
    config["run"]["total_timesteps"] = stopped_at + 32  # so that it ends soon
    trial.run.config_file.write_text(json.dumps(config))

    assert next_command(trial) == ["train", "--resume", str(trial.run.path)]
    process = TrialProcess(trial)
    assert until(process, "finished", "failed", "interrupted").state == "finished"
    assert json.loads(trial.run.summary_file.read_text())["steps"] == stopped_at + 32
    assert json.loads(trial.run.eval_file.read_text())["episode_seeds"] == [
        10_000_000,
        10_000_001,
        10_000_002,
        10_000_003,
    ]
    assert (trial.run.path / "command.txt").read_text().startswith("residual-rl train so101-paper ")
    assert next_command(trial) is None
    assert state_of(trial) == "finished"
    longer = dataclasses.replace(trial, eval_seeds=(10_000_000, 5))
    assert next_command(longer) == [
        "eval",
        str(trial.run.path),
        "--n-episodes",
        "5",
        "--first-seed",
        "10000000",
        "--num-threads",
        "1",
        "--overwrite",
    ]


@pytest.mark.slow
def test_trial_process__failed_trial_has_a_reason(tmp_path: Path) -> None:
    trial = dataclasses.replace(make_trial(tmp_path), train=("so101-paper", "--num-envs", "0"))
    progress = until(TrialProcess(trial), "failed", "finished", "interrupted")
    assert progress == TrialProgress("failed", reason="num_envs must be from 1 to 1048576, not 0")
    assert trial.failure_file.read_text() == "num_envs must be from 1 to 1048576, not 0\n"
    assert state_of(trial) == "failed"


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_end_with_parent__trial_ends_with_its_parent(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """The parent is killed, as a Ray worker can be."""
    script = (
        "import os, subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-m',"
        " 'residual_rl.cli.trial', str(os.getpid()), *sys.argv[1:]])\nprint(child.pid,"
        " flush=True)\ntime.sleep(600)\n"
    )
    run = tmp_path / "run"
    command = ["train", "so101-paper", *TRAIN, "--total-timesteps", "10000000", "--output-dir", str(run)]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    processes.append(parent)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 120
    while not (run / "checkpoints").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while not ended(child):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert json.loads((run / "training_summary.json").read_text())["signal"] == signal.SIGTERM  # it has saved


def test_next_command__run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.run.path.mkdir(parents=True)
    trial.run.config_file.write_text("{}")
    assert state_of(trial) == "interrupted"
    assert next_command(trial) == ["train", *trial.train, "--output-dir", str(trial.run.path)]
    assert not trial.run.path.exists()


def test_trial_metrics__reads_an_incomplete_file(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    assert trial_metrics(trial) == {}
    trial.run.path.mkdir(parents=True)
    rows = [
        {"step": 0, "eval/success_rate": 0.5},
        {"step": 32, "time/fps": 20.0},
        {"step": 64, "time/fps": 40.0},
    ]
    trial.run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    assert trial_metrics(trial) == {"step": 64, "speed": 40.0, "success": 0.5}


# --- the ranking --------------------------------------------------------------------------------------------


def outcomes(*seeds: list[int]) -> dict[int, dict[int, float]]:
    return {i: {100 + k: float(value) for k, value in enumerate(values)} for i, values in enumerate(seeds, 1)}


def test_success_of__has_wilsons_width_if_every_episode_succeeds() -> None:
    summary = success_of(outcomes([1] * 50, [1] * 50))
    wilson = proportion([1.0] * 100)
    assert (summary.mean, summary.low, summary.high, summary.n) == (1.0, wilson.low, 1.0, 100)


def test_success_of__interval_is_wider_if_seeds_differ() -> None:
    """One seed always succeeds and one never does: the mean of two draws is 0, 1/2 or 1, so the interval is
    [0, 1]."""
    summary = success_of(outcomes([1] * 100, [0] * 100))
    assert (summary.mean, summary.low, summary.high) == (0.5, 0.0, 1.0)
    same = success_of(outcomes([1, 0] * 50, [1, 0] * 50))
    assert (same.high - same.low) < 0.25  # type: ignore[operator]


def test_bootstrap__matches_values_worked_out_by_hand() -> None:
    """Two seeds and two episodes with the outcomes [[0, 0], [0, 1]].

    A draw that contains the row of the 1 r times and its column c times has the mean r·c / 4. With
    P(r = 2) = 1/4: P(1) = 1/16, P(1/2) = 4/16, P(1/4) = 4/16 and P(0) = 7/16. The 2.5 % and 97.5 % points are
    0 and 1.
    """
    values = np.array([[0.0, 0.0], [0.0, 1.0]])
    assert _bootstrap(values) == (0.0, 1.0)
    # [[0, 0, 0], [0, 0, 1]]: a mean of 1 needs r = 2 and c = 3, (1/4)·(1/27) < 2.5 %. The next mean is
    # 2·2 / 6 = 2/3, (1/4)·(6/27) = 5.6 %.
    assert _bootstrap(np.array([[0.0] * 3, [0.0, 0.0, 1.0]])) == (0.0, pytest.approx(2 / 3))


def test_bootstrap__one_seed_has_the_binomial_spread() -> None:
    values = [1] * 70 + [0] * 30
    summary = success_of(outcomes(values))
    assert summary.low == pytest.approx(0.70 - 1.96 * np.sqrt(0.7 * 0.3 / 100), abs=0.011)
    assert summary.low <= proportion(values).low  # type: ignore[operator]


def test_difference_of__is_paired_by_seed_and_episode() -> None:
    a, b = outcomes([1, 1, 0, 1] * 10), outcomes([1, 0, 0, 1] * 10, [0] * 40)
    difference = difference_of(a, b)
    assert difference is not None
    assert difference.mean == 0.25  # over the common seed
    flat = [dict(enumerate(x[1].values())) for x in (a, b)]
    plain = paired_difference(flat[0], flat[1], binary=True)
    assert difference.low <= plain.low  # type: ignore[operator]
    assert difference.high >= plain.high  # type: ignore[operator]
    assert difference_of(a, {7: a[1]}) is None
    with pytest.raises(ConfigError, match="different episodes"):
        difference_of(a, {1: {5: 1.0}})


def test_rank__orders_by_the_lower_end_and_marks_ties() -> None:
    # One seed, all successes: Wilson's interval starts at 83.9 %.
    lucky = outcomes([1] * 20)
    # 99 of 100: Wilson's interval starts at 94.6 %, that of the bootstrap below.
    good = outcomes([1] * 20, [1] * 20, [1] * 19 + [0], [1] * 20, [1] * 20)
    bad = outcomes([1] * 5 + [0] * 15, [1] * 4 + [0] * 16)
    first, second, third = rank({"bad": bad, "lucky": lucky, "good": good})
    assert [r.point for r in (first, second, third)] == ["good", "lucky", "bad"]
    assert [r.tied for r in (first, second, third)] == [True, True, False]
    assert 0.92 < first.success.low < proportion([1.0] * 99 + [0.0]).low  # type: ignore[operator]
    assert second.success.low == pytest.approx(0.839, abs=5e-4)
    assert first.per_seed == {1: 1.0, 2: 1.0, 3: 0.95, 4: 1.0, 5: 1.0}
    assert first.difference is None
    assert third.difference is not None
    assert third.difference.mean == pytest.approx(0.225 - 1.0)  # over the seeds 1 and 2


# --- the report ---------------------------------------------------------------------------------------------


def finish(trial: Trial, values: list[int]) -> None:
    """Create the run folder of a trained and evaluated trial, with the files that reports read."""
    first, count = trial.eval_seeds
    trial.run.path.mkdir(parents=True)
    write_json(trial.run.config_file, {})
    write_json(trial.run.summary_file, {"finished": True, "steps": 64, "wall_time": 3.0, "step_to_95": None})
    per_episode = {str(first + i): float(value) for i, value in enumerate(values)}
    policies = {"residual": {"success_once": {"per_episode": per_episode}}}
    write_json(
        trial.run.eval_file, {"episode_seeds": list(range(first, first + count)), "policies": policies}
    )
    rows = [
        {"step": 0, "eval/success_rate": 0.5},
        {"step": 64, "eval/success_rate": sum(values) / len(values)},
    ]
    trial.run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_write_report__ranks_finished_trials_and_lists_the_others(tmp_path: Path) -> None:
    sweep = make_sweep(
        grid={"residual_scale": ("0.1", "0.3", "0.6"), "hidden_sizes": ("8 8",)}, n_episodes=20
    )
    best, worse, failed = trials = make_trials(sweep, CFG, tmp_path)
    finish(best, [1] * 20)
    finish(worse, [1] * 5 + [0] * 15)
    failed.failure_file.parent.mkdir()
    failed.failure_file.write_text("no such thing\n")
    report = write_report(sweep, trials, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["ranking"] == json.loads(
        json.dumps(report["ranking"])
    )
    assert [(r["point"], r["success"]["mean"], r["tied_with_first"]) for r in report["ranking"]] == [
        ("residual_scale=0.1,hidden_sizes=8 8", 1.0, True),
        ("residual_scale=0.3,hidden_sizes=8 8", 0.25, False),
    ]
    assert report["trials"][0]["curve"] == [[0, 0.5], [64, 1.0]]
    text = (tmp_path / "report.md").read_text()
    low, high = (100 * x for x in proportion([1.0] * 20).to_json()["interval"])
    assert (
        f"| 1 | residual_scale=0.1,hidden_sizes=8 8 | 100.0 % [{low:.1f}, {high:.1f}] | 1: 100.0 | – |  |"
        in text
    )
    assert "Failed:\n\n- `residual_scale=0.6,hidden_sizes=8x8,seed=1`: no such thing" in text
    words = shlex.split(text.split("`")[1])
    assert words == [
        "residual-rl",
        "sweep",
        "so101-paper",
        *TRAIN,
        "--grid",
        "residual_scale=0.1,0.3,0.6",
        "--grid",
        "hidden_sizes=8 8",
    ]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=200, record=True)
    console.print(ranking_table(report))
    assert "−75.0 pp" in console.export_text()
    assert make_report(make_sweep(), make_trials(make_sweep(), CFG, tmp_path / "none"))["ranking"] == []


def test_sweep_table__shows_each_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(grid={"residual_scale": ("0.1", "0.3")}, n_episodes=4)
    done, other = trials = make_trials(sweep, CFG, tmp_path)
    finish(done, [1, 1, 1, 0])
    with SweepTable(trials, Console(width=140)) as table:
        table.update(other, TrialProgress("running", 50_000, 0.5, 1000.0))
        console = Console(width=140, record=True)
        console.print(table.table())
        text = console.export_text()
    assert "residual_scale=0.1,seed=1 │ finished │     64/250,000 │  75.0 %" in text
    assert "residual_scale=0.3,seed=1 │ running  │ 50,000/250,000 │  50.0 % │ 3:20" in text
    assert "residual_scale=0.3,seed=1  running  50,000/250,000  50.0 %  3:20" in capsys.readouterr().out


# --- the command, without processes -------------------------------------------------------------------------


@pytest.mark.slow
def test_resume__runs_unfinished_trials_and_failed_ones_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(trials: list[Trial], cwd: str, *rest: Any) -> None:
        assert cwd == os.getcwd()
        ran.append([trial.point for trial in trials])
        for trial in trials:
            if trial.point == "residual_scale=0.3" and len(ran) < 3:
                trial.failure_file.parent.mkdir(exist_ok=True)
                trial.failure_file.write_text("bad luck\n")
            elif trial.point != "residual_scale=0.6" or len(ran) > 1:
                trial.failure_file.unlink(missing_ok=True)
                finish(trial, [1, 1, 0, 1])

    monkeypatch.setattr(command, "run_trials", run)
    out = tmp_path / "sweep"
    flags = [
        "--grid",
        "residual_scale=0.1,0.3,0.6",
        "--seeds",
        "1",
        "--n-episodes",
        "4",
        "--output-dir",
        str(out),
        *TRAIN,
    ]
    assert main(["sweep", "so101-paper", *flags]) == 1
    assert f"Resume with: residual-rl sweep --resume {out}" in capsys.readouterr().out
    assert read_sweep(out) == make_sweep(grid={"residual_scale": ["0.1", "0.3", "0.6"]}, cwd=os.getcwd())
    assert main(["sweep", "--resume", str(out)]) == 1
    message = capsys.readouterr().out
    assert "Failed: residual_scale=0.3,seed=1: bad luck" in message
    assert "2 of 3 trials finished" in message
    assert main(["sweep", "--resume", str(out), "--retry-failed"]) == 0
    assert ran == [
        ["residual_scale=0.1", "residual_scale=0.3", "residual_scale=0.6"],
        ["residual_scale=0.6"],
        ["residual_scale=0.3"],
    ]
    assert main(["sweep", "--resume", str(out)]) == 0  # all trials are finished
    assert len(ran) == 3
    assert main(["sweep", "so101-paper", *flags]) == 2  # the folder exists


def test_read_sweep__folder_without_a_sweep_raises(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"task_id": "so101-paper", "residual": {}})
    with pytest.raises(CheckpointError, match="not the configuration of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_sweep(tmp_path)
