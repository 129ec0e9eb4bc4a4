"""`serve`: the cache, read-only, as a hub endpoint for other machines."""
