"""Shared by every process: settings, tasks, signals, the clock, errors."""
