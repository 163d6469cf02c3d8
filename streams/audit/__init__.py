"""Checks stored windows and published vectors against the log."""
