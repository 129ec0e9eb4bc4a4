"""Backups: one tar stream, or a store that many share; the only room that knows fsspec."""
