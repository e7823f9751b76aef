"""Images of `TaskEnv` after resets. The contract tests cover the rest."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from residual_rl.envs.mujoco.physics import MujocoPhysics
from residual_rl.envs.task_env import TaskEnv
from residual_rl.envs.vec_env import VecEnv
from residual_rl.errors import ConfigError
from residual_rl.factory import make_vec_env


def drawn(scenes: np.ndarray) -> np.ndarray:
    """Fake images [N, 4, 4, 3] whose colour encodes the position of the sheet in each scene."""
    position = np.abs(scenes[:, 6:9] * 255).astype(np.uint8)
    return np.broadcast_to(position[:, None, None], (len(scenes), 4, 4, 3)).copy()


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of envs that each call rendered."""
    calls: list[int] = []

    def render(physics: MujocoPhysics, scenes: Any, cameras: Any, size: Any, smooth: bool = False) -> Any:
        calls.append(len(scenes))
        return {camera: drawn(scenes.numpy()) for camera in cameras}

    monkeypatch.setattr(MujocoPhysics, "render", render)
    return calls


def make() -> VecEnv:
    return make_vec_env(
        "so101-paper",
        3,
        num_threads=1,
        obs_mode="rgb+state",
        obs_cameras=("top",),
        image_size=(4, 4),
        max_episode_steps=3,
    )


def test_task_env__renders_only_the_envs_that_were_reset(rendered: list[int]) -> None:
    env = make()
    assert isinstance(env, TaskEnv)
    env.reset(seed=5)
    obs, _ = env.reset(seed=[77], mask=torch.tensor([False, True, False]))
    assert rendered == [3, 1]
    images = [obs["top"]]
    for _ in range(3):
        obs, _, terminated, truncated, info = env.step(torch.zeros(3, 6))
        images.append(obs["top"])
        assert torch.equal(obs["top"], torch.from_numpy(drawn(env.scenes().numpy())))
        env.reset(seed=[78], mask=torch.tensor([False, True, False]))
    assert (terminated | truncated).tolist() == [True, False, True]
    assert rendered == [3, 1, 3, 1, 3, 1, 3, 2, 1]  # the episodes of envs 0 and 2 end in the last step
    ended, final = info["_final_obs"], info["final_obs"]["top"]
    assert torch.equal(final, torch.from_numpy(drawn(info["final_scenes"].numpy())))
    assert not torch.equal(final[ended], obs["top"][ended])
    assert torch.equal(final[~ended], obs["top"][~ended])


def test_mujoco_physics__subclass_must_define_write_episode() -> None:
    class Unfinished(MujocoPhysics):
        """Lacks `write_episode`."""

    with pytest.raises(TypeError, match="write_episode"):
        Unfinished(mujoco.MjModel.from_xml_string("<mujoco/>"), 1, (1,), {})  # type: ignore[abstract]


@pytest.mark.parametrize("seed", [-1, 2**62, 2**64, [0, 2**64], [-2, 0]])
def test_vec_env_reset__seed_out_of_range_is_an_error(seed: Any) -> None:
    env = make_vec_env("so101-paper", 2, num_threads=1)
    with pytest.raises(ConfigError, match="the seed of an episode must be from 0 to 4611686018427387903"):
        env.reset(seed=seed)
    env.close()
