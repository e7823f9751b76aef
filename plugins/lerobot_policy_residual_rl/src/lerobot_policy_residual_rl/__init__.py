"""Registers the simulated SO-101, its task and residual policies with LeRobot, which imports this module."""

from lerobot_policy_residual_rl.configuration_residual_rl import ResidualRlConfig as ResidualRlConfig
from lerobot_policy_residual_rl.env import SO101PaperEnvConfig as SO101PaperEnvConfig
from lerobot_policy_residual_rl.robot import SO101Sim as SO101Sim
from lerobot_policy_residual_rl.robot import SO101SimConfig as SO101SimConfig
from lerobot_policy_residual_rl.teleoperators import SO101SimLeader as SO101SimLeader
from lerobot_policy_residual_rl.teleoperators import SO101SimLeaderConfig as SO101SimLeaderConfig
from lerobot_policy_residual_rl.teleoperators import SO101SimPolicy as SO101SimPolicy
from lerobot_policy_residual_rl.teleoperators import SO101SimPolicyConfig as SO101SimPolicyConfig

__version__ = "0.1.0"
