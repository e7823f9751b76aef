"""Running policies on fixed episode seeds, comparing them, and showing the results."""
