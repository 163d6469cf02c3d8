"""What every process has: settings, tasks, signals, the clock, errors."""
