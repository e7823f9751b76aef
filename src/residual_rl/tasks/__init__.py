"""Tasks. Importing this package registers them, without importing a simulator."""

from residual_rl.tasks import maniskill, so101_paper

__all__ = ["maniskill", "so101_paper"]
