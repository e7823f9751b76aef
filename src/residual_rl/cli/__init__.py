"""The command line, which parses arguments and calls the packages below."""
