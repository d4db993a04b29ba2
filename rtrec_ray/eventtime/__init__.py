"""Event time, pure: watermarks, tiles, windows, aggregates. No clock, no Kafka, no SQL."""
