"""Units of the robot's own software, and the two control modes of the arm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.factory import make_vec_env
from residual_rl.robots.hardware_units import joint_index
from residual_rl.tasks.so101_paper.hardware_units import HARDWARE

# --- units --------------------------------------------------------------------------------------------------


def test_hardware_units__match_degrees_and_percent_worked_out_by_hand() -> None:
    """The gripper moves from -0.174533 rad (closed, 0 %) to 1.74533 rad (open, 100 %)."""
    angles = torch.tensor(
        [[math.pi / 2, -math.pi / 4, 0.0, math.pi, -1.0, -0.174533], [0.0, 0.0, 0.0, 0.0, 0.0, 1.74533]]
    )
    expected = [[90.0, -45.0, 0.0, 180.0, -57.29578, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 100.0]]
    np.testing.assert_allclose(HARDWARE.to_hardware(angles), expected, atol=1e-4)
    middle = HARDWARE.from_hardware(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 50.0]))
    assert middle[5].item() == pytest.approx(0.5 * (1.74533 - 0.174533))


def test_from_hardware__inverts_to_hardware() -> None:
    angles = torch.rand(50, 6, dtype=torch.float64) * 3 - 1.5
    np.testing.assert_allclose(HARDWARE.from_hardware(HARDWARE.to_hardware(angles)), angles, atol=1e-12)


def test_hardware_units_check__names_the_joint_that_is_out_of_range() -> None:
    values = torch.zeros(5, 6)
    values[3, 2] = 97.5  # elbow_flex reaches 1.69 rad, 96.8 degrees
    HARDWARE.check(values, "it")  # within the tolerance of a degree
    values[3, 2] = 99.0
    with pytest.raises(
        ConfigError,
        match=(
            r"episode 2: joint elbow_flex is at 99\.0 deg in row 3, outside of -96\.8 to 96\.8 deg \(1 of 5"
            r" rows"
        ),
    ):
        HARDWARE.check(values, "episode 2")
    assert HARDWARE.clip(values)[3, 2].item() == pytest.approx(96.83, abs=0.01)


def test_joint_index__finds_joints_by_name() -> None:
    names = [f"{name}.pos" for name in reversed(HARDWARE.joint_names)]
    assert joint_index(HARDWARE, names).tolist() == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ConfigError, match=r"joint\(s\) wrist_roll missing; there are shoulder_pan"):
        joint_index(HARDWARE, [name for name in HARDWARE.joint_names if name != "wrist_roll"])


# --- control modes ------------------------------------------------------------------------------------------


def test_joint_target__action_spans_the_range_of_each_joint() -> None:
    env = make_vec_env(
        "so101-paper",
        2,
        num_threads=1,
        control_mode="joint_target",
        max_target_step=10.0,
        max_target_error=10.0,
    )
    env.reset(seed=5)
    obs, *_ = env.step(torch.stack([torch.zeros(6), torch.tensor([0.5, 0.0, 0.0, 0.0, -1.0, 1.0])]))
    np.testing.assert_allclose(
        obs["joint_target"][0],
        [0.0, 0.0, 0.0, 0.0, 0.5 * (2.84121 - 2.74385), 0.5 * (1.74533 - 0.174533)],
        atol=1e-6,
    )
    np.testing.assert_allclose(obs["joint_target"][1], [0.95993, 0.0, 0.0, 0.0, -2.74385, 1.74533], atol=1e-5)
    np.testing.assert_allclose(env.action_unit[:2], [1.91986, 1.74533], atol=1e-5)


def test_max_target_step__limits_the_change_of_an_absolute_target() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1, control_mode="joint_target")
    obs, _ = env.reset(seed=5)
    start = obs["joint_target"]
    wanted = start + torch.tensor([[0.25, 0.05, 0.0, 0.0, -0.25, 0.0]])
    for pan, lift in ((0.1, 0.05), (0.2, 0.05), (0.25, 0.05)):
        obs, *_ = env.step(env.targets_to_actions(wanted[:, None], obs)[:, 0])
        np.testing.assert_allclose(
            (obs["joint_target"] - start)[0], [pan, lift, 0.0, 0.0, -pan, 0.0], atol=1e-6
        )


@pytest.mark.parametrize("mode", ["joint_delta", "joint_target"])
def test_actions_to_targets__inverts_targets_to_actions(mode: str) -> None:
    env = make_vec_env("so101-paper", 3, num_threads=1, control_mode=mode)
    obs, _ = env.reset(seed=5)
    steps = 0.02 * (2 * torch.rand(3, 8, 6, dtype=torch.float64) - 1)
    steps[..., 5] = steps[..., 5].abs()  # the gripper starts at its limit
    targets = obs["joint_target"].double()[:, None] + steps.cumsum(1)
    actions = env.targets_to_actions(targets, obs)
    np.testing.assert_allclose(env.actions_to_targets(actions, obs), targets, atol=1e-6)


def test_targets_to_actions__spreads_a_large_change_over_several_steps() -> None:
    env = make_vec_env("so101-paper", 1, num_threads=1)
    obs, _ = env.reset(seed=5)
    targets = (obs["joint_target"].double() + torch.tensor([0.05, 0.0, 0.0, 0.0, 0.0, 0.0]))[:, None].expand(
        1, 4, 6
    )
    np.testing.assert_allclose(env.targets_to_actions(targets, obs)[0, :, 0], [1.0, 1.0, 0.5, 0.0], atol=1e-5)


# --- draws of an episode ------------------------------------------------------------------------------------


def test_reset__starts_an_episode_from_given_draws() -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1)
    first, _ = env.reset(seed=[11, 12])
    drawn = env.episode
    other, _ = env.reset(seed=[13, 14], options={"episode": drawn})
    assert torch.equal(other["state"], first["state"])
    joints = torch.tensor([[0.3, -0.45, 0.43, 1.4, 0.1, 0.0], [0.0, -0.45, 0.43, 1.4, 0.0, 0.0]])
    moved, _ = env.reset(seed=[13, 14], options={"episode": {"start_joint_position": joints}})
    np.testing.assert_allclose(moved["joint_position"], joints, atol=1e-6)
    assert torch.equal(moved["joint_target"], moved["joint_position"])
    assert not torch.equal(moved["sheet_pose"], first["sheet_pose"])


def test_reset__invalid_draws_are_errors() -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1)
    with pytest.raises(
        UnknownNameError, match="unknown draw of an episode 'start_yow'; did you mean 'start_yaw'"
    ):
        env.reset(seed=1, options={"episode": {"start_yow": torch.zeros(2)}})
    with pytest.raises(ConfigError, match=r"start_yaw must have shape \(2,\), not \(3,\)"):
        env.reset(seed=1, options={"episode": {"start_yaw": torch.zeros(3)}})
    with pytest.raises(ConfigError, match="the only option of reset is 'episode'; got sheet"):
        env.reset(seed=1, options={"sheet": 1})
