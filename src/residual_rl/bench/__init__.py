"""Speed of stepping and training, compared with raw MuJoCo and Stable-Baselines3."""
