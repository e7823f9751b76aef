"""The limits of an arm in simulation: the executed action is the one that is seen, and states resume."""

from __future__ import annotations

import pytest
import torch

from residual_rl.config import SafetyCfg, SafetyLimitsCfg, TrainCfg
from residual_rl.envs.task_env import limit_targets
from residual_rl.errors import ConfigError
from residual_rl.factory import make_residual_env, make_vec_env

TIGHT = SafetyLimitsCfg(max_step=0.01, max_speed=3.0, max_jump=0.004)


def limited_env(num_envs=2, **settings):
    env = make_vec_env("so101-paper", num_envs, **settings)
    limit_targets(env, TIGHT)
    return env


@pytest.mark.parametrize("control_mode", ["joint_delta", "joint_target"])
def test_limit_targets__the_executed_action_commands_the_limited_target(control_mode):
    env = limited_env(control_mode=control_mode)
    obs, _ = env.reset()
    at = obs["joint_target"].double()
    targets = at + torch.tensor([0.02, -0.02, 0.0, 0.001, 0.0, 0.0])
    for step in (0.004, 0.008, 0.01):  # jumps of 0.004, up to steps of 0.01
        action = env.targets_to_actions(targets[:, None], obs)[:, 0]
        before = obs["joint_target"].double()
        obs, _, _, _, info = env.step(action)
        moved = obs["joint_target"].double() - before
        assert moved[0, :2].tolist() == pytest.approx([step, -step], abs=1e-6)
        seen = env.actions_to_targets(info["executed_action"][:, None], {"joint_target": before})[:, 0]
        torch.testing.assert_close(seen, obs["joint_target"].double(), atol=1e-6, rtol=0)
        targets = obs["joint_target"].double() + torch.tensor([0.02, -0.02, 0.0, 0.0, 0.0, 0.0])


def test_limit_targets__without_need_episodes_are_the_same_bit_for_bit():
    plain, limited = make_vec_env("so101-paper", 2), make_vec_env("so101-paper", 2)
    limit_targets(limited, SafetyLimitsCfg())
    plain.reset(seed=3)
    limited.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        action = torch.rand(2, 6, generator=generator) * 2 - 1
        a, b = plain.step(action), limited.step(action)
        assert torch.equal(a[0]["state"], b[0]["state"])
        assert torch.equal(b[4]["executed_action"], action)


def test_limit_targets__an_episode_does_not_depend_on_its_slot():
    single, batch = limited_env(1), limited_env(3)
    single.reset(seed=[7])
    batch.reset(seed=[5, 6, 7])
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        action = torch.rand(3, 6, generator=generator) * 2 - 1
        a, b = single.step(action[2:]), batch.step(action)
        assert torch.equal(a[0]["state"][0], b[0]["state"][2])


def test_task_env_limits__a_resumed_env_goes_on_with_the_same_limits():
    env = limited_env()
    env.reset(seed=1)
    action = torch.ones(2, 6)
    env.step(action)
    state = env.state_dict()
    snapshot = env.snapshot(torch.tensor([1]))
    expected = env.step(action)[0]["joint_target"]
    other = limited_env()
    other.reset(seed=50)
    other.load_state_dict(state)
    assert torch.equal(other.step(action)[0]["joint_target"], expected)
    env.step(-action)
    env.restore(torch.tensor([1]), snapshot)
    assert torch.equal(env.step(action)[0]["joint_target"][1], expected[1])


def test_task_env_limits__an_env_that_does_not_step_keeps_its_last_target():
    env = limited_env()
    env.reset(seed=1)
    env.step(torch.ones(2, 6))
    before = env.observations()["joint_target"].clone()
    obs, *_ = env.step(torch.ones(2, 6), mask=torch.tensor([True, False]))
    assert torch.equal(obs["joint_target"][1], before[1])
    assert obs["joint_target"][0, 0] - before[0, 0] == pytest.approx(0.008, abs=1e-6)


def test_safety__the_composition_reports_the_limited_action():
    cfg = TrainCfg.default("so101-paper")
    cfg = TrainCfg(
        **{**vars(cfg), "safety": SafetyCfg(safety=True, max_jump=0.004), "learner_id": cfg.learner_id}
    )
    env = make_residual_env(cfg, 2)
    env.reset(seed=1)
    transition, _ = env.step(torch.ones(2, 6))
    assert transition.action.abs().max() == pytest.approx(0.2, abs=1e-5)  # 0.004 of 0.02 rad


def test_limit_targets__an_env_without_a_robots_joints_is_refused():
    env = make_vec_env("so101-paper", 1)
    env.hardware = None
    with pytest.raises(ConfigError, match="leave out --safety"):
        limit_targets(env, TIGHT)
