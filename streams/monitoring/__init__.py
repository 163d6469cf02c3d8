"""What is counted, logged and alarmed."""
