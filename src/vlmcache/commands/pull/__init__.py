"""`vlmcache pull`."""
