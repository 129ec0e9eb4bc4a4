"""`vlmcache schedule`."""
