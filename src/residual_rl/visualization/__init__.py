"""Videos and viewers."""
