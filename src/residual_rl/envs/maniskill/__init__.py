"""ManiSkill's tasks as a vec_env: its GPU simulation in this process, or its CPU simulation in
worker processes."""
