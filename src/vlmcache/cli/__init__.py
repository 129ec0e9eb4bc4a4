"""The command line: one module a command, and one place where failures become exit codes."""
