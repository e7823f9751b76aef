"""Demonstrations, their file format, and the training of base policies from them."""
