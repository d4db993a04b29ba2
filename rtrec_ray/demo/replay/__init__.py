"""The demonstration on a real click log: the whole loop in compressed time."""
