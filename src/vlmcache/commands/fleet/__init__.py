"""`fleet`: the same commands on the nodes of a Ray cluster."""
