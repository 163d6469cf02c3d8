"""What runs: worker, replica, archiver."""
