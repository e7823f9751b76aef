"""The command line: parse and call, nothing more."""
