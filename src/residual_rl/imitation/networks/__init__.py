"""Networks of imitation policies."""
