"""The demonstration in the drifting world: what real-time features and real-time training are worth."""
