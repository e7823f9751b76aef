"""Registers the simulated SO-101, its task and residual policies with LeRobot, which imports this module."""

from lerobot_policy_residual_rl.configuration_residual_rl import ResidualRlConfig as ResidualRlConfig

__version__ = "0.1.0"
