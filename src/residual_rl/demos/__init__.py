"""Demonstrations: episodes, files, collection and replay."""
