"""The command line: one file per command, thin. Only this package prints."""
