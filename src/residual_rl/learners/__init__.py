"""Learners. Importing this package registers them, without importing torch."""

from residual_rl.learners import off_policy, ppo

__all__ = ["off_policy", "ppo"]
