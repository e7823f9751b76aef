"""Anybody's Gymnasium envs, stepped by worker processes of this or of another interpreter."""
