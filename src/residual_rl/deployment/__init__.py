"""The control loop of an arm, and learning on it."""
