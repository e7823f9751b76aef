"""Learning on a robot: the control loop, interventions, outcomes, resuming, and the learner's process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import il_case
import numpy as np
import pytest
import torch
from fake_arm import FakeArm
from robot_runs import SIMULATED, TINY, Script, config, make_runner, pushes, train_robot
from tiny_runs import different, last_state, metric_rows

from residual_rl.config import SafetyLimitsCfg, TrainCfg, replace_fields
from residual_rl.deployment import learner_process
from residual_rl.deployment.arm_cfg import GuardCfg
from residual_rl.deployment.guarded_arm import GuardedArm
from residual_rl.deployment.learning_cfg import RobotCfg
from residual_rl.deployment.operators import Signals
from residual_rl.deployment.pose_source import BackgroundPoseSource
from residual_rl.deployment.robot_progress import RobotProgress
from residual_rl.deployment.training_arm import TrainingArm, make_training_arm
from residual_rl.errors import ArmError, CheckpointError, ConfigError, LearnerError, NonFiniteError
from residual_rl.evaluation.deployment import Deployment
from residual_rl.exported_policy import find_policy
from residual_rl.robots.arm_driver import Pose
from residual_rl.robots.safety_limits import SafetyLimits
from residual_rl.runs.checkpoint import CheckpointFolder
from residual_rl.runs.logger import read_metrics
from residual_rl.types import Transition


def watched(runner: Any) -> list[Transition]:
    """The transitions that the learner is given from now on."""
    seen: list[Transition] = []
    observe = runner.learning.observe

    def record(transition: Transition) -> None:
        seen.append(transition)
        observe(transition)

    runner.learning.observe = record
    return seen


def test_robot_runner__equal_seeds_give_equal_runs_in_simulated_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_robot(tmp_path / name, pushes(3, 4, 25))
    assert different(last_state(tmp_path / "a"), last_state(tmp_path / "b")) == []
    assert metric_rows(tmp_path / "a") == metric_rows(tmp_path / "b")


def test_robot_runner__a_resumed_run_equals_an_uninterrupted_one_in_simulated_time(tmp_path: Path) -> None:
    """Stopped in the second episode, which is then repeated as a whole."""
    train_robot(tmp_path / "whole")
    runner, summary = train_robot(tmp_path / "parts", Script({25: Signals(stop=True)}))
    assert not summary["finished"]
    assert summary["episodes"] == runner.progress.episodes == 1
    train_robot(tmp_path / "parts", resume=True)
    assert different(last_state(tmp_path / "whole"), last_state(tmp_path / "parts")) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "parts")


def test_robot_runner__stores_the_residual_target_of_an_intervention(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, pushes(2, 3))
    seen = watched(runner)
    runner.learn()
    assert [i for i, one in enumerate(seen) if bool(one.intervention)] == [2, 3]
    one, scale = seen[2], 0.6
    person = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(one.action, person)
    assert torch.equal(one.residual_action, ((person - one.base_action) / scale).clamp(-1.0, 1.0))
    # the demonstrations have these steps, and the window of the last one ends there
    demos = runner.learner.demonstrations  # type: ignore[attr-defined]
    assert len(demos) == 2
    assert torch.equal(demos.newest("action", 2)[:, 0], person.expand(2, -1))
    assert demos.newest("truncated", 2).flatten().tolist() == [False, True]
    assert runner.progress.interventions == 1
    assert runner.progress.intervened_steps == 2


def test_robot_runner__queries_the_base_policy_anew_after_an_intervention(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, pushes(2, 3), cfg=config(total_timesteps=20))
    dropped: list[int] = []
    drop = runner.env.base_policy.drop_chunks

    def record(mask: Any) -> None:
        dropped.append(runner.episode.steps)
        drop(mask)

    runner.env.base_policy.drop_chunks = record  # type: ignore[method-assign]
    runner.learn()
    assert dropped == [2, 3]


@pytest.mark.parametrize(
    ("signals", "terminated", "success", "reward"),
    [(Signals(success=True), True, True, 10.0), (Signals(end=True), False, False, 0.0)],
)
def test_robot_runner__an_operator_ends_an_episode(
    tmp_path: Path, signals: Signals, terminated: bool, success: bool, reward: float
) -> None:
    runner = make_runner(tmp_path, Script({4: signals}))
    seen = watched(runner)
    runner.learn()
    last = seen[4]
    assert bool(last.terminated) is terminated
    assert bool(last.truncated) is not terminated
    assert bool(last.success) is success
    assert float(last.reward) == pytest.approx(reward, abs=0.5)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["step"] == 5
    assert rows[0]["robot/success"] == float(success)


def solved_at_once(obs: Any) -> bool:
    """A success source."""
    return bool(obs["elapsed_steps"][0, 0] == 3.0)


def test_robot_cfg_success_source__ends_an_episode_with_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    source = f"{Path(__file__).stem}:solved_at_once"
    runner, summary = train_robot(tmp_path, success_source=source, cfg=config(total_timesteps=9))
    assert summary["episodes"] == 3
    assert runner.progress.lengths == [3.0] * 3
    assert runner.progress.success == [1.0] * 3


def test_robot_cfg_reset__prompt_waits_for_the_operator_before_each_episode(tmp_path: Path) -> None:
    operator = Script({})
    _, summary = train_robot(tmp_path, operator, reset="prompt")
    assert operator.prepared == summary["episodes"]
    with pytest.raises(ConfigError, match="nobody is there"):
        train_robot(tmp_path / "alone", reset="prompt")


def test_robot_runner__refuses_an_action_that_is_not_finite(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, Script({2: Signals(action=torch.full((6,), torch.nan))}))
    seen = watched(runner)
    with pytest.raises(NonFiniteError, match="operator's action is not finite"):
        runner.learn()
    assert len(seen) == 2


def test_robot_runner__exports_the_best_and_the_last_policy(tmp_path: Path) -> None:
    runner, _ = train_robot(tmp_path, Script({i: Signals(success=True) for i in (3, 7, 11)}))
    best = find_policy(tmp_path, "best").exported
    assert best.residual_scale == 0.6
    assert best.step == runner.progress.best_step == 12
    assert find_policy(tmp_path, "final").exported.step == runner.progress.step


def test_robot_runner__the_best_policy_is_the_base_until_episodes_are_solved(tmp_path: Path) -> None:
    runner, summary = train_robot(tmp_path, cfg=config(tolerance=0.0001))
    assert runner.progress.success == [0.0] * 3
    assert find_policy(tmp_path, "best").exported.residual_scale == 0.0
    deployment = Deployment.from_summary(summary)
    assert deployment is not None
    assert "best_model is the base policy" in deployment.text


def test_robot_runner__the_summary_says_that_nothing_was_compared(tmp_path: Path) -> None:
    _, summary = train_robot(tmp_path, Script({i: Signals(success=True) for i in (3, 7, 11)}))
    deployment = Deployment.from_summary(summary)
    assert deployment is not None
    assert (deployment.policy, deployment.confirmed) == ("residual", False)
    assert "best 2 successive training episodes without interventions (100.0 % success)" in deployment.text
    assert "was not compared with the base policy, which may be better" in deployment.text


def test_robot_runner__resumes_no_run_of_another_command(tmp_path: Path) -> None:
    from tiny_runs import train

    train(tmp_path, learner="sac", total_timesteps=32, eval_freq=0)
    with pytest.raises(CheckpointError, match="is a run of `residual-rl train`"):
        make_runner(tmp_path, resume=True)


# --- the learner's process ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_robot_runner__logs_the_documented_metrics(tmp_path: Path) -> None:
    train_robot(tmp_path, real_time=True)
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(robot/\w+)`", text))
    logged = {tag for row in read_metrics(tmp_path / "metrics.jsonl") for tag in row}
    assert documented == {tag for tag in logged if tag.startswith("robot/")}


@pytest.mark.slow
def test_asynchronous_learning__saves_what_a_learner_beside_the_loop_has(tmp_path: Path) -> None:
    """Buffer, counters and generators of both processes are equal, and a resumed run goes on from there."""
    runner, summary = train_robot(tmp_path, pushes(3, 4), real_time=True)
    assert summary["steps"] == runner.progress.step >= 60
    saved, own = last_state(tmp_path)["learner"], runner.learner.state_dict()
    assert different(saved["generators"] | {"sampling": 0}, own["generators"] | {"sampling": 0}) == []
    assert saved["buffer"]["num_written"] == own["buffer"]["num_written"] == summary["steps"]
    assert saved["demonstrations"]["num_written"] == 2
    runner, summary = train_robot(
        tmp_path, resume=True, real_time=True, cfg=config(total_timesteps=summary["steps"] + 1)
    )
    assert summary["steps"] > own["buffer"]["num_written"]
    assert last_state(tmp_path)["learner"]["num_updates"] > saved["num_updates"]


@pytest.mark.slow
def test_asynchronous_learning__the_end_of_the_process_ends_the_session(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, real_time=True, cfg=config(total_timesteps=10_000))
    end_episode = runner._end_episode

    def end_and_kill(*args: Any) -> None:
        end_episode(*args)
        if runner.progress.episodes == 2:
            runner.learning.wait()
            os.kill(runner.learning.process_id, signal.SIGKILL)  # type: ignore[attr-defined]

    runner._end_episode = end_and_kill  # type: ignore[method-assign]
    with pytest.raises(LearnerError, match="the learner's process was killed by SIGKILL"):
        runner.learn()
    runner.folder.close()
    saved = last_state(tmp_path)["progress"]
    assert saved["episodes"] == 2
    _, summary = train_robot(tmp_path, resume=True, cfg=config(total_timesteps=saved["step"] + 1))
    assert summary["episodes"] == 3


@pytest.mark.slow
def test_asynchronous_learning__a_signal_to_all_processes_leaves_stopping_to_the_loop(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, real_time=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(runner.learning.process_id, number)  # type: ignore[attr-defined]
    assert runner.learn()["finished"]
    runner.folder.close()


@pytest.mark.slow
def test_asynchronous_learning__the_process_ends_with_a_control_loop_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "residual_rl.cli.main", "train-robot", "so101-paper", "--sim"]
    command += ["--operator", "none", "--reset", "automatic", "--max-episode-steps", "10"]
    command += ["--max-latency", "30", "--stale-after", "30", "--output-dir", str(tmp_path / "run")]
    rows = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as loop, contextlib.ExitStack() as stack:
        stack.callback(loop.kill)
        wait_until(lambda: rows.exists() and len(read_metrics(rows)) >= 2, 120.0)
        children = children_of(loop.pid)
        loop.kill()
    assert children
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 30.0)
    saved = last_state(tmp_path / "run")["progress"]
    assert saved["episodes"] >= len(read_metrics(rows)) - 1


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def wait_until(holds: Any, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["gated-sac", "td3"])
def test_asynchronous_learning__works_with_every_off_policy_learner(tmp_path: Path, learner: str) -> None:
    runner, summary = train_robot(
        tmp_path,
        pushes(3),
        real_time=True,
        cfg=config(learner, gate_warmup_episodes=1, gate_min_failures=0)
        if learner == "gated-sac"
        else config(learner),
    )
    assert summary["finished"]
    saved = last_state(tmp_path)["learner"]
    own = runner.learner.state_dict()
    if learner == "gated-sac":
        names = ("step", "base_until", "base_from", "begins")
        assert different({n: saved["gate"][n] for n in names}, {n: own["gate"][n] for n in names}) == []


def test_robot_runner__ppo_cannot_learn_beside_a_robot(tmp_path: Path) -> None:
    cfg = TrainCfg.default("so101-paper", "jacobian", "ppo")
    cfg = replace_fields(cfg, {"num_envs": 1, "num_threads": 1})
    with pytest.raises(ConfigError, match="'ppo' cannot learn beside a robot"):
        make_runner(tmp_path, cfg=cfg)


def test_robot_runner__refuses_decisions_on_whole_chunks(tmp_path: Path) -> None:
    (tmp_path / "il").mkdir()
    il_case.model().save(tmp_path / "il" / "model.safetensors")
    cfg = replace_fields(TrainCfg.default("so101-paper", "il", "sac"), TINY)
    cfg = replace_fields(cfg, {"checkpoint": str(tmp_path / "il"), "chunk": "whole"})
    with pytest.raises(ConfigError, match="only with --chunk step"):
        make_runner(tmp_path / "run", cfg=cfg)


# --- an arm -------------------------------------------------------------------------------------------------


def test_training_arm__the_simulated_arm_gives_the_episodes_of_the_task(tmp_path: Path) -> None:
    """Up to velocities, which an arm does not measure: neither base policy nor learner reads them here."""
    learner = {"obs_keys": ("joint_position", "sheet_pose")}
    for name in ("env", "arm"):
        train_robot(tmp_path / name, on_arm=name == "arm", cfg=config(**learner))
    rows = [metric_rows(tmp_path / name) for name in ("env", "arm")]
    assert rows[0] == rows[1]


def test_training_arm__an_arm_with_backlash_gives_the_episodes_of_the_task(tmp_path: Path) -> None:
    learner = {"obs_keys": ("joint_target", "sheet_pose"), "backlash": (0.02, 0.02)}
    for name in ("env", "arm"):
        train_robot(tmp_path / name, on_arm=name == "arm", cfg=config(**learner))
    rows = [metric_rows(tmp_path / name) for name in ("env", "arm")]
    assert rows[0] == rows[1]


def late_pose() -> Pose | None:
    """The sheet, by a camera that takes a moment to start."""
    late_calls.append(time.monotonic())
    if late_calls[-1] - late_calls[0] < 0.3:
        return None
    return Pose(np.array([0.25, 0.05, 0.001]), np.array([1.0, 0.0, 0.0, 0.0]), 0.0)


late_calls: list[float] = []


def test_training_arm__waits_for_the_first_pose(tmp_path: Path) -> None:
    late_calls.clear()
    cfg, robot = config(), RobotCfg(**SIMULATED)
    guard = make_training_arm(cfg, robot, GuardCfg()).guard
    guard.disconnect()
    source = BackgroundPoseSource(late_pose)
    limits = SafetyLimits(cfg.safety, guard.hardware, 30.0)
    arm = TrainingArm(cfg, GuardedArm(guard.driver, limits), source, lambda seed: None, robot)
    arm.begin(1)
    arm.close()
    assert not source._thread.is_alive()


def test_training_arm__stays_where_it_is_between_episodes(tmp_path: Path) -> None:
    """The arm is reset once for each episode, when the operator is ready."""
    operator = Script({})
    runner = make_runner(tmp_path, operator, on_arm=True, reset="prompt")
    assert runner.arm is not None
    driver: Any = runner.arm.guard.driver
    before: list[int] = []
    prepare = operator.prepare

    def record(should_stop: Any = None) -> None:
        before.append(driver.episode)
        prepare(should_stop)

    operator.prepare = record  # type: ignore[method-assign]
    summary = runner.learn()
    first = before[0]
    assert before == [first + i for i in range(summary["episodes"])]


def test_training_arm__a_lost_cable_ends_the_session_after_the_last_saved_episode(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, on_arm=True, cfg=config(total_timesteps=1000))
    assert runner.arm is not None
    driver: Any = runner.arm.guard.driver
    driver.lose_cable(after=1.0)
    with pytest.raises(ArmError, match="its cable is unplugged"):
        runner.learn()
    saved = last_state(tmp_path)["progress"]
    assert saved["episodes"] == runner.progress.episodes >= 1


def test_training_arm__an_arm_that_fails_while_it_connects_is_stopped(tmp_path: Path) -> None:
    driver = FakeArm()
    driver.corrupt = lambda reading: None
    limits = SafetyLimits(SafetyLimitsCfg(), driver.hardware, 30.0)
    guard = GuardedArm(driver, limits, GuardCfg(at_exit="torque-off"))
    with pytest.raises(ArmError, match="in place of a reading"):
        TrainingArm(config(), guard, driver.sheet_pose, None, RobotCfg(sim=True))
    assert [name for name, _ in driver.log][-2:] == ["torque_off", "disconnect"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", "many"),
        ("step", 1 << 70),
        ("episodes", 2.5),
        ("best_rate", 10**400),
        ("success", "yes"),
        ("returns", [None]),
    ],
)
def test_robot_progress__values_that_no_training_has_are_refused(name: str, value: Any) -> None:
    progress = RobotProgress()
    with pytest.raises(ValueError, match=rf"progress\.{name} cannot be"):
        progress.load_state_dict({**progress.state_dict(), name: value})


def test_robot_runner__a_foreign_checkpoint_with_impossible_progress_is_not_resumed(tmp_path: Path) -> None:
    train_robot(tmp_path)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    step, state = folder.latest() or (0, {})
    folder.save(step + 1, {**state, "progress": {**state["progress"], "step": "1000"}})
    with pytest.raises(CheckpointError, match=r"progress\.step cannot be 1000"):
        make_runner(tmp_path, resume=True)


@pytest.mark.slow
def test_asynchronous_learning__the_process_outlives_a_sigterm_to_the_whole_group(tmp_path: Path) -> None:
    """A service manager terminates both at once; the last episode is still being saved then."""
    runner = make_runner(tmp_path, real_time=True, cfg=config(total_timesteps=10_000))
    end_episode = runner._end_episode

    def end_and_terminate(*args: Any) -> None:
        end_episode(*args)
        if runner.progress.episodes == 2:
            os.kill(runner.learning.process_id, signal.SIGTERM)  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)

    runner._end_episode = end_and_terminate  # type: ignore[method-assign]
    summary = runner.learn()
    runner.folder.close()
    assert summary["signal"] == signal.SIGTERM
    assert last_state(tmp_path)["progress"]["episodes"] == 2


@pytest.mark.slow
def test_robot_runner__a_signal_stops_the_arm_while_the_learner_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner(tmp_path, real_time=True, on_arm=True, cfg=config(total_timesteps=10_000))
    monkeypatch.setattr(learner_process, "_ANSWER_SECONDS", 15.0)
    arm, end_episode, times = runner.arm, runner._end_episode, []
    assert arm is not None
    close = arm.close

    def end_and_freeze(*args: Any) -> None:
        os.kill(runner.learning.process_id, signal.SIGSTOP)  # type: ignore[attr-defined]
        end_episode(*args)
        times.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    def close_and_note(*args: Any) -> None:
        close(*args)
        times.append(time.monotonic())

    runner._end_episode = end_and_freeze  # type: ignore[method-assign]
    arm.close = close_and_note  # type: ignore[method-assign]
    with pytest.raises(LearnerError, match="no answer"):
        runner.learn()
    runner.folder.close()
    assert times[1] - times[0] < 2.0
