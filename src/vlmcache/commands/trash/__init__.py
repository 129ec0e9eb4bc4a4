"""`vlmcache undo` and `vlmcache trash`."""
