"""The jobs that start training."""
