"""Platform records -> unified events and item vectors; dead letters again."""
