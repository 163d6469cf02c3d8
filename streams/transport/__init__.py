"""Kafka through Faust and aiokafka: topics, record batches, readers, senders. Knows no profile."""
