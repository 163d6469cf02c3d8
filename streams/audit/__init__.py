"""Checks of what is stored and was published, against the log."""
