"""The command line: output and files of each command, aliases, help, and exit codes."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_help import documented, help_of
from tiny_runs import CLI_TINY, cpu_seconds

import residual_rl
from residual_rl import runner
from residual_rl.base_policies.jacobian import JacobianCfg
from residual_rl.cli import eval as eval_command
from residual_rl.cli import train as train_command
from residual_rl.cli.main import COMMANDS, main
from residual_rl.config import ResidualCfg, RunCfg, SafetyLimitsCfg, TrainCfg
from residual_rl.envs.mujoco.gl_backend import gl_context_class
from residual_rl.errors import MissingDependencyError
from residual_rl.registry import BASE_POLICIES, LEARNERS, TASKS
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.utils.seeding import EVAL_SEED

TINY = [*CLI_TINY, "--tolerance", "0.08", "--success-hold-steps", "5", "--num-threads", "1"]

METRICS = {
    "success_once",
    "success_at_end",
    "return",
    "episode_length",
    "residual_magnitude",
    "action_change",
    "dist_to_goal",
    "yaw_error",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "x"
    assert (
        main(
            [
                "train",
                "so101-paper",
                *TINY,
                "--total-timesteps",
                "128",
                "--eval-freq",
                "64",
                "--output-dir",
                str(path),
            ]
        )
        == 0
    )
    return path


def evaluation(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "eval.json").read_text())
    return result


@pytest.fixture
def run(trained: Path) -> Path:
    """A run folder without an evaluation, shared by the tests of this module."""
    (trained / "eval.json").unlink(missing_ok=True)
    return trained


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, which takes a second to plot."""
    monkeypatch.setattr(eval_command, "write_report", lambda folder, *rest, **named: folder / "report.html")


def has_gl() -> bool:
    try:
        gl_context_class()
    except MissingDependencyError:
        return False
    return True


# --- list, help, version ------------------------------------------------------------------------------------


def test_list__shows_every_task_base_policy_and_learner(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for id in [spec.id for specs in (TASKS.all(), BASE_POLICIES.all(), LEARNERS.all()) for spec in specs]:
        assert re.search(rf"\b{id}\b", out), id


def test_main__prints_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {command} +\w", out, re.MULTILINE) for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"residual-rl {residual_rl.__version__}\n"


def test_train__help_lists_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(["train", "so101-paper"], capsys, monkeypatch)
    learner = type(TrainCfg.default("so101-paper").learner)
    for cls, prefix in (
        (ResidualCfg, ""),
        (RunCfg, ""),
        (SafetyLimitsCfg, ""),
        (learner, ""),
        (SO101PaperCfg, ""),
        (JacobianCfg, "base."),
    ):
        fields = documented(cls)
        assert set(fields) == set(inspect.signature(cls).parameters)
        for name, what in fields.items():
            assert re.search(rf"--{re.escape(prefix)}(no-)?{name.replace('_', '-')}\b", text), name
            assert " ".join(what.split())[:40] in text, name
    for name in (
        "--output-dir",
        "--quick",
        "--base-policy",
        "--expert-type",
        "--alpha",
        "--n-envs",
        "--learner",
    ):
        assert name in text


def test_eval__help_lists_its_flags_and_the_settings_of_the_task(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, own in ((str(run), []), ("so101-paper", ["base_policy", "expert_type"])):
        text = help_of(["eval", target], capsys, monkeypatch)
        for name in [*documented(eval_command.EvalFlags), *documented(SO101PaperCfg), *own]:
            assert f"--{name.replace('_', '-')}" in text, name


def test_resume__help_lists_its_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--total-timesteps" in help_of(["train", "--resume"], capsys, monkeypatch)


@pytest.mark.parametrize("command", ["train", "eval", "view", "doctor", "bench"])
def test_main__help_without_a_target_explains_the_target(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"residual-rl {command} " in help_of([command], capsys, monkeypatch)


# --- train --------------------------------------------------------------------------------------------------


class Parsed(Exception):  # noqa: N818 (not an error)
    pass


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainCfg:
    """The settings that result from a command line."""

    def stop(cfg: TrainCfg, *rest: Any) -> Any:
        raise Parsed(cfg)

    monkeypatch.setattr("residual_rl.runner.Runner", stop)
    with pytest.raises(Parsed) as parsed:
        main(["train", *arguments])
    cfg = parsed.value.args[0]
    assert isinstance(cfg, TrainCfg)
    return cfg


def test_train__aliases_equal_the_main_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = parse(
        monkeypatch, "so101-paper", "--residual-scale", "0.3", "--num-envs", "8", "--base-policy", "zero"
    )
    theirs = parse(monkeypatch, "so101-paper", "--alpha", "0.3", "--n-envs", "8", "--expert-type", "zero")
    assert ours == theirs
    assert (ours.residual.residual_scale, ours.run.num_envs, ours.base_policy_id, ours.base) == (
        0.3,
        8,
        "zero",
        None,
    )


@pytest.mark.parametrize(
    "spelling", ["--base-policy=zero", "--base_policy=zero", "--expert-type=zero", "--expert_type=zero"]
)
def test_base_policy__all_spellings_of_the_flag_work(monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    assert parse(monkeypatch, "so101-paper", spelling).base_policy_id == "zero"
    assert parse(monkeypatch, "so101-paper", *spelling.split("=")).base_policy_id == "zero"


def test_train__flags_set_their_part_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--gamma",
        "0.9",
        "--sheet-x",
        "0.2",
        "0.25",
        "--base.damping",
        "0.1",
        "--residual-scale-start",
        "0.1",
        "--seed",
        "4",
    ]
    cfg = parse(monkeypatch, "so101-paper-precise", *arguments)
    assert cfg.task_id == "so101-paper-precise"
    assert (
        cfg.learner.gamma,
        cfg.task.sheet_x,
        cfg.base.damping,
        cfg.residual.residual_scale_start,
        cfg.run.seed,
    ) == (*(0.9, (0.2, 0.25), 0.1, 0.1, 4),)
    assert cfg.task.tolerance == 0.005


def test_train__no_flags_give_the_registered_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(monkeypatch, "so101-paper") == TrainCfg.default("so101-paper")


def test_quick__flags_override_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = parse(monkeypatch, "so101-paper", "--quick", "--num-envs", "4", "--num-epochs", "1")
    assert (cfg.run.num_envs, cfg.learner.num_epochs, cfg.run.total_timesteps) == (
        4,
        1,
        train_command.QUICK["total_timesteps"],
    )
    assert (cfg.learner.num_steps, cfg.learner.minibatch_size) == (32, 64)  # PPO's own


def test_output_dir__default_name_is_task_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "so101-paper", *TINY, "--total-timesteps", "32", "--eval-freq", "0"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"so101-paper-\d{8}-\d{6}", folder.name)
    assert (folder / "final_model" / "policy.safetensors").is_file()


@pytest.mark.slow
def test_resume__continues_to_more_steps_and_stores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run")
    assert main(["train", "so101-paper", *TINY, "--total-timesteps", "64", "--output-dir", path]) == 0
    assert main(["train", "--resume", path, "--total-timesteps", "128"]) == 0
    assert "Trained 128 steps" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["total_timesteps"] == 128
    assert len((tmp_path / "run" / "command.txt").read_text().splitlines()) == 2
    assert main(["train", "--resume", path]) == 0  # trains to 128, which is now stored
    assert json.loads((tmp_path / "run" / "training_summary.json").read_text())["steps"] == 128


@pytest.mark.slow
def test_train__signal_in_the_last_iteration_has_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    update, steps = runner.Runner._update, []

    def update_and_stop(runner: Any) -> Any:
        steps.append(runner.progress.step)
        if len(steps) == stop_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(runner)

    monkeypatch.setattr(runner.Runner, "_update", update_and_stop)
    for stop_in, code, message in (
        (2, 0, "Trained 64 steps"),
        (1, 128 + signal.SIGTERM, "Stopped after 32 steps"),
    ):
        steps.clear()
        path = tmp_path / str(stop_in)
        assert (
            main(
                [
                    "train",
                    "so101-paper",
                    *TINY,
                    "--total-timesteps",
                    "64",
                    "--eval-freq",
                    "0",
                    "--output-dir",
                    str(path),
                ]
            )
            == code
        )
        out = capsys.readouterr().out
        assert message in out
        assert ("--resume" in out) == (code != 0)


@pytest.mark.slow
def test_quick__runs_the_whole_pipeline_in_a_minute(tmp_path: Path) -> None:
    """On two idle cores. The test compares CPU seconds with those of a loop, to be independent of the machine
    and its load."""
    path = tmp_path / "run"
    loop = min(cpu_seconds(sys.executable, "-c", "sum(i * i for i in range(10**7))")[0] for _ in range(3))
    command = [
        sys.executable,
        "-m",
        "residual_rl.cli.main",
        "train",
        "so101-paper",
        "--quick",
        "--output-dir",
        str(path),
    ]
    cpu, done = cpu_seconds(*command, env={**os.environ, "COLUMNS": "180"})
    print(f"--quick took {cpu:.1f} CPU seconds, the loop {loop:.2f}")
    assert set(evaluation(path)["policies"]) == {"residual", "base", "zero"}
    assert (path / "report.html").stat().st_size > 10_000
    assert "residual − base" in done.stdout
    assert str(path) in done.stdout
    assert cpu < 75 * loop, (cpu, loop)  # 26 to 39 were measured; 60 s to 0.8 s


# --- eval ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eval__writes_results_report_and_plots_of_a_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    assert main(["eval", str(run), "--n-episodes", "4", "--compare-base", "--compare-zero", "--plot"]) == 0
    found = evaluation(run)
    seeds = [EVAL_SEED + i for i in range(4)]
    assert set(found) == {
        "format_version",
        "task",
        "settings",
        "units",
        "episode_seeds",
        "policies",
        "paired",
    }
    assert (found["format_version"], found["task"], found["episode_seeds"]) == (1, "so101-paper", seeds)
    assert set(found["policies"]) == {"residual", "base", "zero"}
    for policy in found["policies"].values():
        assert set(policy) == METRICS
        for row in policy.values():
            assert set(row) == {"mean", "interval", "n", "per_episode"}
            assert list(row["per_episode"]) == [str(seed) for seed in seeds]
            assert row["mean"] == pytest.approx(sum(row["per_episode"].values()) / 4)
            assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    assert found["policies"]["residual"]["success_once"]["mean"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["policies"]["base"]["residual_magnitude"]["mean"] == 0.0
    assert set(found["paired"]) == {"residual-base"}
    for name, row in found["paired"]["residual-base"].items():
        pair = [found["policies"][policy][name]["mean"] for policy in ("residual", "base")]
        assert row["mean"] == pytest.approx(pair[0] - pair[1], abs=1e-6)
    assert found["units"] == {"dist_to_goal": "m", "yaw_error": "rad"}
    settings = found["settings"]
    assert (settings["n_episodes"], settings["first_seed"], settings["model"], settings["base_policy"]) == (
        4,
        EVAL_SEED,
        "best",
        "jacobian",
    )
    assert settings["changed_from_training"] == {}
    assert (settings["task"]["max_episode_steps"], settings["task"]["randomization"]) == (20, "on")
    assert settings["base"]["damping"] == 0.02
    page = (run / "report.html").read_text()
    assert "src='http" not in page
    assert 'src="http' not in page
    assert "are those of training" in page
    assert list((run / "eval_results").glob("*.png"))
    out = capsys.readouterr().out
    assert "residual − base" in out
    assert str(run) in out.replace("\n", "")


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_eval__results_do_not_depend_on_eval_envs(run: Path) -> None:
    results = []
    for envs in ("1", "3", "100"):
        assert main(["eval", str(run), "--n-episodes", "4", "--model", "final", "--eval-envs", envs]) == 0
        results.append(evaluation(run)["policies"])
    assert results[0] == results[1] == results[2]


@pytest.mark.usefixtures("no_report")
def test_first_seed__seeds_count_up_from_it(run: Path) -> None:
    both = {}
    for first, n in (("77", "4"), ("79", "2")):
        assert main(["eval", str(run), "--n-episodes", n, "--first-seed", first, "--overwrite"]) == 0
        both[first] = evaluation(run)["policies"]["residual"]["return"]["per_episode"]
    assert list(both["77"]) == ["77", "78", "79", "80"]
    assert {seed: both["77"][seed] for seed in ("79", "80")} == both["79"]


@pytest.mark.usefixtures("no_report")
def test_model__name_folder_and_file_are_the_same(run: Path) -> None:
    final = run / "final_model"
    per_episode = []
    for model in ("final", str(final), str(final / "policy.safetensors")):
        assert main(["eval", str(run), "--n-episodes", "2", "--model", model]) == 0
        assert (evaluation(run)["settings"]["model"], evaluation(run)["settings"]["model_step"]) == (
            model,
            128,
        )
        per_episode.append(evaluation(run)["policies"]["residual"]["return"])
    assert per_episode[0] == per_episode[1] == per_episode[2]


@pytest.mark.usefixtures("no_report")
def test_eval__models_folder_selects_its_run(run: Path) -> None:
    found = []
    for arguments in ([str(run), "--model", "final"], [str(run / "final_model")]):
        (run / "eval.json").unlink(missing_ok=True)
        assert main(["eval", *arguments, "--n-episodes", "2"]) == 0
        found.append(evaluation(run))
    assert found[0]["policies"] == found[1]["policies"]
    assert [result["settings"]["model"] for result in found] == ["final", str(run / "final_model")]


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_eval__other_scale_is_executed_and_reported_and_threads_change_nothing(run: Path) -> None:
    results = {}
    for name, flags in {
        "trained": [],
        "threads": ["--num-threads", "2"],
        "none": ["--alpha", "0"],
        "same": ["--alpha", "0.6"],
    }.items():
        assert (
            main(["eval", str(run), "--model", "final", "--n-episodes", "2", "--compare-base", *flags]) == 0
        )
        results[name] = evaluation(run)
    assert results["trained"]["policies"] == results["threads"]["policies"] == results["same"]["policies"]
    assert results["trained"]["policies"]["residual"]["residual_magnitude"]["mean"] > 0.0
    assert results["none"]["policies"]["residual"] == results["none"]["policies"]["base"]
    assert results["none"]["settings"]["residual_scale"] == 0.0
    changes = {name: result["settings"]["changed_from_training"] for name, result in results.items()}
    assert changes == {
        "trained": {},
        "threads": {},
        "none": {"residual.residual_scale": [0.6, 0.0]},
        "same": {},
    }


@pytest.mark.slow
def test_changed_from_training__lists_settings_that_differ(run: Path) -> None:
    changes = [
        "--tolerance",
        "0.01",
        "--base.damping",
        "0.05",
        "--sheet-x",
        "0.21",
        "0.3",
        "--randomization",
        "off",
    ]
    assert main(["eval", str(run), "--n-episodes", "2", *changes, "--compare-base"]) == 0
    assert evaluation(run)["settings"]["changed_from_training"] == {
        "task.tolerance": [0.08, 0.01],
        "task.sheet_x": [[0.2, 0.35], [0.21, 0.3]],
        "task.randomization": ["on", "off"],
        "base.damping": [0.02, 0.05],
    }
    assert evaluation(run)["settings"]["task"]["tolerance"] == 0.01
    page = (run / "report.html").read_text()
    assert "differ from those of training" in page
    assert "task.tolerance = 0.01 (was 0.08)" in page
    returns = evaluation(run)["policies"]["base"]["return"]["per_episode"]
    assert len(set(returns.values())) == 1  # without randomisation every episode is the same


@pytest.mark.slow
def test_eval__base_policy_alone_equals_that_of_compare_base(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--max-episode-steps", "20", "--tolerance", "0.08", "--success-hold-steps", "5"]
    output = tmp_path / "new" / "base.json"
    command = [
        "eval",
        "so101-paper",
        "--base-policy",
        "jacobian",
        "--n-episodes",
        "4",
        "--compare-zero",
        *settings,
    ]
    assert main([*command, "--output", str(output)]) == 0
    assert "Success (once)" in capsys.readouterr().out
    found = json.loads(output.read_text())
    assert set(found["policies"]) == {"base", "zero"}
    assert found["settings"]["base_policy"] == "jacobian"
    assert main(["eval", str(run), "--n-episodes", "4", "--compare-base", "--output", str(output)]) == 0
    assert evaluation(run)["policies"]["base"] == found["policies"]["base"]
    assert json.loads(output.read_text()) == evaluation(run)


def test_eval__expert_type_selects_the_base_policy(tmp_path: Path) -> None:
    output = tmp_path / "zero.json"
    command = [
        "eval",
        "so101-paper",
        "--expert-type",
        "zero",
        "--n-episodes",
        "2",
        "--max-episode-steps",
        "5",
        "--output",
        str(output),
    ]
    assert main(command) == 0
    found = json.loads(output.read_text())
    assert (found["settings"]["base_policy"], found["settings"]["base"]) == ("zero", None)
    assert found["policies"]["base"]["action_change"]["mean"] == 0.0


@pytest.mark.slow
@pytest.mark.skipif(not has_gl(), reason="needs an OpenGL library")
def test_save_video__has_every_step_of_base_and_residual(run: Path) -> None:
    from imageio_ffmpeg import count_frames_and_secs

    arguments = [
        "--n-episodes",
        "2",
        "--video-episodes",
        "1",
        "--save-video",
        "--first-seed",
        "5",
        "--tolerance",
        "0.001",
    ]
    assert main(["eval", str(run), *arguments]) == 0
    frames, seconds = count_frames_and_secs(str(run / "video.mp4"))
    # 20 steps, and 0.7 s of the end, at 30.3 Hz.
    assert frames == 20 + 21
    assert seconds == pytest.approx(frames / 30.303, rel=0.02)
    assert 'src="video.mp4"' in (run / "report.html").read_text()
    (run / "video.mp4").unlink()


# --- exit codes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train"],
        ["eval"],
        ["train", "--resume"],
        ["train", "so101-paper", "--no-such-flag"],
        ["train", "so101-paper", "--num-envs"],
        ["train", "so101-paper", "--num-envs", "many"],
        ["train", "so101-paper", "--learning-rate", "fast"],
        ["train", "so101-paper", "--curriculum", "sometimes"],
        ["train", "so101-paper", "--sheet-x", "0.2"],
        ["train", "so101-paper", "--base-policy"],
        ["train", "so101-paper", "so101-paper-precise"],
        ["train", "so101-paper", "--base-policy", "zero", "--base.damping", "0.1"],
        ["train", "--resume", "somewhere", "--num-envs", "4"],
        ["eval", "so101-paper", "--n-episodes", "few"],
        ["list", "everything"],
    ],
    ids=" ".join,
)
def test_main__usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err or not arguments
    assert "Traceback" not in captured.err
