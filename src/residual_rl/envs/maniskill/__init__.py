"""ManiSkill's tasks as a vec_env: its GPU simulation in this process, or worlds of its CPU simulation in
worker processes."""
