"""`PickBox-v1`: a box is lifted out of a basket and held at a goal."""
