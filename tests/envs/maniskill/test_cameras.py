"""Cameras of ManiSkill envs. The tests need a Vulkan driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from residual_rl.envs.maniskill.headless import vulkan_works
from residual_rl.envs.maniskill.vec_env import ManiSkillVecEnv
from residual_rl.errors import ConfigError
from residual_rl.tasks.maniskill.config import ManiSkillCfg
from residual_rl.tasks.maniskill.factory import make

pytestmark = [pytest.mark.maniskill, pytest.mark.slow]


@pytest.fixture(scope="module", params=["rgb", "rgb+state"])
def env(request: pytest.FixtureRequest) -> Iterator[ManiSkillVecEnv]:
    if not vulkan_works():
        pytest.skip("no Vulkan driver: make vulkan")
    cfg = ManiSkillCfg(
        env_id="PickCube-v1",
        robot_uids="panda_wristcam",
        obs_mode=request.param,
        image_size=(24, 32),
        max_episode_steps=4,
    )
    made = make(cfg, 2, 1, "cpu")
    yield made
    made.close()


def test_obs_mode__adds_images_of_the_requested_size(
    env: ManiSkillVecEnv, request: pytest.FixtureRequest
) -> None:
    obs, _ = env.reset(seed=3)
    cameras = {name for name, value in obs.items() if value.dtype == torch.uint8}
    assert cameras == {"base_camera", "hand_camera"}
    for name in cameras:
        assert obs[name].shape == (2, 24, 32, 3)
        assert obs[name].float().std() > 5.0
        assert not torch.equal(obs[name][0], obs[name][1])
    has_state = "rgb+state" in request.node.callspec.id
    assert ("state" in obs) == has_state
    if has_state:
        assert obs["state"].shape[1] > obs["proprioception"].shape[1]
    # joint positions and velocities, is_grasped, tool pose, goal
    assert obs["proprioception"].shape == (2, 9 + 9 + 1 + 7 + 3)
    assert torch.equal(obs["proprioception"][:, :9], obs["joint_position"])


def test_maniskill_vec_env__images_depend_on_the_episode_seed_alone(env: ManiSkillVecEnv) -> None:
    first, _ = env.reset(seed=[5, 6])
    for _ in range(5):  # beyond the end of the episode
        last, *_ = env.step(torch.full((2, 8), 0.5))
    again, _ = env.reset(seed=[6, 5])
    assert not torch.equal(first["base_camera"], last["base_camera"])
    assert torch.equal(first["base_camera"].flip(0), again["base_camera"])


def test_render_scenes__renders_each_state_and_lists_the_cameras(env: ManiSkillVecEnv) -> None:
    env.reset(seed=[5, 6])
    scenes = [env.scenes()]
    env.step(torch.full((2, 8), 0.5))
    scenes.append(env.scenes())
    images = env.render_scenes(torch.cat(scenes), (40, 60))
    assert images.shape == (4, 40, 60, 3)
    assert len({image.tobytes() for image in images}) == 4
    assert images.std() > 5.0
    with pytest.raises(
        ConfigError, match="PickCube-v1 has no camera 'side' for rendering; it has: render_camera"
    ):
        env.render_scenes(scenes[0], (40, 60), "side")
