"""Envs in worker processes, for simulators that step one env at a time."""
