"""The three scripts and one file a command."""
