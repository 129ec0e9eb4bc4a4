"""The inspection core: what is in a cache folder, what is wrong with it, and who uses it."""
