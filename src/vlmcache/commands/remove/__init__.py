"""`vlmcache rm` and `vlmcache clean`."""
