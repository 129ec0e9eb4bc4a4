"""`init`, and `pull --add`: config.yaml is written, and only added to."""
