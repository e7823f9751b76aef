"""Components shared by all learners."""
