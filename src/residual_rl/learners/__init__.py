"""Learners of the residual: each acts, observes transitions and updates; none steps an env or writes a file."""
