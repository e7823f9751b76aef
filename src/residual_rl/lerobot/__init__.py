"""Everything that needs LeRobot: policies, datasets, and the training of ACT."""
