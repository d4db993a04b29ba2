"""Sources of events that are not live users: recorded logs, and worlds of our own making."""
