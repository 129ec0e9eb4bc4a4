"""`vlmcache move`."""
