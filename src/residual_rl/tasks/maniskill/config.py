"""Settings of the task `maniskill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.utils.sensitive import CodeNames, Sensitive
from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, NumThreads, Pixels, PositiveInt


@dataclass(frozen=True)
class ManiSkillCfg(CheckedCfg):
    """Any task of ManiSkill 3, with any of its robots."""

    env_id: Annotated[str, Sensitive("code", lambda env_id: ":" in env_id)] = "PushCube-v1"
    """Id of the ManiSkill task."""
    robot_uids: str | None = None
    """Id of the robot. None: the task's default."""
    control_mode: str | None = None
    """Control mode: pd_joint_delta_pos, pd_ee_delta_pose, pd_ee_delta_pos, … None: the robot's first, often
    pd_joint_delta_pos."""
    obs_mode: Literal["state", "rgb", "rgb+state"] = "state"
    """Observations. `rgb` replaces `state`, which contains privileged information, by camera images and
    `proprioception`."""
    reward_mode: str | None = None
    """Reward: normalized_dense, dense, sparse or none, if the task supports it. None: the task's first."""
    sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto"
    """Simulation backend. `auto`: the GPU simulation if --sim-device is a GPU, otherwise worker processes on
    the CPU."""
    render_backend: str = "auto"
    """Renderer: gpu, cpu (needs a software Vulkan driver) or none. `auto`: none without images, otherwise
    gpu, or cpu without a GPU."""
    max_episode_steps: PositiveInt | None = None
    """Steps after which an episode is truncated. None: the limit of the task."""
    ignore_terminations: bool = False
    """Do not end episodes at success or failure: each lasts `max_episode_steps`."""
    reconfiguration_freq: NonNegativeInt | None = None
    """Number of resets between two rebuilds of the scene; 0 means never. None: the value of the task. Tasks
    whose objects differ between episodes rebuild at each reset on the CPU, and never on the GPU."""
    image_size: tuple[Pixels, Pixels] | None = None
    """Height and width of all camera images [px]. None: those of the task."""
    num_workers: NumThreads = 0
    """Number of worker processes of the CPU simulation; 0 means as many as --num-threads."""
    task_modules: CodeNames = ()
    """Modules to import first, which register custom tasks and robots with ManiSkill."""
