"""Listing and transfer; the only room that knows huggingface_hub."""
