"""Sweeps: grids of settings, their trials and the ranking."""
