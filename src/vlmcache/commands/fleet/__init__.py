"""`vlmcache fleet`: the commands of one machine on the nodes of a Ray cluster."""
