"""From logs and checkpoints to releases: distilling towers, exporting encoders. Needs the extra `train`."""
