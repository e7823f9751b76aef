"""Registers the simulated SO-101, its task and residual policies with LeRobot, which imports this module."""

__version__ = "0.1.0"
