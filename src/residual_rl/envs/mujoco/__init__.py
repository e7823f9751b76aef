"""MuJoCo physics and rendering for many envs."""
