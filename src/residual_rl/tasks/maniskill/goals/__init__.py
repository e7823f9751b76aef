"""Cartesian goals of ManiSkill tasks for the base policy `ik`, one file each.

Importing this package registers them.
"""

from residual_rl.tasks.maniskill.goals import peg_insertion_side, pick_box, pick_cube, push_cube, stack_cube

__all__ = ["peg_insertion_side", "pick_box", "pick_cube", "push_cube", "stack_cube"]
