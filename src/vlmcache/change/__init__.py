"""Everything that alters a cache: planned first, as a value, and then executed."""
