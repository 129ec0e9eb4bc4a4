"""What vlmcache keeps for itself: a journal, and kept copies of models."""
