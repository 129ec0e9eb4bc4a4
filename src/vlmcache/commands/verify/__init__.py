"""`vlmcache verify`, with `--repair` too."""
