"""Run folders, checkpoints and logs."""
