"""The SQL of the stores, a file a store."""
