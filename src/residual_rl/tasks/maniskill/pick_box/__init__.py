"""`PickBox-v1`: pick a box from a table and put it into a basket."""
