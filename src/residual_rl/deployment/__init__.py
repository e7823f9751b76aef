"""Policies on an arm: the control loop, its limits and its safe stop."""
