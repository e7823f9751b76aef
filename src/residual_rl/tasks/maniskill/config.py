"""Settings of the task `maniskill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class ManiSkillCfg(CheckedCfg):
    """Any task of ManiSkill 3, with any of its robots."""

    env_id: str = "PushCube-v1"
    """ManiSkill's name of the task."""
    robot_uids: str | None = None
    """ManiSkill's name of the robot; none is the task's own."""
    control_mode: str | None = None
    """What actions are: pd_joint_delta_pos, pd_ee_delta_pose, pd_ee_delta_pos, …; none is the robot's first, often pd_joint_delta_pos."""
    obs_mode: Literal["state", "rgb", "rgb+state"] = "state"
    """`rgb` observes the cameras' images and `proprioception`, and leaves out `state`, which holds what only a simulator knows."""
    reward_mode: str | None = None
    """normalized_dense, dense, sparse or none, as far as the task has them; none given is the task's first."""
    sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto"
    """`auto` is the GPU simulation where --sim-device is a GPU, and else worker processes on the CPU."""
    render_backend: str = "auto"
    """What draws: gpu, cpu (needs a software Vulkan driver), none. `auto` is none without images, and else what the simulation runs on."""
    max_episode_steps: PositiveInt | None = None
    """Steps after which an episode is cut off; none is the task's own."""
    ignore_terminations: bool = False
    """Neither success nor failure ends an episode: each lasts `max_episode_steps`, and success at its end counts for itself."""
    reconfiguration_freq: NonNegativeInt | None = None
    """Resets between two rebuilds of the scene, 0 for never; none is the task's own. Tasks whose objects differ from episode to episode
    rebuild each time on the CPU, and never on the GPU."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of all cameras' images; none leaves them as the task has them [px]."""
    num_workers: NonNegativeInt = 0
    """Worker processes of the CPU simulation, which share the worlds; 0 is as many as --num-threads."""
    task_modules: tuple[str, ...] = ()
    """Modules to import first, which register tasks and robots of your own with ManiSkill."""
