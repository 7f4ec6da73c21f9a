"""The command line: one thin file per command. Nothing heavier than click is imported before a command runs."""
