"""Workflows: definitions, the state of the scheduler, orders and runs."""
