"""What each command does: one folder per command."""
