"""`LeRobotEnv`: the task's own episodes in the robot's units, under LeRobot's names."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch

from residual_rl.base_policies.executor import make_base_policy
from residual_rl.errors import ConfigError, UnknownNameError
from residual_rl.factory import make_vec_env
from residual_rl.lerobot.env import LeRobotEnv, make_envs

SOLVED = 16
"""Seed of an episode that the base policy `jacobian-yaw` solves in few steps."""


def state_only(**settings: object) -> LeRobotEnv:
    return LeRobotEnv(cameras=(), settings=settings)


def test_le_robot_env__an_episode_is_that_of_the_task_bit_for_bit() -> None:
    own, env = make_vec_env("so101-paper", 1, num_threads=1), state_only()
    base = make_base_policy("jacobian-yaw", None, own)
    obs, _ = own.reset(seed=SOLVED)
    seen, info = env.reset(seed=SOLVED)
    assert info == {"is_success": False}
    for _ in range(100):
        state = torch.cat([obs[name] for name in own.task.environment_state], 1)[0]
        assert np.array_equal(seen["environment_state"], state.numpy())
        degrees = own.hardware.to_hardware(obs["joint_position"])[0].float()
        assert np.array_equal(seen["agent_pos"], degrees.numpy())
        action = base.act(obs)
        target = own.hardware.to_hardware(own.actions_to_targets(action[:, None], obs)[0, 0])
        _, expected, terminated, _, own_info = own.step(action)
        seen, reward, done, truncated, info = env.step(target.numpy())
        obs = own_info["final_obs"]
        assert (reward, done, truncated) == (float(expected), bool(terminated), False)
        assert info == {"is_success": done}
        if done:
            break
    assert done
    state = torch.cat([obs[name] for name in own.task.environment_state], 1)[0]
    assert np.array_equal(seen["environment_state"], state.numpy())  # the true last observation
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(target.numpy())


def test_agent_pos__is_in_degrees_and_the_gripper_in_per_cent() -> None:
    env = state_only()
    seen, _ = env.reset(seed=0)
    home = [0.0, -0.45097, 0.42976, 1.41748, 0.0]
    assert seen["agent_pos"][:5] == pytest.approx([math.degrees(angle) for angle in home], abs=1e-4)
    closed, opened = -0.174533, 1.74533
    assert seen["agent_pos"][5] == pytest.approx(100 * (-0.17 - closed) / (opened - closed), abs=1e-4)


def test_step__truncates_at_the_limit_of_the_task_and_refuses_what_is_not_an_action() -> None:
    env = state_only(max_episode_steps=2)
    assert env._max_episode_steps == 2
    seen, _ = env.reset(seed=0)
    for wrong in (np.full(6, math.nan), np.zeros(5)):
        with pytest.raises(ConfigError, match="6 finite numbers"):
            env.step(wrong)
    assert env.step(seen["agent_pos"])[2:4] == (False, False)
    assert env.step(seen["agent_pos"])[2:] == (False, True, {"is_success": False})


def test_le_robot_env__has_the_attributes_that_lerobot_reads() -> None:
    env = LeRobotEnv("so101-paper-precise", "Slide it.", cameras=())
    assert (env.task, env.task_description) == ("so101-paper-precise", "Slide it.")
    assert env._vec_env.task.tolerance == 0.005
    assert env.metadata["render_fps"] == 30
    assert "SO-101 slides" in state_only().task_description
    assert env.action_space.low == pytest.approx(np.array([-110, -100, -96.83, -95, -157.21, 0]), abs=0.01)
    with pytest.raises(UnknownNameError, match="unknown task"):
        LeRobotEnv("so102-paper")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'colour'"):
        state_only(colour="red")
    env.reset(options={"lerobot_new_rollout": True})
    with pytest.raises(ConfigError, match="takes no options"):
        env.reset(options={"a": 1})


def test_pixels__are_images_by_camera(opengl: None) -> None:
    env = LeRobotEnv(cameras=["top"], image_size=(32, 48), render_size=(24, 32))
    assert env.render() is None
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    assert seen["pixels"]["top"].shape == (32, 48, 3)
    assert seen["pixels"]["top"].std() > 0
    assert env.render().shape == (24, 32, 3)
    env.close()


@pytest.mark.parametrize("use_async_envs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_make_envs__gives_each_env_the_episode_of_its_seed(use_async_envs: bool) -> None:
    envs = make_envs(2, use_async_envs, cameras=())["so101_paper"][0]
    seen, _ = envs.reset(seed=[3, 4])
    for index, seed in enumerate((3, 4)):
        single, _ = state_only().reset(seed=seed)
        assert np.array_equal(seen["environment_state"][index], single["environment_state"])
    assert envs.call("_max_episode_steps") == (400, 400)
    envs.close()
    with pytest.raises(ConfigError, match="at least 1"):
        make_envs(0)


def test_make_envs__an_ended_episode_is_reset_in_the_same_step_and_its_success_kept() -> None:
    envs = make_envs(
        2, cameras=(), settings={"max_episode_steps": 1, "tolerance": 1.0, "success_hold_steps": 1}
    )
    vector = envs["so101_paper"][0]
    seen, _ = vector.reset(seed=[0, 1])
    _, _, terminated, _, info = vector.step(seen["agent_pos"])
    assert terminated.tolist() == info["final_info"]["is_success"].tolist() == [True, True]
    vector.close()
