"""What ManiSkill does at length on the CPU, done in short, with the same results: for worker processes, which step nothing else."""

from __future__ import annotations

import gc
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

_REBUILDS = 16
"""Scenes that are built anew between two garbage collections."""


def read_poses_at_once() -> None:
    """Have ManiSkill's `Pose.create` turn a list of one SAPIEN pose into a tensor at once, with the same bits.

    A step of a task reads some ten poses, each of them through three NumPy arrays and four tensors: a sixth of the step.
    """
    import sapien
    from mani_skill.utils.structs import Pose

    at_length = Pose.create.__func__

    def create(cls: Any, pose: Any, device: Any = None) -> Any:
        is_one = isinstance(pose, list) and len(pose) == 1 and isinstance(pose[0], sapien.Pose)
        if is_one and (device is None or torch.device(device).type == "cpu"):
            return cls(raw_pose=torch.from_numpy(np.concatenate((pose[0].p, pose[0].q))[None]))
        return at_length(cls, pose, device)

    Pose.create = classmethod(create)


def collect_garbage_seldom() -> None:
    """Have ManiSkill collect garbage once in `_REBUILDS` times that it builds a scene anew.

    It does so each time, for the memory of a GPU; with several worlds in a process, that takes two thirds of a reset and more. A scene
    without images leaves a tenth of a megabyte behind.
    """
    from mani_skill.envs import sapien_env

    count = itertools.count(1)

    def collect() -> None:
        if next(count) % _REBUILDS == 0:
            gc.collect()

    sapien_env.gc = SimpleNamespace(collect=collect)
