"""Workflow, pure: conditions, definition, the scheduler's decisions. No clock, no SQL, no Ray."""
