"""Cartesian goals of ManiSkill's tasks, one file each, for the base policy `ik`."""
