"""The feature store: a port, PostgreSQL behind it, its twin in memory, and reads of the past out of the history."""
