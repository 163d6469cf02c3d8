"""From content to item vectors, and from windows to interest vectors. Knows arrays, not Kafka."""
