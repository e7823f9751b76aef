"""Tasks. Importing this package registers them, without importing a simulator."""

from residual_rl.tasks import gymnasium, maniskill, so101_paper

__all__ = ["gymnasium", "maniskill", "so101_paper"]
