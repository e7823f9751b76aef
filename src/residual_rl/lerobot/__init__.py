"""Everything that needs LeRobot."""
