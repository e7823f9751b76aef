"""Robot arms: descriptions, kinematics, units and Cartesian goals."""
