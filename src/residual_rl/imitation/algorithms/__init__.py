"""Imitation algorithms: their losses and samplers."""
