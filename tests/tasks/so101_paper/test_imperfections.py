"""Latency, lost poses, backlash, servo gains and joint friction: values worked out by hand, and draws."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import scipy.stats
import torch
from imperfect_arm import EVERYTHING
from tiny_runs import different, last_state, metric_rows, train
from torch import Tensor

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.config import from_plain
from residual_rl.envs.task import Quantities
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env
from residual_rl.registry import TASKS
from residual_rl.tasks.so101_paper.config import SO101PaperCfg
from residual_rl.tasks.so101_paper.imperfections import Imperfections
from residual_rl.tasks.so101_paper.imperfections_check import check_imperfections
from residual_rl.tasks.so101_paper.mujoco_env import make
from residual_rl.utils.files import plain


def imperfections(**settings: Any) -> Imperfections:
    return Imperfections(SO101PaperCfg(**settings))


def pose_at(step: float) -> Tensor:
    """A pose [1, 7] that tells the step."""
    return torch.tensor([[step, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


# --- draws --------------------------------------------------------------------------------------------------


def test_randomize__draws_nothing_by_default() -> None:
    assert imperfections().randomize(torch.arange(3)) == {}
    assert imperfections(action_latency=1, pose_latency=2).randomize(torch.arange(3)) == {}


def test_randomize__draws_have_the_documented_distributions() -> None:
    n = 5000
    drawn = imperfections(**EVERYTHING).randomize(torch.arange(n))
    assert np.bincount(drawn["action_latency"]).tolist() == pytest.approx([n / 3] * 3, rel=0.1)
    assert np.bincount(drawn["pose_latency"]).tolist() == pytest.approx([0, n / 3, n / 3, n / 3], rel=0.1)
    gain = drawn["servo_gain_scale"].log().numpy()
    uniforms = {
        "gain": (gain - math.log(0.05)) / math.log(20.0),
        "friction": (drawn["joint_friction_scale"].numpy() - 0.5) / 1.5,
        "backlash": (drawn["backlash"].numpy() - 0.01) / 0.02,
    }
    for name, values in uniforms.items():
        assert values.shape == (n, 6)
        assert scipy.stats.kstest(values.ravel(), "uniform").pvalue > 1e-4, name
    columns = np.concatenate(list(uniforms.values()), 1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(18)).max() < 5 / math.sqrt(n)


def test_randomize__options_do_not_change_the_other_draws() -> None:
    seeds = torch.arange(20)
    usual, all_on = (
        make_vec_env("so101-paper", 1, num_threads=1, **settings).task.randomize(seeds)  # type: ignore[attr-defined]
        for settings in ({}, EVERYTHING)
    )
    assert all(torch.equal(all_on[name], value) for name, value in usual.items())
    one = imperfections(backlash=(0.01, 0.03)).randomize(seeds)
    assert torch.equal(one["backlash"], all_on["backlash"])


def test_randomization__off_uses_the_middle_of_the_imperfections() -> None:
    drawn = imperfections(**EVERYTHING, randomization="off").randomize(torch.arange(2))
    assert drawn["action_latency"].tolist() == [1, 1]
    assert drawn["pose_latency"].tolist() == [2, 2]
    np.testing.assert_allclose(drawn["servo_gain_scale"], math.sqrt(0.05))
    np.testing.assert_allclose(drawn["joint_friction_scale"], 1.25)
    np.testing.assert_allclose(drawn["backlash"], 0.02)


def test_so101_paper_cfg__default_episodes_are_those_before_the_options() -> None:
    """The numbers were computed before there were imperfections."""
    env = make_vec_env("so101-paper", 2, num_threads=1)
    obs, _ = env.reset(seed=3)
    for step in range(5):
        obs, *_ = env.step(torch.full((2, 6), 0.1 * step))
    assert obs["state"].shape == (2, 25)
    assert obs["state"][:, 1].tolist() == pytest.approx([-0.4307640] * 2, abs=1e-6)
    assert obs["state"][:, 12].tolist() == pytest.approx([0.2218456, 0.3037036], abs=1e-6)
    assert obs["state"][:, 21].tolist() == pytest.approx([0.1240111, 0.3803349], abs=1e-6)
    assert set(env.episode) == {
        "start_position",
        "start_yaw",
        "friction_scale",
        "mass_scale",
        "tolerance",
    } | {"start_joint_position"}
    assert env.state_dict()["memory"] == {}
    assert "sheet_seen" not in obs


# --- latency ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0, 1, 2, 3])
def test_action_latency__is_a_number_of_steps(latency: int) -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1, action_latency=latency)
    start = env.reset(seed=3)[0]["joint_target"]
    moved = []
    for step in range(6):
        action = torch.full((1, 6), 0.5 if step == 0 else 0.0)  # a single pulse
        obs, *_ = env.step(action)
        moved.append(not torch.equal(obs["joint_target"], start))
        start = obs["joint_target"]
    assert moved == [step == latency for step in range(6)]


def test_action_latency__range_gives_each_episode_one() -> None:
    env = make_vec_env("so101-paper", 6, num_threads=1, action_latency=(0, 3))
    start = env.reset(seed=0)[0]["joint_target"]
    delay = torch.zeros(6, dtype=torch.int64)
    for _ in range(5):
        delay += (env.step(torch.full((6, 6), 0.5))[0]["joint_target"] == start).all(1)
    assert torch.equal(delay, env.episode["action_latency"])
    assert len(set(delay.tolist())) > 1


def test_pose_latency__delays_the_sheet_alone() -> None:
    exact, late = (make_vec_env("so101-paper", 1, num_threads=1, **s) for s in ({}, {"pose_latency": 2}))
    seen, expected = [], []
    for env, record in ((exact, expected), (late, seen)):
        policy = make_base_policy("jacobian", None, exact)
        policy.reset(torch.ones(1, dtype=torch.bool))
        record.append(env.reset(seed=3)[0])
        generator = torch.Generator().manual_seed(1)
        for _ in range(8):
            record.append(env.step(torch.rand(1, 6, generator=generator) - 0.5)[0])
        del policy
    for step in range(9):
        assert torch.equal(seen[step]["sheet_pose"], expected[max(step - 2, 0)]["sheet_pose"])
        assert torch.equal(seen[step]["goal"], expected[max(step - 2, 0)]["goal"])
        assert torch.equal(seen[step]["joint_position"], expected[step]["joint_position"])


# --- lost poses ---------------------------------------------------------------------------------------------


def observed(one: Imperfections, seen: list[bool], latency: int = 0) -> list[tuple[float, bool]]:
    """The pose (its step) and the flag after each step, if the sensor sees the sheet in the steps `seen`."""
    q: Quantities = {"seed": torch.tensor([5]), "step": torch.tensor([0])}
    memory = one.begin_memory(q, lambda _: pose_at(0))
    found = []
    for step, sees in enumerate(seen, start=1):
        now = {**q, "step": torch.tensor([step]), "sheet_seen": torch.tensor([sees])}
        memory = one.remember(now, memory, lambda _, at=step: pose_at(at))  # type: ignore[misc]
        pose, flag = one.observed_pose({**now, **memory}) or (pose_at(-1), torch.tensor([False]))
        found.append((pose[0, 0].item(), bool(flag)))
    return found


def test_observed_pose__is_the_last_seen_one_with_a_flag() -> None:
    steps = observed(imperfections(observe_sheet_seen=True), [True, False, False, True])
    assert steps == [(1, True), (1, False), (1, False), (4, True)]


def test_observed_pose__latency_delays_pose_and_flag() -> None:
    steps = observed(imperfections(pose_latency=2), [True, False, True, True, True])
    assert steps == [(0, True), (0, True), (1, True), (1, False), (3, True)]


def test_pose_dropout__stretches_have_the_configured_lengths() -> None:
    one = imperfections(pose_dropout=0.01, pose_dropout_steps=(3, 5))
    lost = torch.zeros(2000, dtype=torch.int64)
    runs = []
    for step in range(1, 60):
        before = lost
        lost = one.steps_lost(torch.arange(2000), torch.full((2000,), step), lost)
        runs += lost[(before == 0) & (lost > 0)].tolist()
    # a stretch that begins is seldom prolonged by another one
    assert set(runs) == {3, 4, 5}
    assert len(runs) == pytest.approx(2000 * 59 * 0.01 / (1 + 0.01 * 3), rel=0.08)


def test_pose_dropout__certain_loss_keeps_the_start_pose() -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1, pose_dropout=1.0, observe_sheet_seen=True)
    start, _ = env.reset(seed=3)
    assert start["sheet_seen"].tolist() == [[1.0], [1.0]]
    assert start["state"].shape == (2, 26)
    policy = make_base_policy("jacobian", None, env)
    policy.reset(torch.ones(2, dtype=torch.bool))
    obs = start
    for _ in range(40):
        obs, *_ = env.step(policy.act(obs))
    assert torch.equal(obs["sheet_pose"], start["sheet_pose"])
    assert obs["sheet_seen"].tolist() == obs["state"][:, 25:].tolist() == [[0.0], [0.0]]


def test_pose_dropout__noise_of_a_lost_pose_is_held() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1, pose_dropout=1.0, position_noise=0.01)
    poses = [env.reset(seed=3)[0]["sheet_pose"]]
    poses += [env.step(torch.zeros(1, 6))[0]["sheet_pose"] for _ in range(3)]
    assert all(torch.equal(pose, poses[0]) for pose in poses)


def test_pose_dropout__reward_is_that_of_the_true_pose() -> None:
    exact, lost = (make_vec_env("so101-paper", 1, num_threads=1, **s) for s in ({}, {"pose_dropout": 1.0}))
    for env in (exact, lost):
        env.reset(seed=3)
    for step in range(5):
        action = torch.full((1, 6), 0.2 * step - 0.5)
        assert torch.equal(exact.step(action)[1], lost.step(action)[1])


def test_hardware_settings__turn_every_imperfection_off_and_keep_what_is_observed() -> None:
    """On an arm, poses are as its source has them, and the flag is that of its physics."""
    spec = TASKS.get("so101-paper")
    noisy = SO101PaperCfg(**EVERYTHING, position_noise=0.01, angle_noise=0.01)
    cfg = dataclasses.replace(noisy, **spec.hardware_settings)
    assert cfg == SO101PaperCfg(observe_sheet_seen=True, pose_dropout_steps=(2, 6))
    env = make(cfg, 1, 1)
    env.reset(seed=3)
    q = {**env.physics.read(), **env.episode, "joint_target": torch.zeros(1, 6), "action": torch.zeros(1, 6)}
    counters = {"seed": torch.zeros(1, dtype=torch.int64), "step": torch.ones(1, dtype=torch.int64)}
    for seen in (1.0, 0.0):
        obs = env.task.observe({**q, **counters, "sheet_seen": torch.tensor([seen])})
        assert obs["sheet_seen"].tolist() == [[seen]]
        assert obs["sheet_pose"][0, :3].tolist() == pytest.approx(q["sheet_position"][0].tolist())
    assert env.task.observe({**q, **counters})["state"][0, 25] == 1.0


# --- backlash -----------------------------------------------------------------------------------------------


def test_link_target__follows_the_servo_after_the_gap() -> None:
    one = imperfections(backlash=(0.0, 0.04))
    q: Quantities = {
        "joint_target": torch.zeros(1, 1, dtype=torch.float64),
        "play": torch.zeros(1, 1, dtype=torch.float64),
        "backlash": torch.tensor([[0.02]], dtype=torch.float64),
    }
    links = []
    # from the middle of the gap of 0.02: 0.01 to each side
    for servo in (0.005, 0.01, 0.05, 0.045, 0.03, 0.02, 0.05):
        target = torch.tensor([[servo]], dtype=torch.float64)
        links.append(one.link_target(target, q).item())
        q |= {"play": one.remember({"joint_target": target}, q, pose_at_zero)["play"], "joint_target": target}
    assert links == pytest.approx([0.0, 0.0, 0.04, 0.04, 0.04, 0.03, 0.04])


def pose_at_zero(_: Quantities) -> Tensor:
    return pose_at(0)


def test_backlash__moves_the_encoders_and_the_computed_fingertip() -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1, backlash=(0.03, 0.03))
    env.reset(seed=3)
    action = torch.zeros(2, 6)
    action[:, 0] = 1.0
    for _ in range(15):
        obs, *_ = env.step(action)
    true = env.physics.read()  # type: ignore[attr-defined]
    np.testing.assert_allclose(obs["joint_position"][:, 0] - true["joint_position"][:, 0], 0.015, atol=1e-6)
    assert env.kinematics is not None
    tip = env.kinematics.forward(obs["joint_position"][:, :5].double())[1][:, :3, 3]
    np.testing.assert_allclose(obs["ee_position"], tip, atol=1e-6)
    assert (obs["ee_position"] - true["ee_position"]).norm(dim=1).min() > 0.002  # 0.015 rad at 0.2 m


# --- servos and joints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.02, 0.04])
def test_servo_gain_scale__a_weak_servo_sags_as_computed(scale: float) -> None:
    """At rest, gain · (target − position) carries the weight, up to the dry friction of 0.052 N m."""
    env = make_vec_env("so101-paper", 1, num_threads=1, servo_gain_scale=(scale, scale))
    obs, _ = env.reset(seed=3)
    for _ in range(60):
        obs, *_ = env.step(torch.zeros(1, 6))
    data = mujoco.MjData(env.model)
    data.qpos[:] = env.scenes()[0]
    mujoco.mj_forward(env.model, data)
    torque = 998.22 * scale * (obs["joint_target"] - obs["joint_position"])[0].numpy()
    assert abs(data.qfrc_bias[1]) > 0.15  # the shoulder carries the arm
    np.testing.assert_allclose(torque, data.qfrc_bias[:6], atol=0.06)


def test_joint_friction_scale__is_applied_to_both_kinds() -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1, joint_friction_scale=(0.5, 2.0))
    env.reset(seed=3)
    batch, scale = env.physics.batch, env.episode["joint_friction_scale"].numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(batch.expand("dof_frictionloss")[:, :6], 0.052 * scale)
    np.testing.assert_allclose(batch.expand("dof_damping")[:, :6], 0.60 * scale)


# --- settings, resuming and the sanity suite ----------------------------------------------------------------


def test_so101_paper_cfg__ranges_and_numbers_survive_json() -> None:
    for latency in (2, (1, 3)):
        cfg = SO101PaperCfg(**{**EVERYTHING, "action_latency": latency})
        assert from_plain(SO101PaperCfg, plain(cfg)) == cfg


@pytest.mark.parametrize(
    "change",
    [
        {"action_latency": -1},
        {"action_latency": (2, 1)},
        {"pose_latency": (0, 31)},
        {"pose_latency": (0.5, 1.0)},
        {"pose_dropout": 1.1},
        {"pose_dropout_steps": (0, 5)},
        {"pose_dropout_steps": (5, 4)},
        {"servo_gain_scale": (0.0, 1.0)},
        {"joint_friction_scale": (-1.0, 1.0)},
        {"backlash": (-0.1, 0.0)},
    ],
    ids=str,
)
def test_so101_paper_cfg__invalid_imperfection_names_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        SO101PaperCfg(**change)


def test_task_env__resumes_with_lost_poses_and_sent_actions() -> None:
    env, other = (make_vec_env("so101-paper", 3, num_threads=1, **EVERYTHING) for _ in range(2))
    env.reset(seed=3)
    other.reset(seed=99)
    actions = torch.rand(20, 3, 6, generator=torch.Generator().manual_seed(1)) - 0.5
    for action in actions[:12]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[12:]:
        (obs, reward, *_), (same, same_reward, *_) = env.step(action), other.step(action)
        assert all(torch.equal(value, same[name]) for name, value in obs.items())
        assert torch.equal(reward, same_reward)


@pytest.mark.slow
def test_runner__resumes_exactly_with_all_imperfections(tmp_path: Path) -> None:
    settings = {"total_timesteps": 96, "eval_freq": 64, **EVERYTHING}
    train(tmp_path / "whole", **settings)
    train(tmp_path / "resumed", stop_at=64, **settings)
    train(tmp_path / "resumed", resume=True, **settings)
    assert different(last_state(tmp_path / "whole"), last_state(tmp_path / "resumed")) == []
    assert metric_rows(tmp_path / "whole") == metric_rows(tmp_path / "resumed")


def test_task_env__loads_a_state_from_before_there_was_a_memory() -> None:
    env, other = (make_vec_env("so101-paper", 2, num_threads=1, action_latency=1) for _ in range(2))
    env.reset(seed=3)
    env.step(torch.full((2, 6), 0.5))
    state = env.state_dict()
    assert state.pop("memory") == {}
    other.reset(seed=9)
    other.load_state_dict(state)
    assert torch.equal(env.step(torch.zeros(2, 6))[0]["state"], other.step(torch.zeros(2, 6))[0]["state"])


def test_check_imperfections__pass_and_find_a_servo_that_is_not_as_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = SO101PaperCfg(**EVERYTHING)
    checks = list(check_imperfections(cfg))
    assert [check.name for check in checks if not check.ok] == []
    assert {"steps until an action arrives", "share of steps without a pose"} <= {c.name for c in checks}
    assert list(check_imperfections(SO101PaperCfg())) == []
    drawn = Imperfections.randomize

    def wrong(self: Imperfections, seed: Tensor) -> Quantities:
        return {**drawn(self, seed), "servo_gain_scale": torch.full((len(seed), 6), 2.0).double()}

    monkeypatch.setattr(Imperfections, "randomize", wrong)
    failed = {check.name for check in check_imperfections(cfg) if not check.ok}
    assert failed == {"draws of servo_gain_scale"}
