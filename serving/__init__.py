"""Answers on HTTP: recall, features and ranking in one process, degraded by name and never failed by what is away."""
