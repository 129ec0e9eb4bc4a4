"""`vlmcache status`."""
