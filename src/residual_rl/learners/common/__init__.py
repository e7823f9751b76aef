"""What all learners are built from."""
