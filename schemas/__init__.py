"""What an event, an item, a window and a profile are, and their bytes. Knows neither Kafka nor arrays of a model."""
