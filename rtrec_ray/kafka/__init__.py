"""Kafka: the port, its three adapters, the codec between bytes and columns, dead letters."""
