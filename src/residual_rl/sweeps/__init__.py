"""Sweeps: a grid of settings, its trials and their ranking."""
