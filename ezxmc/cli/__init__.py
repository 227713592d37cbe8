"""The command line: every command is a thin call of one library function."""
