"""Imitation algorithms: losses and samplers."""
