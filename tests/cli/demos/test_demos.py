"""`residual-rl demos`: output, files and exit codes of its subcommands, and interruptions."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cli_help import documented, help_of
from demo_files import INFO, a_demo, maniskill, write
from foreign_demos import BOX, minari
from imageio_ffmpeg import count_frames_and_secs
from tiny_runs import Fails

from residual_rl.cli.demos import SUBCOMMANDS
from residual_rl.cli.demos.collect import CollectFlags
from residual_rl.cli.demos.info import InfoFlags
from residual_rl.cli.demos.replay import ReplayFlags
from residual_rl.cli.main import main
from residual_rl.demos.collect import CollectCfg
from residual_rl.demos.reader import Demonstrations
from residual_rl.registry import TASKS
from residual_rl.utils.seeding import DEMO_SEED

TASK = ["--max-episode-steps", "20", "--tolerance", "0.08", "--success-hold-steps", "5"]
TINY = [*TASK, "--num-threads", "1"]


def collect(path: Path, *flags: str, n: int = 6) -> int:
    return main(
        [
            "demos",
            "collect",
            "so101-paper",
            *TINY,
            "--n-episodes",
            str(n),
            "--num-envs",
            "4",
            "--out",
            str(path),
            *flags,
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "x.h5"
    assert collect(path, "--noise", "0.3") == 0
    return path


def words(capsys: pytest.CaptureFixture[str]) -> str:
    """The printed text without the lines of tables."""
    return " ".join(capsys.readouterr().out.translate({ord(c): " " for c in "│┃━─┏┓┗┛└┘├┤┡┩╇┼┴┳╰╯"}).split())


# --- collect ------------------------------------------------------------------------------------------------


def test_collect__stores_episodes_of_the_oracle(made: Path) -> None:
    with Demonstrations(made) as demos:
        info = demos.info
        episodes = list(demos)
        assert (demos.task_id, demos.task_settings["tolerance"], demos.action_dim) == ("so101-paper", 0.08, 6)
        assert demos.obs_shapes["state"] == (25,)
    assert [demo.seed for demo in episodes] == list(range(DEMO_SEED, DEMO_SEED + 6))
    assert max(map(len, episodes)) <= 20
    assert info["policy"] == {
        "base_policy": TASKS.get("so101-paper").oracle,
        "base": info["policy"]["base"],
        "residual": None,
    }
    assert info["collected"] == {
        "only_success": False,
        "noise": 0.3,
        "noise_correlation": 0.9,
        "first_seed": DEMO_SEED,
    }
    assert info["env_info"]["max_episode_steps"] == 20
    assert (info["action_unit"], info["action_unit_name"]) == ([pytest.approx(0.02)] * 6, "rad")
    assert [episode["control_mode"] for episode in info["episodes"]] == ["joint_delta"] * 6
    demo = episodes[0]
    assert set(demo.draws) >= {"start_position", "start_yaw", "friction_scale"}
    assert demo.env_states["mujoco"].shape[0] == 1
    assert np.abs(demo.actions - demo.intended_actions).max() > 0.1  # type: ignore[operator]
    assert np.array_equal(demo.intended_actions, demo.base_actions)  # type: ignore[arg-type]
    assert demo.residual_actions is None
    assert json.loads(made.with_suffix(".json").read_text()) == info


def test_collect__prints_size_and_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(tmp_path / "x.h5", "--policy", "jacobian", "--first-seed", "3", n=5) == 0
    with Demonstrations(tmp_path / "x.h5") as demos:
        solved = sum(bool(demo.succeeded) for demo in demos)
        assert [demo.seed for demo in demos] == [3, 4, 5, 6, 7]
        assert demos.info["policy"]["base_policy"] == "jacobian"
    size = (tmp_path / "x.h5").stat().st_size / 1e6
    assert words(capsys).startswith(
        f"{tmp_path / 'x.h5'} contains 5 episodes ({size:.1f} MB); {solved} of 5 episodes succeeded; "
    )


@pytest.mark.parametrize("folder", ["", "final_model"])
def test_collect__stores_residual_actions_of_a_run(run: Path, folder: str, tmp_path: Path) -> None:
    flags = ["--model", "final"] if not folder else []
    assert collect(tmp_path / "x.h5", "--policy", str(run / folder), *flags, n=3) == 0
    with Demonstrations(tmp_path / "x.h5") as demos:
        assert demos.info["source_type"] == "rl"
        assert demos.info["policy"]["base_policy"] == "jacobian"
        scale = demos.info["policy"]["residual"]["residual_scale"]
        for demo in demos:
            assert demo.residual_actions is not None
            expected = (demo.base_actions + np.float32(scale) * demo.residual_actions).clip(-1, 1)
            assert demo.actions == pytest.approx(expected, abs=1e-6)


def test_only_success__too_few_successes_write_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("residual_rl.demos.collect.MAX_TRIES", 3)
    flags = ["--only-success", "--policy", "zero", "--tolerance", "0.0001"]
    assert collect(tmp_path / "x.h5", *flags, n=2) == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert (
        message
        == "residual-rl: error: 0 of 6 episodes succeeded, and 2 were requested: nothing was written; use a"
        " better --policy or less --noise"
    )
    assert list(tmp_path.iterdir()) == []


def test_collect__wrong_arguments_fail_in_one_line(
    fails: Fails, made: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("demos", "collect", "so101-paper", *TINY)
    assert f"{made} already exists; choose another --output, or replace it with --overwrite" in fails(
        *start, "--out", made
    )
    assert "must end in .h5 or .hdf5" in fails(*start, "--out", tmp_path / "x")
    assert "unknown base policy 'jacobean'; did you mean 'jacobian'" in fails(*start, "--policy", "jacobean")
    assert "unknown task 'so101'" in fails("demos", "collect", "so101", "--policy", "zero")
    assert "demos collect needs a task id" in fails("demos", "collect", "--n-episodes", "3")
    assert "noise must be at least 0, not -1.0" in fails(*start, "--noise", "-1", "--out", tmp_path / "x.h5")
    assert "was trained on task 'so101-paper'" in fails(
        "demos", "collect", "so101-paper-precise", "--policy", run
    )
    assert f"{run} has best, final" in fails(*start, "--policy", run, "--model", "beast")
    assert f"{tmp_path} has no model yet" in fails(*start, "--policy", tmp_path)
    assert "unknown subcommand of demos 'colect'; did you mean 'collect'" in fails("demos", "colect")
    monkeypatch.setitem(
        TASKS._specs,
        "hard",
        TASKS.get("so101-paper").__class__(**{**vars(TASKS.get("so101-paper")), "oracle": None}),
    )
    assert "task 'hard' has no oracle" in fails("demos", "collect", "hard")
    assert list(tmp_path.glob("*.h5")) == []


@pytest.mark.usefixtures("opengl")
def test_collect__stores_observed_images(tmp_path: Path) -> None:
    size = ("--image-size", "16", "24")
    assert (
        collect(
            tmp_path / "x.h5",
            "--obs-mode",
            "rgb",
            "--obs-cameras",
            "top",
            *size,
            "--max-episode-steps",
            "3",
            n=2,
        )
        == 0
    )
    with Demonstrations(tmp_path / "x.h5") as demos:
        demo = demos.episode(0)
    assert "state" not in demo.obs
    assert (demo.obs["top"].shape, demo.obs["top"].dtype) == ((4, 16, 24, 3), np.uint8)
    assert demo.obs["top"].std() > 10
    assert main(["demos", "replay", str(tmp_path / "x.h5"), "--num-threads", "1"]) == 0


# --- info ---------------------------------------------------------------------------------------------------


def test_info__prints_a_summary_of_the_file(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["demos", "info", str(made)]) == 0
    text = words(capsys)
    with Demonstrations(made) as demos:
        episodes = list(demos)
    steps, solved = [len(demo) for demo in episodes], sum(bool(demo.succeeded) for demo in episodes)
    low, high = (
        min(float(demo.actions.min()) for demo in episodes),
        max(float(demo.actions.max()) for demo in episodes),
    )
    for part in (
        "task so101-paper (as residual-rl stores it)",
        "policy base policy 'jacobian-yaw'",
        f"episodes 6, {sum(steps)} steps",
        f"success {solved} of 6 ({100 * solved / 6:.1f} %)",
        f"steps per episode {min(steps)} to {max(steps)}, median {sorted(steps)[3]}",
        "state [25]",
        f"actions [6], from {low:.3g} to {high:.3g}",
        "also stored base_actions, intended_actions, rewards, draws, env_states",
        "noise 0.3, correlation 0.9",
    ):
        assert part in text
    assert str(DEMO_SEED) not in text
    assert main(["demos", "info", str(made), "--episodes"]) == 0
    text = words(capsys)
    for i, demo in enumerate(episodes):
        assert f"{i} {demo.seed} {len(demo)} {'yes' if demo.succeeded else 'no'}" in text


def test_info__control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    escape = "\x1b]0;title\x07"
    space = {"type": "Dict", "subspaces": {f"x{escape}": BOX}}
    observations = {f"x{escape}": np.zeros((4, 2))}
    file = minari(tmp_path / "x", observations, space, env_spec=json.dumps({"id": f"Counter{escape}-v0"}))
    assert main(["demos", "info", str(file)]) == 0
    printed = words(capsys)
    assert "\x1b" not in printed
    assert r"Counter\x1b]0;title\x07-v0" in printed


def test_info__reads_a_file_of_maniskill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["demos", "info", str(maniskill(tmp_path / "x.h5"))]) == 0
    text = words(capsys)
    assert (
        "task PushCube-v1 (as ManiSkill stores it) policy unknown episodes 2, 6 steps success 1 of 2 (50.0 %)"
        in text
    )
    assert "observations state [35] actions [8], from 0.5 to 0.5 also stored env_states noise unknown" in text


# --- replay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--episodes", "4", "1"], ["--num-envs", "4", "--num-threads", "1"]])
def test_replay__does_not_drift_on_the_same_machine(
    made: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demos", "replay", str(made), *flags]) == 0
    n = 2 if "--episodes" in flags else 6
    assert words(capsys).endswith(f"{n} of {n} episodes end as stored; largest drift 0")


def test_replay__reports_drift_and_other_outcomes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored success of the first episode is inverted; in the third observation of the second episode, a
    joint is off by 0.5 rad."""
    monkeypatch.setenv("COLUMNS", "200")
    with Demonstrations(made) as demos:
        info = {key: value for key, value in demos.info.items() if key != "episodes"}
        episodes = [demos.episode(i) for i in range(2)]
    episodes[0].success = np.array([not episodes[0].succeeded] * len(episodes[0]))
    episodes[1].obs["joint_position"][2, 4] += 0.5
    path = write(tmp_path / "x.h5", episodes, info)
    assert main(["demos", "replay", str(path)]) == 1
    text = words(capsys)
    assert "1 of 2 episodes end as stored; largest drift 0.5 (joint_position, step 2)" in text
    assert f"0 {DEMO_SEED} {len(episodes[0])} {'yes' if episodes[0].succeeded else 'no'}" in text
    assert main(["demos", "replay", str(path), "--episodes", "1"]) == 0  # it drifts, but ends in the same way


def test_replay__without_seeds_starts_from_the_stored_draws(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Demonstrations(made) as demos:
        info = {key: value for key, value in demos.info.items() if key != "episodes"}
        episodes = [demos.episode(i) for i in range(4)]
    for demo in episodes:
        demo.seed = None
    episodes[2].draws.pop("start_yaw")
    episodes[2].success = episodes[3].success = None
    episodes[3].draws.clear()
    path = write(tmp_path / "x.h5", episodes, info)
    assert main(["demos", "replay", str(path), "--episodes", "0", "1"]) == 0
    assert words(capsys).endswith("2 of 2 episodes end as stored; largest drift 0")
    assert "2 of 2 episodes have no seed of their own: what is not stored of their start" in caplog.text
    # Their stored success is unknown.
    assert main(["demos", "replay", str(path), "--episodes", "2", "3"]) == 0
    assert "0 of 0 episodes end as stored; largest drift 0." in words(capsys)


def test_replay__wrong_arguments_and_files_fail_in_one_line(
    fails: Fails, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "demos replay needs a file of demonstrations: residual-rl demos replay FILE [options]" in fails(
        "demos", "replay"
    )
    assert "has the episodes 0 to 5, not 6" in fails("demos", "replay", made, "--episodes", "6")
    assert "num_envs must be from 1 to 1048576, not 0" in fails("demos", "replay", made, "--num-envs", "0")
    assert "does not exist; expected demonstrations" in fails("demos", "replay", tmp_path / "x.h5")
    assert "pip install residual-rl[maniskill]" in fails("demos", "replay", maniskill(tmp_path / "m.h5"))
    task = {**INFO["env_info"], "env_id": "so101-paper", "env_kwargs": {}}
    path = write(tmp_path / "two.h5", [a_demo()], {**INFO, "env_info": task})
    assert "has actions of size 2, but those of task 'so101-paper' have size 6" in fails(
        "demos", "replay", path
    )
    with Demonstrations(made) as demos:
        info, demo = {key: value for key, value in demos.info.items() if key != "episodes"}, demos.episode(0)
    demo.draws["colour"] = np.zeros(3)
    assert "unknown draw of an episode 'colour'" in fails(
        "demos", "replay", write(tmp_path / "colour.h5", [demo], info)
    )
    demo.draws.pop("colour")
    demo.obs["lidar"] = np.zeros((len(demo) + 1, 4))
    assert main(["demos", "replay", str(write(tmp_path / "lidar.h5", [demo], info))]) == 0
    assert "the task does not observe lidar, so they are not compared" in caplog.text
    with h5py.File(made.parent / "cut.h5", "w") as file:
        file["traj_0/obs"] = np.zeros((3, 2))
    assert "cut.json is missing" in fails("demos", "info", made.parent / "cut.h5")


@pytest.mark.slow
@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("name", ["", "v.mp4"])
def test_replay__save_video_writes_all_replayed_steps(made: Path, name: str, tmp_path: Path) -> None:
    video = tmp_path / name if name else made.with_suffix(".mp4")
    flags = ["--save-video", str(video)] if name else ["--save-video"]
    assert main(["demos", "replay", str(made), *flags, "--episodes", "0", "2"]) == 0
    with Demonstrations(made) as demos:
        steps = sum(len(demos.episode(i)) for i in (0, 2))
        end = round(0.7 * demos.info["env_info"]["control_hz"])
    assert count_frames_and_secs(str(video))[0] == steps + 2 * end
    video.unlink()


# --- help ---------------------------------------------------------------------------------------------------


def test_demos__help_lists_all_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["demos", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SUBCOMMANDS)
    assert main(["demos"]) == 2
    text = help_of(["demos", "collect", "so101-paper"], capsys, monkeypatch)
    for name in [*documented(CollectFlags), *documented(CollectCfg), "tolerance", "base.stir_period"]:
        assert f"--{name.replace('_', '-')}" in text, name
    for subcommand, flags in (("info", InfoFlags), ("replay", ReplayFlags)):
        assert all(
            f"--{name.replace('_', '-')}" in help_of(["demos", subcommand, "x.h5"], capsys, monkeypatch)
            for name in documented(flags)
        )
        assert f"residual-rl demos {subcommand} FILE" in help_of(["demos", subcommand], capsys, monkeypatch)


# --- interruptions ------------------------------------------------------------------------------------------


def start(path: Path, processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Start a collection that would take hours, and wait for its first episodes."""
    flags = [
        "demos",
        "collect",
        "so101-paper",
        *TINY,
        "--n-episodes",
        "1000000",
        "--num-envs",
        "4",
        "--out",
        str(path),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "residual_rl.cli.main", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(process)
    wait_for(path.exists, process)
    return process


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def stored(path: Path) -> list[int | None]:
    with Demonstrations(path) as demos:
        return [demo.seed for demo in demos]


def messages(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("collect: ")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_collect__signal_keeps_the_complete_episodes(
    tmp_path: Path, number: signal.Signals, code: int, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "x.h5"
    process = start(path, processes)
    time.sleep(1.0)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    seeds = stored(path)
    (line,) = messages(stderr)
    assert line.startswith("residual-rl: interrupted; ")
    assert line.endswith(f"of {len(seeds)} episodes succeeded, {path} contains {len(seeds)} episodes")
    assert seeds == sorted(set(seeds))  # type: ignore[type-var]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.h5", "x.json"]


@pytest.mark.slow
def test_collect__sigkill_leaves_a_file_that_replays(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "x.h5"
    process = start(path, processes)
    wait_for(lambda: len(stored(path)) > 4, process)
    process.kill()
    process.communicate()
    seeds = stored(path)
    assert seeds == list(range(DEMO_SEED, DEMO_SEED + len(seeds)))
    assert main(["demos", "replay", str(path), "--episodes", "0", str(len(seeds) - 1)]) == 0


@pytest.mark.slow
def test_collect__full_disk_ends_it_with_one_line(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "x.h5"
    process = start(path, processes)
    resource.prlimit(
        process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = messages(stderr)
    assert line.startswith(f"residual-rl: error: cannot write {path}: File too large; ")
    seeds = stored(path)
    assert seeds == list(range(DEMO_SEED, DEMO_SEED + len(seeds)))
    assert len(seeds) > 4
