"""Serving a policy to robots and to other programs over the protocols of GR00T and openpi."""
