"""MuJoCo physics of many envs, and rendering of them."""
