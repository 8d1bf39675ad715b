"""What the commands print: tables, progress, failures."""
