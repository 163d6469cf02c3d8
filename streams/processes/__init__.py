"""The long-running processes: worker, read replica, archiver."""
