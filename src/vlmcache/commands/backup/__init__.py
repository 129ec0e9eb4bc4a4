"""Backups: one tar stream, or a store that many share; what alone knows fsspec."""
