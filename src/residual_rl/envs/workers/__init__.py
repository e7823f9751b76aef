"""Envs that are stepped in worker processes, for simulators that step one env at a time."""
