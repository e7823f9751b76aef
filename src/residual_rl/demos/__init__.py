"""Demonstrations: episodes, files of them, collection and replay."""
