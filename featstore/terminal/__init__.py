"""What a command shows on a terminal: progress, tables, errors."""
