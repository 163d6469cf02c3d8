"""Metrics, logs and drift alarms."""
