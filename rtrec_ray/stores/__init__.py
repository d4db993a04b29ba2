"""Stores: each a port, PostgreSQL behind it, and a twin in memory that passes the same contract suite."""
