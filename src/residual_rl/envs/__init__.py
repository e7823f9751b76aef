"""Vectorised envs: the interface, MuJoCo and ManiSkill."""
