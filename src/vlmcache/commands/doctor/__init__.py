"""`vlmcache doctor`."""
