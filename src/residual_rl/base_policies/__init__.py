"""Frozen base policies: one file each, and the executor that all of them share."""
