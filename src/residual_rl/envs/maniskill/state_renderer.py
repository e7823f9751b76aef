"""Renders stored states of ManiSkill envs in a separate scene of this process."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_rl.envs.maniskill.factory import make_env
from residual_rl.envs.maniskill.spec import ManiSkillEnvCfg
from residual_rl.errors import ConfigError


class StateRenderer:
    """Renders the states that `ManiSkillEnv.states` returned. The scene is created at the first call.

    Args:
        cfg: the settings of the envs.
        render_backend: ManiSkill's render backend, `gpu` or `cpu`.
    """

    def __init__(self, cfg: ManiSkillEnvCfg, render_backend: str):
        self._cfg = dataclasses.replace(
            cfg, obs_mode="state", sim_backend="physx_cpu", render_backend=render_backend
        )
        self._env: Any = None
        self._size: tuple[int, int] | None = None

    def __call__(self, scenes: Tensor, size: tuple[int, int], camera: str | None = None) -> NDArray[np.uint8]:
        """Images [N, H, W, 3] uint8 of `scenes` [N, S].

        Args:
            scenes: states.
            size: height and width of the images [px].
            camera: one of the task's cameras for people; None: the first, usually `render_camera`.

        Raises:
            ConfigError: the task has no such camera.
        """
        # the size of a camera is fixed when the env is created
        if self._size != size:
            self.close()
            cameras = {"height": size[0], "width": size[1]}
            self._env = make_env(self._cfg, 1, render_mode="rgb_array", human_render_camera_configs=cameras)
            self._size = size
        known = list(self._env.scene.human_render_cameras)
        if camera is not None and camera not in known:
            raise ConfigError(
                f"{self._cfg.env_id} has no camera {camera!r} for rendering; it has: {', '.join(known)}"
            )
        episode, images = None, []
        # a row consists of the episode's seed and the simulator's state
        for scene in scenes.cpu():
            seed, state = int(scene[0]), scene[None, 1:].float()
            if seed != episode:  # the seed determines the objects of the scene
                self._env.reset(seed=seed)
                episode = seed
            self._env.set_state(state)
            image = self._env.render_rgb_array(camera or known[0])
            images.append(torch.as_tensor(image)[0].cpu().numpy())
        return np.stack(images)

    def close(self) -> None:
        """Free the scene."""
        if self._env is not None:
            self._env.close()
            self._env = None
