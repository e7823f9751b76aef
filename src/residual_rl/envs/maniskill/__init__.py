"""ManiSkill's tasks as a vec_env: the GPU simulation in this process, or the CPU simulation in workers."""
