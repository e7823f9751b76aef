"""Evaluation of policies on fixed episode seeds, comparisons, plots and reports."""
