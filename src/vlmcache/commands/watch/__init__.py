"""`vlmcache watch`."""
