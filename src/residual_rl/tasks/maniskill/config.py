"""Settings of the task `maniskill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from residual_rl.utils.sensitive import CodeNames, Sensitive
from residual_rl.utils.validation import CheckedCfg, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class ManiSkillCfg(CheckedCfg):
    """Any task of ManiSkill 3, with any of its robots."""

    env_id: Annotated[str, Sensitive("code", lambda env_id: ":" in env_id)] = "PushCube-v1"
    """Id of the ManiSkill task."""
    robot_uids: str | None = None
    """ManiSkill's id of the robot. None: the task's default."""
    control_mode: str | None = None
    """Control mode: pd_joint_delta_pos, pd_ee_delta_pose, pd_ee_delta_pos, … None: the robot's first, often
    pd_joint_delta_pos."""
    obs_mode: Literal["state", "rgb", "rgb+state"] = "state"
    """`rgb` observes the camera images and `proprioception`, without `state`, which holds privileged
    information."""
    reward_mode: str | None = None
    """normalized_dense, dense, sparse or none, if the task supports it. None: the task's first."""
    sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto"
    """`auto`: GPU simulation if --sim-device is a GPU, otherwise worker processes on the CPU."""
    render_backend: str = "auto"
    """Renderer: gpu, cpu (needs a software Vulkan driver), none. `auto`: none without images, otherwise the
    device of the simulation."""
    max_episode_steps: PositiveInt | None = None
    """Steps after which an episode is truncated. None: the task's own limit."""
    ignore_terminations: bool = False
    """Neither success nor failure ends an episode: each lasts `max_episode_steps`."""
    reconfiguration_freq: NonNegativeInt | None = None
    """Resets between two rebuilds of the scene, 0 for never. None: the task's own. Tasks with other objects
    in each episode rebuild at each reset on the CPU, and never on the GPU."""
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of all camera images [px]. None: as in the task."""
    num_workers: NonNegativeInt = 0
    """Worker processes of the CPU simulation; 0 means as many as --num-threads."""
    task_modules: CodeNames = ()
    """Modules to import first, which register custom tasks and robots with ManiSkill."""
