"""Demonstrations of ManiSkill tasks: motion planning, action conversion, and use of the files."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_files import INFO
from maniskill_case import bare

from residual_rl.cli.main import main
from residual_rl.demos.collect import CollectCfg, collect_planned
from residual_rl.demos.episode import Demo, FailedEpisode
from residual_rl.demos.maniskill_planner import MotionPlanning, make
from residual_rl.demos.reader import Demonstrations
from residual_rl.demos.replay import make_env, replay
from residual_rl.demos.writer import DemoWriter
from residual_rl.errors import ConfigError, MissingDependencyError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.utils.seeding import DEMO_SEED

pytestmark = pytest.mark.maniskill

PLAN = ["demos", "collect", "maniskill", "--policy", "motion-planning", "--num-threads", "1"]
PUSH = ["--env-id", "PushCube-v1", "--control-mode", "pd_ee_delta_pose", "--max-episode-steps", "80"]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of PushCube-v1, planned and converted."""
    path = tmp_path_factory.mktemp("demos") / "push.h5"
    assert main([*PLAN, *PUSH, "--n-episodes", "2", "--only-success", "--out", str(path)]) == 0
    return path


@pytest.fixture
def planner() -> Iterator[MotionPlanning]:
    planner = MotionPlanning(ManiSkillCfg("PickCube-v1"), 1, time_limit=300.0)
    yield planner
    planner.close()


def never() -> bool:
    return False


def check_in_maniskill(demo: Demo, env: Any) -> None:
    """Replay an episode in a ManiSkill env of the same control mode, and compare it with the stored one."""
    state, _ = env.reset(seed=demo.seed)
    assert demo.rewards is not None
    assert demo.success is not None
    for t, action in enumerate(demo.actions):
        assert np.allclose(demo.obs["state"][t], torch.as_tensor(state)[0], atol=1e-5)
        state, reward, _, _, info = env.step(torch.from_numpy(action)[None])
        assert float(reward) == pytest.approx(float(demo.rewards[t]), abs=1e-4)
        assert bool(info["success"]) == bool(demo.success[t])
    assert np.allclose(demo.obs["state"][-1], torch.as_tensor(state)[0], atol=1e-5)
    env.close()


# --- planned episodes ---------------------------------------------------------------------------------------


def test_motion_planning__converted_episodes_replay_in_maniskill(pushed: Path) -> None:
    with Demonstrations(pushed) as demos:
        info, episodes = demos.info, list(demos)
    assert (info["env_info"]["env_id"], info["source_type"]) == ("maniskill", "motion-planning")
    settings = info["env_info"]["env_kwargs"]
    assert (settings["env_id"], settings["control_mode"], settings["max_episode_steps"]) == (
        "PushCube-v1",
        "pd_ee_delta_pose",
        80,
    )
    # the hand of the Panda moves by 0.1 m or rad; its fingers from -0.01 to 0.04 m
    assert info["action_unit"] == pytest.approx([0.1] * 6 + [0.025])
    assert info["action_unit_name"] == "m"
    assert len(episodes) == 2
    for demo in episodes:
        assert demo.seed is not None
        assert demo.seed >= DEMO_SEED
        assert demo.success is not None
        assert demo.success.sum() == demo.success[-1] == 1  # it ends at success
        assert demo.terminated.tolist() == demo.success.tolist()
        assert not demo.truncated.any()
        assert 50 < len(demo) < 80  # more than the limit of the task
        check_in_maniskill(demo, bare("PushCube-v1", control_mode="pd_ee_delta_pose"))


def test_motion_planning__stores_all_observations_of_the_env(pushed: Path) -> None:
    with Demonstrations(pushed) as demos:
        env, demo = make_env(demos, 1, 1), next(iter(demos))
    obs, _ = env.reset(seed=demo.seed)
    assert set(demo.obs) == set(obs)
    assert "relative_poses" in obs
    for t, action in enumerate(demo.actions[:5]):
        for name, value in obs.items():
            assert np.array_equal(demo.obs[name][t], value[0].numpy()), name
        obs, *_ = env.step(torch.from_numpy(action)[None])
    env.close()


def test_demos_replay__reproduces_planned_episodes(pushed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demos", "replay", str(pushed), "--num-threads", "1"]) == 0
    assert "2 of 2 episodes end as stored; largest drift 0" in capsys.readouterr().out
    assert main(["demos", "info", str(pushed)]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--control-mode pd_ee_delta_pose --max-episode-steps 80" in text
    assert "2 of 2 (100.0 %)" in text


@pytest.mark.parametrize(("mode", "size"), [("pd_joint_delta_pos", 8), ("pd_joint_pos", 8)])
def test_motion_planning__solves_pick_cube_in_joint_control_modes(mode: str, size: int) -> None:
    """Plans are in `pd_joint_pos`; the other mode is converted."""
    planner = MotionPlanning(ManiSkillCfg("PickCube-v1", control_mode=mode), 1, time_limit=300.0)
    assert planner.task == ManiSkillCfg("PickCube-v1", control_mode=mode, max_episode_steps=200)
    (demo,) = planner.episodes([DEMO_SEED], never)
    planner.close()
    assert isinstance(demo, Demo)
    assert demo.actions.shape == (len(demo), size)
    assert np.abs(demo.actions).max() <= 1.0
    assert demo.succeeded
    if mode != "pd_joint_pos":  # ManiSkill's actions of that mode are in radians
        check_in_maniskill(demo, bare("PickCube-v1", control_mode=mode))


def test_motion_planning__truncates_episodes_at_max_episode_steps() -> None:
    planner = MotionPlanning(ManiSkillCfg("PickCube-v1", max_episode_steps=7), 1, time_limit=300.0)
    (demo,) = planner.episodes([DEMO_SEED], never)
    planner.close()
    assert isinstance(demo, Demo)
    assert demo.truncated.tolist() == [False] * 6 + [True]
    assert not demo.terminated.any()
    assert demo.succeeded is False


# --- failures -----------------------------------------------------------------------------------------------


def test_planner_pool__killed_process_fails_its_episode_only(planner: MotionPlanning, tmp_path: Path) -> None:
    num_calls = 0

    def kill_worker() -> bool:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:  # during the first episode
            os.kill(planner._workers.pids[0], signal.SIGKILL)
        return False

    with DemoWriter(tmp_path / "x.h5", INFO) as writer:
        collected = collect_planned(planner, CollectCfg(n_episodes=1), writer, stopped=kill_worker)
    assert collected.ran == 2
    assert collected.failed == [FailedEpisode(DEMO_SEED, "the planning process was killed by SIGKILL")]
    with Demonstrations(tmp_path / "x.h5") as demos:
        assert [demo.seed for demo in demos] == [DEMO_SEED + 1]


def test_planner_pool__fails_an_episode_after_the_time_limit() -> None:
    planner = MotionPlanning(ManiSkillCfg("PickCube-v1"), 1, time_limit=0.02)
    assert list(planner.episodes([DEMO_SEED], never)) == [
        FailedEpisode(DEMO_SEED, "planning took more than 0.02 s")
    ]
    planner.close()


def test_collect_planned__keeps_complete_episodes_when_stopped(
    planner: MotionPlanning, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    with DemoWriter(path, INFO) as writer:
        collected = collect_planned(
            planner, CollectCfg(n_episodes=5), writer, stopped=lambda: writer.num_episodes == 1
        )
    assert collected.ran == 1
    with Demonstrations(path) as demos:
        assert [demo.seed for demo in demos] == [DEMO_SEED]
    pids = planner._workers.pids
    planner.close()
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


def test_motion_planning__unsupported_setting_is_named_in_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLAN, "--env-id", "PokeCube-v1", "--out", str(tmp_path / "x.h5")]) == 2
    error = capsys.readouterr().err
    assert "'PokeCube-v1'" in error
    assert "known: DrawSVG-v1, DrawTriangle-v1, LiftPegUpright-v1, PegInsertionSide-v1," in error
    with pytest.raises(ConfigError, match="unknown robot with motion planning solutions 'fetch'"):
        make(ManiSkillCfg("PickCube-v1", robot_uids="fetch"), 1, 10.0)
    with pytest.raises(ConfigError, match=r"pd_joint_delta_pos_vel.*known: pd_ee_delta_pos,"):
        make(ManiSkillCfg("PickCube-v1", control_mode="pd_joint_delta_pos_vel"), 1, 10.0)
    with pytest.raises(ConfigError, match="leave out --sim-backend"):
        make(ManiSkillCfg("PickCube-v1", sim_backend="physx_cuda"), 1, 10.0)
    assert main([*PLAN, "--env-id", "PickCube-v1", "--noise", "0.1", "--out", str(tmp_path / "x.h5")]) == 2
    assert "leave out --noise" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_require_planner__error_has_the_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name == "mplib" else find(name, *more)
        )
        assert main([*PLAN, "--env-id", "PickCube-v1"]) == 2
    assert "pip install mplib==0.1.1 'numpy<2'" in capsys.readouterr().err
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(MissingDependencyError, match=r"2\.1\.0.*pip install 'numpy<2'"):
        make(ManiSkillCfg("PickCube-v1"), 1, 10.0)


# --- use of the files ---------------------------------------------------------------------------------------


def test_imitate__trains_and_evaluates_a_policy_on_planned_episodes(
    pushed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "bc"
    tiny = [
        "--algo",
        "bc",
        "--total-steps",
        "4",
        "--batch-size",
        "8",
        "--hidden-sizes",
        "8",
        "--eval-freq",
        "4",
        "--eval-episodes",
        "2",
    ]
    assert (
        main(["imitate", str(pushed), *tiny, "--val-share", "0", "--num-threads", "1", "--out", str(run)])
        == 0
    )
    output = capsys.readouterr().out
    line = f"residual-rl eval maniskill {' '.join(PUSH[2:])} --base-policy il --il-checkpoint {run}"
    assert line in output  # PushCube-v1 is the task's default
    il = [
        "--base-policy",
        "il",
        "--il-checkpoint",
        str(run),
        "--num-threads",
        "1",
        "--eval-envs",
        "2",
        "--n-episodes",
        "2",
    ]
    assert main(["eval", "maniskill", *PUSH, *il]) == 0
    capsys.readouterr()
    assert main(["eval", "maniskill", "--env-id", "PushCube-v1", *il]) == 2
    error = capsys.readouterr().err
    assert "pd_ee_delta_pose, but this env has pd_joint_delta_pos: " in error
    assert "--control-mode pd_ee_delta_pose" in error


def test_demonstrations__replays_a_file_written_by_maniskill(tmp_path: Path) -> None:
    from mani_skill.utils.wrappers import RecordEpisode

    theirs = RecordEpisode(
        bare("PickCube-v1", control_mode="pd_ee_delta_pos"),
        str(tmp_path),
        trajectory_name="trajectory",
        save_video=False,
    )
    theirs.reset(seed=5)
    for _ in range(4):
        theirs.step(torch.tensor([[0.5, -0.5, -1.0, 1.0]]))
    theirs.close()
    with Demonstrations(tmp_path / "trajectory.h5") as demos:
        assert demos.task_settings["env_id"] == "PickCube-v1"
        env = make_env(demos, 1, 1)
        (result,) = replay(env, demos, [0])
        env.close()
    assert (result.seed, result.steps, result.success, result.reproduced) == (5, 4, False, True)
    assert result.drift.value < 1e-5


def test_demonstrations__episodes_without_a_seed_start_in_the_stored_state(tmp_path: Path) -> None:
    from mani_skill.utils.wrappers import RecordEpisode

    theirs = RecordEpisode(
        bare("PickCube-v1", control_mode="pd_joint_target_delta_pos"), str(tmp_path), save_video=False
    )
    for seed in (5, 6):
        theirs.reset(seed=seed)
        for _ in range(4):
            theirs.step(torch.tensor([[0.5, -0.5, -1.0, 1.0, 0.5, -0.5, 1.0, -1.0]]))
    theirs.close()
    (path,) = tmp_path.glob("*.h5")
    side = path.with_suffix(".json")
    document = json.loads(side.read_text())
    for episode in document["episodes"]:
        episode["episode_seed"] = [1, 2, 3]  # as of envs that were reset together
    side.write_text(json.dumps(document))
    with Demonstrations(path) as demos:
        assert demos.seed(0) is None
        env = make_env(demos, 2, 1)
        results = list(replay(env, demos, [0, 1]))
        for result in results:
            assert result.start.value < 1e-5
            assert result.drift.value < 1e-4
        with pytest.raises(ConfigError, match=r"not those of PickCube-v1 with robot panda: actors/"):
            env.reset(seed=0, options={"env_states": {}})
        env.close()


def test_demos_collect__collects_episodes_of_a_base_policy(tmp_path: Path) -> None:
    path = tmp_path / "zero.h5"
    flags = [
        "--policy",
        "zero",
        "--n-episodes",
        "3",
        "--num-envs",
        "2",
        "--num-threads",
        "1",
        "--max-episode-steps",
        "5",
    ]
    assert main(["demos", "collect", "maniskill", "--env-id", "PushCube-v1", *flags, "--out", str(path)]) == 0
    with Demonstrations(path) as demos:
        assert [(demo.seed, len(demo), demo.succeeded) for demo in demos] == [
            (DEMO_SEED + i, 5, False) for i in range(3)
        ]
        assert not any(demo.actions.any() for demo in demos)
        # the default of the robot
        assert demos.task_settings["control_mode"] == "pd_joint_delta_pos"
    assert main(["demos", "replay", str(path), "--num-threads", "1"]) == 0


def test_train_demos__rejects_demonstrations_of_another_env_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ik.h5"
    few = ["--num-envs", "2", "--num-threads", "1", "--max-episode-steps", "50"]
    assert (
        main(
            [
                "demos",
                "collect",
                "maniskill",
                "--env-id",
                "PushCube-v1",
                "--policy",
                "ik",
                "--n-episodes",
                "2",
                *few,
                "--out",
                str(path),
            ]
        )
        == 0
    )
    learn = [
        "--learner",
        "sac",
        "--demos",
        str(path),
        "--demo-share",
        "0.5",
        "--eval-freq",
        "0",
        "--total-timesteps",
        "8",
        *few,
    ]
    assert (
        main(
            ["train", "maniskill", "--env-id", "PullCube-v1", *learn, "--output-dir", str(tmp_path / "pull")]
        )
        != 0
    )
    assert "env_id 'PushCube-v1' (here 'PullCube-v1')" in capfd.readouterr().err
    assert not (tmp_path / "pull").exists()
    assert (
        main(
            ["train", "maniskill", "--env-id", "PushCube-v1", *learn, "--output-dir", str(tmp_path / "push")]
        )
        == 0
    )
    # the default control mode is the same
    assert "other settings" not in capfd.readouterr().err
